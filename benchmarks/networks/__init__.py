"""How fast networks are evaluated and trained, in which way, against the device's own matrix products."""

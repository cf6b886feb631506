"""What a fleet costs: sizing from the frontier, measured costs of every shared part, and what they say about many replicas."""

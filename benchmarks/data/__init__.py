"""How fast real images are read, and whether training waits for them."""

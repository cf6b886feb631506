"""What the project says about itself in numbers, and the commands that measure it."""

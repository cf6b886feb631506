"""What image files cost to make, by format, settings and size: `python -m benchmarks.encoding`."""

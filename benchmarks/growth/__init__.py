"""How cost grows with steps, image size, concurrency, families and waiting jobs: `python -m benchmarks.growth`."""

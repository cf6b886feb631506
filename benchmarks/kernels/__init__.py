"""The kernels, timed beside what one would write or take instead: `python -m benchmarks.kernels`."""

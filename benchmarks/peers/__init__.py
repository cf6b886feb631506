"""Other servers draw with the same students on the same machine: `python -m benchmarks.peers`."""

"""`python -m benchmarks.peers`."""

import sys

from benchmarks.peers.commands import main

sys.exit(main(sys.argv[1:]))

"""`python -m benchmarks.growth`."""

import sys

from benchmarks.growth.commands import main

sys.exit(main(sys.argv[1:]))

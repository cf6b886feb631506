"""`python -m deploy.drills`."""

import sys

from deploy.drills.commands import main

sys.exit(main(sys.argv[1:]))

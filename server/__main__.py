"""`python -m server` is `stepdial serve`."""

import sys

from server.commands import serve

sys.exit(serve())

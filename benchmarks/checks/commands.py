"""The command `stepdial check`. What it checks with is imported after the arguments have been read."""

import asyncio
import sys
from collections.abc import Sequence

from benchmarks.command_line import NEEDED, given


def check(arguments: Sequence[str]) -> int:
    """Try one promise; arguments as on the command line.

    Returns the exit status: 0 if it was kept, 1 if not or if the server did not come up, 2 for a wrong argument.
    """
    try:
        from benchmarks.checks.settings import CheckSettings
        from benchmarks.checks.trial import trial
        from benchmarks.load.client import NotServed
    except ImportError as error:
        print(f"{NEEDED} ({error})", file=sys.stderr)
        return 1
    settings = given(CheckSettings, arguments, name="stepdial check")
    if settings is None:
        return 2
    try:
        verdict = asyncio.run(trial(settings))
    except NotServed as error:
        print(f"stepdial check: {error}", file=sys.stderr)
        return 1
    if settings.out:
        verdict.write(settings.out)
    print("\n".join(verdict.lines()))
    return 0 if verdict.kept else 1

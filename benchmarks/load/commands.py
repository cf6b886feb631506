"""The command `stepdial bench`. What it measures with is imported after the arguments have been read."""

import asyncio
import sys
from collections.abc import Sequence

from benchmarks.command_line import NEEDED, given
from benchmarks.load.settings import BenchSettings


def bench(arguments: Sequence[str]) -> int:
    """Measure a server; arguments as on the command line.

    Returns the exit status: 0, 1 when no server answers or a package is missing, 2 for a wrong argument.
    """
    settings = given(BenchSettings, arguments, name="stepdial bench")
    if settings is None:
        return 2
    try:
        from benchmarks.load.client import NotServed
        from benchmarks.load.measure import measure
        from benchmarks.load.plot import plot
    except ImportError as error:
        print(f"{NEEDED} ({error})", file=sys.stderr)
        return 1
    try:
        result = asyncio.run(measure(settings))
    except NotServed as error:
        print(f"stepdial bench: {error}", file=sys.stderr)
        return 1
    if settings.out:
        result.write(settings.out)
    if settings.plot:
        plot(result, settings.plot)
    return 0

"""The command `stepdial bench`. What it measures with is imported after the arguments have been read."""

import asyncio
import sys
from collections.abc import Sequence

from pydantic import ValidationError
from pydantic_settings import CliApp, CliSettingsSource

from benchmarks.load.settings import BenchSettings

NEEDED = "stepdial: this needs the packages of an extra: pip install -e '.[bench]'"


def bench(arguments: Sequence[str]) -> int:
    """Measure a server; arguments as on the command line.

    Returns the exit status: 0, 1 when no server answers or a package is missing, 2 for a wrong argument.
    """
    source: CliSettingsSource = CliSettingsSource(BenchSettings, cli_prog_name="stepdial bench")
    try:
        settings = CliApp.run(BenchSettings, cli_args=list(arguments), cli_settings_source=source)
    except ValidationError as error:
        for wrong in error.errors(include_url=False):
            flag = "".join(f"--{part}: " for part in wrong["loc"]).replace("_", "-")
            print(f"stepdial bench: {flag}{wrong['msg'].removeprefix('Value error, ')}", file=sys.stderr)
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

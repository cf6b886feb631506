"""The command `stepdial check`. What it checks with is imported after the arguments have been read."""

import asyncio
import sys
from collections.abc import Sequence

from pydantic import ValidationError
from pydantic_settings import CliApp, CliSettingsSource

from benchmarks.load.commands import NEEDED


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
    source: CliSettingsSource = CliSettingsSource(CheckSettings, cli_prog_name="stepdial check")
    try:
        settings = CliApp.run(CheckSettings, cli_args=list(arguments), cli_settings_source=source)
    except ValidationError as error:
        for wrong in error.errors(include_url=False):
            print(f"stepdial check: {'.'.join(map(str, wrong['loc']))}: {wrong['msg']}", file=sys.stderr)
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

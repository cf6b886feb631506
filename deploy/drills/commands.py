"""The command `python -m deploy.drills`. What it drills with is imported after the arguments have been read."""

import asyncio
import signal
import sys
from collections.abc import Sequence

from benchmarks.command_line import NEEDED, given


def main(arguments: Sequence[str]) -> int:
    """Run drills, or write their table; arguments as on the command line.

    Returns the exit status: 0 if every promise was kept, 1 if not or if the stack did not do its part, 2 for a wrong
    argument, 130 after SIGINT or SIGTERM.
    """
    try:
        from benchmarks.load.client import NotServed
        from deploy.drills.orders import Unexpected
        from deploy.drills.settings import DrillSettings
        from deploy.drills.stack import StackBroken
        from deploy.drills.table import write_table
    except ImportError as error:
        print(f"{NEEDED} ({error})", file=sys.stderr)
        return 1
    settings = given(DrillSettings, arguments, name="python -m deploy.drills")
    if settings is None:
        return 2
    if "table" in settings.names:
        write_table(settings.results, settings.file)
        return 0
    stopped: list[str] = []
    try:
        return asyncio.run(_drills(settings, stopped))
    except asyncio.CancelledError:
        if not stopped:  # nobody asked for it: a bug
            raise
        print(f"deploy.drills: {stopped[0]}: what was started is ended", file=sys.stderr)
        return 130
    except (NotServed, StackBroken, Unexpected) as error:
        print(f"deploy.drills: {error}", file=sys.stderr)
        return 1


async def _drills(settings, stopped: list[str]) -> int:  # type: ignore[no-untyped-def]
    """Run the drills on one stack; return the exit status. Raises CancelledError after a signal, whose name it notes."""
    from deploy.drills.compose import compose
    from deploy.drills.drill import drill
    from deploy.drills.loopback import loopback

    this, broken = asyncio.current_task(), 0

    def stop(name: str) -> None:
        stopped.append(name)
        if this:
            this.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop, number.name)
    async with loopback(settings) if settings.stack == "loopback" else compose(settings) as stack:
        for name in settings.drills:
            result = await drill(name, stack, settings)
            settings.results.mkdir(exist_ok=True)
            result.write(settings.results / f"{name}-{stack.kind}.json")
            print("\n".join(result.lines()), flush=True)
            broken += not result.kept
    return 1 if broken else 0

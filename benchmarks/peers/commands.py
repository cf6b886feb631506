"""The command `python -m benchmarks.peers`. What it measures with is imported after the arguments have been read."""

import asyncio
import signal
from collections.abc import Coroutine, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field
from pydantic_settings import BaseSettings, CliSubCommand, SettingsConfigDict

from benchmarks.command_line import ended, given_command

R = TypeVar("R")
ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
STUDENTS, WHOLE = HERE / "students.json", HERE / "whole.json"


class Measure(BaseModel):
    """Serve a family by every server in turn, several rounds, and write what each did under every load (Linux)."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    family: Path = ROOT / "families" / "shapes"
    """Folder of the family."""
    whole: bool = False
    """Serve its student for the whole dial alone, so that every position is drawn by one network."""
    environment: Path = ROOT / ".venv" / "peers"
    """Where the other servers are installed (make peers-environment)."""
    servers: str = ""
    """Names of the servers to measure, with semicolons between them; default all."""
    rounds: int = Field(default=3, ge=1)
    """How often each server has its turn; the order is rotated."""
    seconds: float = Field(default=8.0, gt=0)
    """How long each load is measured, in seconds; it goes on for a quarter of that before."""
    out: Path = STUDENTS
    """JSON file for the result."""
    note: str = ""
    """What readers of the result have to know, such as what the machine was shared with."""


class Report(BaseModel):
    """Write the tables of the results between their marks in Markdown files, and draw the picture."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    students: Path = STUDENTS
    """File of the contest with one network for each position."""
    whole: Path = WHOLE
    """File of the contest with the student for the whole dial alone."""
    file: Path = ROOT / "docs" / "performance.md"
    """Markdown file."""
    picture: Path = ROOT / "docs" / "peers.png"
    """Picture file."""


class Peers(BaseSettings):
    """Other servers draw with the same students on the same machine, alternating in one run."""

    model_config = SettingsConfigDict(
        extra="ignore", use_attribute_docstrings=True, cli_kebab_case=True, cli_hide_none_type=True,
        cli_implicit_flags=True,
    )  # fmt: skip

    measure: CliSubCommand[Measure]
    """Measure every server in turn."""
    report: CliSubCommand[Report]
    """Write the tables and draw the picture."""


def main(arguments: Sequence[str]) -> int:
    """Measure or report; arguments as on the command line.

    Returns the exit status: 0, 1 when something cannot be read, started or measured, 2 for a wrong argument,
    130 after SIGINT or SIGTERM.
    """
    name = "python -m benchmarks.peers"
    command = given_command(Peers, arguments, name=name)
    if isinstance(command, Measure):
        return ended(lambda: _measure(command), name=name)
    if isinstance(command, Report):
        return ended(lambda: _report(command), name=name)
    return 2


def _measure(command: Measure) -> None:
    from benchmarks.peers.contest import contest
    from benchmarks.peers.peer import PEERS
    from benchmarks.peers.whole import only_whole
    from diffusion.family import open_family

    names = [name.strip() for name in command.servers.split(";") if name.strip()]
    unknown = set(names) - {peer.name for peer in PEERS}
    if unknown:
        raise ValueError(f"servers: {', '.join(sorted(unknown))}; known are {'; '.join(peer.name for peer in PEERS)}")
    if not (command.environment / "bin" / "python").exists():
        raise ValueError(f"environment {command.environment.name}: nothing is installed there; make peers-environment")
    peers = [peer for peer in PEERS if not names or peer.name in names]
    with TemporaryDirectory() as folder:
        family = only_whole(command.family, Path(folder)) if command.whole else open_family(command.family)
        measuring = contest(
            family, peers, command.environment, rounds=command.rounds, seconds=command.seconds, note=command.note
        )
        asyncio.run(_until_told(measuring)).write(command.out)


async def _until_told(work: Coroutine[Any, Any, R]) -> R:
    """Return what the work returns; SIGTERM ends it as Ctrl-C does, and with it every server that was started."""
    this = asyncio.current_task()
    assert this is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this.cancel)
    return await work


def _report(command: Report) -> None:
    from benchmarks.peers.picture import draw
    from benchmarks.peers.report import write_tables
    from benchmarks.peers.result import read_contest

    contests = {"students": read_contest(command.students), "whole": read_contest(command.whole)}
    write_tables(contests, command.file)
    draw(contests, command.picture)

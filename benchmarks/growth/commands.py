"""The command `python -m benchmarks.growth`. What it measures with is imported after the arguments have been read."""

import asyncio
import signal
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field
from pydantic_settings import BaseSettings, CliSubCommand, SettingsConfigDict

from benchmarks.command_line import ended, given_command

ROOT = Path(__file__).parents[2]
RESULT = Path(__file__).parent / "cpu.json"


class Measure(BaseModel):
    """Measure every curve with servers of its own, the points of each in turns, and write them (Linux)."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    family: Path = ROOT / "families" / "shapes"
    """Folder of the family."""
    rounds: int | None = Field(default=None, ge=1)
    """How often every point has its turn; by default 3."""
    seconds: float | None = Field(default=None, gt=0)
    """How long each load is measured, in seconds; by default 1.5. It goes on for a quarter of that before."""
    small: bool = False
    """Few and small points: whether it works, in a minute."""
    out: Path = RESULT
    """JSON file for the result."""
    note: str = ""
    """What readers of the result have to know, such as what the machine was shared with."""


class Report(BaseModel):
    """Write the tables of a result between their marks in a Markdown file, and draw the picture."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    result: Path = RESULT
    """File of the result."""
    file: Path = ROOT / "docs" / "performance.md"
    """Markdown file."""
    picture: Path = ROOT / "docs" / "growth.png"
    """Picture file."""


class Growth(BaseSettings):
    """How cost grows with steps, image size, clients, families and waiting jobs."""

    model_config = SettingsConfigDict(
        extra="ignore", use_attribute_docstrings=True, cli_kebab_case=True, cli_hide_none_type=True,
        cli_implicit_flags=True,
    )  # fmt: skip

    measure: CliSubCommand[Measure]
    """Measure every curve."""
    report: CliSubCommand[Report]
    """Write the tables and draw the picture."""


def main(arguments: Sequence[str]) -> int:
    """Measure or report; arguments as on the command line.

    Returns the exit status: 0, 1 when something cannot be read, started or measured, 2 for a wrong argument,
    130 after SIGINT or SIGTERM.
    """
    name = "python -m benchmarks.growth"
    command = given_command(Growth, arguments, name=name)
    if isinstance(command, Measure):
        return ended(lambda: _measure(command), name=name)
    if isinstance(command, Report):
        return ended(lambda: _report(command), name=name)
    return 2


def _measure(command: Measure) -> None:
    from benchmarks.growth.budget import budget
    from benchmarks.growth.measure import measure

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does, and with it every server
    asked = budget(rounds=command.rounds, seconds=command.seconds, small=command.small)
    asyncio.run(measure(command.family, asked, command.note)).write(command.out)


def _report(command: Report) -> None:
    from benchmarks.growth.picture import draw
    from benchmarks.growth.report import write_tables
    from benchmarks.growth.result import read

    found, measured = read(command.result)
    write_tables(found, measured, command.file)
    draw(measured, command.picture)

"""The command `stepdial scale`. What it computes and measures with is imported after the arguments have been read."""

import asyncio
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_settings import BaseSettings, CliSubCommand, SettingsConfigDict

from benchmarks.command_line import NEEDED, given_command
from benchmarks.load.wishes import weights

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
COSTS, TRIALS = RESULTS / "scale-costs.json", RESULTS / "scale-queueing.json"
SHAPES = ROOT / "families" / "shapes"


class _Command(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    family: Path = SHAPES
    """Folder of the family."""
    costs: Path = COSTS
    """File of measured costs, as `stepdial scale measure` writes it."""


class Size(_Command):
    """Tell what each dial position asks of a replica, and how many replicas a load takes."""

    mix: str = "1:5,4:3,16:1"
    """Dial positions of the requests and their weights."""
    rate: float = Field(default=100.0, gt=0)
    """Requests a second, of one image each, at the busiest time."""
    utilisation: float = Field(default=0.6, gt=0, lt=1)
    """Share of its capacity that a replica is planned to be used at."""
    spare: int = Field(default=1, ge=0)
    """Replicas that may be gone while the others still answer everybody."""
    price: float | None = Field(default=None, gt=0)
    """What one replica costs an hour, in any currency; then the price of a million images is told, too."""

    @field_validator("mix")
    @classmethod
    def _is_mix(cls, text: str) -> str:
        if "auto" in weights(text):
            raise ValueError("auto is no position that could be sized for; give the positions that it gets")
        return text


class Measure(_Command):
    """Measure what one replica and its requests take of Redis, HAProxy and Prometheus (Linux; all three installed)."""

    small_family: Path = ROOT / "families" / "digits"
    """Family of replicas that only wait."""
    balancer: Path = ROOT / "deploy" / "haproxy" / "haproxy.cfg"
    """HAProxy's configuration; a backend with the replica that is measured is put beside it."""
    out: Path = COSTS
    """JSON file for the costs."""
    note: str = ""
    """What readers of the costs have to know, such as what the machine was shared with."""


class Simulate(_Command):
    """Simulate how long requests take behind a balancer, by load, number of replicas and the balancer's policy."""

    out: Path = TRIALS
    """JSON file for what came out."""


class Report(_Command):
    """Write the tables of sizing and scale between their marks in Markdown files, and draw the pictures."""

    trials: Path = TRIALS
    """File of simulated queueing, as `stepdial scale simulate` writes it."""
    file: tuple[Path, ...] = (ROOT / "docs" / "operations.md", ROOT / "docs" / "scale.md")
    """Markdown files."""
    pictures: Path = ROOT / "docs"
    """Folder for fleet.png and queueing.png."""


class Scale(BaseSettings):
    """What a fleet takes: sizing from the frontier, costs measured, and what they say about many replicas."""

    model_config = SettingsConfigDict(
        env_prefix="STEPDIAL_SCALE_", extra="ignore", use_attribute_docstrings=True, cli_kebab_case=True,
        cli_hide_none_type=True,
    )  # fmt: skip

    size: CliSubCommand[Size]
    """Tell what each dial position asks of a replica, and how many replicas a load takes."""
    measure: CliSubCommand[Measure]
    """Measure what one replica and its requests take of Redis, HAProxy and Prometheus."""
    simulate: CliSubCommand[Simulate]
    """Simulate how long requests take behind a balancer."""
    report: CliSubCommand[Report]
    """Write the tables of sizing and scale into Markdown files, and draw the pictures."""


def scale(arguments: Sequence[str]) -> int:
    """Size, measure or report; arguments as on the command line.

    Returns the exit status: 0, 1 when something cannot be read, started or measured, 2 for a wrong argument.
    """
    command = given_command(Scale, arguments, name="stepdial scale")
    if command is None:
        return 2
    try:
        return _run(command)
    except ImportError as error:
        print(f"{NEEDED} ({error})", file=sys.stderr)
        return 1


def _run(command: object) -> int:
    from benchmarks.load.client import NotServed
    from benchmarks.scale.visitor import Disturbed
    from diffusion.family import FamilyError

    failed = False
    try:
        if isinstance(command, Measure):
            _measure(command)
        elif isinstance(command, Simulate):
            _simulate(command)
        elif isinstance(command, Report):
            _report(command)
        elif isinstance(command, Size):
            _size(command)
    except* (NotServed, Disturbed, FamilyError, ValueError, OSError) as errors:
        for error in _leaves(errors):
            print(f"stepdial scale: {error}", file=sys.stderr)
        failed = True
    return int(failed)


def _leaves(group: BaseException) -> Iterator[BaseException]:
    """Yield the errors of a group of groups."""
    if isinstance(group, BaseExceptionGroup):
        for error in group.exceptions:
            yield from _leaves(error)
    else:
        yield group


def _size(command: Size) -> None:
    from benchmarks.scale.costs import read_costs
    from benchmarks.scale.facts import measured, server_on
    from benchmarks.scale.report import load_lines, positions_table

    frontier = measured(command.family)
    server = server_on(frontier, read_costs(command.costs))
    mix = {int(steps): weight for steps, weight in weights(command.mix).items()}
    lines = load_lines(
        frontier, server, mix, command.rate, utilisation=command.utilisation, spare=command.spare, price=command.price
    )
    print("\n".join([positions_table(frontier, server, command.utilisation), *lines]))


def _measure(command: Measure) -> None:
    from benchmarks.scale.measure import measure

    asyncio.run(measure(command.family, command.small_family, command.balancer, command.note)).write(command.out)


def _simulate(command: Simulate) -> None:
    from benchmarks.scale.facts import measured
    from benchmarks.scale.trials import all_trials

    all_trials(measured(command.family)).write(command.out)


def _report(command: Report) -> None:
    from benchmarks.scale import pictures
    from benchmarks.scale.facts import read_facts
    from benchmarks.scale.report import write_tables

    facts = read_facts(command.family, command.costs, command.trials)
    for file in command.file:
        write_tables(facts, file)
    pictures.fleet(facts, command.pictures / "fleet.png")
    pictures.queueing(facts, command.pictures / "queueing.png")

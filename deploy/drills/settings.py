"""The flags of `python -m deploy.drills`."""

from pathlib import Path
from typing import Literal, get_args

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, CliPositionalArg, SettingsConfigDict

from benchmarks.load.wishes import weights

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results"

DrillName = Literal[
    "kill-replica", "hang-replica", "restart-redis", "lose-redis", "hang-redis", "empty-redis", "reload-balancer",
    "rolling-update", "full-disk-logs", "full-disk-redis", "overload", "overload-degrade",
]  # fmt: skip
"""What can be drilled."""


class DrillSettings(BaseSettings):
    """Break parts of a running stack while clients ask and order, count what they get, and say whether promises held."""

    model_config = SettingsConfigDict(
        env_prefix="STEPDIAL_DRILLS_", frozen=True, extra="forbid", use_attribute_docstrings=True, cli_kebab_case=True,
        cli_hide_none_type=True,
    )  # fmt: skip

    names: CliPositionalArg[list[DrillName | Literal["all", "table"]]] = Field(min_length=1)
    """Which drills, one after another on one stack; all runs each, table runs none and writes --results into --file."""
    stack: Literal["loopback", "compose"] = "loopback"
    """loopback: HAProxy, Redis and replicas as processes that the drill starts; compose: the containers of
    docker-compose.yml, which are up already."""
    family: Path = ROOT / "families" / "shapes"
    """loopback: folder of the family to serve."""
    replicas: int = Field(default=3, ge=2, le=9)
    """loopback: how many replicas."""
    serve: str = ""
    """loopback: further flags of stepdial serve for every replica, in one string."""
    url: str = Field(default="http://127.0.0.1:8080", pattern=r"^https?://")
    """compose: where the balancer listens."""
    project: str = "stepdial"
    """compose: name of the project."""
    mix: str = "1:6,2:3,4:2,8:1"
    """Dial positions of the requests (POST /generate) and their weights."""
    rate: float = Field(default=2.0, gt=0)
    """Requests a second, at random times."""
    job_mix: str = "4:2,16:2,32:1"
    """Dial positions of the orders (POST /jobs) and their weights."""
    job_rate: float = Field(default=0.5, gt=0)
    """Orders a second, at random times."""
    seconds: float = Field(default=10.0, gt=0)
    """How long the load goes on before a fault and again after the stack is whole, in seconds; overload lasts three times
    as long."""
    hold: float = Field(default=30.0, gt=0)
    """How long a part stays broken, in seconds; longer than job_lease_seconds (15), or a hanging replica keeps its jobs."""
    patience: float = Field(default=180.0, gt=0)
    """How long parts of the stack are waited for, and jobs after the load, in seconds."""
    results: Path = RESULTS
    """Folder for the results, one JSON file for each drill and stack."""
    file: Path = ROOT / "docs" / "operations.md"
    """table: the Markdown file to write into."""
    note: str = ""
    """What readers of the results have to know, such as what the machine was shared with."""

    @field_validator("mix", "job_mix")
    @classmethod
    def _is_mix(cls, text: str) -> str:
        weights(text)
        return text

    @property
    def drills(self) -> list[DrillName]:
        """Which drills to run."""
        every: tuple[DrillName, ...] = get_args(DrillName)
        return [name for name in every if name in self.names or "all" in self.names]

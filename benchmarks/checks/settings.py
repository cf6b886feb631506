"""The flags of `stepdial check`."""

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, CliPositionalArg, SettingsConfigDict

from benchmarks.checks.host import ROOT


class CheckSettings(BaseSettings):
    """Start a server, put it under the load that a promise is about, and say whether it was kept.

    overload: four times more than it can do. fairness: 1-step requests beside 512-step ones. disconnects: clients that
    leave. invariance: equal bytes alone and in a crowd.
    """

    model_config = SettingsConfigDict(
        env_prefix="STEPDIAL_CHECK_", frozen=True, extra="forbid", use_attribute_docstrings=True, cli_kebab_case=True,
        cli_hide_none_type=True,
    )  # fmt: skip

    check: CliPositionalArg[Literal["overload", "fairness", "disconnects", "invariance"]]
    """Which promise."""
    family: Path = ROOT / "families" / "shapes"
    """Folder of the family to serve; the server's own settings come from its environment variables."""
    seconds: float = Field(default=60.0, gt=0)
    """How long the load goes on, in seconds; 3 gives a first impression."""
    out: Path | None = None
    """JSON file for the verdict."""
    note: str = ""
    """What readers of the verdict have to know, such as what the machine was shared with."""

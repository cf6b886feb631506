"""Every flag of `stepdial bench`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from benchmarks.load.arrivals import Process
from benchmarks.load.wishes import Endpoint, Steps, weights


class BenchSettings(BaseSettings):
    """Put load on a server and report latency by steps, throughput, outcomes and goodput.

    --rates makes an open loop: requests are sent when they are due, whether earlier ones were answered or not, and latency
    counts from when they were due. --clients makes a closed loop: each client asks again when it was answered.
    """

    model_config = SettingsConfigDict(
        env_prefix="STEPDIAL_BENCH_", frozen=True, extra="forbid", use_attribute_docstrings=True, cli_kebab_case=True,
        cli_implicit_flags=True, cli_hide_none_type=True,
    )  # fmt: skip

    url: str = Field(default="http://127.0.0.1:8000", pattern=r"^https?://")
    """Where the server is."""
    endpoint: Endpoint = "generate"
    """Shape of the requests: generate (POST /generate) or openai (POST /v1/images/generations)."""
    api_key: SecretStr | None = None
    """Key to send, if the server wants one; better given as STEPDIAL_BENCH_API_KEY, since the result holds the command."""
    model: str | None = None
    """Family to ask for; by default the server's first."""
    mix: str = "4"
    """Dial positions and their weights: 1:5,4:3,16:1; auto is a position too."""
    rates: str = ""
    """Open loop: requests a second, one run for each: 5,10,20,40."""
    clients: str = ""
    """Closed loop: clients, one run for each: 1,4,16."""
    arrivals: Process = "poisson"
    """How an open loop's requests arrive: poisson, bursts (Poisson, with pauses) or constant (evenly spaced)."""
    burst_seconds: float = Field(default=1.0, gt=0)
    """Length of a burst, in seconds."""
    pause_seconds: float = Field(default=1.0, ge=0)
    """Length of the pause between two bursts, in seconds; the rate is that of both together."""
    seconds: float = Field(default=30.0, gt=0)
    """How long each run is measured, in seconds."""
    requests: int | None = Field(default=None, ge=1)
    """How many requests each run measures, instead of --seconds."""
    warmup_seconds: float = Field(default=5.0, ge=0)
    """How long each run's load goes on before it is measured, in seconds."""
    timeout_seconds: float = Field(default=60.0, gt=0)
    """When a client gives up, in seconds."""
    n: int = Field(default=1, ge=1)
    """Images of each request."""
    deadline_ms: float | None = Field(default=None, gt=0)
    """Deadline to ask for, in milliseconds."""
    allow_degrade: bool | None = None
    """Consent to fewer steps under load."""
    determinism: Literal["exact", "fast"] | None = None
    """What to promise about bytes; by default what the server does."""
    output_format: Literal["png", "webp", "jpeg"] | None = None
    """Image format to ask for; by default the server's."""
    slo_ms: str = ""
    """Service level objective that goodput counts: 300, or by dial position 1:100,4:300."""
    seed: int = 0
    """Seed of arrival times, mix and prompts. Image seeds are the server's, so that no answer comes from a cache."""
    out: Path | None = None
    """JSON file for the result."""
    plot: Path | None = None
    """Picture file for latency by steps and by throughput (needs matplotlib)."""
    note: str = ""
    """What readers of the result have to know, such as what the machine was shared with."""

    @field_validator("mix")
    @classmethod
    def _is_mix(cls, text: str) -> str:
        weights(text)
        return text

    @field_validator("slo_ms")
    @classmethod
    def _is_objective(cls, text: str) -> str:
        objective(text)
        return text

    @field_validator("rates", "clients")
    @classmethod
    def _are_numbers(cls, text: str) -> str:
        numbers(text)
        return text

    @model_validator(mode="after")
    def _is_one_load(self) -> "BenchSettings":
        if bool(self.rates) == bool(self.clients):
            raise ValueError("give either --rates (open loop) or --clients (closed loop)")
        if not all(count.is_integer() for count in numbers(self.clients)):
            raise ValueError("--clients are whole numbers")
        missing = {str(steps) for steps in self.steps} - set(self.slo) if self.slo and "all" not in self.slo else set()
        if missing:
            raise ValueError(f"--slo-ms names no time for {', '.join(sorted(missing))} steps")
        return self

    @property
    def steps(self) -> Mapping[Steps, float]:
        """Weights by dial position."""
        return weights(self.mix)

    @property
    def slo(self) -> dict[str, float] | None:
        """Seconds by dial position, or for "all"; None without an objective."""
        return objective(self.slo_ms)


def objective(text: str) -> dict[str, float] | None:
    """Read "300" or "1:100,4:300" (milliseconds) as seconds by dial position, or for "all"; "" is None. Raises ValueError."""
    if not text:
        return None
    if ":" in text:
        return {str(steps): milliseconds / 1000 for steps, milliseconds in weights(text).items()}
    return {"all": numbers(text)[0] / 1000}


def numbers(text: str) -> list[float]:
    """Read positive numbers separated by commas. Raises ValueError."""
    try:
        found = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ValueError(f"{text!r} should be numbers, with commas between them") from None
    if not all(0 < number < 1e9 for number in found):
        raise ValueError("the numbers are positive")
    return found

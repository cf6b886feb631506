"""Every knob of the server: its default, its unit, its environment variable and its command-line flag."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, DirectoryPath, Field, IPvAnyNetwork, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from server.limits import Limit

BUNDLED_FAMILY = Path(__file__).parents[1] / "families" / "shapes"
"""The family that comes with the code."""


def _several(value: Any) -> Any:
    """A comma separates folders in one string, as the command line and the environment give them."""
    return tuple(filter(None, str(value).split(","))) if isinstance(value, str | Path) else value


class Settings(BaseSettings):
    """Serve one family or several over HTTP.

    Each knob is a flag (--max-wave 8) and an environment variable (STEPDIAL_MAX_WAVE=8); the flag wins.
    """

    model_config = SettingsConfigDict(
        env_prefix="STEPDIAL_", frozen=True, extra="forbid", use_attribute_docstrings=True, cli_kebab_case=True
    )

    family: Annotated[tuple[Path, ...], NoDecode, BeforeValidator(_several)] = ()
    """Folder of a family to serve (it holds family.json); give it again for another. Requests that name no model get
    the first one. Default: every family in --families, else the bundled one."""
    families: DirectoryPath | None = None
    """Folder of families: those that may be loaded while the server runs, and served at start if no --family is given."""
    memory_bytes: int | None = Field(default=None, ge=1)
    """Most memory that the networks of all families may take, in bytes of their weights; a family that would
    exceed it is not loaded. Default: no limit."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for every interface."""
    port: int = Field(default=8000, ge=0, le=65535)
    """TCP port to listen on; 0 takes a free one."""
    trusted_proxies: Annotated[tuple[IPvAnyNetwork, ...], NoDecode, BeforeValidator(_several)] = Field(
        default_factory=lambda: os.environ.get("FORWARDED_ALLOW_IPS", ""),
        validate_default=True,
    )
    """Addresses or networks (10.0.0.7,10.1.0.0/24) whose X-Forwarded-For and X-Forwarded-Proto are believed: those of your
    balancers and of nobody else, since rate limits go by the address. FORWARDED_ALLOW_IPS is understood too. Default:
    none, whoever connects is the client."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """Where waves run: cpu, cuda, cuda:1; auto takes the GPU when there is one."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """What networks compute in. bf16 takes half the memory and is faster where the device computes it; pictures differ from fp32's
    by half a level of 255 on average. Processors that only emulate it are slower. Not for families imported from diffusers."""
    max_wave: int = Field(default=16, ge=1, le=1024)
    """Largest number of samples in one wave. Larger is faster in a crowd, and slower for whoever just missed a wave."""
    max_evaluations: int = Field(default=4096, ge=1)
    """Network evaluations that may wait; a request that would exceed it is refused with 503."""
    max_images: int = Field(default=16, ge=1, le=1024)
    """Largest n of one request, in images."""
    max_body_bytes: int = Field(default=65536, ge=1)
    """Largest request body, in bytes; a larger one is refused with 413."""
    max_connections: int = Field(default=1000, ge=1)
    """Connections that may be open; one more is refused with 503. Keep it below the process's limit of open files."""
    receive_timeout_seconds: float = Field(default=10.0, gt=0, allow_inf_nan=False)
    """Longest that a request's head may take to arrive, in seconds, and then its body (408)."""
    send_timeout_seconds: float = Field(default=30.0, gt=0, allow_inf_nan=False)
    """Longest that a client may take to receive the next 64 KiB of its answer, in seconds; then it is cut off."""
    request_timeout_seconds: float = Field(default=120.0, gt=0, allow_inf_nan=False)
    """Longest that a request may take, in seconds; then 504, and its work is dropped."""
    hang_seconds: float = Field(default=60.0, gt=0, allow_inf_nan=False)
    """A wave that takes longer, and ten times what was expected, is taken to hang: every request fails, the process ends."""
    shutdown_delay_seconds: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """How long requests are still accepted after SIGTERM while /readyz says no already, in seconds: the time in which
    every balancer in front must have noticed. 0 where there is none."""
    shutdown_timeout_seconds: int = Field(default=30, ge=0)
    """Longest that accepted requests may take to finish after that, in seconds."""
    keys_file: Path | None = None
    """File of API keys (`stepdial keys` makes it); drawing then takes a key. Default: no keys, everybody may draw."""
    evaluations_per_minute: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Network evaluations that one key, or without keys one address, may ask for per minute. Default: no limit."""
    burst_seconds: float = Field(default=60.0, gt=0, allow_inf_nan=False)
    """How many seconds' worth of evaluations may be asked for at once after a rest."""
    admin_port: int | None = Field(default=None, ge=0, le=65535)
    """TCP port for /metrics and /admin, away from those who draw. Default: /metrics is on the main port, and so is
    /admin if there is a file of keys, for those with the scope admin."""
    admin_host: str = "127.0.0.1"
    """Address that admin_port listens on. On a loopback address /admin needs no key; on any other one it does."""
    encode_threads: int = Field(default=2, ge=1, le=256)
    """Threads that turn pixels into PNG, WebP or JPEG."""
    brownout_high_seconds: float = Field(default=5.0, gt=0, allow_inf_nan=False)
    """Backlog above which consenting requests get fewer steps, in seconds of device time; a level every half second."""
    brownout_low_seconds: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """Backlog below which they get more again, in seconds of device time; smaller than brownout_high_seconds."""
    redis_url: str = Field(
        default_factory=lambda: os.environ.get("REDIS_URL", ""),
        pattern=r"^$|^(rediss?|unix)://",
        validate_default=True,
        repr=False,
    )
    """Redis that all replicas share, for jobs, results and rate limits: redis://[user:password@]host:port/number; REDIS_URL is
    understood too. Without one, these live and end with this process."""
    max_jobs: int = Field(default=1000, ge=1)
    """Jobs that may wait or run, over all replicas; one more is refused with 503."""
    job_result_seconds: float = Field(default=3600.0, gt=0, allow_inf_nan=False)
    """How long a job is known after its end, with its images and its idempotency key, in seconds."""
    job_bytes: int = Field(default=256 * 2**20, ge=1)
    """Without Redis: bytes that jobs and their images may occupy; ended jobs are forgotten early, oldest first, above it."""
    job_lease_seconds: float = Field(default=15.0, ge=0.1, allow_inf_nan=False)
    """With Redis: how long a replica may be silent before others take its jobs, in seconds."""
    job_orphan_seconds: float = Field(default=3600.0, gt=0, allow_inf_nan=False)
    """With Redis: how long a job waits for a replica with its family, weights and all, in seconds; then it has failed."""
    job_attempts: int = Field(default=3, ge=1)
    """How often a job is begun; when it still has neither ended nor been handed back, it has failed."""
    cache_bytes: int = Field(default=64 * 2**20, ge=0)
    """Bytes of image files that the result cache may hold in memory; 0 turns the cache off, the one in Redis too."""
    cache_seconds: int = Field(default=3600, ge=1)
    """With Redis: how long the result cache keeps an image, in seconds."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least important message that is logged."""
    log_format: Literal["text", "json"] = "text"
    """text for people, json for machines; one line a message."""

    @model_validator(mode="after")
    def _the_brownout_ends_below_where_it_begins(self) -> Self:
        high, low = self.brownout_high_seconds, self.brownout_low_seconds
        if low >= high:
            raise ValueError(
                f"brownout_low_seconds is {low:g}; it has to be smaller than brownout_high_seconds, {high:g}"
            )
        return self

    @field_validator("trusted_proxies")
    @classmethod
    def _somebody_is_not_trusted(cls, networks: tuple[IPvAnyNetwork, ...]) -> tuple[IPvAnyNetwork, ...]:
        if any(network.prefixlen == 0 for network in networks):
            raise ValueError("a network of all addresses would let every client claim any address; name the balancers")
        return networks

    @property
    def limit(self) -> Limit | None:
        """The rate limit of callers who have none of their own."""
        return Limit(self.evaluations_per_minute, self.burst_seconds) if self.evaluations_per_minute else None

    @property
    def folders(self) -> tuple[Path, ...]:
        """The folders of the families to serve from the start, the default one first."""
        if self.family:
            return self.family
        if self.families is None:
            return (BUNDLED_FAMILY,)
        return tuple(sorted(file.parent for file in self.families.glob("*/family.json")))

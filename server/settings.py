"""Every knob of the server: its default, its unit, its environment variable and its command-line flag."""

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

BUNDLED_FAMILY = Path(__file__).parents[1] / "families" / "shapes"
"""The family that comes with the code."""


class Settings(BaseSettings):
    """Serve a family over HTTP.

    Each knob is a flag (--max-wave 8) and an environment variable (STEPDIAL_MAX_WAVE=8); the flag wins.
    """

    model_config = SettingsConfigDict(
        env_prefix="STEPDIAL_", frozen=True, extra="forbid", use_attribute_docstrings=True, cli_kebab_case=True
    )

    family: Path = BUNDLED_FAMILY
    """Folder of the family to serve (it holds family.json); the default is the bundled one."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for every interface."""
    port: int = Field(default=8000, ge=0, le=65535)
    """TCP port to listen on; 0 takes a free one."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """Where waves run: cpu, cuda, cuda:1; auto takes the GPU when there is one."""
    max_wave: int = Field(default=16, ge=1, le=1024)
    """Largest number of samples in one wave. Larger is faster in a crowd, and slower for whoever just missed a wave."""
    max_evaluations: int = Field(default=4096, ge=1)
    """Network evaluations that may wait; a request that would exceed it is refused with 503."""
    max_images: int = Field(default=16, ge=1, le=1024)
    """Largest n of one request, in images."""
    max_body_bytes: int = Field(default=65536, ge=1)
    """Largest request body, in bytes; a larger one is refused with 413."""
    request_timeout_seconds: float = Field(default=120.0, gt=0, allow_inf_nan=False)
    """Longest that a request may take, in seconds; then 504, and its work is dropped."""
    hang_seconds: float = Field(default=60.0, gt=0, allow_inf_nan=False)
    """A wave that takes longer, and ten times what was expected, is taken to hang: every request fails, the process ends."""
    shutdown_timeout_seconds: int = Field(default=30, ge=0)
    """Longest that accepted requests may take to finish after SIGTERM, in seconds."""
    encode_threads: int = Field(default=2, ge=1, le=256)
    """Threads that turn pixels into PNG, WebP or JPEG."""
    brownout_high_seconds: float = Field(default=5.0, gt=0, allow_inf_nan=False)
    """Backlog above which consenting requests get fewer steps, in seconds of device time; a level every half second."""
    brownout_low_seconds: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """Backlog below which they get more again, in seconds of device time; smaller than brownout_high_seconds."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least important message that is logged."""

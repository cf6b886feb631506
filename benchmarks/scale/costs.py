"""The measured costs: what one replica and one request take of Redis, the balancer and Prometheus. A file, made by a command."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from benchmarks.result_file import ResultFile


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Measured(_Record):
    """A number that was measured several times."""

    mean: float
    spread: float
    """Standard deviation over the rounds; 0 with one round."""
    rounds: int


class Redis(_Record):
    """What one action takes of Redis."""

    commands: float
    """Commands that clients sent; a script is one."""
    calls: float
    """Commands that Redis ran, those inside scripts too."""
    bytes_in: float
    bytes_out: float
    cpu_seconds: Measured
    """Processor time of Redis's main thread, of which there is one."""


class Pending(_Record):
    """What a replica that has nothing to do takes of Redis while so many jobs are being drawn, by others."""

    jobs: int
    cpu_seconds: float
    """Main thread's time in a second, over and above what the replica took when the measurements began."""
    calls: float
    """Commands that Redis ran in a second, likewise."""


class Memory(_Record):
    """What Redis keeps, in bytes of its memory each."""

    waiting_job: float
    done_job: float
    """With one image and an idempotency key, until job_result_seconds have passed."""
    cached_image: float
    """Until cache_seconds have passed."""


class Connections(_Record):
    """Connections of one replica to Redis."""

    idle: int
    after_burst: int
    """After a burst of more requests at once than it opens connections; they stay open."""
    burst: int
    """Requests of that burst."""


class Balancer(_Record):
    """What HAProxy takes, with the configuration of deploy/haproxy, in processor seconds."""

    request_cpu_seconds: Measured
    """One POST /generate and its answer, over kept connections."""
    check_cpu_seconds: Measured
    """One health check of one replica."""
    series_per_replica: float
    bytes_per_replica: float
    """Of its own /metrics."""


class Replica(_Record):
    """What a replica takes of itself and of Prometheus, in processor seconds of its process where it is time."""

    drawing_cpu_seconds: dict[int, float]
    """Dial position -> one image, waves full, from HTTP to the encoded file."""
    hit_cpu_seconds: float
    """One request answered from the cache in Redis: what HTTP, dial and cache take without any drawing."""
    check_cpu_seconds: float
    """One GET /readyz."""
    scrape_cpu_seconds: float
    """One GET /metrics."""
    series_at_start: int
    """Samples in one scrape before any request."""
    series_per_position: float
    """Samples more for each dial position that was asked for."""
    bytes_per_series: float
    """Of the text that is scraped."""


class Prometheus(_Record):
    """What Prometheus takes for what it scrapes."""

    memory_bytes_per_series: float
    """Resident memory, a few minutes after the start: what blocks and queries take comes on top."""
    cpu_seconds_per_sample: float


class Costs(ResultFile):
    """Everything that was measured, and how."""

    format: Literal[1] = 1
    command: str
    commit: str
    measured_at: str
    note: str
    machine: str
    """Processor and kernel."""
    versions: dict[str, str]
    family: str
    idle_replica: Redis
    """One second of one replica that has nothing to do."""
    three_idle_replicas: Redis
    """One second of three of them, to see whether it is three times as much."""
    miss: Redis
    """One request that names a seed, is not in the cache, is drawn and kept; by a key without a rate limit."""
    hit: Redis
    """One request that is answered from the cache."""
    limited_hit: Redis
    """The same by a key that has a rate limit."""
    job: Redis
    """One job of one image, from its order to its end, with an idempotency key."""
    fetch: Redis
    """One GET /jobs/{id} of a job that is done, with its image."""
    watch: Redis
    """One second of one client that follows a job's events."""
    pending: tuple[Pending, ...]
    memory: Memory
    connections: Connections
    balancer: Balancer
    replica: Replica
    prometheus: Prometheus


def read_costs(file: Path) -> Costs:
    """Return the costs of a file. Raises OSError, pydantic.ValidationError."""
    return Costs.model_validate_json(file.read_text())

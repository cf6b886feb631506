"""The result file, and the table that it becomes."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from benchmarks.result_file import ResultFile
from benchmarks.tables import fill


class Row(BaseModel):
    """One job done by one implementation."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    piece: str
    job: str
    by: str
    calls: int
    microseconds: tuple[float, float, float]
    """Of a call: the fifth, the half and four fifths of all calls were faster than this."""
    bytes: int
    """What any implementation has to read and write."""
    of_copy: float | None
    """bytes over the median's time, as a share of the fastest copy's speed; None on a CPU, whose cache holds these jobs."""


class Result(ResultFile):
    """What was measured on one device."""

    format: Literal[1] = 1
    command: str
    commit: str
    device: str
    kind: Literal["cpu", "cuda"]
    versions: dict[str, str]
    measured_at: str
    note: str
    """What else a reader has to know, such as what the machine was shared with."""
    copy_gb_per_second: float | None
    """Speed of the fastest of ten copies of 1 GiB, bytes read and written, 1e9 a second; None on a CPU."""
    results: tuple[Row, ...]


def read_result(file: Path) -> Result:
    """Return the result that a file holds.  Raises OSError, and ValueError for a file that holds none."""
    return Result.model_validate_json(file.read_text())


def table(result: Result) -> str:
    """Return a result as a Markdown table, every job a block of rows."""
    copied = result.copy_gb_per_second is not None
    lines = ["| job | by | median | a fifth below, above |" + " of a copy's speed |" * copied]
    lines += ["|---|---|---:|---:|" + "---:|" * copied]
    before = ""
    for row in result.results:
        low, median, high = map(_time, row.microseconds)
        job = row.job if row.job != before else ""
        share = f" {100 * row.of_copy:.0f} % |" if row.of_copy is not None else ""
        lines.append(f"| {job} | {row.by} | {median} | {low}, {high} |{share}")
        before = row.job
    versions = ", ".join(
        f"{name} {result.versions[name]}" for name in ("torch", "triton", "numpy") if name in result.versions
    )
    clock = f"a copy moves {result.copy_gb_per_second:.0f} GB/s" if copied else "processor time of a call"
    lines += ["", f"{result.device}, {clock}. {result.note} Commit {result.commit}, {versions}."]
    return "\n".join(lines) + "\n"


def _time(microseconds: float) -> str:
    return f"{microseconds:,.0f} µs" if microseconds < 10_000 else f"{microseconds / 1000:,.1f} ms"


def write_table(result: Result, file: Path) -> None:
    """Put a result's table between its marks in a Markdown file.  Raises ValueError where the marks are not there."""
    fill(file, {f"kernels {result.kind}": lambda: table(result)})

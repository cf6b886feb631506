"""What a check found."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from benchmarks.result_file import ResultFile


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Finding(_Record):
    """One thing that was found, and whether it is as promised."""

    what: str
    found: str
    promised: str
    kept: bool


class Findings(_Record):
    """What a check hands back: what was promised, and numbers that tell more."""

    findings: tuple[Finding, ...]
    numbers: dict[str, Any]
    server: dict[str, Any]
    """Commit, device and versions, as the server tells them."""


class Verdict(Findings, ResultFile):
    """A check's result file."""

    format: Literal[1] = 1
    check: str
    kept: bool
    """Whether every promise was kept."""
    command: str
    """The command that checked."""
    note: str
    """What else a reader has to know, such as what the machine was shared with."""
    measured_at: str
    """When it began, in UTC, ISO 8601."""
    family: str

    def lines(self) -> list[str]:
        """Return the verdict as text."""
        found = [
            f"  {'kept  ' if f.kept else 'BROKEN'} {f.what}: {f.found} (promised: {f.promised})" for f in self.findings
        ]
        return [f"{self.check}: {'kept' if self.kept else 'BROKEN'}", *found]

"""From a check's name to its verdict."""

from collections.abc import Awaitable, Callable

from benchmarks.checks.disconnects import disconnects
from benchmarks.checks.fairness import fairness
from benchmarks.checks.invariance import invariance
from benchmarks.checks.overload import overload
from benchmarks.checks.settings import CheckSettings
from benchmarks.checks.verdict import Findings, Verdict
from diffusion import provenance

CHECKS: dict[str, Callable[[CheckSettings], Awaitable[Findings]]] = {
    "overload": overload,
    "fairness": fairness,
    "disconnects": disconnects,
    "invariance": invariance,
}


async def trial(settings: CheckSettings) -> Verdict:
    """Run the check and return its verdict. Raises NotServed when the server does not come up."""
    began = provenance.now()
    found = await CHECKS[settings.check](settings)
    return Verdict(
        findings=found.findings,
        numbers=found.numbers,
        server=found.server,
        check=settings.check,
        kept=all(finding.kept for finding in found.findings),
        command=provenance.command(),
        note=settings.note,
        measured_at=began,
        family=settings.family.name,
    )

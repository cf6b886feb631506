"""The results of drills as a Markdown table, so that no number in the operations guide is ever typed."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import get_args

from benchmarks.load.summary import Spread
from benchmarks.tables import fill
from deploy.drills.result import DrillResult
from deploy.drills.settings import DrillName

HEAD = (
    "| drill | on | requests | refused | failed | sent again by the balancer | jobs | orders sent again | begun again | lost "
    "| other bytes | half answered within, before / during / after | broken for | whole after | promises |"
)

INTRODUCTION = (
    "How they are run and what each proves: [drills.md](drills.md). Refused: told when to come again (503 or 429 with "
    "Retry-After). "
    "Lost: jobs that were accepted and never came, or only because they were ordered again.\n\n"
)


def write_table(results: Path, file: Path) -> None:
    """Write the table of all results in a folder between the marks of a Markdown file.  Raises ValueError where there are none."""
    fill(file, {"drills": lambda: drill_table(results)})


def drill_table(folder: Path) -> str:
    """Return the results in a folder as a Markdown table, and how they came about."""
    order = get_args(DrillName)
    results = [DrillResult.model_validate_json(file.read_text()) for file in folder.glob("*.json")]
    results.sort(key=lambda result: (order.index(result.check), result.stack))
    rows = [HEAD, "|---|---|" + 12 * "---:|" + "---|", *map(_row, results)]
    return INTRODUCTION + "\n".join(rows) + "\n\n" + "\n".join(_how(results)) + "\n"


def _row(result: DrillResult) -> str:
    requests, jobs, recovery = result.requests, result.jobs, result.recovery
    degraded = f" ({requests.degraded} in fewer steps)" if requests.degraded else ""
    cells = (
        f"`{result.check}`",
        result.stack,
        f"{requests.sent}{degraded}",
        str(requests.refused),
        str(requests.failed),
        str(result.balancer_retries),
        str(jobs.accepted),
        str(jobs.retried),
        str(jobs.begun_again),
        str(jobs.lost),
        str(jobs.different + jobs.wrong),
        " / ".join(_median(requests.latency_ms.get(phase)) for phase in ("before", "during", "after")),
        f"{recovery.broken:.1f} s",
        f"{recovery.whole:.1f} s",
        "kept" if result.kept else "**broken**",
    )
    return "| " + " | ".join(cells) + " |"


def _median(latency: Spread | None) -> str:
    return f"{latency.p50 / 1000:.1f} s" if latency else ""


def _how(results: Sequence[DrillResult]) -> Iterable[str]:
    """Say how the results came about: a sentence for each way."""
    ways = defaultdict(list)
    for result in results:
        versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
        about = (
            f"{result.replicas} replicas of {result.family} ({result.server['device']}), on {result.machine}; {versions}; "
            f"commit {result.commit}; `{result.command.split(' --note ')[0]}`"
            + (f". {result.note}" if result.note else "")
        )
        ways[f"{result.stack}: {about}"].append(f"`{result.check}`")
    for about, names in ways.items():
        yield f"- {', '.join(names)} on {about}."

"""The tables of docs/performance.md, from result files."""

import json
from pathlib import Path
from typing import Any

from benchmarks.tables import fill


def table(file: Path) -> str:
    """Return the evaluations of a result file as a Markdown table: milliseconds of each way by batch size.

    Of one thread on a CPU they are processor time, of several what the clock says, on a GPU what its own clock says.
    """
    found = json.loads(file.read_text())
    results = [result for result in found["results"] if "seconds" in result and "way" in result]
    alone = found["settings"]["device"] == "cpu" and found["settings"]["threads"] == 1
    kind = "processor_seconds" if alone else "seconds"
    rows = sorted({result["rows"] for result in results})
    lines = [
        f"| way | {' | '.join(f'batch {count}' for count in rows)} | equal bits |",
        f"|---|{'---|' * (len(rows) + 1)}",
    ]
    for way in dict.fromkeys(result["way"] for result in results):
        own = {result["rows"]: result for result in results if result["way"] == way}
        same = [str(count) for count in rows if own[count].get("equal_bits")]
        lines.append(
            f"| {way} | {' | '.join(_cell(own[count], kind) for count in rows)} | {', '.join(same) or 'not compared'} |"
        )
    starts = {r["compile_cache"]: r["process_seconds"] for r in found["results"] if "compile_cache" in r}
    said = f"{found['device']}, commit {found['commit']}, {found['measured_at'][:10]}; torch {found['versions']['torch']}; "
    said += f"`{found['command']}`. {found['note']}".rstrip(". ") + "."
    if starts:
        empty, filled = starts["empty"], starts["filled"]
        said += (
            f" A process that compiles them all: {empty:.0f} s with an empty cache, {filled:.0f} s with a filled one."
        )
    return "\n".join([*lines, "", f"*{said}*"]) + "\n"


def _cell(result: dict[str, Any], kind: str) -> str:
    """Milliseconds, median and quartiles."""
    spread = result[kind]
    median, low, high = (1e3 * spread[name] for name in ("median", "low", "high"))
    return f"{median:.1f} ({low:.1f}–{high:.1f})"


def write_table(result: Path, document: Path) -> None:
    """Write a result file's table between <!-- networks NAME --> and <!-- end -->. Raises ValueError without these marks."""
    fill(document, {f"networks {result.stem}": lambda: table(result)})

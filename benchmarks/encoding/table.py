"""The table of what files cost, as Markdown between marks."""

from pathlib import Path

from benchmarks.encoding.cost import SERVED, SETTINGS, SIDES, Cost, Costs
from benchmarks.encoding.images import KINDS
from benchmarks.tables import fill


def table(costs: Costs) -> str:
    """Return milliseconds and KiB of each format and size, for each kind of image; what is served in bold."""
    found = {(one.kind, one.settings, one.side): one for one in costs.costs}
    lines = []
    for kind in KINDS:
        lines.append("| " + " | ".join([f"{kind}: ms / KiB", *(f"{side}×{side}" for side in SIDES)]) + " |")
        lines.append("|---|" + "---:|" * len(SIDES))
        for settings in SETTINGS:
            name = f"**{settings}**" if settings in SERVED.values() else settings
            cells = [_cell(found[kind, settings, side]) for side in SIDES]
            lines.append("| " + " | ".join([name, *cells]) + " |")
        lines.append("")
    versions = ", ".join(f"{name} {version}" for name, version in costs.versions.items())
    note = f" {costs.note}" if costs.note else ""
    command = costs.command.partition(" --note")[0]
    lines.append(
        f"Medians of one thread, {costs.device}; in bold what the server uses. `{command}`, {costs.measured_at[:10]}, "
        f"commit {costs.commit}; {versions}.{note}"
    )
    return "\n".join(lines) + "\n"


def write_table(costs: Costs, file: Path) -> None:
    """Replace what stands between the file's marks. Raises ValueError where there are no marks, OSError."""
    fill(file, {"encoding": lambda: table(costs)})


def _cell(one: Cost) -> str:
    return (
        f"{one.milliseconds:.3g} / {one.bytes / 1024:.3g}"
        if one.milliseconds < 100
        else (f"{one.milliseconds:,.0f} / {one.bytes / 1024:,.0f}")
    )

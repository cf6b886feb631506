"""Draw the dashboard "Latency versus steps" without Grafana: its own expressions, asked of a Prometheus, as a picture.

    python deploy/grafana/draw.py --prometheus http://127.0.0.1:9090 --model shapes --range 10m \
        --result benchmarks/results/panels-shapes.json --out docs/latency-versus-steps.png

keeps what Prometheus said in the result file; without --prometheus the picture is drawn from that file again.
"""

import argparse
import json
import math
import re
import shlex
import sys
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

DASHBOARD = Path(__file__).parent / "dashboards" / "latency-versus-steps.json"
POINTS = 120
"""Points of a line over time."""
SHOWN = (
    "Latency by steps",
    "Quality against latency",
    "Time per stage, by steps",
    "Samples in a wave, by steps",
    "Rows that only pad, by steps",
    "Requested against used steps",
)
"""The panels that are drawn, by their titles."""
STYLES = {"alone, as measured": ":", "objective": "--"}

Series = list[dict[str, Any]]
"""labels, and values as [time in seconds, number] for each series."""


def main() -> int:
    """Ask and draw, or draw again what was asked. Returns the exit status."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition(":")[0] + ".")
    parser.add_argument("--prometheus", help="URL of the Prometheus to ask; without it --result is read")
    parser.add_argument("--model", default="shapes", help="family to show")
    parser.add_argument(
        "--range", default="10m", help="how far back, as Prometheus writes times; rates are over a tenth"
    )
    parser.add_argument("--note", default="", help="what readers have to know, such as what load there was")
    parser.add_argument("--result", type=Path, required=True, help="JSON file with what Prometheus said")
    parser.add_argument("--out", type=Path, required=True, help="picture file")
    arguments = parser.parse_args()
    if arguments.prometheus:
        found = ask(arguments.prometheus, arguments.model, arguments.range) | {"note": arguments.note}
        arguments.result.write_text(json.dumps(found, indent=1) + "\n")
    draw(json.loads(arguments.result.read_text()), arguments.out)
    return 0


def ask(prometheus: str, model: str, range_: str) -> dict[str, Any]:
    """Return what Prometheus says to the expressions of the panels, and how it came about."""
    seconds = _seconds(range_)
    variables = {
        "job": "stepdial", "instance": ".*", "model": model, "metric": "frechet",
        "__range": range_, "__rate_interval": f"{max(20, seconds // 10)}s",
    }  # fmt: skip
    found: dict[str, Any] = {}
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        if panel["title"] in SHOWN:
            names = _names(panel)
            found[panel["title"]] = {
                names.get(target["refId"], target.get("legendFormat", "")): _query(
                    prometheus, _filled_in(target["expr"], variables), seconds, instant=target["instant"]
                )
                for target in panel["targets"]
            }
    build = _query(prometheus, "count by (commit, device) (stepdial_build_info)", seconds, instant=True)
    return {
        "command": shlex.join(["python", *sys.argv]),
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": model,
        "servers": [series["labels"] | {"replicas": series["values"][0][1]} for series in build],
        "prometheus": _get(prometheus, "status/buildinfo", {})["version"],
        "panels": found,
    }


def draw(result: dict[str, Any], out: Path) -> None:
    """Draw a result into a picture file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 8.4), layout="constrained")
    axes = dict(zip(SHOWN, figure.subplots(2, 3).flat, strict=True))
    panels = result["panels"]
    _draw_latency(axes[SHOWN[0]], panels[SHOWN[0]])
    _draw_quality(axes[SHOWN[1]], panels[SHOWN[1]])
    _draw_stages(axes[SHOWN[2]], panels[SHOWN[2]])
    _draw_over_time(axes[SHOWN[3]], panels[SHOWN[3]], "samples")
    _draw_over_time(axes[SHOWN[4]], panels[SHOWN[4]], "share of the rows")
    _draw_matrix(axes[SHOWN[5]], panels[SHOWN[5]])
    for title, place in axes.items():
        place.set_title(title, fontsize=11)
    replicas = ", ".join(f"{server['replicas']:g} × {server['device']}" for server in result["servers"])
    figure.suptitle(f"{result['model']} on {replicas}, {result['measured_at'][:10]}", fontsize=10)
    figure.savefig(out, dpi=100)


def _draw_latency(axes: Any, panel: dict[str, Series]) -> None:
    for name, series in panel.items():
        points = _by_steps(series)
        axes.plot([*points], [*points.values()], marker="o", markersize=4, linestyle=STYLES.get(name, "-"), label=name)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    _steps_axis(axes, [steps for series in panel.values() for steps in _by_steps(series)])
    axes.set_ylabel("seconds")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _draw_quality(axes: Any, panel: dict[str, Series]) -> None:
    latency, quality = _by_steps(panel["p50"]), _by_steps(panel["quality"])
    both = sorted(latency.keys() & quality.keys())
    axes.plot([latency[steps] for steps in both], [quality[steps] for steps in both], "o-")
    for steps in both:
        axes.annotate(
            f"{steps}", (latency[steps], quality[steps]), xytext=(4, 5), textcoords="offset points", fontsize=9
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("median latency in seconds; labels: steps")
    axes.set_ylabel("Fréchet distance")
    axes.grid(alpha=0.3)


def _draw_stages(axes: Any, panel: dict[str, Series]) -> None:
    stages = {name: _by_steps(series) for name, series in panel.items()}
    positions = sorted(set().union(*stages.values()))
    bottom = [0.0] * len(positions)
    for name, found in stages.items():
        heights = [found.get(steps, 0.0) for steps in positions]
        axes.bar([f"{steps}" for steps in positions], heights, bottom=bottom, label=name)
        bottom = [below + height for below, height in zip(bottom, heights, strict=True)]
    axes.set_xlabel("steps")
    axes.set_ylabel("mean seconds")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=8)


def _draw_over_time(axes: Any, panel: dict[str, Series], unit: str) -> None:
    (series,) = panel.values()
    moments = sorted({moment for found in series for moment, _ in found["values"]})
    minutes = [(moment - moments[-1]) / 60 for moment in moments]
    for number, found in enumerate(sorted(series, key=lambda found: int(found["labels"]["steps"]))):
        values = dict(found["values"])  # a line is broken where there was no traffic
        line = [values.get(moment, math.nan) for moment in moments]
        axes.plot(minutes, line, linewidth=1.2, color=f"C{number % 10}", label=found["labels"]["steps"])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("minutes")
    axes.set_ylabel(unit)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, title="steps", title_fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))


def _draw_matrix(axes: Any, panel: dict[str, Series]) -> None:
    (series,) = panel.values()
    images = {
        (found["labels"]["steps_requested"], int(found["labels"]["steps"])): found["values"][0][1] for found in series
    }
    wished = sorted({wish for wish, _ in images}, key=lambda wish: int(wish) if wish.isdecimal() else 10**9)
    used = sorted({steps for _, steps in images})
    shares = [[images.get((wish, steps), 0.0) for steps in used] for wish in wished]
    shares = [[value / (sum(row) or 1) for value in row] for row in shares]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (wish, steps), count in images.items():
        if count >= 0.5:
            place = used.index(steps), wished.index(wish)
            colour = "white" if shares[place[1]][place[0]] > 0.5 else "black"
            axes.text(*place, f"{count:.0f}", ha="center", va="center", color=colour, fontsize=8)
    axes.set_xticks(range(len(used)), used)
    axes.set_yticks(range(len(wished)), wished)
    axes.set_xlabel("steps used (numbers: images; colour: share of the row)")
    axes.set_ylabel("steps requested")


def _steps_axis(axes: Any, steps: Iterable[int]) -> None:
    axes.set_xscale("log", base=2)
    ticks = sorted(set(steps))
    axes.set_xticks(ticks, [f"{tick}" if tick & (tick - 1) == 0 else "" for tick in ticks])
    axes.set_xlabel("steps")


def _by_steps(series: Series) -> dict[int, float]:
    """The value of each dial position, by rising steps."""
    return dict(sorted((int(found["labels"]["steps"]), found["values"][-1][1]) for found in series))


def _names(panel: dict[str, Any]) -> dict[str, str]:
    """What the panel calls the values of its queries: refId -> name."""
    renamed = [step["options"].get("renameByName", {}) for step in panel.get("transformations", ())]
    return {key.removeprefix("Value #"): name for names in renamed for key, name in names.items()}


def _filled_in(expr: str, variables: dict[str, str]) -> str:
    return re.sub(r"\$([a-z_]\w*)", lambda found: variables[found[1]], expr)


def _query(prometheus: str, expr: str, seconds: int, *, instant: bool) -> Series:
    now = time.time()
    if instant:
        found = _get(prometheus, "query", {"query": expr})["result"]
        rows = [(series["metric"], [series["value"]]) for series in found]
    else:
        window = {"start": now - seconds, "end": now, "step": max(1, seconds // POINTS)}
        found = _get(prometheus, "query_range", {"query": expr} | window)["result"]
        rows = [(series["metric"], series["values"]) for series in found]
    numbers = [(labels, [[t, float(f"{float(v):.5g}")] for t, v in values if v != "NaN"]) for labels, values in rows]
    return [{"labels": labels, "values": values} for labels, values in numbers if values]


def _get(prometheus: str, path: str, parameters: dict[str, Any]) -> Any:
    with urlopen(f"{prometheus}/api/v1/{path}?{urlencode(parameters)}", timeout=30) as answer:
        return json.load(answer)["data"]


def _seconds(written: str) -> int:
    number, unit = re.fullmatch(r"(\d+)([smh])", written).groups()  # type: ignore[union-attr]
    return int(number) * {"s": 1, "m": 60, "h": 3600}[unit]


if __name__ == "__main__":
    sys.exit(main())

"""The dashboards against Grafana's own TypeScript types, of the version that docker-compose.yml runs."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.deploy.expressions import DASHBOARDS, dashboard, panels

GRAFANA = "11.6.0"
PACKAGES = [f"@grafana/schema@{GRAFANA}", "typescript@5.9.3"]
RAW = "./node_modules/@grafana/schema/dist/esm/raw"
PANELS = {
    "barchart": "BarChart",
    "heatmap": "Heatmap",
    "stat": "Stat",
    "table": "Table",
    "timeseries": "TimeSeries",
    "xychart": "XYChart",
}
"""Type of a panel -> how its types' file begins."""
OF_THE_DATA_SOURCE = ("expr", "step", "titleFormat", "textFormat")
"""What an annotation says to Prometheus; the schema knows only what all data sources have."""
PLAIN = """
/** JSON has no enums: the type with each replaced by its values. Nothing else may be there. */
type Plain<T> = T extends string ? `${T}` : T extends number | boolean | null | undefined ? T
  : T extends Array<infer E> ? Array<Plain<E>> : T extends object ? { [K in keyof T]: Plain<T[K]> } : T;
"""


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with Grafana's types and a TypeScript compiler. Skips without npm or a registry, but never in CI."""
    folder = tmp_path_factory.mktemp("types")
    npm = shutil.which("npm")
    install = [npm or "npm", "install", "--no-audit", "--no-fund", "--no-save", "--silent", *PACKAGES]
    failed = "there is no npm" if npm is None else ""
    if npm:
        done = subprocess.run(install, cwd=folder, capture_output=True, text=True, timeout=300)
        failed = done.stderr if done.returncode else ""
    if failed:
        assert os.environ.get("CI") != "true", failed
        pytest.skip(f"dashboards were not checked against Grafana's types: {failed}")
    return folder


def source(file: Path) -> str:
    """A dashboard as TypeScript: itself, and the options and fields of every panel as its kind has them."""
    kinds = sorted({panel["type"] for panel in panels(file)})
    lines = [f"import type {{ Dashboard }} from '{RAW}/dashboard/x/dashboard_types.gen';"]
    for kind in kinds:
        lines.append(
            f"import type * as {kind} from '{RAW}/composable/{kind}/panelcfg/x/{PANELS[kind]}PanelCfg_types.gen';"
        )
    board = dashboard(file)
    for annotation in board["annotations"]["list"]:
        for key in OF_THE_DATA_SOURCE:
            annotation.pop(key)
    lines += [PLAIN, f"export const board: Plain<Dashboard> = {json.dumps(board)};"]
    for panel in panels(file):
        kind, number = panel["type"], panel["id"]
        lines.append(f"export const options{number}: Plain<Partial<{kind}.Options>> = {json.dumps(panel['options'])};")
        if kind != "stat":  # it has no fields of its own
            fields = json.dumps(panel["fieldConfig"]["defaults"].get("custom", {}))
            lines.append(f"export const fields{number}: Plain<Partial<{kind}.FieldConfig>> = {fields};")
    return "\n".join(lines)


def complaints(folder: Path, text: str) -> str:
    """What the compiler says of it."""
    (folder / "check.ts").write_text(text)
    flags = "--noEmit --skipLibCheck --strict --moduleResolution bundler --module esnext --target es2022".split()
    command = [folder / "node_modules/.bin/tsc", *flags, "check.ts"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300).stdout


@pytest.mark.slow
@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda file: file.stem)
def test_a_dashboard_is_what_grafana_takes(file: Path, compiler: Path) -> None:
    assert complaints(compiler, source(file)) == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ('"graphTooltip": 1', '"graphTooltip": "shared"'),
        ('"mapping": "manual"', '"mapping": "by hand"'),
        ('"mode": "palette-classic"', '"mode": "pallette"'),
        ('"showPoints": "never"', '"showPoint": "never"'),
        ('"gridPos": {"h": 1, ', '"gridPos": {"height": 1, '),
    ],
)
def test_the_check_finds_what_is_wrong(right: str, wrong: str, compiler: Path) -> None:
    text = source(DASHBOARDS[0])
    assert right in text and complaints(compiler, text.replace(right, wrong))

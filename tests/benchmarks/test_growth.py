"""How cost grows: the fits find what is known, every curve is measured, and the page has what the result file says."""

import asyncio
import os
import re
from pathlib import Path

import pytest
import torch

from benchmarks.checks.host import Host
from benchmarks.growth.budget import SMALL, Budget, budget
from benchmarks.growth.commands import RESULT, main
from benchmarks.growth.curves import CURVES
from benchmarks.growth.families import copies
from benchmarks.growth.fit import Line, Power
from benchmarks.growth.loads import steps_and_clients
from benchmarks.growth.report import tables, write_tables
from benchmarks.growth.result import Measured, read
from benchmarks.growth.sides import sides
from benchmarks.growth.waiting import redis_is_there
from benchmarks.load.client import Client
from diffusion.family import Family, open_family
from tests.server.processes import ServerProcess

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "performance.md"
MARKED = re.compile(r"<!-- (growth [a-z-]+) -->\n(.*?)<!-- end -->", re.DOTALL)


def test_a_power_law_is_found_and_points_off_it_widen_the_error() -> None:
    xs = [1, 2, 4, 8, 16]
    exact = Power.of(xs, [3 * x**1.5 for x in xs])
    assert exact.factor == pytest.approx(3) and exact.exponent == pytest.approx(1.5)
    assert exact.error == pytest.approx(0, abs=1e-9) and exact(9) == pytest.approx(81)
    rough = Power.of(xs, [3 * x**1.5 * off for x, off in zip(xs, (0.9, 1.1, 1.1, 0.9, 1.0), strict=True)])
    assert abs(rough.exponent - 1.5) < 2 * rough.error < 0.2


def test_the_error_of_an_exponent_is_that_of_the_textbook() -> None:
    logs, heights = torch.tensor([0.0, 1, 2, 3]).double(), torch.tensor([0.1, 0.8, 2.2, 2.9]).double()
    found = Power.of(logs.exp().tolist(), heights.exp().tolist())
    assert found.exponent == pytest.approx(0.98) and found.error == pytest.approx((0.098 / 2 / 5) ** 0.5)  # by hand


def test_points_at_nothing_have_no_logarithm_and_two_others_no_error() -> None:
    assert Power.of([0, 1, 2, 4], [9, 1, 2, 4]).exponent == pytest.approx(1)
    with pytest.raises(ValueError, match="2 points beyond 0"):
        Power.of([0, 1, 2], [1, 1, 2])


def test_a_line_is_found_and_small_costs_count_as_much_as_large_ones() -> None:
    xs = [0, 1, 10, 1000]
    found = Line.of(xs, [2 + 0.5 * x for x in xs])
    assert found.fixed == pytest.approx(2) and found.each == pytest.approx(0.5) and found(4) == pytest.approx(4)
    assert Line.of(xs, [2, 2.5, 7, 600]).fixed == pytest.approx(2, rel=0.1)  # a fifth too much at 1000 moves it little


def test_rounds_and_seconds_can_be_asked_for() -> None:
    assert budget(rounds=None, seconds=None, small=False) == Budget()
    assert budget(rounds=7, seconds=0.5, small=False).extent.seconds == 0.5
    assert budget(rounds=7, seconds=None, small=True).rounds == 7 and SMALL.extent.requests
    curves = (Budget().steps, Budget().sides, Budget().clients, Budget().families, Budget().waiting)
    assert all(len(points) >= 4 for points in curves)


def test_steps_clients_and_exact_mode_are_measured_on_a_real_server(real_server: ServerProcess) -> None:
    async def measured() -> Measured:
        async with Client(real_server.url) as client:
            served = Host(client, real_server.process.pid, await client.models())
            return Measured(await steps_and_clients(served, SMALL))

    found = asyncio.run(measured())
    assert {name: [*next(iter(found.curve(name).values()))] for name in ("steps", "clients", "exact")} == {
        "steps": [1, 2, 4], "clients": [1, 2, 4], "exact": [1, 2, 4],
    }  # fmt: skip
    spreads = [spread for values in found.curve("clients").values() for spread in values.values()]
    assert all(spread.count == SMALL.rounds and spread.median > 0 for spread in spreads)


def test_image_sizes_are_measured_and_four_times_the_pixels_are_at_least_four_times_the_arithmetic(
    family_folder: Path,
) -> None:
    found = Measured(sides(family_folder, SMALL, torch.device("cpu"))).curve("sides")
    work = found["arithmetic, Gflop (counted)"]
    assert [*work] == [8, 16, 32] and 4 <= work[32].median / work[16].median < 8
    assert all(spread.median > 0 for spread in found["one evaluation, ms"].values())


@pytest.mark.parametrize("folder", [ROOT / "families" / "shapes", None], ids=["with a whole-dial student", "without"])
def test_copies_of_a_family_are_families_of_other_names(folder: Path | None, family: Family, tmp_path: Path) -> None:
    original = open_family(folder) if folder else family
    found = [open_family(copy) for copy in copies(original.folder, tmp_path, 2)]
    assert [copy.name for copy in found] == [f"{original.name}-1", f"{original.name}-2"]
    whole = original.manifest.whole
    assert found[1].manifest.members == ((whole,) if whole else original.manifest.members)


def test_the_page_has_what_the_result_file_says_and_writing_it_again_changes_nothing(tmp_path: Path) -> None:
    found = dict(MARKED.findall(PAGE.read_text()))
    if not RESULT.exists():
        assert set(found.values()) == {""}, "nothing is measured yet, so the page says nothing"
        return
    record, measured = read(RESULT)
    assert found == {name: made() for name, made in tables(record, measured).items()}, (
        "python -m benchmarks.growth report"
    )
    copy = tmp_path / "page.md"
    copy.write_text(PAGE.read_text())
    write_tables(record, measured, copy)
    assert copy.read_text() == PAGE.read_text()
    assert not record.commit.endswith("-dirty")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "measure or report"),
        (["measure", "--rounds", "0"], "rounds: "),
        (["measure", "--seconds", "soon"], "seconds: "),
        (["report", "--result", "nowhere.json"], "nowhere.json"),
    ],
)
def test_a_wrong_argument_is_named(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) in (1, 2)
    told = capsys.readouterr().err
    assert told.startswith("benchmarks.growth: ") and said in told and "Traceback" not in told


@pytest.mark.slow
def test_every_curve_is_measured_and_reported(family_folder: Path, tmp_path: Path) -> None:
    out, page, picture = tmp_path / "result.json", tmp_path / "page.md", tmp_path / "growth.png"
    assert main(["measure", "--small", "--family", str(family_folder), "--out", str(out), "--note", "A trial."]) == 0
    record, measured = read(out)
    wanted = {curve.name for curve in CURVES}
    if not redis_is_there():
        assert os.environ.get("CI") != "true", (
            "no Redis: jobs that wait in it cannot be measured, and in CI they must be"
        )
        print("no Redis (Debian: apt-get install redis-server): jobs that wait in it were not measured")
        wanted.remove("waiting-redis")
    assert {name for name in (curve.name for curve in CURVES) if measured.curve(name)} == wanted
    page.write_text("".join(f"<!-- {name} -->\nSTALE\n<!-- end -->\n" for name in tables(record, measured)))
    for _ in range(2):
        assert main(["report", "--result", str(out), "--file", str(page), "--picture", str(picture)]) == 0
        assert [name for name, _ in MARKED.findall(page.read_text())] == [*tables(record, measured)]
        assert "STALE" not in page.read_text() and "A trial." in page.read_text()
    assert picture.read_bytes().startswith(b"\x89PNG")

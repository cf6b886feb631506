"""The contest of servers: its tables are what its files say, its painter draws what the server draws, and it measures."""

import asyncio
import base64
import io
import json
import re
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image

from benchmarks.encoding.cost import SERVED, Costs, encoded
from benchmarks.encoding.images import KINDS, image
from benchmarks.encoding.table import table
from benchmarks.load.loops import Extent, closed_loop, unwatched
from benchmarks.load.summary import summarise
from benchmarks.load.wishes import Wishes, weights
from benchmarks.peers.commands import STUDENTS, WHOLE, main
from benchmarks.peers.painter import Painter, answer, example_wish, model_of
from benchmarks.peers.peer import PEERS
from benchmarks.peers.process import memory_bytes, served
from benchmarks.peers.report import TABLES
from benchmarks.peers.result import Bout, read_contest
from benchmarks.peers.whole import only_whole
from diffusion.family import Family, open_family
from server.images import FORMATS, encode

ROOT = Path(__file__).parents[2]
SHAPES = ROOT / "families" / "shapes"
PAGE = ROOT / "docs" / "performance.md"
COSTS = ROOT / "benchmarks" / "encoding" / "costs.json"


def test_every_table_stands_on_the_page_as_the_result_files_say() -> None:
    text, contests = PAGE.read_text(), {"students": STUDENTS, "whole": WHOLE}
    found = re.findall(r"<!-- peers (\w+) (\w+) -->\n(.*?)<!-- end -->", text, re.DOTALL)
    assert {kind for kind, _, _ in found} == set(TABLES)
    for kind, variant, written in found:
        assert written == TABLES[kind](read_contest(contests[variant])), "python -m benchmarks.peers report"
    (written,) = re.findall(r"<!-- encoding -->\n(.*?)<!-- end -->", text, re.DOTALL)
    assert written == table(Costs.model_validate_json(COSTS.read_text())), "python -m benchmarks.encoding --only-table"


@pytest.mark.parametrize("output_format", FORMATS)
def test_the_server_encodes_with_the_settings_that_were_chosen(output_format) -> None:  # type: ignore[no-untyped-def]
    for kind in KINDS:
        pixels = image(kind, 32, SHAPES)
        assert encode(pixels, output_format) == encoded(pixels, SERVED[output_format])


def test_a_family_of_its_whole_dial_student_alone_draws_what_that_student_draws(tmp_path: Path) -> None:
    family = only_whole(SHAPES, tmp_path)
    assert {plan.members for plan in family.positions.values()} == {("whole",)}
    wishes = [example_wish(family, 16) | {"seed": 3}]  # which no other student draws
    (alone,), (among,) = Painter(tmp_path).paint(wishes), Painter(SHAPES).paint(wishes)
    assert np.array_equal(alone, among)


def test_a_batch_of_several_step_counts_comes_back_in_its_order() -> None:
    painter = Painter(SHAPES)
    wishes = [example_wish(painter.family, steps) | {"seed": seed} for seed, steps in enumerate((4, 1, 2, 4))]
    together = painter.paint(wishes)
    for wish, pixels in zip(wishes, together, strict=True):
        (alone,) = painter.paint([wish])
        assert np.abs(alone.astype(int) - pixels.astype(int)).max() <= 1
    file = base64.b64decode(answer(together[0], 4)["data"][0]["b64_json"])
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(file))), together[0])


def test_a_peer_is_started_measured_weighed_and_ended(family: Family) -> None:
    stepdial = PEERS[0]

    async def measured() -> tuple[Bout, int, int]:
        async with served(stepdial, family, ROOT) as (client, pid, _):
            wishes = Wishes(model_of(family), weights("1,2"), Random(0))
            run = await closed_loop(client, wishes, 2, Extent(warmup_seconds=0.0, requests=6), unwatched)
            summary = summarise(run, rate=None, clients=2, slo={"1": 60.0, "2": 60.0})
            return Bout.of(stepdial.name, "a few", summary), memory_bytes(pid), pid

    bout, memory, pid = asyncio.run(measured())
    assert bout.failed == 0 and bout.evaluations_per_second > bout.images_per_second > 0
    assert set(bout.latency_ms) <= {"1", "2"} and memory > 100 * 2**20
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize("arguments", [[], ["measure", "--rounds", "0"], ["measure", "--servers", "Apache"]])
def test_a_wrong_argument_is_named(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) in (1, 2)
    said = capsys.readouterr().err
    assert said.startswith("benchmarks.peers: ") and "Traceback" not in said


@pytest.mark.slow
@pytest.mark.parametrize("peer", [peer for peer in PEERS if "stepdial" not in peer.name], ids=lambda peer: peer.name)
def test_every_other_server_draws_the_same_picture(peer) -> None:  # type: ignore[no-untyped-def]
    environment = ROOT / ".venv" / "peers"
    if not (environment / "bin" / "python").exists():
        pytest.skip("the other servers are not installed: make peers-environment")
    family = open_family(SHAPES)
    wish = example_wish(family, 2) | {"seed": 5}

    async def drawn() -> bytes:
        async with served(peer, family, environment) as (client, _, _):
            status, _, data = await client.post(wish)
            assert status == 200
            return base64.b64decode(json.loads(data)["data"][0]["b64_json"])

    (expected,) = Painter(SHAPES).paint([wish])
    pixels = np.asarray(Image.open(io.BytesIO(asyncio.run(drawn()))))
    assert np.abs(pixels.astype(int) - expected.astype(int)).max() <= 1

"""One network for the whole dial, served: every step count from the same weights, in shared waves."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from diffusion.family import Family, open_family
from diffusion.manifest import GoldenSample
from server.app import create_app
from server.engine import Engine, choose_device
from server.samples import Sample, Turn
from server.settings import Settings
from tests.server.desk import WISH, pixels
from tests.server.tiny import draw_alone, write_tiny_family


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """A family of a teacher, a 2-step student, and one student for 1, 2 and 4 steps."""
    folder = tmp_path_factory.mktemp("families") / "tiny"
    return open_family(write_tiny_family(folder, steps=(2,), whole=(1, 2, 4)))


@pytest.fixture(scope="module")
def engine(family: Family) -> Engine:
    """Its networks, every golden sample of theirs drawn again."""
    engine = Engine(family, device=choose_device("cpu"), max_wave=4)
    engine.prepare()
    return engine


def alone(family: Family, steps: int, member: str) -> np.ndarray:
    entry = GoldenSample(steps=steps, condition=(1, 1, 1), seed=7, member=member)
    return draw_alone(family, entry).numpy()


def test_a_server_draws_every_count_with_the_one_network_and_says_so(family: Family, engine: Engine) -> None:
    stopped = threading.Event()
    app = create_app(Settings(family=family.folder, max_wave=4), [family], lambda _: engine, stop=stopped.set)
    with TestClient(app) as client:
        while client.get("/readyz").status_code == 503 and not stopped.is_set():
            pass
        model = client.get("/models").json()["data"][0]
        drawers = {position["steps"]: position["student"] for position in model["positions"]}
        assert {steps: drawers[steps] for steps in (1, 2, 4, 32)} == {
            1: "whole",
            2: "student-2",
            4: "whole",
            32: "teacher",
        }
        assert model["student_guidance"] == {"student-2": 1.0, "whole": 1.0}
        for steps in (1, 2, 4):
            answer = client.post("/generate", json=WISH | {"steps": steps}, headers={"Accept": "image/png"})
            assert answer.status_code == 200 and answer.headers["X-Student"] == drawers[steps]
            expected = alone(family, steps, drawers[steps]).astype(int)
            assert np.abs(pixels(answer.content).astype(int) - expected).max() <= 1


def test_samples_of_every_count_share_a_wave_and_come_out_as_if_alone(family: Family, engine: Engine) -> None:
    whole = family.manifest.whole
    assert whole is not None
    samples = [Sample(whole.plan(steps), (1, 2, 1), seed=steps) for steps in (1, 2, 4, 4)]
    turns = [Turn(sample, 0, None) for sample in samples]
    assert [turn.condition for turn in turns] == [(1, 2, 1, count) for count in (1, 2, 4, 4)]
    together = engine.draw_wave(turns)
    for turn, found in zip(turns, together, strict=True):
        assert np.array_equal(np.asarray(engine.draw_wave([turn])[0]), np.asarray(found))
    told_otherwise = Turn(Sample(whole.plan(2), (1, 2, 1), seed=1), 0, None)
    assert not np.array_equal(np.asarray(engine.draw_wave([told_otherwise])[0]), np.asarray(together[0]))


def test_what_is_measured_decides_who_serves_a_position(family: Family, tmp_path: Path) -> None:
    frontier = family.frontier
    assert frontier is not None and [row.source for row in frontier.positions[:4]] == [
        "whole",
        "student",
        "whole",
        "whole",
    ]
    student, whole = (row for row in frontier.positions if row.steps == 2)

    def served(**changes: Any) -> str:
        rows = tuple(row.model_copy(update=changes) if row is whole else row for row in frontier.positions)
        changed = Family(family.folder, family.manifest, frontier.model_copy(update={"positions": rows}))
        assert {choice.source for choice in changed.choices(2)} == {"student", "whole"}
        return changed.positions[2].members[0]

    better = whole.frechet.model_copy(update={"mean": student.frechet.mean - 1})
    assert served() == "student-2" and served(frechet=better) == "whole"
    assert served(frechet=better, samples=whole.samples + 1) == "student-2"  # distances compare at equal numbers only
    only = frontier.model_copy(update={"positions": tuple(row for row in frontier.positions if row is not student)})
    assert Family(family.folder, family.manifest, only).positions[2].members == ("student-2",)

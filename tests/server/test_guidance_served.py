"""Students that are told their guidance, served: any w of their range, in shared waves, one evaluation a step."""

import threading
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

from diffusion.family import Family, FamilyError, open_family
from diffusion.files import write_json
from diffusion.manifest import GoldenSample, Manifest
from server.app import create_app
from server.engine import Engine, choose_device
from server.samples import Sample, Turn
from server.settings import Settings
from tests.server.desk import WISH, blamed, pixels
from tests.server.tiny import draw_alone, write_tiny_family


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """A family of a teacher, a 2-step student and one for 1 and 4 steps, both told a guidance of 0 to 3."""
    folder = tmp_path_factory.mktemp("families") / "tiny"
    return open_family(write_tiny_family(folder, steps=(2,), whole=(1, 4), guidance=(0.0, 3.0)))


@pytest.fixture(scope="module")
def engine(family: Family) -> Engine:
    """Its networks, every golden sample of theirs drawn again at its default guidance."""
    engine = Engine(family, device=choose_device("cpu"), max_wave=4)
    engine.prepare()
    return engine


@pytest.fixture(scope="module")
def client(family: Family, engine: Engine) -> TestClient:
    """A client of a server of the family."""
    stopped = threading.Event()
    app = create_app(Settings(family=family.folder, max_wave=4), [family], lambda _: engine, stop=stopped.set)
    with TestClient(app) as client:
        while client.get("/readyz").status_code == 503 and not stopped.is_set():
            pass
        yield client


def test_a_student_draws_with_the_guidance_that_is_asked_for_and_otherwise_with_its_own(
    family: Family, client: TestClient
) -> None:
    drawn = {}
    for steps, drawer in ((1, "whole"), (2, "student-2")):
        entry = GoldenSample(steps=steps, condition=(1, 1, 1), seed=7, member=drawer)
        for w in (None, 0.0, 1.0, 2.5):
            wish = WISH | {"steps": steps} | ({} if w is None else {"guidance": w})
            answer = client.post("/generate", json=wish, headers={"Accept": "image/png"})
            assert answer.status_code == 200 and answer.headers["X-Student"] == drawer
            drawn[steps, w] = pixels(answer.content).astype(int)
            expected = draw_alone(family, entry, guidance=w).numpy().astype(int)
            assert np.abs(drawn[steps, w] - expected).max() <= 1
        assert np.array_equal(drawn[steps, None], drawn[steps, 1.0])
        assert not np.array_equal(drawn[steps, 0.0], drawn[steps, 2.5])


def test_a_guidance_outside_of_the_range_is_answered_with_the_range_and_models_tell_it(client: TestClient) -> None:
    answer = client.post("/generate", json=WISH | {"steps": 2, "guidance": 3.5})
    assert blamed(answer) == ["/guidance"]
    assert "3.5 is not drawn: student-2 was trained for guidance 0 to 3" in answer.json()["detail"]
    model = client.get("/models").json()["data"][0]
    assert model["student_guidance_range"] == {"student-2": [0.0, 3.0], "whole": [0.0, 3.0]}
    assert model["student_guidance"] == {"student-2": 1.0, "whole": 1.0}
    assert client.post("/generate", json=WISH | {"steps": 32, "guidance": 3.5}).status_code == 200


def test_samples_of_every_guidance_and_count_share_a_wave_and_come_out_as_if_alone(
    family: Family, engine: Engine
) -> None:
    whole = family.manifest.whole
    assert whole is not None
    asked = [(1, 0.0), (4, 0.0), (4, 2.0), (4, 3.0)]
    samples = [Sample(whole.plan(k), (1, 2, 1, *family.told("whole", w)), seed=5) for k, w in asked]
    turns = [Turn(sample, 0, None) for sample in samples]
    assert [turn.condition[-2:] for turn in turns] == [(0, 1), (0, 4), (2000, 4), (3000, 4)]
    together = [np.asarray(found) for found in engine.draw_wave(turns)]
    for turn, found in zip(turns, together, strict=True):
        assert np.array_equal(np.asarray(engine.draw_wave([turn])[0]), found)
    assert len({found.tobytes() for found in together}) == 4


def test_a_plan_of_members_that_are_told_and_others_is_refused(family: Family, tmp_path: Path) -> None:
    frontier = family.frontier
    assert frontier is not None
    teacher, student = (family.manifest.member(name).plan(steps) for name, steps in (("teacher", 32), ("student-2", 2)))
    mixed = teacher.model_copy(update={"hops": (*teacher.hops[:16], student.hops[1])})
    with pytest.raises(ValueError, match="told different ranges of guidance"):
        family.manifest.check(mixed.hops)
    folder = write_tiny_family(tmp_path / "tiny", steps=(2,), guidance=(0.0, 3.0))
    row = frontier.positions[0].model_copy(update={"plan": mixed, "steps": 17})
    write_json(folder, "frontier.json", frontier.model_copy(update={"positions": (row,)}))
    with pytest.raises(FamilyError, match="combines members that are told different ranges of guidance, or none"):
        open_family(folder)


def test_a_default_guidance_outside_of_the_range_is_refused(family: Family) -> None:
    about = family.manifest.model_dump()
    about["members"][1]["guidance"] = 4.0
    with pytest.raises(ValueError, match="guidance 4 is outside of 0 to 3"):
        Manifest.model_validate(about)

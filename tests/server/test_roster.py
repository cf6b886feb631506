"""Several families in one server: chosen by name, loaded and unloaded while requests are drawn."""

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from diffusion.family import Family, open_family
from server.commands import serve
from server.failures import OutOfMemory
from server.keys import add_key
from server.roster import weights_bytes
from tests.server.crowd import FakeDevice, picture_of
from tests.server.desk import WISH, Desk, blamed, pixels, problem, value
from tests.server.processes import PATIENCE, serve_real, wait_until
from tests.server.tiny import LABELS, write_tiny_family


def named(folder: Path, name: str) -> Path:
    """Give a family another name."""
    file = folder / "family.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"name": name}))
    return folder


@pytest.fixture(scope="module")
def root(family_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two families, `words` and `labels`, and of some that cannot be loaded."""
    root = tmp_path_factory.mktemp("roster")
    named(Path(shutil.copytree(family_folder, root / "words")), "words")
    named(write_tiny_family(root / "labels", LABELS, steps=(1, 2)), "labels")
    broken = Path(shutil.copytree(root / "labels", root / "broken"))
    (broken / "student-1.safetensors").write_bytes(b"x")
    (root / "empty").mkdir()
    return root


@pytest.fixture
def words(root: Path) -> Family:
    return open_family(root / "words")


@pytest.fixture
def labels(root: Path) -> Family:
    return open_family(root / "labels")


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Opens desks whose client may draw and administrate."""
    file = tmp_path / "keys.json"
    secret = add_key(file, "keeper", scopes=("draw", "admin"))

    def open_desk(*families: Family, **settings: Any) -> Desk:
        desk = Desk(*families, keys_file=file, **settings)
        desk.client.headers["authorization"] = f"Bearer {secret}"
        return desk

    yield open_desk


def load(desk: Desk, folder: Any) -> Any:
    return desk.client.post("/admin/families", json={"folder": folder})


def states(desk: Desk) -> dict[str, str]:
    return {family["name"]: family["state"] for family in desk.client.get("/admin/families").json()["data"]}


def test_a_request_chooses_its_family_by_name_and_gets_the_first_without(words: Family, labels: Family) -> None:
    with Desk(words, labels) as desk:
        assert [model["name"] for model in desk.client.get("/models").json()["data"]] == ["words", "labels"]
        assert desk.ask().json()["model"] == "words"
        answer = desk.ask({"model": "labels", "label": "two", "steps": 2, "seed": 3, "response_format": "file"})
        (turn,) = desk.devices["labels"].waves[-1]
        assert np.array_equal(pixels(answer.content), picture_of(turn.sample))
        assert blamed(desk.ask({"model": "labels", "prompt": "a red star on mint"})) == ["/prompt"]
        assert problem(desk.ask(WISH | {"model": "other"}), 404)["detail"].endswith("'words', 'labels'")
        assert desk.client.get("/frontier").json()["positions"][2]["steps"] == 4
        assert desk.client.get("/frontier?model=labels").json()["positions"][2]["steps"] == 32
        problem(desk.client.get("/frontier?model=other"), 404)


def test_families_never_share_a_wave_though_their_members_have_the_same_names(words: Family, labels: Family) -> None:
    with Desk(words, labels) as desk, ThreadPoolExecutor(8) as crowd:
        wishes = [
            {"model": "words", "prompt": "red star", "steps": 2, "seed": 1},
            {"model": "labels", "label": 1, "steps": 2, "seed": 1},
        ]
        answers = list(crowd.map(desk.ask, wishes * 8))
        assert {answer.status_code for answer in answers} == {200}
        for name, device in desk.devices.items():
            assert {turn.sample.family for wave in device.waves for turn in wave} == {name}
            assert {turn.hop.member for wave in device.waves for turn in wave} == {"student-2"}


def test_a_family_is_loaded_and_unloaded_while_the_server_runs(
    root: Path, words: Family, keeper: Callable[..., Desk]
) -> None:
    with keeper(words, families=root) as desk:
        problem(desk.ask({"model": "labels", "label": 1}), 404)
        answer = load(desk, "labels")
        assert answer.status_code == 201 and answer.json()["state"] == "ready"
        assert states(desk) == {"words": "ready", "labels": "ready"}
        assert desk.ask({"model": "labels", "label": 1, "steps": 1}).status_code == 200
        assert value(desk, "stepdial_student_info", model="labels", network="student-1") == 1
        assert problem(load(desk, "labels"), 409)
        assert desk.client.delete("/admin/families/words").status_code == 204
        assert states(desk) == {"labels": "ready"}
        assert desk.ask({"label": 1, "steps": 1}).json()["model"] == "labels"
        assert value(desk, "stepdial_student_info", model="words", network="student-1") == 0
        problem(desk.client.delete("/admin/families/words"), 404)
        problem(desk.client.delete("/admin/families/labels"), 409)


def test_a_family_that_leaves_finishes_what_it_accepted_and_takes_nothing_new(
    words: Family, labels: Family, keeper: Callable[..., Desk]
) -> None:
    with keeper(words, labels) as desk, ThreadPoolExecutor(2) as crowd:
        device = desk.devices["labels"]
        device.gate.clear()
        drawing = crowd.submit(desk.ask, {"model": "labels", "label": 1, "steps": 2, "seed": 5})
        wait_until(lambda: bool(device.waves))
        leaving = crowd.submit(desk.client.delete, "/admin/families/labels")
        wait_until(lambda: states(desk)["labels"] == "leaving")
        problem(desk.ask({"model": "labels", "label": 1}), 404)
        problem(desk.client.delete("/admin/families/labels"), 409)
        assert [model["name"] for model in desk.client.get("/models").json()["data"]] == ["words"]
        assert not leaving.done() and not drawing.done()
        device.gate.set()
        assert drawing.result().status_code == 200
        assert leaving.result().status_code == 204
        assert states(desk) == {"words": "ready"}


def test_jobs_that_were_accepted_are_drawn_before_their_family_leaves(
    words: Family, labels: Family, keeper: Callable[..., Desk]
) -> None:
    with keeper(words, labels, max_wave=1) as desk, ThreadPoolExecutor(1) as crowd:
        device = desk.devices["labels"]
        device.gate.clear()
        wish = {"model": "labels", "label": 1, "steps": 2}
        jobs = [desk.client.post("/jobs", json=wish | {"seed": seed}).json()["id"] for seed in range(5)]
        leaving = crowd.submit(desk.client.delete, "/admin/families/labels")
        wait_until(lambda: states(desk)["labels"] == "leaving")
        problem(desk.client.post("/jobs", json=wish), 404)
        device.gate.set()
        assert leaving.result().status_code == 204
        assert {desk.client.get(f"/jobs/{job}").json()["state"] for job in jobs} == {"done"}


def test_a_failed_or_a_cancelled_request_does_not_keep_its_family(
    words: Family, labels: Family, keeper: Callable[..., Desk]
) -> None:
    with keeper(words, labels, request_timeout_seconds=0.2) as desk:
        device = desk.devices["labels"]
        device.failures = [RuntimeError("broken")]
        problem(desk.ask({"model": "labels", "label": 1, "steps": 1}), 500)
        problem(desk.ask({"model": "labels", "label": 9}), 422)
        device.gate.clear()
        problem(desk.ask({"model": "labels", "label": 1, "steps": 1}), 504)
        device.gate.set()
        assert desk.client.delete("/admin/families/labels").status_code == 204


def test_what_does_not_fit_into_the_memory_allowed_is_not_loaded_and_the_sizes_are_named(
    root: Path, words: Family, labels: Family, keeper: Callable[..., Desk]
) -> None:
    size, budget = weights_bytes(labels), weights_bytes(words) + weights_bytes(labels) - 1
    with keeper(words, families=root, memory_bytes=budget) as desk:
        told = problem(load(desk, "labels"), 507)["detail"]
        assert all(str(number) in told for number in (size, budget, weights_bytes(words)))
        assert states(desk) == {"words": "ready"}
    with keeper(words, families=root, memory_bytes=budget + 1) as desk:
        assert load(desk, "labels").json()["memory_bytes"] == size


def test_a_family_for_which_the_device_has_no_room_is_refused_and_may_be_tried_again(
    root: Path, words: Family, keeper: Callable[..., Desk]
) -> None:
    with keeper(words, families=root) as desk:
        device = desk.devices["labels"] = FakeDevice()
        device.preparing = OutOfMemory("at /secret/place")
        told = problem(load(desk, "labels"), 507)["detail"]
        assert "no room" in told and "secret" not in told and states(desk) == {"words": "ready"}
        device.preparing = None
        assert load(desk, "labels").status_code == 201


@pytest.mark.parametrize("folder", ["..", ".", "../roster", "words/../labels", "/etc", "", "a" * 101, "x\0y", 3, None])
def test_only_names_of_folders_below_the_root_are_looked_at(
    root: Path, words: Family, keeper: Callable[..., Desk], folder: Any
) -> None:
    with keeper(words, families=root) as desk:
        assert blamed(load(desk, folder)) == ["/folder"]


@pytest.mark.parametrize("folder", ["broken", "empty", "nowhere"])
def test_a_folder_without_a_good_family_is_refused_without_a_path(
    root: Path, words: Family, keeper: Callable[..., Desk], folder: str
) -> None:
    with keeper(words, families=root) as desk:
        answer = load(desk, folder)
        assert blamed(answer) == ["/folder"] and str(root) not in answer.text
        assert states(desk) == {"words": "ready"}


def test_without_a_root_nothing_can_be_loaded(words: Family, keeper: Callable[..., Desk]) -> None:
    with keeper(words) as desk:
        assert blamed(load(desk, "labels")) == ["/folder"]


def test_families_that_cannot_be_served_together_are_refused_at_start(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, word in (
        (["--family", str(root / "words"), "--family", str(root / "words")], "already"),
        (["--family", str(root / "words"), "--memory-bytes", "10"], "10 are allowed"),
        (["--families", str(tmp_path)], "no family"),
        (["--family", str(root / "words"), "--keys-file", str(tmp_path / "none.json")], "none.json"),
    ):
        assert serve([*arguments, "--port", "0"]) == 1
        told = capsys.readouterr().err
        assert word in told and told.count("\n") == 1 and str(tmp_path) not in told
    assert serve(["--families", str(tmp_path / "nowhere"), "--port", "0"]) == 2
    assert "families" in capsys.readouterr().err


def test_real_families_come_and_go_under_requests_and_none_is_dropped(root: Path) -> None:
    with serve_real(root / "words", "--families", str(root), "--admin-port", "0", "--max-wave", "4") as server:
        wait_until(lambda: "administration are on port" in server.output)
        port = next(line for line in server.lines if "administration" in line).split(" on port ")[1].split()[0]
        backstage = f"http://127.0.0.1:{port}"
        before = server.ask(prompt="a red star on mint", steps=2, seed=1).json()["data"]
        answers: list[Any] = []
        done = threading.Event()

        def ask() -> None:
            while not done.is_set():
                answers.append(server.ask(prompt="a red star on mint", steps=2, seed=1))

        asking = threading.Thread(target=ask)
        asking.start()
        client = httpx2.Client(timeout=PATIENCE)
        for _ in range(2):
            assert client.post(f"{backstage}/admin/families", json={"folder": "labels"}).status_code == 201
            drawn = server.ask(model="labels", label="two", steps=1, seed=4)
            assert drawn.status_code == 200 and drawn.json()["model"] == "labels"
            assert client.delete(f"{backstage}/admin/families/labels").status_code == 204
        done.set()
        asking.join()
        assert answers and {answer.status_code for answer in answers} == {200}
        assert all(answer.json()["data"] == before for answer in answers)
        assert client.get(f"{backstage}/metrics").status_code == 200
        assert server.get("/metrics").status_code == 404 and server.get("/admin/families").status_code == 404
        lured = client.get(f"{backstage}/admin/families", headers={"host": "evil.example"})
        assert lured.status_code == 400 and lured.headers["content-type"] == "application/problem+json"
        assert server.stop() == 0

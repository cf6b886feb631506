"""API keys: the file, the command that keeps it, and what a server does with and without them."""

import stat
from pathlib import Path

import pytest

from diffusion.family import Family
from server.gate import OPEN
from server.keys import Keyring, KeysError, add_key, read_keys, remove_key
from server.keys_command import keys
from tests.server.desk import Desk, problem, value


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def test_the_command_prints_a_key_once_and_the_file_holds_only_its_hash(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert keys(["--keys-file", str(file), "add", "ann", "--scopes", "draw,admin"]) == 0
    secret = capsys.readouterr().out.strip()
    assert len(secret) > 40 and secret not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert keys(["--keys-file", str(file), "list"]) == 0
    listed = capsys.readouterr().out
    assert listed.startswith("ann\tdraw,admin\t") and secret not in listed
    found = Keyring(file).find(secret)
    assert found and found.name == "ann"
    assert keys(["--keys-file", str(file), "remove", "ann"]) == 0
    assert read_keys(file) == ()


def test_the_command_refuses_in_a_sentence(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_key(file, "ann")
    for arguments, status, word in (
        (["add", "ann"], 1, "already"),
        (["remove", "bob"], 1, "bob"),
        (["add", "a b"], 2, "name"),
        (["add", "bob", "--scopes", "fly"], 2, "scopes"),
    ):
        assert keys(["--keys-file", str(file), *arguments]) == status
        told = capsys.readouterr().err
        assert word in told and "Traceback" not in told
    assert [key.name for key in read_keys(file)] == ["ann"]


@pytest.mark.parametrize("content", ["", "{", '{"keys": [{"name": "x"}]}', '{"format": 2, "keys": []}', "\x00\xff"])
def test_a_broken_file_of_keys_is_refused_without_a_path(file: Path, content: str) -> None:
    file.write_text(content)
    with pytest.raises(KeysError) as refusal:
        Keyring(file)
    assert str(file.parent) not in str(refusal.value)


def test_drawing_takes_a_key_and_reading_does_not(family: Family, file: Path) -> None:
    secret = add_key(file, "ann")
    with Desk(family, keys_file=file) as desk:
        for path in ("/", "/page/page.js", "/livez", "/readyz", "/metrics", "/models", "/frontier", "/openapi.json"):
            assert desk.client.get(path).status_code == 200, path
        before = value(desk, "stepdial_requests_total", outcome="denied")
        unknown = desk.ask()
        problem(unknown, 401)
        assert unknown.headers["www-authenticate"] == "Bearer"
        wrong = [bearer(secret[:-1]), bearer("x"), {"authorization": f"Basic {secret}"}, {"authorization": secret}]
        for headers in wrong:
            problem(desk.ask(**headers), 401)
        assert "invalid_token" in desk.ask(**bearer("x")).headers["www-authenticate"]
        assert desk.ask(**bearer(secret)).status_code == 200
        assert desk.ask(authorization=f"bearer {secret}").status_code == 200
        assert value(desk, "stepdial_requests_total", outcome="denied") - before == 6


def test_every_route_wants_a_key_unless_it_is_named_as_open(family: Family, file: Path) -> None:
    add_key(file, "ann")
    with Desk(family, keys_file=file) as desk:
        paths = desk.client.get("/openapi.json").json()["paths"]
        guarded = paths.keys() - OPEN
        assert {"/generate", "/admin/families", "/admin/families/{name}"} <= guarded
        for path in guarded:
            for method in paths[path]:
                answer = desk.client.request(method, path.replace("{", "").replace("}", ""), content=b"{}")
                assert answer.status_code == 401, path
        foreign = desk.client.post("/v1/images/generations")
        assert foreign.status_code == 401 and foreign.json()["error"]["type"] == "authentication_error"
        problem(desk.client.get("/nowhere"), 401)


def test_a_key_is_refused_before_its_request_is_read(family: Family, file: Path) -> None:
    add_key(file, "ann")
    with Desk(family, keys_file=file) as desk:
        problem(desk.ask(b"\xff not JSON"), 401)


def test_a_key_without_the_scope_is_told_which_one(family: Family, file: Path) -> None:
    drawer, keeper = add_key(file, "ann"), add_key(file, "bob", scopes=("admin",))
    with Desk(family, keys_file=file) as desk:
        refusal = desk.client.get("/admin/families", headers=bearer(drawer))
        problem(refusal, 403)
        assert 'scope="admin"' in refusal.headers["www-authenticate"]
        problem(desk.ask(**bearer(keeper)), 403)
        assert desk.client.get("/admin/families", headers=bearer(keeper)).status_code == 200


def test_a_change_of_the_file_is_noticed_and_a_broken_one_changes_nothing(family: Family, file: Path) -> None:
    ann = add_key(file, "ann")
    with Desk(family, keys_file=file) as desk:
        assert desk.ask(**bearer(ann)).status_code == 200
        bob = add_key(file, "bob")
        assert desk.ask(**bearer(bob)).status_code == 200
        remove_key(file, "ann")
        problem(desk.ask(**bearer(ann)), 401)
        good = file.read_text()
        file.write_text("{")
        assert desk.ask(**bearer(bob)).status_code == 200
        file.unlink()
        problem(desk.ask(**bearer(bob)), 401)
        file.write_text(good)
        assert desk.ask(**bearer(bob)).status_code == 200


def test_without_keys_there_is_no_administration_and_everybody_may_draw(desk: Desk) -> None:
    problem(desk.client.get("/admin/families"), 404)
    assert desk.ask(authorization="Bearer anything").status_code == 200


def test_the_document_names_the_key_and_what_its_absence_is_answered_with(desk: Desk) -> None:
    document = desk.client.get("/openapi.json").json()
    assert document["components"]["securitySchemes"]["key"] == {"type": "http", "scheme": "bearer"}
    assert {"401", "403", "429"} <= document["paths"]["/generate"]["post"]["responses"].keys()
    guarded = [operation for path in document["paths"].keys() - OPEN for operation in document["paths"][path].values()]
    assert all({"401", "403"} <= operation["responses"].keys() for operation in guarded)

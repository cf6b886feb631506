"""Entity tags: what a client has need not be drawn again."""

import pytest

from diffusion.family import Family
from tests.server.desk import WISH, Desk, value
from tests.server.test_deadlines import searched


def test_equal_wishes_have_equal_tags_and_the_bytes_that_go_with_them(desk: Desk) -> None:
    first, again = desk.ask(accept="image/png"), desk.ask(accept="image/png")
    assert first.headers["etag"] == again.headers["etag"] and first.content == again.content
    assert first.headers["etag"].startswith('"') and first.headers["vary"] == "Accept"
    others = [WISH | {"seed": 8}, WISH | {"steps": 2}, WISH | {"prompt": "a blue star on mint"}]
    tags = {desk.ask(other, accept="image/png").headers["etag"] for other in others}
    tags |= {desk.ask(accept="image/webp").headers["etag"], desk.ask().headers["etag"], first.headers["etag"]}
    assert len(tags) == 6


def test_json_has_a_weak_tag_since_its_times_differ(desk: Desk) -> None:
    first, again = desk.ask(), desk.ask()
    assert first.headers["etag"] == again.headers["etag"] and first.headers["etag"].startswith('W/"')
    assert first.json()["data"] == again.json()["data"] and first.json()["id"] != again.json()["id"]


@pytest.mark.parametrize("accept", ["image/png", "application/json"])
def test_a_tag_that_the_client_has_is_a_304_and_nothing_is_drawn(desk: Desk, accept: str) -> None:
    tag = desk.ask(accept=accept).headers["etag"]
    waves, served = len(desk.device.waves), value(desk, "stepdial_requests_total", steps="4", outcome="ok")
    for known in (tag, f'"other", {tag}', tag.removeprefix("W/")):
        answer = desk.ask(accept=accept, **{"if-none-match": known})
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", tag)
    assert len(desk.device.waves) == waves
    assert value(desk, "stepdial_requests_total", steps="4", outcome="ok") == served + 3


def test_another_tag_or_another_wish_is_drawn(desk: Desk) -> None:
    tag = desk.ask().headers["etag"]
    assert desk.ask(**{"if-none-match": '"other"'}).status_code == 200
    assert desk.ask(WISH | {"n": 2}, **{"if-none-match": tag}).status_code == 200
    assert desk.ask(accept="image/png", **{"if-none-match": tag}).status_code == 200
    assert desk.ask(WISH | {"steps": 3}, **{"if-none-match": tag}).status_code == 422


def test_a_choice_of_the_servers_has_the_tag_of_the_plan_that_it_chose(desk: Desk) -> None:
    tags = {steps: desk.ask(WISH | {"steps": steps}).headers["etag"] for steps in (2, 4)}
    for wish, steps in (({}, 4), ({"max_steps": 3}, 2), ({"max_steps": 4, "deadline_ms": 60_000}, 4)):
        chosen = WISH | {"steps": "auto"} | wish
        assert desk.ask(chosen).headers["etag"] == tags[steps]
        waves = len(desk.device.waves)
        assert desk.ask(chosen, **{"if-none-match": tags[steps]}).status_code == 304
        assert desk.ask(chosen, **{"if-none-match": tags[6 - steps]}).status_code == 200
        assert len(desk.device.waves) == waves + steps


def test_an_image_that_may_end_sooner_has_no_tag(family: Family) -> None:
    with Desk(searched(family)) as desk:
        assert "etag" in desk.ask().headers
        for wish in (WISH | {"allow_degrade": True}, WISH | {"steps": "auto"}):
            answer = desk.ask(wish, **{"if-none-match": desk.ask().headers["etag"]})
            assert answer.status_code == 200 and "etag" not in answer.headers


def test_what_may_differ_next_time_has_no_tag(desk: Desk) -> None:
    assert "etag" not in desk.ask(WISH | {"determinism": "fast"}).headers
    assert "etag" not in desk.ask({"prompt": "a red star on mint"}).headers
    assert desk.ask(WISH | {"determinism": "fast"}, **{"if-none-match": "*"}).status_code == 200

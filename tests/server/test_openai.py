"""OpenAI's images API, asked by their own client."""

import base64
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from openai import OpenAI

from diffusion.family import Family, open_family
from server.dial import Wish
from server.openai_schemas import QUALITY_STEPS, ImagesRequest
from server.openai_stream import partial_hops
from server.openai_words import translated, usage
from server.samples import Sample
from server.studio import Picture
from tests.server.crowd import picture_of
from tests.server.desk import Desk, pixels, value
from tests.server.processes import ServerProcess, serve_names, wait_until
from tests.server.test_deadlines import SlowDesk
from tests.server.test_stream import events_of
from tests.server.tiny import LABELS, UNCONDITIONAL, write_tiny_family

PROMPT = "a red star on mint"


@pytest.fixture(scope="module")
def client(real_server: ServerProcess) -> Iterator[OpenAI]:
    with client_of(real_server) as client:
        yield client


def client_of(server: ServerProcess, **options: Any) -> OpenAI:
    """Their client, as their users make it."""
    return OpenAI(base_url=server.url + "/v1", api_key="none", **options)


def test_their_client_draws_what_generate_draws(client: OpenAI, real_server: ServerProcess) -> None:
    answer = client.images.generate(prompt=PROMPT, n=2, size="8x8", quality="medium", extra_body={"seed": 7})  # type: ignore[call-overload]
    own = real_server.ask(prompt=PROMPT, steps=2, seed=7, n=2).json()
    assert [image.b64_json for image in answer.data] == [image["b64_json"] for image in own["data"]]
    assert (answer.size, answer.quality, answer.output_format, answer.background) == ("8x8", "medium", "png", "opaque")
    assert answer.usage.total_tokens == answer.usage.output_tokens == 4
    assert answer.data[0].seed == 7 and answer.created > 1.7e9


def test_a_plain_request_is_drawn_as_the_server_chooses_and_says_so(client: OpenAI) -> None:
    answer = client.images.generate(model="tiny", prompt=PROMPT)
    assert answer.data and answer.data[0].b64_json
    assert pixels(base64.b64decode(answer.data[0].b64_json)).shape == (8, 8, 3)
    assert answer.quality == "high" and answer.model_extra == {
        "student": "student-4",
        "steps_requested": "auto",
        "steps_used": 4,
        "degraded": False,
        "degrade_reason": None,
        "deadline_met": None,
    }


def test_the_dials_own_fields_travel_in_the_extra_body(client: OpenAI, real_server: ServerProcess) -> None:
    extra = {"seed": 3, "steps": 32, "guidance": 2.0, "determinism": "exact"}
    answer = client.images.generate(prompt=PROMPT, output_format="webp", extra_body=extra)
    own = real_server.ask(prompt=PROMPT, output_format="webp", **extra).json()
    assert answer.data and answer.data[0].b64_json == own["data"][0]["b64_json"]
    assert answer.quality == "auto" and answer.output_format == "webp"  # type: ignore[comparison-overlap]


def test_deadlines_and_limits_travel_in_the_extra_body(client: OpenAI) -> None:
    extra = {"deadline_ms": 60_000, "min_steps": 2, "max_steps": 3, "allow_degrade": False, "plan": "dedicated"}
    raw = client.images.with_raw_response.generate(prompt=PROMPT, extra_body=extra)
    told = raw.parse().model_extra
    assert told and (told["student"], told["steps_used"], told["deadline_met"]) == ("student-2", 2, True)
    assert (raw.headers["x-steps-used"], raw.headers["x-deadline-met"]) == ("2", "true")
    *_, completed = client.images.generate(prompt=PROMPT, stream=True, extra_body=extra)
    assert completed.model_extra and completed.model_extra | {"seed": 0} == told | {"seed": 0}
    with pytest.raises(openai.RateLimitError, match="deadline_ms is 0; what is asked for would take") as late:
        client.images.generate(prompt=PROMPT, extra_body={"deadline_ms": 0.001})
    assert (late.value.code, late.value.type) == ("deadline_unattainable", "rate_limit_error")
    assert late.value.response.headers["x-should-retry"] == "false"


def test_a_stream_shows_partial_images_and_then_the_image(client: OpenAI, real_server: ServerProcess) -> None:
    stream = client.images.generate(
        prompt=PROMPT, quality="high", stream=True, partial_images=2, extra_body={"seed": 7}
    )
    *partial, completed = list(stream)
    assert [event.type for event in partial] == ["image_generation.partial_image"] * 2
    assert [event.partial_image_index for event in partial if event.type.endswith("partial_image")] == [0, 1]
    assert all(pixels(base64.b64decode(event.b64_json)).shape == (8, 8, 3) for event in partial)
    assert completed.type == "image_generation.completed" and completed.usage.total_tokens == 4
    assert completed.b64_json == real_server.ask(prompt=PROMPT, steps=4, seed=7).json()["data"][0]["b64_json"]


def test_errors_arrive_as_their_exceptions_with_param_and_code(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="purple") as refusal:
        client.images.generate(prompt="a purple star")
    assert (refusal.value.param, refusal.value.type) == ("prompt", "invalid_request_error")
    with pytest.raises(openai.BadRequestError, match="8 is not served; the dial has 1, 2, 4") as refusal:
        client.images.generate(prompt=PROMPT, quality="xhigh")  # type: ignore[call-overload]
    assert (refusal.value.param, refusal.value.code) == ("quality", "field_refused")
    with pytest.raises(openai.NotFoundError, match="tiny") as missing:
        client.images.generate(prompt=PROMPT, model="gpt-image-1")
    assert (missing.value.param, missing.value.code) == ("model", "model_not_found")
    with pytest.raises(openai.BadRequestError, match="3 is not served") as refusal:
        client.images.generate(prompt=PROMPT, stream=True, extra_body={"steps": 3}).close()
    assert refusal.value.param == "steps"


def test_the_models_can_be_listed_and_fetched(client: OpenAI) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.object, model.created) == ("tiny", "model", 1767225600)
    assert client.models.retrieve("tiny") == model
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_their_client_comes_back_after_a_503_when_the_server_said_so(family: Family) -> None:
    with (
        serve_names(family.folder, ["--max-evaluations", "256"]) as names,
        client_of(names, max_retries=0) as impatient,
        client_of(names, max_retries=5) as patient,
    ):
        filling: dict[str, Any] = {"prompt": PROMPT, "n": 2, "extra_body": {"steps": 128}}
        waiting = threading.Thread(target=names.ask, kwargs={"prompt": PROMPT, "steps": 256})
        waiting.start()
        wait_until(lambda: names.metric("stepdial_num_samples_running") > 0)
        with pytest.raises(openai.InternalServerError) as full:
            impatient.images.generate(**filling)
        raw = patient.images.with_raw_response.generate(**filling)
        waiting.join()
    assert full.value.status_code == 503 and full.value.type == "server_error"
    assert int(full.value.response.headers["retry-after"]) >= 1
    assert raw.retries_taken >= 1 and len(raw.parse().data or []) == 2


def test_a_stream_that_fails_midway_raises_in_their_client(family: Family) -> None:
    with serve_names(family.folder) as names, client_of(names, max_retries=0) as client:
        stream = client.images.generate(
            prompt=PROMPT, stream=True, partial_images=3, extra_body={"steps": 512}, timeout=60
        )
        events = iter(stream)
        assert next(events).type == "image_generation.partial_image"
        assert names.ask(prompt="a red ring", steps=1).status_code == 503
        with pytest.raises(openai.APIError, match="device"):
            list(events)


def ask(desk: Desk, **wish: Any) -> Any:
    """POST /v1/images/generations."""
    return desk.client.post("/v1/images/generations", json=wish)


def refused(answer: Any, status: int = 400) -> str | None:
    """Check that the answer is an error of theirs and return the field it blames."""
    assert answer.status_code == status and answer.headers["content-type"] == "application/json"
    assert set(answer.json()) == {"error"} and set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert int(answer.headers["content-length"]) == len(answer.content)
    param: str | None = answer.json()["error"]["param"]
    return param


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"size": "1024x1024"}, "size"),
        ({"response_format": "url"}, "response_format"),
        ({"quality": "hd"}, "quality"),
        ({"quality": "low", "steps": 4}, "quality"),
        ({"quality": "max"}, "quality"),
        ({"background": "transparent"}, "background"),
        ({"style": "vivid"}, "style"),
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"n": 2, "stream": True}, "n"),
        ({"partial_images": 2}, "partial_images"),
        ({"partial_images": 4, "stream": True}, "partial_images"),
        ({"output_compression": 101}, "output_compression"),
        ({"quality": "high", "guidance": 3.0}, "guidance"),
        ({"guidance": 3.0}, "quality"),
        ({"quality": "high", "max_steps": 2}, "max_steps"),
        ({"quality": "high", "steps": "auto"}, "quality"),
        ({"min_steps": 4, "max_steps": 2}, "max_steps"),
        ({"deadline_ms": 0}, "deadline_ms"),
        ({"plan": "best"}, "plan"),
        ({"allow_degrade": 1}, "allow_degrade"),
        ({"guidance": -1.0}, "guidance"),
        ({"seed": -1}, "seed"),
        ({"label": 1}, "label"),
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt"),
    ],
)
def test_what_is_not_done_here_is_refused_by_name(desk: Desk, change: dict[str, Any], param: str) -> None:
    assert refused(ask(desk, **{"prompt": PROMPT} | change)) == param


def test_every_error_under_v1_has_their_shape_and_no_other_has(desk: Desk) -> None:
    refused(desk.client.get("/v1/nowhere"), 404)
    refused(desk.client.get("/v1/images/generations"), 405)
    refused(desk.client.post("/v1/images/generations", content=b"{", headers={"content-type": "application/json"}))
    refused(desk.client.post("/v1/images/generations", content=b"{}", headers={"content-type": "text/plain"}), 415)
    refused(ask(desk, prompt="x" * 70000), 413)
    desk.device.failures = [RuntimeError("at /secret/place")]
    broken = ask(desk, prompt=PROMPT)
    assert refused(broken, 500) is None and "secret" not in broken.text
    assert desk.client.get("/nowhere").headers["content-type"] == "application/problem+json"


def test_a_cached_image_says_so_as_in_generate(family: Family) -> None:
    with Desk(family, cache_bytes=2**20) as desk:
        first, again = (ask(desk, prompt=PROMPT, seed=7) for _ in range(2))
    assert "x-cache" not in first.headers and again.headers["x-cache"] == "hit"
    assert first.json()["data"] == again.json()["data"]


def test_a_deadline_that_passes_is_an_error_of_theirs_too(family: Family) -> None:
    with SlowDesk(family, 0.001) as desk:
        desk.device.gate.clear()
        answer = ask(desk, prompt=PROMPT, quality="high", deadline_ms=80)
        assert refused(answer, 504) is None
        assert answer.json()["error"]["code"] == "deadline_passed"
        assert value(desk, "stepdial_pending_evaluations") == 0


def test_less_than_was_asked_for_is_told_and_counted_as_drawn(family: Family) -> None:
    with SlowDesk(family, 1.0) as desk:
        wish = {"prompt": PROMPT, "quality": "high", "n": 2, "deadline_ms": 3000, "allow_degrade": True}
        told = ask(desk, **wish)
        assert told.headers["x-degrade-reason"] == "deadline"
        told = told.json()
        assert (told["steps_requested"], told["steps_used"], told["quality"], told["degraded"]) == (
            4,
            2,
            "medium",
            True,
        )
        assert told["usage"]["output_tokens"] == 4
        ((_, streamed),) = events_of(ask(desk, **wish | {"n": 1, "stream": True}).text)
        assert (streamed["steps_used"], streamed["quality"], streamed["degrade_reason"]) == (2, "medium", "deadline")


def test_an_image_that_ends_sooner_is_charged_for_what_it_took(family: Family) -> None:
    sample = Sample(family.positions[4], (1, 1, 1), seed=7)
    wish = Wish("tiny", (sample, replace(sample, index=1)), 4, "student-4", 7, 4, None, None, arrived=0.0)
    assert usage(wish, [Picture(b"", 7, 0), Picture(b"", 7, 1, plan=family.positions[2])]).total_tokens == 6


def test_quality_auto_is_the_servers_choice_or_the_default_where_nothing_was_measured(family: Family) -> None:
    for measured, requested in ((True, "auto"), (False, 4)):
        served = family if measured else Family(family.folder, family.manifest, None)
        for quality in ("auto", None):
            body = ImagesRequest(prompt=PROMPT, quality=quality)
            assert translated(body, served).steps == (requested if measured else None)
        with Desk(served) as desk:
            assert ask(desk, prompt=PROMPT, quality="auto").json()["steps_requested"] == requested
            assert ask(desk, prompt=PROMPT, quality="auto", steps=2).json()["steps_used"] == 2
            assert refused(ask(desk, prompt=PROMPT, max_steps=3, min_steps=3)) == "quality"


def test_harmless_fields_are_taken_and_null_means_the_default(desk: Desk) -> None:
    harmless = {"user": "u", "moderation": "low", "background": "auto", "output_compression": 50, "size": "auto"}
    assert ask(desk, prompt=PROMPT, **harmless, quality="auto", n=1).json()["steps_used"] == 4
    nothing = dict.fromkeys((*harmless, "n", "quality", "model", "stream", "partial_images", "seed", "output_format"))
    assert ask(desk, prompt=PROMPT, **nothing).json()["steps_used"] == 4


def test_words_for_quality_are_positions_of_the_dial(desk: Desk, family: Family) -> None:
    for word, steps in list(QUALITY_STEPS.items())[:3]:
        answer = ask(desk, prompt=PROMPT, quality=word).json()
        assert (answer["quality"], answer["steps_used"], answer["usage"]["output_tokens"]) == (word, steps, steps)


def test_the_requests_are_counted_with_their_steps(desk: Desk) -> None:
    drawn = value(desk, "stepdial_requests_total", steps="2", outcome="ok")
    chosen = value(desk, "stepdial_requests_total", steps="auto", outcome="ok")
    invalid = value(desk, "stepdial_requests_total", steps="none", outcome="invalid")
    ask(desk, prompt=PROMPT, quality="medium")
    ask(desk, prompt=PROMPT, quality="medium", stream=True)
    ask(desk, prompt=PROMPT)
    ask(desk, prompt=PROMPT, size="9x9")
    ask(desk, prompt=PROMPT, n=0)
    ask(desk, prompt=PROMPT, guidance=-1.0)
    assert value(desk, "stepdial_requests_total", steps="2", outcome="ok") == drawn + 2
    assert value(desk, "stepdial_requests_total", steps="auto", outcome="ok") == chosen + 1
    assert value(desk, "stepdial_requests_total", steps="none", outcome="invalid") == invalid + 3


def test_families_with_labels_take_the_prompt_for_the_label_and_those_without_wishes_an_empty_one(
    tmp_path: Path,
) -> None:
    with Desk(open_family(write_tiny_family(tmp_path / "labels", LABELS, steps=(1,)))) as desk:
        for wish in ({"prompt": "one"}, {"prompt": "1"}, {"prompt": "", "label": 1}):
            assert ask(desk, **wish).status_code == 200
            assert desk.device.waves[-1][0].sample.condition == (2,)
        assert refused(ask(desk, prompt="seven")) == "prompt"
    with Desk(open_family(write_tiny_family(tmp_path / "free", UNCONDITIONAL, steps=(1,)))) as desk:
        assert ask(desk, prompt="").status_code == 200
        assert refused(ask(desk, prompt="one")) == "prompt"


def test_partial_images_are_evenly_spaced_and_never_the_last_hop() -> None:
    assert partial_hops(4, 3) == {1, 2, 3} and partial_hops(512, 3) == {128, 256, 384}
    assert partial_hops(4, 1) == {2} and partial_hops(1, 3) == set() and partial_hops(16, 0) == set()
    for hops in range(1, 40):
        for wanted in range(4):
            shown = partial_hops(hops, wanted)
            assert len(shown) == min(wanted, hops - 1) and shown <= set(range(1, hops))


def test_partial_images_are_those_of_the_chosen_hops(desk: Desk, family: Family) -> None:
    events = events_of(ask(desk, prompt=PROMPT, seed=7, stream=True, partial_images=1).text)
    picture = picture_of(Sample(family.positions[4], (1, 1, 1), seed=7))
    assert [name for name, _ in events] == ["image_generation.partial_image", "image_generation.completed"]
    assert np.array_equal(pixels(base64.b64decode(events[0][1]["b64_json"])), picture ^ np.uint8(2))
    assert np.array_equal(pixels(base64.b64decode(events[1][1]["b64_json"])), picture)

"""What requests ask for."""

from collections import Counter
from random import Random
from typing import Any

import pytest

from benchmarks.load.wishes import Wishes, weights
from diffusion.family import Family
from server.schemas import GenerateRequest
from tests.server.tiny import LABELS, PROMPTS, UNCONDITIONAL


def model(conditioning: Any) -> dict[str, Any]:
    return {"name": "tiny", "conditioning": conditioning.model_dump(mode="json")}


def test_a_mix_is_read_with_weight_1_where_none_is_given() -> None:
    assert weights("1:5, 4:2.5,auto,16") == {1: 5, 4: 2.5, "auto": 1, 16: 1}


@pytest.mark.parametrize("text", ["", "x", "4:", "4:x", "0:1", "-1:2", "4:0", "4:-1", "4:nan", "4:inf"])
def test_what_is_no_mix_is_refused(text: str) -> None:
    if text == "4:":
        assert weights(text) == {4: 1}
        return
    with pytest.raises(ValueError):
        weights(text)


def test_positions_come_as_often_as_they_weigh() -> None:
    wishes = Wishes(model(PROMPTS), weights("1:5,4:3,16:2"), Random(1))
    counts = Counter(wishes.next()[0] for _ in range(5000))
    assert [counts[steps] / 500 for steps in (1, 4, 16)] == pytest.approx([5, 3, 2], rel=0.1)


@pytest.mark.parametrize("conditioning", [PROMPTS, LABELS, UNCONDITIONAL], ids=lambda found: found.kind)
def test_wishes_are_what_the_family_knows_and_name_no_seed(conditioning: Any) -> None:
    wishes = Wishes(model(conditioning), weights("4"), Random(1), n=2, output_format=None)
    seen = set()
    for _ in range(200):
        steps, body = wishes.next()
        request = GenerateRequest.model_validate(body)
        assert (steps, request.steps, request.n, request.seed) == (4, 4, 2, None)
        seen.add(conditioning.encode(prompt=request.prompt, label=request.label))
    assert len(seen) == {"prompt": 12, "label": 3, "none": 1}[conditioning.kind]


def test_wishes_in_openais_shape_name_a_quality_where_the_server_chooses(family: Family) -> None:
    wishes = Wishes(model(PROMPTS), weights("auto,2"), Random(1), endpoint="openai")
    bodies = dict(wishes.next() for _ in range(50))
    assert bodies["auto"]["quality"] == "auto" and "steps" not in bodies["auto"]
    assert bodies[2]["steps"] == 2 and bodies[2]["response_format"] == "b64_json"

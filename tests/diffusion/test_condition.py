"""Prompts, labels and nothing: what they encode to, and what each refuses with which field named."""

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from diffusion.condition import ConditionError, Conditioning, LabelConditioning, NoConditioning, PromptConditioning
from training.shapes import ABOVE, ALONE, CONDITIONING, LEFT, SCENES

PROMPTS = PromptConditioning(
    template="a {colour} {shape} on {background}",
    slots={"colour": ("red", "green", "mint"), "shape": ("star", "ring"), "background": ("mint", "navy")},
)
LABELS = LabelConditioning(labels=("zero", "one", "7"))
TRIPLES = st.tuples(*(st.integers(0, size) for size in PROMPTS.sizes))


@given(TRIPLES.filter(any))
def test_a_described_condition_encodes_to_itself(condition: tuple[int, ...]):
    # "mint" alone is a colour, the first slot that knows it; beside a colour it is the background
    if condition[0] == 0 and condition[2] == 1:
        condition = (3, condition[1], 0)
    assert PROMPTS.encode(prompt=PROMPTS.describe(condition)) == condition


def test_a_word_that_begins_with_a_vowel_is_described_with_an_where_the_family_knows_it():
    orange = CONDITIONING.encode(prompt="orange moon, mint")
    assert CONDITIONING.describe(orange) == "an orange moon on mint"
    assert CONDITIONING.model_copy(update={"filler": ("a", "on")}).describe(orange) == "a orange moon on mint"


def test_every_full_prompt_of_the_bundled_data_round_trips():
    for condition in itertools.product(*(range(1, size + 1) for size in CONDITIONING.sizes)):
        assert CONDITIONING.encode(prompt=CONDITIONING.describe(condition)) == condition
        alone = (*condition[:2], ALONE, 0, 0, condition[2])
        assert SCENES.encode(prompt=SCENES.describe(alone)) == alone
    rng = random.Random(0)
    for condition in (SCENES.draw(rng) for _ in range(500)):
        assert SCENES.encode(prompt=SCENES.describe(condition)) == condition


@pytest.mark.parametrize(
    ("prompt", "condition"),
    [
        ("a red star", (1, 4, ALONE, 0, 0, 0)),
        ("a red star left of a blue ring on mint", (1, 4, LEFT, 6, 6, 1)),
        ("on mint, a red star to the left of the blue ring", (1, 4, LEFT, 6, 6, 1)),
        ("a blue ring right of a red star on mint", (1, 4, LEFT, 6, 6, 1)),
        ("a star above a red ring", (0, 4, ABOVE, 1, 6, 0)),
        ("a red ring below a star on sky", (0, 4, ABOVE, 1, 6, 3)),
        ("the above of a", None),
        ("a red star a blue ring", None),
        ("a red star left of a ring above a drop", None),
        ("a red star left of a blue green ring", None),
    ],
)
def test_words_before_a_relation_are_of_the_first_thing_and_words_after_it_of_the_second(
    prompt: str, condition: tuple[int, ...] | None
):
    if condition is None:
        with pytest.raises(ConditionError):
            SCENES.encode(prompt=prompt)
    else:
        assert SCENES.encode(prompt=prompt) == condition
        assert SCENES.encode(prompt=SCENES.describe(condition)) == condition


@given(st.permutations(["red", "star", "navy"]), st.lists(st.sampled_from(["a", "the", "on", "background"])))
def test_order_and_fillers_do_not_matter(words: list[str], fillers: list[str]):
    assert PROMPTS.encode(prompt=" ".join([*fillers, *words])) == (1, 1, 2)


@pytest.mark.parametrize("prompt", ["RED Star, on Navy.", "  red\tstar\nnavy!", "red,star;navy", "red: star? navy"])
def test_case_space_and_punctuation_do_not_matter(prompt: str):
    assert PROMPTS.encode(prompt=prompt) == (1, 1, 2)


def test_a_slot_left_out_is_left_open():
    assert PROMPTS.encode(prompt="a star") == (0, 1, 0)


def test_a_word_of_two_slots_goes_to_the_first_that_is_open():
    assert PROMPTS.encode(prompt="mint star") == (3, 1, 0)
    assert PROMPTS.encode(prompt="red star on mint") == (1, 1, 1)
    assert PROMPTS.encode(prompt="a mint star on mint") == (3, 1, 1)


@pytest.mark.parametrize(
    ("wish", "field", "said"),
    [
        ({}, "prompt", "needs a prompt"),
        ({"prompt": ""}, "prompt", "needs a prompt"),
        ({"prompt": " ,. "}, "prompt", "needs a prompt"),
        ({"prompt": "a the on"}, "prompt", "nothing to draw"),
        ({"prompt": "a red dragon"}, "prompt", "'dragon' is not known; known words: colour: red"),
        ({"prompt": "red green star"}, "prompt", "'green' names a second colour"),
        ({"prompt": "mint mint mint"}, "prompt", "names a second colour"),
        ({"label": 1}, "label", "takes a prompt, not a label"),
        ({"prompt": "red star", "label": "0"}, "label", "takes a prompt, not a label"),
    ],
)
def test_a_prompt_that_cannot_be_drawn_is_refused_with_the_field_to_blame(wish: dict, field: str, said: str):
    with pytest.raises(ConditionError, match=said) as refused:
        PROMPTS.encode(**wish)
    assert refused.value.field == field


@given(st.text(max_size=300))
def test_any_text_is_a_condition_or_a_refusal_that_is_not_long(text: str):
    try:
        assert any(PROMPTS.encode(prompt=text))
    except ConditionError as error:
        assert error.field == "prompt" and len(str(error)) < 400


@pytest.mark.parametrize(
    ("label", "value"), [("zero", 1), ("one", 2), (0, 1), ("1", 2), (2, 3), ("2", 3), ("7", 3), (7, 3)]
)
def test_a_label_is_a_name_or_a_number_and_a_name_goes_first(label: str | int, value: int):
    assert LABELS.encode(label=label) == (value,)


@pytest.mark.parametrize("label", ["three", "3", 3, -1, "-1", "1.0", "", " 1", "²", "٣", "9" * 5000, True])
def test_anything_else_is_not_a_label(label: str | int):
    with pytest.raises(ConditionError, match="known labels: 0 to 2") as refused:
        LABELS.encode(label=label)
    assert refused.value.field == "label" and len(str(refused.value)) < 200


def test_a_label_family_needs_a_label_and_takes_no_prompt():
    for wish, field in (({}, "label"), ({"prompt": "one"}, "prompt"), ({"prompt": "one", "label": "one"}, "prompt")):
        with pytest.raises(ConditionError) as refused:
            LABELS.encode(**wish)
        assert refused.value.field == field


def test_labels_are_described_by_name_and_none_by_nothing():
    assert [LABELS.describe((value,)) for value in range(4)] == ["", "zero", "one", "7"]
    assert LABELS.sizes == (3,) and LABELS.slots == {"label": LABELS.labels}


def test_the_message_about_a_thousand_labels_is_short():
    many = LabelConditioning(labels=tuple(f"class-{number}" for number in range(1000)))
    with pytest.raises(ConditionError) as refused:
        many.encode(label="cat")
    assert "0 to 999" in str(refused.value) and len(str(refused.value)) < 1500


def test_an_unconditional_family_takes_no_wish():
    nothing = NoConditioning()
    assert nothing.encode() == () and nothing.sizes == () and nothing.slots == {} and nothing.describe(()) == ""
    for field in ("prompt", "label"):
        with pytest.raises(ConditionError) as refused:
            nothing.encode(**{field: ""})
        assert refused.value.field == field


@pytest.mark.parametrize("conditioning", [PROMPTS, LABELS, NoConditioning()])
def test_conditioning_survives_json(conditioning: Conditioning):
    adapter = TypeAdapter(Conditioning)
    assert adapter.validate_json(adapter.dump_json(conditioning)) == conditioning

"""A content key changes with everything that changes an image, and with nothing else."""

from dataclasses import replace

import pytest

from diffusion.family import Family
from server.content import content_key
from server.images import FORMATS, SETTINGS
from server.samples import Sample


@pytest.fixture
def sample(family: Family) -> Sample:
    return Sample(family.positions[4], (1, 1, 1), seed=7)


def test_a_key_is_a_sha256_and_the_same_for_equal_samples(family: Family, sample: Sample) -> None:
    key = content_key(family, [sample], "png")
    assert len(key) == 64 and int(key, 16) >= 0
    assert content_key(family, [replace(sample)], "png") == key


def test_whatever_changes_the_bytes_changes_the_key(family: Family, sample: Sample) -> None:
    keys = {
        content_key(family, [sample], "png"),
        content_key(family, [sample], "webp"),
        content_key(family, [sample, replace(sample, index=1)], "png"),
        content_key(family, [replace(sample, index=1), sample], "png"),
        *(
            content_key(family, [replace(sample, **change)], "png")
            for change in (
                {"seed": 8},
                {"index": 1},
                {"guidance": 2.0},
                {"condition": (1, 1, 2)},
                {"plan": family.positions[2]},
            )
        ),
    }
    assert len(keys) == 9


def test_another_setting_of_the_encoder_changes_the_keys_of_its_format_only(
    family: Family, sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {name: content_key(family, [sample], name) for name in FORMATS}
    monkeypatch.setitem(SETTINGS, "png", {"compress_level": 9})
    after = {name: content_key(family, [sample], name) for name in FORMATS}
    assert [name for name in FORMATS if before[name] != after[name]] == ["png"]


def test_other_weights_of_the_same_name_have_another_key(family: Family, sample: Sample) -> None:
    members = tuple(
        member.model_copy(update={"weights": member.weights.model_copy(update={"sha256": "0" * 64})})
        for member in family.manifest.members
    )
    other = Family(family.folder, family.manifest.model_copy(update={"members": members}), family.frontier)
    assert content_key(other, [sample], "png") != content_key(family, [sample], "png")


def test_what_people_read_does_not_change_the_key(family: Family, sample: Sample) -> None:
    renamed = Family(
        family.folder, family.manifest.model_copy(update={"name": "other", "description": "Other words."}), None
    )
    assert content_key(renamed, [sample], "png") == content_key(family, [sample], "png")


def test_only_exact_samples_that_end_by_their_own_plan_have_a_key(family: Family, sample: Sample) -> None:
    with pytest.raises(ValueError, match="alternatives"):
        content_key(family, [sample, replace(sample, index=1, alternatives=(family.positions[2],))], "png")
    with pytest.raises(ValueError, match="exact"):
        content_key(family, [replace(sample, exact=False)], "png")

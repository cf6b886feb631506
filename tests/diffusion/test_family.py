"""A family on disk: what is written is what is read, and every way of damaging it ends in one sentence."""

import json
import pickle
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffusion.family import Family, FamilyError, open_family
from diffusion.files import file_sha256, write_json, write_tensors
from diffusion.manifest import GoldenSample, Manifest
from diffusion.plans import Plan
from tests.server.tiny import PROMPTS, draw_alone, write_tiny_family


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A family of tiny networks with golden samples and a frontier, not to be changed."""
    return write_tiny_family(tmp_path_factory.mktemp("families") / "tiny", steps=(1, 2))


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    """A copy of it to damage."""
    return Path(shutil.copytree(pristine, tmp_path / "secret-place" / "tiny"))


def edit(folder: Path, change: Callable[[dict], object], name: str = "family.json") -> None:
    record = json.loads((folder / name).read_text())
    change(record)
    (folder / name).write_text(json.dumps(record))


def rewrite_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the 2-step student's weights and pin the changed file in the manifest."""
    tensors = load_file(folder / "student-2.safetensors")
    change(tensors)
    save_file(tensors, folder / "student-2.safetensors")
    pin(folder)


def pin(folder: Path) -> None:
    found = file_sha256(folder / "student-2.safetensors")
    edit(folder, lambda record: record["members"][2]["weights"].update(sha256=found))


def refusal(folder: Path, *, use: bool = False) -> str:
    """The one sentence with which the family is refused when opened, or when its 2-step network is built."""
    with pytest.raises(FamilyError) as refused:
        family = open_family(folder)
        if use:
            family.network("student-2")
    sentence = str(refused.value)
    assert "\n" not in sentence and str(folder.parent) not in sentence and "/" not in sentence.replace("and/or", "")
    assert len(sentence) < 300
    return sentence


def test_what_is_written_is_what_is_read(pristine: Path):
    family = open_family(pristine)
    manifest = family.manifest
    assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest
    assert [member.name for member in manifest.members] == ["teacher", "student-1", "student-2"]
    assert manifest.conditioning == PROMPTS and manifest.shape == (3, 8, 8)
    assert manifest.teacher.name == "teacher" and [student.steps for student in manifest.students] == [1, 2]
    stored = load_file(pristine / "student-2.safetensors")
    network = family.network("student-2")
    assert not network.training and not any(parameter.requires_grad for parameter in network.parameters())
    for name, value in network.state_dict().items():
        assert value.dtype == torch.float32 and torch.equal(value, stored[name].float())


def test_the_positions_are_the_students_and_the_teachers(pristine: Path):
    positions = open_family(pristine).positions
    assert list(positions) == [1, 2, 32, 64, 128, 256, 512]
    assert {hop.rule for hop in positions[32].hops} == {"addim"} and positions[2].members == ("student-2",)


def test_guidance_is_baked_into_students_and_asked_of_teachers(pristine: Path):
    family = open_family(pristine)
    assert family.guidance(family.positions[2]) == 0.0 == family.guidance(family.positions[2], 1.0)
    assert family.guidance(family.positions[32]) == 1.0 and family.guidance(family.positions[32], 2.5) == 2.5
    with pytest.raises(ValueError, match="baked into student-2 at 1"):
        family.guidance(family.positions[2], 3.0)


def test_a_member_that_is_not_there_is_a_key_error(pristine: Path):
    with pytest.raises(KeyError):
        open_family(pristine).network("student-4")


def test_a_folder_without_a_family_is_refused(tmp_path: Path):
    assert "family.json is missing" in refusal(tmp_path)
    assert "family.json is missing" in refusal(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["student-2.safetensors", "golden.safetensors"])
def test_deleted_files_are_named(folder: Path, name: str):
    (folder / name).unlink()
    assert f"{name} of family 'tiny' is missing" in refusal(folder)


@pytest.mark.parametrize("name", ["student-2.safetensors", "golden.safetensors"])
def test_a_truncated_file_is_not_the_file_that_was_written(folder: Path, name: str):
    (folder / name).write_bytes((folder / name).read_bytes()[:-1])
    assert f"{name} of family 'tiny' is not the file that was written" in refusal(folder)


@pytest.mark.parametrize("place", [0, 100, -1])
def test_one_flipped_bit_is_found(folder: Path, place: int):
    content = bytearray((folder / "student-2.safetensors").read_bytes())
    content[place] ^= 1
    (folder / "student-2.safetensors").write_bytes(content)
    assert "SHA-256 differs" in refusal(folder)


class Trap:
    """A pickle that tells when it is opened."""

    sprung = False

    def __reduce__(self):
        return (setattr, (Trap, "sprung", True))


def test_a_pickle_in_the_place_of_weights_is_refused_and_never_opened(folder: Path):
    (folder / "student-2.safetensors").write_bytes(pickle.dumps(Trap()))
    assert "SHA-256 differs" in refusal(folder)
    pin(folder)  # even with the hash it has
    assert "student-2.safetensors is not a readable safetensors file" in refusal(folder, use=True)
    torch.save({"a": torch.zeros(1)}, folder / "student-2.safetensors")
    pin(folder)
    assert "not a readable safetensors file" in refusal(folder, use=True)
    assert not Trap.sprung


def test_a_folder_in_the_place_of_weights_is_refused(folder: Path):
    (folder / "student-2.safetensors").unlink()
    (folder / "student-2.safetensors").mkdir()
    assert "student-2.safetensors of family 'tiny' is missing or cannot be read" in refusal(folder)


def drop_one(tensors: dict[str, torch.Tensor]) -> None:
    tensors.pop("conv_in.weight")


def add_one(tensors: dict[str, torch.Tensor]) -> None:
    tensors["surplus"] = torch.zeros(1)


def reshape_one(tensors: dict[str, torch.Tensor]) -> None:
    tensors["conv_in.weight"] = tensors["conv_in.weight"][:, :1].contiguous()


@pytest.mark.parametrize("change", [drop_one, add_one, reshape_one])
def test_weights_of_another_network_are_refused_even_with_the_right_hash(folder: Path, change: Callable):
    rewrite_weights(folder, change)
    open_family(folder)
    assert "does not hold the weights of the network" in refusal(folder, use=True)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_numbers_are_refused(folder: Path, value: float):
    rewrite_weights(folder, lambda tensors: tensors["conv_out.bias"].fill_(value))
    assert "student-2.safetensors holds weights that are not numbers" in refusal(folder, use=True)


@pytest.mark.parametrize("length", [0, 1, 300])
def test_a_truncated_manifest_is_refused(folder: Path, length: int):
    manifest = folder / "family.json"
    manifest.write_bytes(manifest.read_bytes()[:length])
    assert "family.json of 'tiny' is not valid" in refusal(folder)


def test_a_manifest_that_is_not_text_is_refused(folder: Path):
    (folder / "family.json").write_bytes(b"\xff\xfe\x00\x01")
    assert "family.json of 'tiny' is not valid" in refusal(folder)


WRONG = {
    "resolution": lambda record: record.update(resolution="eight"),
    "format": lambda record: record.update(format=2),
    "surprise": lambda record: record.update(surprise=1),
    "channels": lambda record: record.pop("channels"),
    "name": lambda record: record.update(name="../tiny"),
    "prediction": lambda record: record.update(prediction="eps"),
    "schedule": lambda record: record["schedule"].update(logsnr_min=99.0),
    "schedule.speed": lambda record: record["schedule"].update(speed=1),
    "conditioning": lambda record: record["conditioning"].update(kind="smell"),
    "members": lambda record: record.update(members="many"),
    "members.1": lambda record: record["members"][1].update(steps=None),
    "members.1.role": lambda record: record["members"][1].update(role="boss"),
    "members.2.weights.sha256": lambda record: record["members"][2]["weights"].update(sha256="00"),
    "members.2.network": lambda record: record["members"][2]["network"].update(resolution=9),
    "members.2.network.uvit.levels.0.kind": lambda record: record["members"][2]["network"]["levels"][0].update(
        kind="x"
    ),
}


@pytest.mark.parametrize("where", WRONG)
def test_a_manifest_with_a_wrong_field_is_refused_by_the_fields_name(folder: Path, where: str):
    edit(folder, WRONG[where])
    assert f"family.json of 'tiny' is not valid: {where}" in refusal(folder)


@pytest.mark.parametrize(
    "file",
    [
        "../student-2.safetensors",
        "/etc/passwd",
        "a/b.safetensors",
        "student-2.pt",
        "..",
        "",
        "a\\b.safetensors",
        "x.safetensors\n",
    ],
)
def test_file_names_cannot_leave_the_folder(folder: Path, file: str):
    edit(folder, lambda record: record["members"][2]["weights"].update(file=file))
    with pytest.raises(FamilyError, match="members.2.weights.file"):
        open_family(folder)


def test_two_members_of_one_name_or_one_step_count_are_refused(folder: Path):
    edit(folder, lambda record: record["members"][2].update(name="student-1"))
    assert "same name or the same steps" in refusal(folder)
    edit(folder, lambda record: record["members"][2].update(name="student-2", steps=1))
    assert "same name or the same steps" in refusal(folder)


def test_a_network_of_other_images_than_the_familys_is_refused(folder: Path):
    edit(folder, lambda record: record.update(resolution=16))
    assert "does not fit the family's images" in refusal(folder)


def test_a_frontier_that_names_an_unknown_member_is_refused(folder: Path):
    def rename(record: dict) -> None:
        record["positions"][0]["plan"]["hops"][0]["member"] = "ghost"

    edit(folder, rename, "frontier.json")
    assert "frontier.json of family 'tiny' names a member that the family does not have" in refusal(folder)


@pytest.fixture
def dial_folder(pristine_whole: Path, tmp_path: Path) -> Path:
    """A copy of the family with a student for the whole dial, to damage."""
    return Path(shutil.copytree(pristine_whole, tmp_path / "secret-place" / "tiny"))


@pytest.fixture(scope="module")
def pristine_whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A family of a teacher and one student for 1, 2 and the limit of many steps, not to be changed."""
    return write_tiny_family(tmp_path_factory.mktemp("families") / "tiny", steps=(), whole=(0, 1, 2))


def test_a_student_for_the_whole_dial_alone_serves_its_counts(pristine_whole: Path):
    family = open_family(pristine_whole)
    whole = family.manifest.whole
    assert whole == family.manifest.member("whole") and whole.positions == (1, 2, 32, 64, 128, 256, 512)
    assert Manifest.model_validate_json(family.manifest.model_dump_json()) == family.manifest
    assert [(steps, plan.members) for steps, plan in family.positions.items()][:3] == [
        (1, ("whole",)),
        (2, ("whole",)),
        (32, ("teacher",)),
    ]
    assert {hop.segments for hop in family.positions[2].hops} == {2}
    assert family.guidance(family.positions[2], 1.0) == 0.0
    with pytest.raises(ValueError, match="baked into whole at 1"):
        family.guidance(family.positions[2], 3.0)
    family.check_golden(drawn_again(family))


def test_a_searched_plan_is_one_that_no_member_has_of_its_own(pristine_whole: Path):
    family = open_family(pristine_whole)
    teacher, one, two = (family.positions[steps] for steps in (32, 1, 2))
    mixed = Plan(hops=(two.hops[0], one.hops[0].model_copy(update={"t": 0.5})))
    assert [family.source(plan) for plan in (teacher, one, two, mixed)] == ["teacher", "whole", "whole", "searched"]
    assert family.measured(two).plan == two and family.measured(mixed) is None
    assert family.plans(2) == (two,) and family.plans(3) == ()


@pytest.mark.parametrize("segments", [None, 4])
@pytest.mark.parametrize("part", ["positions", "rescues"])
def test_a_frontier_that_asks_for_an_unknown_segment_count_is_refused(
    dial_folder: Path, segments: int | None, part: str
):
    def ask(record: dict) -> None:
        position = record["positions"][0]
        shared = position.keys() - {"source", "guidance", "latency_ms", "images_per_second", "batch", "timed"}
        record["rescues"] = [{key: json.loads(json.dumps(position[key])) for key in shared}]
        record[part][0]["plan"]["hops"][0]["segments"] = segments

    edit(dial_folder, ask, "frontier.json")
    said = f"asks whole for segment count {segments}; it was trained for 0, 1, 2"
    assert f"frontier.json of family 'tiny' {said}" in refusal(dial_folder)


def test_a_frontier_that_tells_a_count_to_a_student_of_one_is_refused(folder: Path):
    edit(folder, lambda record: record["positions"][0]["plan"]["hops"][0].update(segments=1), "frontier.json")
    assert "asks student-1 for segment count 1; it was trained for none" in refusal(folder)


def test_roles_and_segments_fit_each_other(dial_folder: Path):
    edit(dial_folder, lambda record: record["members"][1]["network"].update(segments=[]))
    assert "for the whole dial has segments, no other has" in refusal(dial_folder)
    edit(dial_folder, lambda record: record["members"][1]["network"].update(segments=[2, 1]))
    assert "rising counts" in refusal(dial_folder)
    edit(dial_folder, lambda record: record["members"].append(record["members"][0] | {"name": "second"}))
    edit(dial_folder, lambda record: record["members"][1]["network"].update(segments=[0, 1, 2]))
    assert "or both are teachers or for the whole dial" in refusal(dial_folder)


def test_a_family_written_before_the_whole_dial_is_read_as_it_was(folder: Path):
    def older_manifest(record: dict) -> None:
        for member in record["members"]:
            member["network"].pop("segments")

    def older_frontier(record: dict) -> None:
        record.pop("rescues")
        for position in record["positions"]:
            for hop in position["plan"]["hops"]:
                hop.pop("segments")

    edit(folder, older_manifest)
    edit(folder, older_frontier, "frontier.json")
    family = open_family(folder)
    assert all(family.measured(plan) for plan in family.positions.values())
    family.check_golden(drawn_again(family))


def test_a_frontier_that_is_not_one_is_refused(folder: Path):
    (folder / "frontier.json").write_text('{"format": 1, "family": "tiny"')
    assert "frontier.json of 'tiny' is not valid" in refusal(folder)


def test_a_family_without_a_frontier_or_golden_samples_is_still_a_family(folder: Path):
    (folder / "frontier.json").unlink()
    edit(folder, lambda record: record.update(golden=None))
    family = open_family(folder)
    assert family.frontier is None and family.golden() == [] and list(family.positions)[:2] == [1, 2]


def drawn_again(family: Family) -> dict[GoldenSample, torch.Tensor]:
    return {entry: draw_alone(family, entry) for entry, _ in family.golden()}


def test_the_golden_check_passes_on_an_untouched_family(pristine: Path):
    family = open_family(pristine)
    assert [entry.steps for entry, _ in family.golden()] == [1, 2, 32]
    family.check_golden(drawn_again(family))


def test_the_golden_check_finds_weights_that_changed(folder: Path):
    rewrite_weights(folder, lambda tensors: tensors["conv_out.weight"].mul_(1.5))
    family = open_family(folder)  # the hash was made to fit
    with pytest.raises(FamilyError, match="golden check of family 'tiny' failed at steps 2: .* levels on average"):
        family.check_golden(drawn_again(family))


def test_a_reader_never_sees_half_a_file(tmp_path: Path):
    def write_many() -> None:
        for number in range(40):
            write_tensors(tmp_path, "w.safetensors", {"w": torch.full((20_000,), float(number))})

    write_tensors(tmp_path, "w.safetensors", {"w": torch.zeros(20_000)})
    writer = threading.Thread(target=write_many)
    writer.start()
    while writer.is_alive():
        seen = load_file(tmp_path / "w.safetensors")["w"]
        assert (seen == seen[0]).all()
    writer.join()
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pristine: Path):
    record = write_tensors(tmp_path, "w.safetensors", {"w": torch.zeros(3)})

    def fail(tensors: object, file: Path, metadata: object) -> None:
        Path(file).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("diffusion.files.save_file", fail)
    with pytest.raises(OSError):
        write_tensors(tmp_path, "w.safetensors", {"w": torch.ones(3)})
    assert file_sha256(tmp_path / "w.safetensors") == record.sha256


def test_json_is_written_whole_and_readable(tmp_path: Path, pristine: Path):
    manifest = open_family(pristine).manifest
    write_json(tmp_path, "family.json", manifest)
    assert Manifest.model_validate_json((tmp_path / "family.json").read_text()) == manifest
    assert [path.name for path in tmp_path.iterdir()] == ["family.json"]

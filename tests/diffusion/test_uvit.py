"""The network: its size, its gradients, and that a row of a batch is on its own."""

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from diffusion import fusion
from diffusion.uvit import PRESETS, Level, UViT, UViTConfig

COUNTS = {
    "imagenet64-small": 394_130_435,
    "imagenet64-large": 1_243_353_091,
    "imagenet128-small": 397_407_235,
    "imagenet128-large": 1_253_576_707,
}
LEDGER = {  # of imagenet64-small, part by part, counted by hand from the specification
    "conv_in": 7_168,
    "time_in": 263_168,
    "time_out": 1_049_600,
    "slots.0": 1_025_024,
    "down.0": 5_117_952,
    "narrow.0": 131_584,
    "down.1": 22_050_816,
    "narrow.1": 525_312,
    "position": 262_144,
    "mid": 335_863_808,
    "widen.1": 524_800,
    "up.1": 22_050_816,
    "widen.0": 131_328,
    "up.0": 5_119_488,
    "norm_out": 512,
    "conv_out": 6_915,
}


def meta(config: UViTConfig) -> UViT:
    with torch.device("meta"):
        return UViT(config)


def awake(config: UViTConfig, seed: int = 0) -> UViT:
    """A network whose zero-initialised layers are not zero, so that everything in it matters."""
    torch.manual_seed(seed)
    network = UViT(config)
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return network


TINY = PRESETS["tiny8"].model_copy(update={"slots": (10,)})
SMALL = PRESETS["small32"].model_copy(update={"slots": (10, 10, 6)})
GROUPED = UViTConfig(
    resolution=16,
    levels=(Level(kind="res", channels=32, blocks=2), Level(kind="transformer", channels=64, blocks=1)),
    mid=Level(kind="transformer", channels=128, blocks=1, dropout=0.1),
    embedding=32,
    head_dim=32,
    slots=(3,),
)


def inputs(config: UViTConfig, batch: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(batch, config.channels, config.resolution, config.resolution, generator=generator)
    logsnr = torch.linspace(-15, 15, batch)
    condition = torch.stack([torch.arange(batch) % (size + 1) for size in config.slots], dim=1)
    return z, logsnr, condition


@pytest.mark.parametrize("name", COUNTS)
def test_the_papers_presets_have_the_pinned_numbers_of_parameters(name: str):
    assert sum(parameter.numel() for parameter in meta(PRESETS[name]).parameters()) == COUNTS[name]


def test_every_part_of_imagenet64_small_has_the_ledgers_size():
    network = meta(PRESETS["imagenet64-small"])
    found = {
        part: sum(value.numel() for name, value in network.named_parameters() if f"{name}.".startswith(f"{part}."))
        for part in LEDGER
    }
    assert found == LEDGER and sum(LEDGER.values()) == COUNTS["imagenet64-small"]


def test_dropout_is_where_the_appendix_puts_it():
    def rates(name: str) -> list[float]:
        config = PRESETS[name]
        return [level.dropout for level in (*config.levels, config.mid)]

    assert rates("imagenet64-small") == [0.0, 0.0, 0.2]
    assert rates("imagenet64-large") == [0.0, 0.1, 0.1]
    assert rates("imagenet128-small") == [0.0, 0.0, 0.0, 0.1]
    assert rates("imagenet128-large") == [0.0, 0.1, 0.1, 0.1]


@pytest.mark.parametrize("config", [TINY, SMALL, GROUPED], ids=["tiny8", "small32", "grouped"])
def test_every_parameter_gets_a_gradient(config: UViTConfig):
    network = awake(config)
    z, logsnr, condition = inputs(config, batch=2)
    v = network(z, logsnr, condition)
    assert v.shape == z.shape
    v.square().sum().backward()
    silent = [name for name, parameter in network.named_parameters() if not parameter.grad.abs().sum() > 0]
    assert silent == []


@pytest.mark.parametrize("config", [TINY, GROUPED], ids=["layer", "group"])
def test_a_new_network_predicts_zero(config: UViTConfig):
    torch.manual_seed(0)
    assert not UViT(config)(*inputs(config)).any()


@pytest.mark.parametrize("config", [TINY, GROUPED], ids=["layer", "group"])
def test_rows_of_a_batch_do_not_see_each_other(config: UViTConfig):
    network = awake(config).eval().double()
    z, logsnr, condition = inputs(config, batch=5)
    z = z.double()
    with torch.no_grad():
        together = network(z, logsnr, condition)
        alone = torch.cat([network(z[i : i + 1], logsnr[i : i + 1], condition[i : i + 1]) for i in range(5)])
        shuffled = network(z.flip(0), logsnr.flip(0), condition.flip(0)).flip(0)
    assert torch.allclose(together, alone, atol=1e-9) and torch.allclose(together, shuffled, atol=1e-9)


def test_every_input_matters():
    network = awake(SMALL).eval()
    z, logsnr, condition = inputs(SMALL, batch=2)
    with torch.no_grad():
        v = network(z, logsnr, condition)
        assert not torch.allclose(v, network(z + 0.1, logsnr, condition), atol=1e-4)
        assert not torch.allclose(v, network(z, logsnr + torch.tensor([1.0, -1.0]), condition), atol=1e-5)
        for slot in range(3):
            other = condition.clone()
            other[:, slot] += 1
            assert not torch.allclose(v, network(z, logsnr, other), atol=1e-4), slot


def test_the_time_embedding_knows_the_schedule_beyond_15_and_stops_at_20():
    network = awake(TINY).eval()
    condition = torch.zeros(2, 1, dtype=torch.int64)
    with torch.no_grad():
        inside = network.embed(torch.tensor([-19.9, -12.0]), condition)
        beyond = network.embed(torch.tensor([-20.0, -25.0]), condition)
    assert not torch.allclose(inside[0], inside[1], atol=1e-5) and torch.equal(beyond[0], beyond[1])


@pytest.mark.parametrize("columns", [0, 2])
def test_a_condition_that_does_not_fit_the_slots_is_refused(columns: int):
    z, logsnr, _ = inputs(TINY)
    with pytest.raises(ValueError, match=f"{columns} columns, the network has 1 slots"):
        UViT(TINY)(z, logsnr, torch.zeros(3, columns, dtype=torch.int64))
    with pytest.raises(ValueError, match="0 columns"):
        UViT(TINY)(z, logsnr, None)


def test_a_network_without_slots_takes_no_condition_or_an_empty_one():
    config = PRESETS["tiny8"]
    z, logsnr, _ = inputs(config.model_copy(update={"slots": (1,)}))
    network = awake(config).eval()
    with torch.no_grad():
        assert torch.equal(network(z, logsnr), network(z, logsnr, torch.zeros(3, 0, dtype=torch.int64)))


WHOLE = TINY.model_copy(update={"segments": (0, 1, 4, 16)})


def told(condition: torch.Tensor, segments: int) -> torch.Tensor:
    return torch.cat([condition, torch.full((len(condition), 1), segments)], dim=1)


def test_with_a_teachers_weights_a_network_for_the_whole_dial_is_that_teacher_at_every_count_to_the_bit():
    teacher, whole = awake(TINY), UViT(WHOLE)
    found = whole.load_state_dict(teacher.state_dict(), strict=False)
    assert found.missing_keys == ["segments.weight"] and found.unexpected_keys == []
    z, logsnr, condition = inputs(TINY)
    with torch.no_grad():
        for segments in WHOLE.segments:
            assert torch.equal(whole(z, logsnr, told(condition, segments)), teacher(z, logsnr, condition))


def test_a_network_for_the_whole_dial_has_a_row_for_each_count_and_samples_of_different_counts_share_a_batch():
    network = awake(WHOLE).eval().double()
    z, logsnr, condition = inputs(TINY, batch=4)
    z = z[:1].double().expand(4, -1, -1, -1)
    logsnr, condition = logsnr[:1].expand(4), condition[:1].expand(4, -1)
    mixed = torch.cat([condition, torch.tensor(WHOLE.segments)[:, None]], dim=1)
    with torch.no_grad():
        together = network(z, logsnr, mixed)
        alone = torch.cat([network(z[:1], logsnr[:1], told(condition[:1], count)) for count in WHOLE.segments])
        no_row = network.segments.weight[0].zero_()
        without = network(z, logsnr, mixed)
    assert torch.allclose(together, alone, atol=1e-9) and not no_row.any()
    assert len({row.numpy().tobytes() for row in together}) == 4
    changed = (without != together).flatten(1).any(1)
    assert changed.tolist() == [True, False, False, False]  # row 0 is that of infinitely many


def test_every_count_of_a_network_for_the_whole_dial_learns_its_own_row():
    network = awake(WHOLE)
    z, logsnr, condition = inputs(TINY, batch=3)
    network(z, logsnr, told(condition, 4)).square().sum().backward()
    assert network.segments.weight.grad.any(1).tolist() == [False, False, True, False]


def test_a_network_for_the_whole_dial_wants_its_count():
    z, logsnr, condition = inputs(TINY)
    with pytest.raises(ValueError, match="1 columns, the network has 1 slots .* and takes a segment count"):
        UViT(WHOLE)(z, logsnr, condition)


TOLD = WHOLE.model_copy(update={"guidance": (0.0, 3.0)})


def test_with_a_teachers_weights_a_network_that_is_told_its_guidance_is_that_teacher_at_every_w_to_the_bit():
    teacher, student = awake(TINY), UViT(TOLD)
    found = student.load_state_dict(teacher.state_dict(), strict=False)
    new = {f"guidance_{end}.{kind}" for end in ("in", "out") for kind in ("weight", "bias")}
    assert set(found.missing_keys) == {"segments.weight", *new} and found.unexpected_keys == []
    z, logsnr, condition = inputs(TINY)
    with torch.no_grad():
        for w in (0, 1234, 3000):
            assert torch.equal(student(z, logsnr, told(told(condition, w), 4)), teacher(z, logsnr, condition))


def test_samples_of_different_guidance_share_a_batch_and_the_network_learns_from_w():
    network = awake(TOLD).eval().double()
    nn.init.normal_(network.guidance_out.weight, std=0.1)
    z, logsnr, condition = inputs(TINY, batch=3)
    z, logsnr, condition = z[:1].double().expand(3, -1, -1, -1), logsnr[:1].expand(3), condition[:1].expand(3, -1)
    asked = torch.cat([condition, torch.tensor([[0], [1], [3000]]), torch.full((3, 1), 4)], dim=1)
    together = network(z, logsnr, asked)
    alone = torch.cat([network(z[:1], logsnr[:1], row[None]) for row in asked])
    assert torch.allclose(together, alone, atol=1e-9) and len({row.detach().numpy().tobytes() for row in together}) == 3
    together.square().sum().backward()
    assert network.guidance_in.weight.grad.any() and network.guidance_out.weight.grad.any()


def test_a_network_that_is_told_its_guidance_wants_it():
    z, logsnr, condition = inputs(TINY)
    with pytest.raises(ValueError, match="2 columns, .* and is told its guidance and takes a segment count"):
        UViT(TOLD)(z, logsnr, told(condition, 4))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"segments": (4, 2)}, "rising counts"),
        ({"segments": (2, 2)}, "rising counts"),
        ({"segments": (-1, 2)}, "rising counts"),
        ({"segments": (0,)}, "rising counts"),
        ({"guidance": (2.0, 1.0)}, "a range that rises"),
        ({"guidance": (-1.0, 1.0)}, "a range that rises"),
        ({"resolution": 18}, "multiple of patch"),
        ({"mid": Level(kind="res", channels=128)}, "mid must be a transformer"),
        ({"head_dim": 48}, "multiple of head_dim"),
        ({"levels": (Level(kind="res", channels=48),)}, "multiple of 32"),
        ({"levels": ()}, "levels"),
        ({"width": 3}, "width"),
    ],
)
def test_a_configuration_that_cannot_be_built_is_refused(change: dict, said: str):
    with pytest.raises(ValidationError, match=said):
        UViTConfig.model_validate({**GROUPED.model_dump(), **change})


def test_autocast_to_bfloat16_stays_close_to_float32():
    network = awake(SMALL).eval()
    z, logsnr, condition = inputs(SMALL)
    with torch.no_grad():
        exact = network(z, logsnr, condition)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = network(z, logsnr, condition).float()
    assert (rounded - exact).square().mean().sqrt() < 0.03 * exact.square().mean().sqrt()


def test_dropout_acts_in_training_and_not_in_evaluation():
    network = awake(GROUPED)
    given = inputs(GROUPED)
    with torch.no_grad():
        assert not torch.equal(network(*given), network(*given))
        network.eval()
        assert torch.equal(network(*given), network(*given))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_compiled_network_has_the_gradients_of_the_eager_one(precision: str):
    # compiled under CPU autocast, F.interpolate's gradient is silently zero in torch 2.13; the network does without it
    network = awake(TINY)
    given = inputs(TINY)
    gradients = []
    for function in (network, torch.compile(network)):
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            function(*given).float().square().sum().backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in network.parameters()]))
    eager, compiled = gradients
    assert (eager - compiled).norm() < (0.05 if precision == "bf16" else 1e-4) * eager.norm()


@pytest.mark.parametrize("config", [TINY, GROUPED], ids=["layer", "group"])
def test_the_operations_that_a_gpu_fuses_make_the_same_network_with_the_same_gradients(config, monkeypatch):
    # in plain PyTorch; tests/kernels holds the kernels to that.  With a mean, so that a forgotten one would show
    network = awake(config).eval()
    given = inputs(config)

    def found(fused: bool, kind: torch.dtype) -> list[torch.Tensor]:
        monkeypatch.setattr(fusion, "fuses", lambda x, over_rows=False: fused)
        network.double() if kind == torch.float64 else network.float()
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == torch.bfloat16):
            v = network(given[0].to(network.conv_in.weight) + 1, given[1].to(network.conv_in.weight), given[2])
        v.double().square().sum().backward()
        return [v.detach().double(), torch.cat([value.grad.flatten() for value in network.parameters()]).double()]

    exact = found(False, torch.float64)
    for ours, wanted in zip(found(True, torch.float64), exact, strict=True):
        assert (ours - wanted).norm() < 1e-10 * wanted.norm()
    for kind in (torch.float32, torch.bfloat16):
        for ours, layers, wanted in zip(found(True, kind), found(False, kind), exact, strict=True):
            assert 0 < (ours - wanted).norm() < 1.5 * (layers - wanted).norm()


def test_on_a_cpu_nothing_is_fused():
    assert not fusion.fuses(torch.zeros(1, 2, 3)) and not fusion.fuses(torch.zeros(1, 2, 3), over_rows=True)


@pytest.mark.parametrize("config", [TINY, GROUPED], ids=["layer", "group"])
def test_joining_films_changes_neither_results_nor_the_state_dict(config):
    network, given = awake(config).eval(), inputs(config)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with torch.no_grad():
        expected = network(*given)
        network.join_films()
        torch.testing.assert_close(network(*given), expected)
        after = network.state_dict()
        assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
        network.load_state_dict(awake(config, seed=1).state_dict())
        torch.testing.assert_close(network(*given), awake(config, seed=1).eval()(*given))

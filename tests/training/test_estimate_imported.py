"""Estimates and blocks of networks that come from diffusers: against what their real evaluation counts, keeps and gives back."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

import stepdial
from diffusion.backbone import Backbone
from diffusion.family import Family
from tests.checkpoints import write_dit, write_pixels, write_xl
from training.checkpoint import Checkpoint
from training.estimate import Work, built, estimate, kept, operations
from training.importing import import_family
from training.run import Run
from training.schedule import Schedule
from training.world import World, blocks

KINDS: dict[str, Callable[[Path], Path]] = {
    "pixels": write_pixels, "dit": write_dit, "xl": write_xl
}  # fmt: skip


@pytest.fixture(scope="module", params=KINDS)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    folder = tmp_path_factory.mktemp(request.param)
    return import_family(Checkpoint(KINDS[request.param](folder / "pipeline")), folder / "tiny")


def asked(network: Backbone, batch: int) -> tuple[torch.Tensor, ...]:
    config = network.config
    columns = len(config.slots) + bool(config.segments)
    shape = (batch, config.channels, config.resolution, config.resolution)
    return torch.randn(shape), torch.zeros(batch), torch.ones(batch, columns, dtype=torch.int64)


def whole(family: Family) -> Backbone:
    """The teacher as a student for the whole dial, with something to say of its count."""
    teacher = family.manifest.teacher.network
    torch.manual_seed(0)
    network = family.build(teacher.model_copy(update={"segments": (1, 2)}))
    network.load_state_dict(family.network("teacher").state_dict(), strict=False)
    torch.nn.init.normal_(network.segments.weight, std=0.5)
    return network.eval().requires_grad_(True)


def test_arithmetic_and_parameters_are_those_of_the_network_as_it_really_runs(family: Family):
    network = family.network("teacher")
    inputs = asked(network, 4)  # of fewer, `diffusion.steady` has some layers computed in ways that are not counted
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # what a CPU fuses, torch does not count
        network(*inputs)  # its text encoders keep what they say of a prompt
        with FlopCounterMode(display=False) as counter:
            network(*inputs)
    meta = built(network.config)
    assert 4 * operations(meta) == counter.get_total_flops() > 0
    work = Work(network.config, 4, 10, targets=1, teacher=2)
    found = estimate(work)
    assert found.parameters == sum(value.numel() for value in network.parameters())
    assert found.image == 6 * found.forward and found.total == 40 * found.image
    if record := family.manifest.autoencoder:
        encoder = family.autoencoder()
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            encoder.encode(torch.zeros(1, 3, family.manifest.resolution, family.manifest.resolution))
        latent = estimate(Work(network.config, 4, 10, autoencoder=record.network))
        assert latent.image == 3 * latent.forward + counter.get_total_flops()
        assert latent.memory["autoencoder"] == 4 * record.parameters


def test_what_is_kept_for_the_backward_pass_is_what_the_real_network_allocates_and_does_not_free(family: Family):
    network, batch = whole(family), 3
    inputs = asked(network, batch)
    network(*inputs)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        with torch.autocast("cpu", torch.bfloat16):
            v = network(*inputs)
    allocated = sum(event.self_cpu_memory_usage for event in profiled.events())
    fixed, each = kept(network.config)
    assert v.requires_grad and allocated == pytest.approx(fixed + batch * each, rel=0.1)
    assert kept(network.config, checkpointing=True)[1] < each


def test_blocks_that_are_computed_again_have_the_gradients_of_plain_ones(family: Family, tmp_path: Path):
    gradients = []
    for checkpointing in (False, True):
        network = whole(family)
        assert blocks(network)
        Run(network, Schedule(batch=2), tmp_path, settings={}).spread(World(), checkpointing=checkpointing)
        torch.manual_seed(1)
        network(*asked(network, 2)).square().mean().backward()
        gradients.append({name: value.grad for name, value in network.named_parameters() if value.grad is not None})
    plain, again = gradients
    assert plain.keys() == again.keys() and "segments.weight" in plain and plain["segments.weight"].any()
    assert all(torch.equal(plain[name], again[name]) for name in plain)


@pytest.mark.parametrize("family", ["dit", "xl"], indirect=True)
def test_a_dry_run_tells_of_an_imported_family(
    family: Family, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    command = ["stepdial", "distill", "--family", family.folder, "--whole", "--steps", "1,2", "--dry-run", "--batch", 8]
    monkeypatch.setattr(sys, "argv", list(map(str, command)))
    assert not stepdial.main()
    said = capsys.readouterr().out
    width = whole(family).segments.weight.numel()
    assert f"parameters   {family.manifest.teacher.parameters + width:,}" in said
    assert ("to encode it" in said) == (family.manifest.autoencoder is not None)
    assert json.loads(said.split("\nbatch = ")[1].split("\n")[0]) == 8

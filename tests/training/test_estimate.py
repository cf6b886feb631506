"""Estimates: arithmetic against hand counts and the paper's speeds, memory against what a forward pass really keeps."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from diffusion.uvit import PRESETS, TransformerBlock, UViT
from training.estimate import GPUS, Estimate, Work, describe, estimate, kept, operations

SPEEDS = {  # appendix A.2: images of 2,048 a second on so many TPU v5e, by CT and CD
    "imagenet64-small": (64, 2.7, 2.5),
    "imagenet64-large": (256, 2.9, 2.5),
    "imagenet128-small": (64, 2.2, 1.7),
    "imagenet128-large": (256, 2.2, 1.8),
}
TPU = 197e12
FORWARD = {
    "imagenet64-small": 218.4,
    "imagenet64-large": 838.4,
    "imagenet128-small": 277.0,
    "imagenet128-large": 1072.7,
}
"""GFLOP of an evaluation, counted layer by layer elsewhere."""


@pytest.mark.parametrize("name", SPEEDS)
def test_the_papers_runs_had_four_tenths_of_their_chips_peak(name: str):
    with torch.device("meta"):
        forward = operations(UViT(PRESETS[name]))
    assert forward / 1e9 == pytest.approx(FORWARD[name], rel=2e-3)
    chips, *speeds = SPEEDS[name]
    for teacher, speed in enumerate(speeds):
        work = Work(PRESETS[name], 2048, 200_000, targets=1, teacher=teacher)
        assert 0.36 < forward * work.evaluations * 2048 * speed / (chips * TPU) < 0.48


def test_hours_are_arithmetic_over_speed():
    found = Estimate(parameters=0, forward=0, image=0, total=int(3600 * 0.5 * 989e12), memory={})
    assert found.hours(GPUS["h100"], 1, 0.5) == pytest.approx(1) and found.hours(
        GPUS["h100"], 4, 0.25
    ) == pytest.approx(0.5)
    assert found.hours(GPUS["a100"], 1, 0.5) == pytest.approx(989 / 312)


def test_what_a_forward_pass_keeps_is_what_it_allocates_and_does_not_free():
    config, batch = PRESETS["debug"], 3
    network = UViT(config)
    for block in network.modules():
        if isinstance(block, TransformerBlock):
            block.fused_on = ("cpu",)
    inputs = torch.zeros(batch, 1, 8, 8), torch.zeros(batch), torch.zeros(batch, 0, dtype=torch.int64)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        with torch.autocast("cpu", torch.bfloat16):
            v = network(*inputs)
    allocated = sum(event.self_cpu_memory_usage for event in profiled.events())
    fixed, each = kept(config)
    assert v.requires_grad and allocated == pytest.approx(fixed + batch * each, rel=0.02)
    assert kept(config, checkpointing=True)[1] < each


def test_memory_is_divided_by_sharding_and_activations_by_turns():
    config = PRESETS["debug"]
    alone, shared = (
        estimate(Work(config, 64, 10, targets=1, teacher=1, processes=4, turns=turns, shard=shard))
        for turns, shard in ((1, False), (2, True))
    )
    assert alone.memory["weights"] == 4 * alone.parameters and alone.memory["moments"] == 8 * alone.parameters
    for part in ("weights", "gradients", "moments", "average"):
        assert shared.memory[part] == pytest.approx(alone.memory[part] / 4, rel=1e-4)
    assert shared.memory["teacher"] == alone.memory["teacher"] == alone.memory["weights"]
    assert alone.memory["activations"] == 2 * shared.memory["activations"] and "whole while in use" not in alone.memory
    assert alone.total == 5 * alone.forward * 64 * 10


def test_a_description_has_every_setting_and_says_what_was_not_measured():
    said = describe({"lr": 1e-4, "steps": "1,2"}, Work(PRESETS["debug"], 64, 10), GPUS["l4"], 0.25, runs=2)
    assert 'lr = 0.0001\nsteps = "1,2"\n' in said and "parameters   141,057" in said
    assert "1 x NVIDIA L4 at 25% of 121 TFLOP/s" in said and "nothing of it was measured on a GPU" in said


@pytest.mark.parametrize("micro_batch", [1, 10, 50])
def test_the_room_for_images_does_not_depend_on_how_many_were_asked_for(micro_batch: int):
    memory = {"weights": 10**9, "activations": 10**8 * micro_batch}
    found = Estimate(parameters=0, forward=0, image=0, total=0, memory=memory)
    assert found.room(GPUS["l4"], micro_batch) == 206  # 0.9 * 24 GB, less 1 GB, by 0.1 GB
    assert Estimate(0, 0, 0, 0, memory | {"weights": 22 * 10**9}).room(GPUS["l4"], micro_batch) == 0

"""Recorded networks have the bits of networks, each its own weights, and what cannot be repeated is not."""

import logging
import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion import recording
from diffusion.recording import RecordedNetwork, Recorder
from diffusion.uvit import PRESETS, UViT

CONFIG = PRESETS["debug"].model_copy(update={"slots": (3,), "segments": (1, 4)})


def network(seed: int) -> UViT:
    torch.manual_seed(seed)
    made = UViT(CONFIG).eval().requires_grad_(False)
    for weight in made.parameters():  # those that begin with nothing too
        weight.normal_(std=0.1)
    return made


def batch(rows: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    z = torch.randn(rows, CONFIG.channels, CONFIG.resolution, CONFIG.resolution, generator=random)
    told = torch.stack([torch.arange(rows) % 3, 4 ** (torch.arange(rows) % 2)], dim=1)
    return z, torch.linspace(-5, 5, rows) + seed, told


@torch.inference_mode()
def test_two_networks_of_one_architecture_share_recordings_and_keep_their_own_bits() -> None:
    recorder, networks = Recorder(), [network(1), network(2)]
    recorded = [RecordedNetwork(one, recorder) for one in networks]
    for rows in (1, 3, 8):
        for seed in range(3):
            asked = batch(rows, seed)
            for plain, own in zip(networks, recorded, strict=True):
                assert torch.equal(own(*asked), plain(*asked))
    assert len(recorder._known) == 3 and None not in recorder._known.values()


@torch.inference_mode()
def test_weights_are_not_copied() -> None:
    plain = network(1)
    own = RecordedNetwork(plain, Recorder())
    before = own(*batch(2))
    plain.get_parameter("conv_out.bias").add_(1.0)
    assert torch.equal(own(*batch(2)), plain(*batch(2))) and not torch.equal(own(*batch(2)), before)


class Fickle(UViT):
    """A network whose operations depend on values, so that a recording holds for some samples only."""

    def forward(self, z_t: Tensor, logsnr_t: Tensor, condition: Any = None) -> Tensor:
        """As the network, and more where a sample is bright."""
        v = super().forward(z_t, logsnr_t, condition)
        return v + 1 if z_t.mean() > 0.3 else v


@torch.inference_mode()
def test_what_a_recording_gets_wrong_is_evaluated_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    plain = Fickle(CONFIG).eval().requires_grad_(False)
    with caplog.at_level(logging.WARNING, recording.__name__):
        own = RecordedNetwork(plain, Recorder())
        assert torch.equal(own(*batch(4)), plain(*batch(4)))
    bright = (batch(4)[0] + 1, *batch(4)[1:])
    assert torch.equal(own(*bright), plain(*bright))
    assert [record.getMessage() for record in caplog.records] == [
        "batches of 4 are evaluated operation by operation: a recording has other bits"
    ]


class Unrecordable(UViT):
    """A network that cannot be recorded."""

    def forward(self, z_t: Tensor, logsnr_t: Tensor, condition: Any = None) -> Tensor:
        """As the network, unless somebody records it."""
        if torch.jit.is_tracing():
            raise RuntimeError("no recording of this\nmore of it")
        return super().forward(z_t, logsnr_t, condition)


@torch.inference_mode()
def test_a_network_that_cannot_be_recorded_is_evaluated_and_the_log_says_why(caplog: pytest.LogCaptureFixture) -> None:
    plain = Unrecordable(CONFIG).eval().requires_grad_(False)
    with caplog.at_level(logging.WARNING, recording.__name__):
        assert torch.equal(RecordedNetwork(plain, Recorder())(*batch(2)), plain(*batch(2)))
    assert [record.getMessage() for record in caplog.records] == [
        "batches of 2 are evaluated operation by operation: no recording of this"
    ]


def test_several_threads_may_come_with_a_size_for_the_first_time() -> None:
    plain, answers = network(1), []
    own = RecordedNetwork(plain, Recorder())

    def ask(seed: int) -> None:
        with torch.inference_mode():
            answers.append(torch.equal(own(*batch(2, seed)), plain(*batch(2, seed))))

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert answers == [True] * 4

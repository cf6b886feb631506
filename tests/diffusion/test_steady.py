"""On a CPU a sample alone has the bits that it has in a batch of any size."""

import copy

import pytest
import torch

from diffusion.steady import steady
from diffusion.uvit import PRESETS, UViT

pytestmark = pytest.mark.skipif(
    not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()),
    reason="other libraries than MKL and oneDNN multiply and convolve here; what they do is found out at a server's start",
)


def network() -> UViT:
    """A small one with convolutions that PyTorch would not leave to oneDNN for a single image."""
    torch.manual_seed(0)
    made = UViT(PRESETS["small32"].model_copy(update={"slots": (3, 2)})).eval().requires_grad_(False)
    for value in made.parameters():
        torch.nn.init.normal_(value, std=0.05) if not value.any() else None
    return made


@torch.no_grad()
def test_rows_have_the_same_bits_in_batches_of_every_size_and_differ_from_plain_ones_by_rounding() -> None:
    plain = network()
    made = copy.deepcopy(plain)
    steady(made)
    z, logsnr = torch.randn(8, 3, 32, 32), torch.linspace(-8, 8, 8)
    condition = torch.stack([torch.arange(8) % 4, torch.arange(8) % 3], dim=1)
    whole = made(z, logsnr, condition)
    for size in (1, 2, 3, 4, 5):
        for first in range(0, 8, size):
            rows = slice(first, first + size)
            assert torch.equal(made(z[rows], logsnr[rows], condition[rows]), whole[rows]), (size, first)
    assert torch.allclose(plain(z, logsnr, condition), whole, rtol=1e-4, atol=1e-5)


def test_a_copy_computes_with_its_own_weights_and_they_keep_their_names() -> None:
    made = network()
    names = made.state_dict().keys()
    steady(made)
    other = copy.deepcopy(made)
    with torch.no_grad():
        other.conv_out.bias.fill_(7.0)
        given = torch.zeros(1, 3, 32, 32), torch.zeros(1), torch.zeros(1, 2, dtype=torch.int64)
        difference = other(*given) - made(*given)
    assert made.state_dict().keys() == names and difference.abs().min() > 1

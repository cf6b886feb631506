"""The Triton kernels against float64 and against the plain version; run by test_triton_lanes.py, one lane a process.

STEPDIAL_LANE=interpret: on the CPU, by Triton's interpreter (TRITON_INTERPRET=1 must be set before Triton is imported).
STEPDIAL_LANE=cuda: on a GPU.  These kernels store only float32 and bytes, so the interpreter's truncating bfloat16 casts
are never met.
"""

import os

import numpy as np
import paper_equations as paper
import pytest
import torch
from waves import make_wave, worst_relative_error

from kernels import Column, gaussian, gaussian_triton, hop, last_hop, noise, wave, wave_triton

DEVICE = {"interpret": "cpu", "cuda": "cuda"}[os.environ["STEPDIAL_LANE"]]
on_cuda = pytest.mark.skipif(DEVICE != "cuda", reason="needs a CUDA device")
SHAPES = [(3, 8, 8), (3, 17, 19), (1, 1, 1), (130,)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def assert_same_as_plain(kernel: torch.Tensor, plain: torch.Tensor, coefficients: torch.Tensor) -> None:
    """Equal to the bit; aDDIM rows, whose norm is summed in another order, to the last bit of out_eps."""
    kernel, adjusted = kernel.cpu(), coefficients[:, Column.Z_VAR] != 0
    assert torch.equal(kernel[~adjusted], plain[~adjusted])
    torch.testing.assert_close(kernel[adjusted], plain[adjusted], rtol=3e-7, atol=3e-7)


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_wave_of_mixed_rules_follows_the_papers_equations(shape, dtype, guided):
    case = make_wave(shape, dtype, guided=guided)
    result = wave_triton.hop(*case.arguments(DEVICE))
    assert result.dtype == torch.float32 and result.shape == case.z_t.shape
    assert worst_relative_error(result, case.expected) < 1e-6
    assert_same_as_plain(result, wave.plain_hop(*case.arguments()), case.coefficients)


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("shape", SHAPES[:3])
def test_the_last_hop_is_the_image_rounded_to_bytes(shape, guided):
    case = make_wave(shape, torch.bfloat16, guided=guided)
    result = wave_triton.last_hop(*case.arguments(DEVICE)).cpu()
    assert result.dtype == torch.uint8 and result.is_contiguous()
    for image, expected in zip(result.numpy(), case.expected, strict=True):
        level, near_a_tie = paper.to_bytes(expected)
        difference = np.abs(image.astype(float) - level)
        assert (difference[~near_a_tie] == 0).all() and difference.max() <= 1
    plain = wave.plain_last_hop(*case.arguments())
    assert torch.equal(result, plain) or (result.int() - plain.int()).abs().max() <= 1


@pytest.mark.parametrize("image", [False, True])
def test_samples_of_several_blocks_take_their_norm_from_cache_or_from_partial_sums(image, monkeypatch):
    case = make_wave((3, 20, 21), torch.bfloat16, guided=True)
    pick = [1, 4, 7]  # aDDIM, aDDIM to s = 0, aDDIM clipped and guided
    part = [a[pick] for a in case.arguments(DEVICE)]
    kernel, plain = (wave_triton.last_hop, wave.plain_last_hop) if image else (wave_triton.hop, wave.plain_hop)
    monkeypatch.setattr(wave_triton, "BLOCK", 256)
    from_cache = kernel(*part)
    monkeypatch.setattr(wave_triton, "SUM_BLOCK", 512)
    from_sums = kernel(*part)
    expected = plain(*(a[pick] for a in case.arguments()))
    for result in (from_cache, from_sums):
        torch.testing.assert_close(result.cpu().float(), expected.float(), rtol=3e-7, atol=1.0 if image else 3e-7)
    if not image:
        assert worst_relative_error(from_sums, case.expected[pick]) < 1e-6


def test_a_large_image_goes_through_both_passes():
    case = make_wave((3, 76, 76), torch.bfloat16, guided=False)
    pick = slice(0, 2)  # DDIM and aDDIM
    z, v, table, _, fresh = (a if a is None else a[pick] for a in case.arguments(DEVICE))
    assert z[0].numel() > wave_triton.SUM_BLOCK
    result = wave_triton.hop(z, v, table, None, fresh)
    assert worst_relative_error(result, case.expected[pick]) < 1e-6


@pytest.mark.parametrize("shape", [(3, 17, 19), (3, 29, 31)])
def test_a_sample_has_the_same_bits_alone_and_in_any_wave(shape):
    case = make_wave(shape, torch.bfloat16, guided=True)
    z, v, table, u, fresh = case.arguments(DEVICE)
    together = wave_triton.hop(z, v, table, u, fresh)
    for i in range(0, len(z), 1 if DEVICE == "cuda" else 3):
        one = slice(i, i + 1)  # of an odd size, so that these views begin at odd addresses
        uncond = u[one] if case.coefficients[i, Column.GUIDANCE] else None
        extra = fresh[one] if case.coefficients[i, Column.OUT_NOISE] else None
        assert torch.equal(wave_triton.hop(z[one], v[one], table[one], uncond, extra), together[one])


def test_rows_that_want_no_guidance_and_no_noise_never_see_them():
    case = make_wave((3, 8, 8), torch.float32, guided=True)
    z, v, table, u, fresh = case.arguments(DEVICE)
    clean = wave_triton.hop(z, v, table, u, fresh)
    u[table[:, Column.GUIDANCE] == 0] = float("nan")
    fresh[table[:, Column.OUT_NOISE] == 0] = float("nan")
    assert torch.equal(clean, wave_triton.hop(z, v, table, u, fresh))


def test_bytes_clamp_round_halves_to_even_and_show_what_is_not_a_number_as_0():
    levels = torch.tensor([-3.0, 0.5, 1.5, 2.5, 254.5, 300.0, float("nan"), 127.5])
    v = -((levels.double() - 127.5) / 127.5).float().reshape(1, 1, 1, 8).to(DEVICE)
    row = torch.tensor([[0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]], device=DEVICE)
    image = wave_triton.last_hop(torch.zeros_like(v), v, row, None, None)
    assert image.flatten().tolist() == [0, 0, 2, 2, 254, 255, 0, 128]


def test_an_eps_hat_of_almost_zero_is_not_blown_up():
    row = torch.tensor([[0.5, 0.5, 1.0, 0.0, 0.01, 0.0, 0.0, 0.0]], device=DEVICE)
    z = torch.ones(1, 8, device=DEVICE)
    for eps in (0.0, 2.0**-20):  # its mean square counts as 1e-8, so that it grows by sqrt(0.01 / 1e-8)
        v = 2 * eps - z
        torch.testing.assert_close(wave_triton.hop(z, v, row, None, None), z - eps + 1000 * eps, rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", [(1,), (3, 5, 7), (3, 32, 32)])
def test_noise_equals_the_plain_version_to_the_bit(shape):
    seeds = torch.tensor([0, -1, 2**63 - 1, 123456789012345678])
    indices, streams = torch.tensor([0, 2**32 - 1, 7, 1]), torch.tensor([2**32 - 1, 0, 3, 1])
    plain = gaussian.plain_noise(seeds, indices, streams, shape)
    kernel = gaussian_triton.noise(seeds.to(DEVICE), indices.to(DEVICE), streams.to(DEVICE), shape)
    assert torch.equal(kernel.cpu(), plain)


@on_cuda
def test_plain_noise_has_the_same_bits_on_the_gpu():
    seeds = torch.arange(8)
    on_gpu = gaussian.plain_noise(seeds.cuda(), seeds.cuda(), seeds.cuda(), (3, 32, 32))
    assert torch.equal(on_gpu.cpu(), gaussian.plain_noise(seeds, seeds, seeds, (3, 32, 32)))


@on_cuda
def test_the_operators_are_registered_soundly_and_pick_the_kernels():
    case = make_wave((3, 8, 8), torch.bfloat16, guided=True)
    for op in (torch.ops.stepdial.hop, torch.ops.stepdial.last_hop):
        torch.library.opcheck(op.default, case.arguments(DEVICE))
    z, v, table, u, fresh = case.arguments(DEVICE)
    assert torch.equal(hop(z, v, table, v_uncond=u, noise=fresh), wave_triton.hop(z, v, table, u, fresh))


@on_cuda
def test_a_loop_of_hops_is_captured_in_a_cuda_graph_and_replays_to_the_same_bits():
    case = make_wave((3, 32, 32), torch.bfloat16, guided=True)
    _, v, table, u, _ = case.arguments(DEVICE)
    seeds, stream_of_hop = torch.arange(len(v), device=DEVICE), torch.ones(len(v), dtype=torch.int64, device=DEVICE)

    def loop():
        z = noise(seeds, seeds, (3, 32, 32), stream=stream_of_hop - 1)
        for k in range(4):
            fresh = noise(seeds, seeds, (3, 32, 32), stream=stream_of_hop + k)
            z = hop(z, v, table, v_uncond=u, noise=fresh)
        return last_hop(z, v, table, v_uncond=u)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        loop()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = loop()
    seeds.add_(5)
    graph.replay()
    assert torch.equal(captured, loop())

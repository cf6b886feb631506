"""hop and last_hop in plain PyTorch: against float64, and the promises their docstrings make.

The Triton kernels are held to the same in lane_triton.py.
"""

import numpy as np
import paper_equations as paper
import pytest
import torch
from host_sync import NoHostSync
from waves import make_wave, worst_relative_error

from kernels import Column, addim, ddim, hop, last_hop, noise
from kernels.wave import plain_hop, plain_last_hop

SHAPES = [(3, 8, 8), (3, 17, 19), (1, 1, 1), (4, 16, 16), (129,)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_wave_of_mixed_rules_follows_the_papers_equations(shape, dtype, guided):
    wave = make_wave(shape, dtype, guided=guided)
    result = hop(wave.z_t, wave.v, wave.coefficients, v_uncond=wave.v_uncond, noise=wave.noise)
    assert result.dtype == torch.float32 and result.shape == wave.z_t.shape
    assert worst_relative_error(result, wave.expected) < 1e-6


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 17, 19), (1, 1, 1), (4, 16, 16)])
def test_the_last_hop_is_the_image_rounded_to_bytes(shape, guided):
    wave = make_wave(shape, torch.bfloat16, guided=guided)
    result = last_hop(wave.z_t, wave.v, wave.coefficients, v_uncond=wave.v_uncond, noise=wave.noise)
    assert result.dtype == torch.uint8 and result.is_contiguous()
    for image, expected in zip(result.numpy(), wave.expected, strict=True):
        level, near_a_tie = paper.to_bytes(expected)
        difference = np.abs(image.astype(float) - level)
        assert (difference[~near_a_tie] == 0).all() and difference.max() <= 1


def test_bytes_clamp_round_halves_to_even_and_show_what_is_not_a_number_as_0():
    levels = torch.tensor([-3.0, 0.5, 1.5, 2.5, 254.5, 300.0, float("nan"), 127.5])
    x = (levels.double() - 127.5) / 127.5
    row = torch.tensor([[0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    image = last_hop(torch.zeros(1, 1, 1, 8), -x.float().reshape(1, 1, 1, 8), row)
    assert image.flatten().tolist() == [0, 0, 2, 2, 254, 255, 0, 128]


def test_a_hop_is_ddim_and_addim_of_x_hat():
    rng = torch.Generator().manual_seed(0)
    z, v = (torch.randn(2, 3, 8, 8, generator=rng) for _ in range(2))
    c = dict(zip(("alpha_t", "sigma_t", "alpha_s", "sigma_s"), (0.6, 0.8, 0.8, 0.6), strict=True))
    z_var = 0.1 * (0.8 - 0.6 * 0.6 / 0.8) ** 2
    table = torch.tensor([[0.6, 0.8, 0.8, 0.6, 0, 0, 0, 0], [0.6, 0.8, 0.8, 0.6, z_var, 0, 0, 0]])
    x = 0.6 * z - 0.8 * v
    result = hop(z, v, table)
    torch.testing.assert_close(result[:1], ddim(x, z, **c)[:1])
    torch.testing.assert_close(result[1:], addim(x, z, 0.1, **c)[1:])


def test_an_eps_hat_of_almost_zero_is_not_blown_up():
    row = torch.tensor([[0.5, 0.5, 1.0, 0.0, 0.01, 0.0, 0.0, 0.0]])
    z = torch.ones(1, 8)
    for eps in (0.0, 2.0**-20):  # its mean square counts as 1e-8, so that it grows by sqrt(0.01 / 1e-8)
        v = 2 * eps - z
        torch.testing.assert_close(hop(z, v, row), z - eps + 1000 * eps, rtol=1e-6, atol=0)


@pytest.mark.parametrize("op", [hop, last_hop])
@pytest.mark.parametrize("shape", [(3, 17, 19), (3, 64, 64)])
def test_a_sample_has_the_same_bits_alone_and_in_any_wave(op, shape):
    wave = make_wave(shape, torch.bfloat16, guided=True)
    together = op(wave.z_t, wave.v, wave.coefficients, v_uncond=wave.v_uncond, noise=wave.noise)
    for i, row in enumerate(wave.coefficients):
        one = slice(i, i + 1)
        uncond = wave.v_uncond[one] if row[Column.GUIDANCE] else None  # alone it need not be given at all
        noise = wave.noise[one] if row[Column.OUT_NOISE] else None
        alone = op(wave.z_t[one], wave.v[one], wave.coefficients[one], v_uncond=uncond, noise=noise)
        assert torch.equal(alone, together[one])


def test_rows_that_want_no_guidance_and_no_noise_never_see_them():
    wave = make_wave((3, 8, 8), torch.float32, guided=True)
    clean = hop(wave.z_t, wave.v, wave.coefficients, v_uncond=wave.v_uncond, noise=wave.noise)
    wave.v_uncond[wave.coefficients[:, Column.GUIDANCE] == 0] = float("nan")
    wave.noise[wave.coefficients[:, Column.OUT_NOISE] == 0] = float("nan")
    assert torch.equal(clean, hop(wave.z_t, wave.v, wave.coefficients, v_uncond=wave.v_uncond, noise=wave.noise))


def test_memory_layout_does_not_matter_and_inputs_are_left_alone():
    wave = make_wave((3, 8, 8), torch.bfloat16, guided=False)
    z_before, v_before = wave.z_t.clone(), wave.v.clone()
    plain = hop(wave.z_t, wave.v, wave.coefficients, noise=wave.noise)
    last = torch.channels_last
    other = hop(wave.z_t.to(memory_format=last), wave.v.to(memory_format=last), wave.coefficients, noise=wave.noise)
    assert torch.equal(plain, other) and other.is_contiguous()
    assert torch.equal(wave.z_t, z_before) and torch.equal(wave.v, v_before)


def test_arguments_that_do_not_fit_are_refused_by_name():
    z, table = torch.zeros(2, 3, 4, 4), torch.zeros(2, len(Column))
    for name, arguments, options in [
        ("z_t", (z.double(), z, table), {}),
        ("v has shape", (z, z[:1], table), {}),
        ("v is", (z, z.double(), table), {}),
        ("coefficients", (z, z, table[:, :6]), {}),
        ("coefficients", (z, z, table.double()), {}),
        ("v_uncond", (z, z, table), {"v_uncond": z[:1]}),
        ("noise", (z, z, table), {"noise": z.bfloat16()}),
        ("noise is on", (z, z, table), {"noise": z.to("meta")}),
    ]:
        with pytest.raises(ValueError, match=name):
            hop(*arguments, **options)
    with pytest.raises(ValueError, match="z_t"):
        last_hop(torch.zeros(2, 5), torch.zeros(2, 5), table)


def test_a_loop_of_hops_never_reads_device_data_on_the_host():
    wave = make_wave((3, 8, 8), torch.bfloat16, guided=True)
    seeds = torch.arange(len(wave.z_t))
    with NoHostSync():
        for draw, update, end in ((noise, hop, last_hop), (noise, _bare_hop, _bare_last_hop)):
            z = draw(seeds, seeds, (3, 8, 8))
            for k in range(4):
                fresh = draw(seeds, seeds, (3, 8, 8), stream=k + 1)
                z = update(z, wave.v, wave.coefficients, v_uncond=wave.v_uncond, noise=fresh)
            end(z, wave.v, wave.coefficients, v_uncond=wave.v_uncond)


def _bare_hop(z_t, v, coefficients, *, v_uncond=None, noise=None):
    return plain_hop(z_t, v, coefficients, v_uncond, noise)  # the mode does not see inside a registered operator


def _bare_last_hop(z_t, v, coefficients, *, v_uncond=None, noise=None):
    return plain_last_hop(z_t, v, coefficients, v_uncond, noise)


@pytest.mark.parametrize("op", ["hop", "last_hop"])
@pytest.mark.parametrize("guided", [False, True])
def test_the_operators_are_registered_soundly(op, guided):
    wave = make_wave((3, 4, 4), torch.bfloat16, guided=guided)
    torch.library.opcheck(getattr(torch.ops.stepdial, op).default, wave.arguments())


def test_hops_compile_into_one_graph_and_keep_their_bits():
    wave = make_wave((3, 4, 4), torch.float32, guided=True)

    def two_hops(z, v, table, u, n):
        return last_hop(hop(z, v, table, v_uncond=u, noise=n), v, table, v_uncond=u, noise=n)

    for backend in ("aot_eager", "inductor"):
        compiled = torch.compile(two_hops, fullgraph=True, backend=backend)
        assert torch.equal(compiled(*wave.arguments()), two_hops(*wave.arguments()))

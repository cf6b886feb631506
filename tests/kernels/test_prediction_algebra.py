"""Conversions between x_hat, eps_hat and v_hat, guidance and clipping."""

import numpy as np
import pytest
import torch

from kernels import clip_x, eps_from_v, guide, v_from_x_eps, x_from_v

T = dict(alpha_t=0.6, sigma_t=0.8)


def random(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(sum(shape)).standard_normal(shape)).to(dtype)


def test_x_and_eps_and_v_of_a_noised_image_are_recovered_from_one_another():
    x, eps = random(2, 3, 4, 4), random(2, 3, 4, 5)[..., :4]
    z, v = 0.6 * x + 0.8 * eps, 0.6 * eps - 0.8 * x
    torch.testing.assert_close(x_from_v(v, z, **T), x)
    torch.testing.assert_close(eps_from_v(v, z, **T), eps)
    torch.testing.assert_close(v_from_x_eps(x, eps, **T), v)


@pytest.mark.parametrize("w", [0.0, 1.5, torch.tensor([0.0, 3.0])])
def test_guidance_in_v_is_guidance_in_x(w):
    z, cond, uncond = random(2, 6), random(2, 7)[:, :6], random(2, 8)[:, :6]
    x_cond, x_uncond = x_from_v(cond, z, **T), x_from_v(uncond, z, **T)
    weight = w[:, None].double() if isinstance(w, torch.Tensor) else w
    expected = x_cond + weight * (x_cond - x_uncond)
    torch.testing.assert_close(x_from_v(guide(cond, uncond, w), z, **T), expected)


def test_clipping_keeps_x_and_eps_consistent_with_z():
    z, v = 2 * random(2, 3, 5, 5), random(2, 3, 5, 6)[..., :5]
    x, eps = clip_x(x_from_v(v, z, **T), eps_from_v(v, z, **T), **T)
    assert x.abs().max() == 1
    torch.testing.assert_close(0.6 * x + 0.8 * eps, z)


def test_clipping_nothing_changes_no_bit_even_at_tiny_sigma():
    x, eps = random(2, 9).clamp(-0.9, 0.9).float(), random(2, 10)[:, :9].float()
    clipped, corrected = clip_x(x, eps, alpha_t=1.0, sigma_t=5e-4)
    assert torch.equal(clipped, x) and torch.equal(corrected, eps)


def test_low_precision_predictions_are_computed_in_float32():
    z, v = random(2, 8, dtype=torch.float32), random(2, 9)[:, :8].to(torch.bfloat16)
    assert x_from_v(v, z, **T).dtype == torch.float32
    assert torch.equal(x_from_v(v, z, **T), x_from_v(v.float(), z, **T))


def test_arguments_that_do_not_fit_are_refused_by_name():
    with pytest.raises(ValueError, match="v_uncond"):
        guide(random(2, 6), random(2, 5), 1.0)
    with pytest.raises(ValueError, match="w has shape"):
        guide(random(2, 6), random(2, 6), torch.ones(2, 1))
    with pytest.raises(ValueError, match="sigma_t"):
        clip_x(random(2, 6), random(2, 6), alpha_t=1.0, sigma_t=0.0)

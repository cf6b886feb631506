"""ddim, addim and inv_ddim against the paper's equations in float64."""

import numpy as np
import paper_equations as paper
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import addim, ddim, inv_ddim
from kernels.latents import mean_square

times = st.tuples(st.floats(0.01, 1.0), st.floats(0.0, 0.99)).map(lambda p: (p[0], p[0] * p[1]))
shapes = st.sampled_from([(3, 5), (2, 3, 4, 4), (1, 1), (2, 3, 5, 7)])
dtypes = st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16])
FLOAT32 = 5e-7  # relative to the largest value; float64 is held to 1e-12


def latents(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    x, z = rng.uniform(-1, 1, shape), rng.standard_normal(shape)
    return torch.from_numpy(x).to(dtype), torch.from_numpy(z).to(dtype)


def coefficients(t: float, s: float) -> dict[str, float]:
    return dict(zip(("alpha_t", "sigma_t", "alpha_s", "sigma_s"), (*paper.cosine(t), *paper.cosine(s)), strict=True))


def assert_close(result: torch.Tensor, expected: np.ndarray) -> None:
    tolerance = 1e-12 if result.dtype == torch.float64 else FLOAT32
    np.testing.assert_allclose(
        result.double().numpy(), expected, rtol=0, atol=tolerance * max(1, np.abs(expected).max())
    )


@settings(max_examples=60, deadline=None)
@given(times, shapes, dtypes, st.integers(0, 2**16))
def test_ddim_is_equation_4(ts, shape, dtype, seed):
    x, z = latents(shape, seed, dtype)
    c = coefficients(*ts)
    result = ddim(x, z, **c)
    assert result.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_close(result, paper.ddim(x.double().numpy(), z.double().numpy(), **c))


@settings(max_examples=60, deadline=None)
@given(times, shapes, dtypes, st.integers(0, 2**16), st.floats(0, 0.5))
def test_addim_is_equation_14(ts, shape, dtype, seed, x_var):
    x, z = latents(shape, seed, dtype)
    c = coefficients(*ts)
    rows = zip(x.double().numpy(), z.double().numpy(), strict=True)
    expected = np.stack([paper.addim(a, b, x_var, **c) for a, b in rows])
    result = addim(x, z, x_var, **c).double().numpy()
    # eps_hat divides by sigma_t: its rounding, a few float32 units of z / sigma_t, comes back times the factor of eps
    unit = 1e-12 if dtype == torch.float64 else FLOAT32
    gain = (1 + np.abs(z.double().numpy()).max()) / c["sigma_t"]
    np.testing.assert_allclose(result, expected, rtol=0, atol=unit * (gain * 2 + 2) * max(1, np.abs(expected).max()))


@settings(max_examples=40, deadline=None)
@given(times, shapes, st.integers(0, 2**16))
def test_inv_ddim_undoes_ddim_and_is_equation_5(ts, shape, seed):
    x, z = latents(shape, seed)
    c = coefficients(*ts)
    z_s = ddim(x, z, **c)
    result = inv_ddim(z_s, z, **c)
    slope = abs(c["alpha_s"] - c["alpha_t"] * c["sigma_s"] / c["sigma_t"])
    np.testing.assert_allclose(result, x, rtol=0, atol=1e-13 / slope)
    np.testing.assert_allclose(result, paper.inv_ddim(z_s.numpy(), z.numpy(), **c), rtol=0, atol=1e-13 / slope)


def test_addim_without_variance_is_ddim():
    x, z = latents((4, 3, 8, 8), 1)
    c = coefficients(0.7, 0.3)
    torch.testing.assert_close(addim(x, z, 0.0, **c), ddim(x, z, **c), rtol=1e-14, atol=1e-14)


def test_ddim_to_s_0_is_x_hat_and_from_t_1_forgets_nothing_of_z():
    x, z = latents((4, 3, 8, 8), 2)
    torch.testing.assert_close(ddim(x, z, alpha_t=0.6, sigma_t=0.8, alpha_s=1.0, sigma_s=0.0), x, rtol=0, atol=0)
    torch.testing.assert_close(
        ddim(x, z, alpha_t=0.0, sigma_t=1.0, alpha_s=0.6, sigma_s=0.8), 0.6 * x + 0.8 * z, rtol=1e-14, atol=1e-14
    )


def test_addim_to_s_0_adds_exactly_the_variance_x_var_along_eps():
    x, z = latents((4, 3, 8, 8), 3)
    added = addim(x, z, 0.04, alpha_t=0.6, sigma_t=0.8, alpha_s=1.0, sigma_s=0.0) - x
    torch.testing.assert_close(
        added.square().mean(dim=(1, 2, 3)), torch.full((4,), 0.04, dtype=torch.float64), rtol=1e-12, atol=0
    )


def test_addim_survives_an_eps_hat_of_zero():
    x = torch.ones(2, 8)
    z_s = addim(x, 0.6 * x, 0.1, alpha_t=0.6, sigma_t=0.8, alpha_s=0.8, sigma_s=0.6)
    torch.testing.assert_close(z_s, 0.8 * x)


@pytest.mark.parametrize("rule", [ddim, inv_ddim, lambda x, z, **c: addim(x, z, torch.tensor([0.0, 0.1, 0.2]), **c)])
def test_coefficients_per_sample_equal_each_sample_on_its_own(rule):
    x, z = latents((3, 3, 4, 4), 4)
    ts = [(1.0, 0.5), (0.5, 0.0), (0.3, 0.2)]
    each = [coefficients(*pair) for pair in ts]
    together = {name: torch.tensor([c[name] for c in each], dtype=torch.float64) for name in each[0]}
    result = rule(x, z, **together)
    if rule in (ddim, inv_ddim):
        for i, c in enumerate(each):
            torch.testing.assert_close(result[i : i + 1], rule(x[i : i + 1], z[i : i + 1], **c), rtol=1e-13, atol=1e-13)
    else:
        for i, c in enumerate(each):
            alone = addim(x[i : i + 1], z[i : i + 1], 0.1 * i, **c)
            torch.testing.assert_close(result[i : i + 1], alone, rtol=1e-6, atol=1e-6)


def test_a_samples_norm_depends_neither_on_its_batch_mates_nor_on_the_number_of_threads():
    _, z = latents((48, 3 * 131 * 131), 5)  # float64, where no rounding hides another order of additions
    together, threads = mean_square(z), torch.get_num_threads()
    np.testing.assert_allclose(together[:, 0], np.square(z.numpy()).mean(1), rtol=1e-13)
    try:
        torch.set_num_threads(4)
        assert all(torch.equal(together[i : i + 1], mean_square(z[i : i + 1])) for i in range(len(z)))
    finally:
        torch.set_num_threads(threads)


def test_a_zero_dimensional_coefficient_is_a_number():
    x, z = latents((2, 5), 6)
    c = coefficients(0.8, 0.4)
    tensors = {name: torch.tensor(value, dtype=torch.float64) for name, value in c.items()}
    torch.testing.assert_close(ddim(x, z, **tensors), ddim(x, z, **c), rtol=1e-15, atol=1e-15)


def test_arguments_that_do_not_fit_are_refused_by_name():
    x, z = latents((2, 5), 7)
    c = coefficients(0.8, 0.4)
    with pytest.raises(ValueError, match="x_hat"):
        ddim(x[:, :4], z, **c)
    with pytest.raises(ValueError, match="alpha_s"):
        ddim(x, z, **{**c, "alpha_s": torch.ones(3)})
    with pytest.raises(ValueError, match="z_s"):
        inv_ddim(x.long(), z, **c)
    with pytest.raises(ValueError, match="x_var"):
        addim(x, z, torch.ones(2, 5), **c)
    with pytest.raises(ValueError, match="sigma_t"):
        ddim(x, z, **{**c, "sigma_t": 0.0})


def test_the_rules_compile_into_one_graph():
    x, z = latents((3, 3, 5, 5), 8, torch.float32)
    c = {name: torch.full((3,), value) for name, value in coefficients(0.8, 0.4).items()}

    def both(x, z, c):
        return ddim(x, z, **c) + addim(x, z, 0.1, **c)

    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, z, c), both(x, z, c))

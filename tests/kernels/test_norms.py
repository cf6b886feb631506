"""norm, modulate and norm_heads as operators in plain PyTorch: against PyTorch's layers in float64, and their promises.

The Triton kernels are held to the same in lane_norms.py.
"""

import pytest
import torch
import torch.nn.functional as F
from host_sync import NoHostSync
from stretches import EPS, FOLLOWING, make_stretch, relative_error, tolerance

from kernels import modulate, norm, norm_heads
from kernels.heads import plain_norm_heads
from kernels.modulation import plain_modulate
from kernels.norms import plain_norm

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def call(stretch, **tensors):
    given = stretch.tensors() | tensors
    x, weight = given.pop("x"), given.pop("weight")
    return norm(x, weight, eps=EPS, groups=stretch.groups or None, silu=stretch.silu, **given)


@pytest.mark.parametrize("following", FOLLOWING)
@pytest.mark.parametrize("groups", [0, 4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_norm_and_its_gradients_are_those_of_pytorchs_layers(dtype, groups, following):
    stretch = make_stretch((3, 9, 24), dtype, following, groups=groups)
    gradient = torch.randn(3, 9, 24).to(dtype)
    expected, gradients = stretch.reference(gradient)
    given = {name: tensor.requires_grad_() for name, tensor in stretch.tensors().items()}
    y = call(stretch)
    y.backward(gradient)
    assert y.dtype == dtype and relative_error(y.detach(), expected) < tolerance(dtype)
    for name, tensor in given.items():
        assert tensor.grad.dtype == tensor.dtype
        assert relative_error(tensor.grad, gradients[name]) < 3 * tolerance(tensor.dtype), name


@pytest.mark.parametrize("groups", [None, 2])
@pytest.mark.parametrize("following", FOLLOWING)
def test_gradients_in_float64_are_those_of_finite_differences(following, groups):
    stretch = make_stretch((2, 3, 4), torch.float32, following, offset=0.5)
    names, tensors = zip(*stretch.tensors().items(), strict=True)

    def through(*values):
        given = dict(zip(names, values, strict=True))
        return norm(given.pop("x"), given.pop("weight"), eps=EPS, groups=groups, silu=stretch.silu, **given)

    assert torch.autograd.gradcheck(through, [tensor.double().requires_grad_() for tensor in tensors])


def test_a_large_mean_costs_no_more_accuracy_than_x_itself_has_lost():
    stretch = make_stretch((1, 16, 32), torch.float32, "bare", offset=1e3)
    for groups in (0, 4):
        stretch.groups = groups
        expected, _ = stretch.reference(torch.ones(1, 16, 32))
        assert relative_error(call(stretch), expected) < 1e-4  # E[x^2] - E[x]^2: 1e6 * 6e-8


def test_a_result_may_be_of_another_dtype_than_x_as_autocast_wants_it():
    stretch = make_stretch((2, 5, 8), torch.float32, "film, silu")
    y = norm(stretch.x, stretch.weight, stretch.bias, eps=EPS, film=stretch.film, silu=True, dtype=torch.bfloat16)
    assert torch.equal(y, call(stretch).bfloat16())


def test_what_is_not_a_number_stays_in_its_sample():
    for groups in (0, 4):
        stretch = make_stretch((3, 5, 8), torch.float32, "film, silu", groups=groups)
        clean = call(stretch)
        stretch.x[1, 2, 3] = float("nan")
        poisoned = call(stretch)
        assert poisoned[1, 2].isnan().all() if not groups else poisoned[1, :, 2:4].isnan().all()
        assert torch.equal(poisoned[[0, 2]], clean[[0, 2]])


def test_modulation_is_silu_and_film_and_so_are_its_gradients():
    for dtype in DTYPES:
        hidden, film = torch.randn(2, 7, 12).to(dtype).requires_grad_(), torch.randn(2, 24).to(dtype).requires_grad_()
        gradient = torch.randn(2, 7, 12).to(dtype)
        exact_hidden, exact_film = (tensor.detach().double().requires_grad_() for tensor in (hidden, film))
        scale, shift = exact_film[:, None].chunk(2, dim=2)
        expected = F.silu(exact_hidden) * (1 + scale) + shift
        expected.backward(gradient.double())
        y = modulate(hidden, film)
        y.backward(gradient)
        assert y.dtype == dtype and relative_error(y.detach(), expected.detach()) < tolerance(dtype)
        assert relative_error(hidden.grad, exact_hidden.grad) < tolerance(dtype)
        assert relative_error(film.grad, exact_film.grad) < tolerance(dtype)


def heads(dtype, batch=2, tokens=5, count=3, size=8):
    rng = torch.Generator().manual_seed(2)
    qkv = (torch.randn(batch, tokens, 3 * count * size, generator=rng) + 0.5).to(dtype)
    return qkv, [torch.randn(size, generator=rng) for _ in range(4)]


def test_queries_and_keys_are_normed_head_by_head_and_so_are_their_gradients():
    for dtype in DTYPES:
        qkv, weights = heads(dtype)
        exact = [tensor.double().requires_grad_() for tensor in (qkv, *weights)]
        parts = exact[0].unflatten(2, (3, 3, 8))
        expected = [F.layer_norm(parts[:, :, i], (8,), *exact[1 + 2 * i : 3 + 2 * i], EPS) for i in range(2)]
        given = [tensor.requires_grad_() for tensor in (qkv, *weights)]
        found = norm_heads(*given, eps=EPS)
        gradients = [torch.randn(2, 5, 3, 8).to(dtype) for _ in range(2)]
        torch.autograd.backward(expected, [gradient.double() for gradient in gradients])
        torch.autograd.backward(found, gradients)
        for result, wanted in zip(found, expected, strict=True):
            assert result.dtype == dtype and relative_error(result.detach(), wanted.detach()) < tolerance(dtype)
        for result, wanted in zip(given, exact, strict=True):
            assert relative_error(result.grad, wanted.grad) < 3 * tolerance(result.dtype)


def test_arguments_that_do_not_fit_are_refused_by_name():
    x, weight = torch.zeros(2, 3, 8), torch.zeros(8)
    for name, arguments, options in [
        ("x is", (x[0], weight), {}),
        ("x is", (x.long(), weight), {}),
        ("weight", (x, weight[:4]), {}),
        ("bias", (x, weight, weight[:4]), {}),
        ("film", (x, weight), {"film": torch.zeros(2, 8)}),
        ("addend", (x, weight), {"addend": x[:1]}),
        ("addend is on meta", (x, weight), {"addend": x.to("meta")}),
        ("exclude", (x, weight), {"addend": x, "film": torch.zeros(2, 16)}),
        ("groups", (x, weight), {"groups": 3}),
        ("groups", (x, weight), {"groups": 0}),
    ]:
        with pytest.raises(ValueError, match=name):
            norm(*arguments, eps=EPS, **options)
    with pytest.raises(ValueError, match="hidden is"):
        modulate(x[0], torch.zeros(2, 16))
    with pytest.raises(ValueError, match="film has shape"):
        modulate(x, torch.zeros(2, 8))
    with pytest.raises(ValueError, match="qkv"):
        norm_heads(x, weight, weight, weight, weight, eps=EPS)
    with pytest.raises(ValueError, match="bias_k"):
        norm_heads(torch.zeros(2, 3, 24), weight, weight, weight, weight[:4], eps=EPS)


def test_no_norm_reads_device_data_on_the_host():
    stretch = make_stretch((2, 5, 8), torch.float32, "film, silu")
    qkv, weights = heads(torch.float32)
    with NoHostSync():  # the mode does not see inside a registered operator
        for groups in (0, 4):
            plain_norm(stretch.x, stretch.weight, stretch.bias, stretch.film, None, groups, EPS, True, torch.float32)
        plain_modulate(stretch.x, stretch.film)
        plain_norm_heads(qkv, *weights, EPS)


@pytest.mark.parametrize(("following", "groups"), [("film, silu", 4), ("skip, silu", 0)])
def test_norms_are_registered_soundly(following, groups):
    stretch = make_stretch((2, 3, 8), torch.float32, following, groups=groups)
    given = [None if tensor is None else tensor.requires_grad_() for tensor in stretch.moved("cpu")]
    torch.library.opcheck(torch.ops.stepdial.norm.default, (*given, groups, EPS, stretch.silu, torch.float32))


def test_modulation_and_the_norm_of_heads_are_registered_soundly():
    hidden, film = torch.randn(2, 3, 8, requires_grad=True), torch.randn(2, 16, requires_grad=True)
    torch.library.opcheck(torch.ops.stepdial.modulate.default, (hidden, film))
    qkv, weights = heads(torch.float32)
    given = [tensor.requires_grad_() for tensor in (qkv, *weights)]
    torch.library.opcheck(torch.ops.stepdial.norm_heads.default, (*given, EPS))


def test_norms_compile_into_one_graph_with_their_gradients():
    stretch = make_stretch((2, 5, 8), torch.float32, "film, silu", groups=4)
    qkv, weights = heads(torch.float32)

    def through(x, weight, bias, film, qkv, *weights):
        y = norm(x, weight, bias, eps=EPS, groups=4, film=film, silu=True)
        q, k = norm_heads(qkv, *weights, eps=EPS)
        return modulate(y, film).square().mean() + (q * k).mean()

    given = [tensor.requires_grad_() for tensor in (*stretch.tensors().values(), qkv, *weights)]
    expected = torch.autograd.grad(through(*given), given)
    found = torch.autograd.grad(torch.compile(through, fullgraph=True, backend="aot_eager")(*given), given)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)

"""The norms' Triton kernels against PyTorch's layers in float64; run by test_triton_lanes.py, one lane a process.

STEPDIAL_LANE=interpret or cuda, as in lane_triton.py.
"""

import os

import pytest
import torch
from stretches import EPS, FOLLOWING, make_stretch, relative_error, tolerance

from kernels import heads, heads_triton, modulation, modulation_triton, norms, norms_triton
from kernels.norms import growth

DEVICE = {"interpret": "cpu", "cuda": "cuda"}[os.environ["STEPDIAL_LANE"]]
FULL_TILE = norms_triton.TILE
on_cuda = pytest.mark.skipif(DEVICE != "cuda", reason="needs a CUDA device")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SHAPES = [((2, 9, 24), 4), ((1, 7, 19), 1), ((1, 20, 64), 32)]
"""(B, N, C) and groups: odd rows, channels that fill no block, more rows than a tile."""

if DEVICE == "cpu":
    import interpreter_rounding

    interpreter_rounding.apply()


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch):
    """What a kernel does not write is not a number."""
    monkeypatch.setattr(norms_triton, "TILE", 512)  # several tiles, parts and passes in samples of a test's size
    monkeypatch.setattr(heads_triton, "TILE", 64)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


def backward(stretch, gradient, statistics):
    """The gradients that the kernels give, put together as the operator's autograd formula does."""
    given = stretch.moved(DEVICE)
    d_x, d_addend, sums = norms_triton.norm_backward(
        gradient.to(DEVICE), *given, statistics, stretch.groups, EPS, stretch.silu
    )
    along, plain = sums.cpu().unbind(1)
    grown = growth(stretch.film, stretch.addend)
    found = {"x": d_x, "addend": d_addend, "weight": (along * grown).sum(0), "bias": (plain * grown).sum(0)}
    if stretch.film is not None:
        found["film"] = torch.cat([along * stretch.weight + plain * stretch.bias, plain], dim=1)
    return found


@pytest.mark.parametrize("following", FOLLOWING)
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_norm_and_its_gradients_are_those_of_pytorchs_layers(dtype, grouped, following):
    for shape, groups in SHAPES if dtype == torch.float32 or DEVICE == "cuda" else SHAPES[:1]:
        stretch = make_stretch(shape, dtype, following, groups=groups if grouped else 0)
        if not grouped and shape[2] == 19 and following == "bare":
            stretch.bias = None
        gradient = torch.randn(shape).to(dtype)
        expected, gradients = stretch.reference(gradient)
        y, statistics = norms_triton.norm(*stretch.moved(DEVICE), stretch.groups, EPS, stretch.silu, dtype)
        assert y.dtype == dtype and relative_error(y, expected) < tolerance(dtype)
        found = backward(stretch, gradient, statistics)
        for name, wanted in gradients.items():
            limit = 3 * tolerance(dtype if name in ("x", "addend") else torch.float32)
            assert relative_error(found[name], wanted) < limit, (name, shape)


@pytest.mark.parametrize("groups", [0, 8])
def test_a_sample_has_the_same_bits_alone_and_in_any_batch(groups):
    stretch = make_stretch((3, 19, 40), torch.bfloat16, "film, silu", groups=groups)
    given, gradient = stretch.moved(DEVICE), torch.randn(3, 19, 40, device=DEVICE).bfloat16()
    y, statistics = norms_triton.norm(*given, groups, EPS, True, torch.bfloat16)
    d_x, _, sums = norms_triton.norm_backward(gradient, *given, statistics, groups, EPS, True)
    for i in range(3) if DEVICE == "cuda" else [1]:
        one = slice(i, i + 1)
        x, weight, bias, film, _ = given
        alone = x[one], weight, bias, film[one], None
        y_alone, statistics_alone = norms_triton.norm(*alone, groups, EPS, True, torch.bfloat16)
        assert torch.equal(y_alone, y[one])
        d_alone = norms_triton.norm_backward(gradient[one], *alone, statistics_alone, groups, EPS, True)
        assert torch.equal(d_alone[0], d_x[one]) and torch.equal(d_alone[2], sums[one])


def test_a_large_mean_costs_no_accuracy_that_x_has_not_lost():
    for groups in (0, 4):
        stretch = make_stretch((1, 40, 32), torch.float32, "bare", groups=groups, offset=1e3)
        expected, _ = stretch.reference(torch.ones(1, 40, 32))
        y, _ = norms_triton.norm(*stretch.moved(DEVICE), groups, EPS, False, torch.float32)
        assert relative_error(y, expected) < 1e-4


def test_what_is_not_a_number_stays_in_its_sample():
    for groups in (0, 4):
        stretch = make_stretch((3, 20, 32), torch.float32, "silu", groups=groups)
        stretch.x[1, 2, 3] = float("nan")
        y, _ = norms_triton.norm(*stretch.moved(DEVICE), groups, EPS, True, torch.float32)
        affected = y[1, :, :8] if groups else y[1, 2]
        assert affected.isnan().all() and int(y.isnan().sum()) == affected.numel()


def test_film_may_be_a_slice_of_a_wider_table_and_sit_at_any_address():
    stretch = make_stretch((2, 5, 16), torch.float32, "film, silu")
    x, weight, bias, film, _ = stretch.moved(DEVICE)
    expected, _ = norms_triton.norm(x, weight, bias, film, None, 0, EPS, True, torch.float32)
    for start in (0, 3, 8):
        table = torch.full((2, 64), float("nan"), device=DEVICE)
        part = table[:, start : start + 32]
        part.copy_(film)
        assert torch.equal(norms_triton.norm(x, weight, bias, part, None, 0, EPS, True, torch.float32)[0], expected)
        assert torch.equal(modulation_triton.modulate(x, part), modulation_triton.modulate(x, film))


@pytest.mark.parametrize("dtype", DTYPES)
def test_modulation_and_its_gradients_are_those_of_the_plain_version_in_float64(dtype):
    for shape in ((2, 5, 24), (1, 20, 300)):
        hidden, gradient = torch.randn(2, *shape).to(dtype)
        film = torch.randn(shape[0], 2 * shape[2]).to(dtype)
        exact = [tensor.double() for tensor in (gradient, hidden, film)]
        y = modulation_triton.modulate(hidden.to(DEVICE), film.to(DEVICE))
        assert y.dtype == dtype and relative_error(y, modulation.plain_modulate(*exact[1:])) < tolerance(dtype)
        found = modulation_triton.modulate_backward(*(tensor.to(DEVICE) for tensor in (gradient, hidden, film)))
        wanted = modulation.plain_modulate_backward(*exact)
        assert relative_error(found[0], wanted[0]) < tolerance(dtype)
        assert relative_error(found[1], wanted[1]) < tolerance(torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_heads_and_their_gradients_are_those_of_the_plain_version_in_float64(dtype):
    for batch, tokens, count, size in ((2, 5, 3, 8), (1, 3, 1, 20)):
        qkv = (torch.randn(batch, tokens, 3 * count * size) + 0.5).to(dtype)
        weights = [torch.randn(size) for _ in range(4)]
        gradient = torch.randn(2, batch, tokens, count, size).to(dtype)
        exact = [tensor.double() for tensor in (qkv, *weights)]
        wanted = heads.plain_norm_heads(*exact, EPS)
        on_device = [tensor.to(DEVICE) for tensor in (qkv, *weights)]
        found = heads_triton.norm_heads(*on_device, EPS)
        assert found.dtype == dtype and relative_error(found, wanted) < tolerance(dtype)
        d_qkv, sums = heads_triton.norm_heads_backward(
            gradient.to(DEVICE), on_device[0], on_device[1], on_device[3], EPS
        )
        wanted = heads.plain_norm_heads_backward(gradient.double(), exact[0], exact[1], exact[3], EPS)
        assert relative_error(d_qkv, wanted[0]) < 3 * tolerance(dtype) and not d_qkv[:, :, 2 * count * size :].any()
        assert relative_error(sums, wanted[1]) < tolerance(torch.float32)


@on_cuda
def test_gradients_are_the_same_in_every_run_and_agree_with_the_plain_version_at_full_size(monkeypatch):
    monkeypatch.setattr(norms_triton, "TILE", FULL_TILE)
    for groups, shape in ((32, (4, 4096, 256)), (0, (4, 256, 1024))):
        stretch = make_stretch(shape, torch.bfloat16, "film, silu", groups=groups)
        given, gradient = stretch.moved(DEVICE), torch.randn(shape, device=DEVICE).bfloat16()
        y, statistics = norms_triton.norm(*given, groups, EPS, True, torch.bfloat16)
        plain, _ = norms.plain_norm(*given, groups, EPS, True, torch.bfloat16)
        assert relative_error(y, plain.cpu()) < 1e-3
        options = (statistics, groups, EPS, True)
        found, again = (norms_triton.norm_backward(gradient, *given, *options) for _ in range(2))
        for one, other in zip(found, again, strict=True):
            assert torch.equal(one, other)
        for one, other in zip(found, norms.plain_norm_backward(gradient, *given, *options), strict=True):
            assert one.numel() == 0 or relative_error(one, other.cpu()) < 3e-3


@on_cuda
def test_stretches_of_a_network_are_captured_in_a_cuda_graph_and_replay_to_the_same_bits():
    from kernels import modulate, norm, norm_heads

    stretch = make_stretch((4, 64, 64), torch.float32, "film, silu", groups=32)
    x, weight, bias, film, _ = stretch.moved(DEVICE)
    scales = [torch.rand(16, device=DEVICE) + 0.5 for _ in range(4)]

    def block():
        h = modulate(norm(x, weight, bias, eps=EPS, groups=32, film=film, silu=True), film)
        q, k = norm_heads(norm(torch.cat([h, h, h], 2), weight.repeat(3), eps=EPS), *scales, eps=EPS)
        return q * k

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        block()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = block()
    x.add_(1.0)
    graph.replay()
    assert torch.equal(captured, block())

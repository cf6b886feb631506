"""Seeded noise: its integers against Random123, its normals against the definition, and its statistics."""

import math

import numpy as np
import pytest
import torch
from host_sync import NoHostSync
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import gaussian, gaussian_numpy, noise
from kernels.gaussian import plain_noise
from kernels.philox import philox

# kat_vectors of Random123, philox4x32-10: counter, key, result.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def philox_reference(counter, key):
    """Philox4x32-10 on Python's integers."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for i in range(10):
        first, second = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        key0, key1 = (k0 + i * 0x9E3779B9) % 2**32, (k1 + i * 0xBB67AE85) % 2**32
        c0, c1, c2, c3 = second // 2**32 ^ c1 ^ key0, second % 2**32, first // 2**32 ^ c3 ^ key1, first % 2**32
    return c0, c1, c2, c3


def noise_reference(seed, index, stream, size):
    """The definition in `noise`'s docstring, with the C library's log, sin and cos."""
    values = []
    for j in range(math.ceil(size / 4)):
        words = philox_reference((j, index, stream, 0), (seed % 2**32, seed // 2**32 % 2**32))
        for a, b in (words[:2], words[2:]):
            radius, turn = math.sqrt(-2 * math.log((a + 0.5) / 2**32)), (b + 0.5) / 2**32
            values += [radius * math.cos(2 * math.pi * turn), radius * math.sin(2 * math.pi * turn)]
    return np.array(values[:size])


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_philox_gives_random123s_known_answers(counter, key, expected):
    words = philox(tuple(torch.tensor([c]) for c in counter), tuple(torch.tensor([k]) for k in key))
    assert tuple(int(word) for word in words) == philox_reference(counter, key) == expected


@settings(max_examples=100, deadline=None)
@given(*[st.integers(0, 2**32 - 1)] * 6)
def test_philox_equals_python_integers(c0, c1, c2, c3, k0, k1):
    words = philox(tuple(torch.tensor([c]) for c in (c0, c1, c2, c3)), (torch.tensor([k0]), torch.tensor([k1])))
    assert tuple(int(word) for word in words) == philox_reference((c0, c1, c2, c3), (k0, k1))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**63 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(1, 70))
def test_noise_is_what_its_docstring_defines(seed, index, stream, size):
    result = noise([seed], [index], (size,), stream=stream)
    assert result.dtype == torch.float32
    np.testing.assert_allclose(result[0].numpy(), noise_reference(seed, index, stream, size), rtol=1.2e-7, atol=1e-15)


def test_the_series_is_so_exact_that_float32_rounds_as_from_the_true_value():
    result, size = noise([7], [3], (40_000,))[0].numpy(), 40_000
    expected = noise_reference(7, 3, 0, size).astype(np.float32)
    assert np.count_nonzero(result != expected) <= 1  # a value within 1e-11 of halfway between two float32 may differ


def test_negative_seeds_are_their_64_bits():
    result = noise([-1], [0], (8,))[0].numpy()
    np.testing.assert_allclose(result, noise_reference(2**64 - 1, 0, 0, 8), rtol=1.2e-7)


def test_these_bits_are_frozen_so_that_a_seed_means_the_same_in_every_release():
    bits = noise([1234567890123456789], [5], (6,), stream=2).view(torch.int32)[0].tolist()
    assert bits == [1069050358, -1078471072, -1100725442, -1072824758, 1053387111, 1058055095]


def test_noise_is_standard_normal_tails_included():
    z = noise(list(range(64)), [0] * 64, (3, 64, 64)).double().flatten().numpy()
    n = len(z)
    assert abs(z.mean()) < 4 / math.sqrt(n) and abs(z.var() - 1) < 4 * math.sqrt(2 / n)
    assert abs((z**3).mean()) < 4 * math.sqrt(15 / n) and abs((z**4).mean() - 3) < 4 * math.sqrt(96 / n)
    for threshold in (1.0, 2.0, 3.0, 4.0):
        p = math.erfc(threshold / math.sqrt(2))
        assert abs((np.abs(z) > threshold).mean() - p) < 4 * math.sqrt(p / n)
    assert np.abs(z).max() < 6.77


def test_neighbouring_seeds_images_streams_and_pixels_are_uncorrelated():
    n = 1 << 15
    base = noise([10], [10], (n,), stream=10)[0]
    others = [noise([11], [10], (n,), stream=10)[0], noise([10], [11], (n,), stream=10)[0]]
    others += [noise([10], [10], (n,), stream=11)[0], *(base.roll(k) for k in (1, 2, 3, 4))]
    for other in others:
        assert abs(float((base * other).mean())) < 4 / math.sqrt(n)


def test_a_samples_noise_does_not_depend_on_its_batch_mates():
    seeds, indices, streams = [3, 3, 2**63 - 1, 0], [0, 1, 2**32 - 1, 0], [0, 5, 1, 2]
    together = noise(seeds, indices, (3, 5, 7), stream=streams)
    for i in range(4):
        assert torch.equal(
            together[i : i + 1], noise(seeds[i : i + 1], indices[i : i + 1], (3, 5, 7), stream=streams[i])
        )


def test_a_smaller_image_gets_the_beginning_of_a_larger_ones_noise():
    assert torch.equal(noise([4], [1], (3, 5, 5)).flatten(), noise([4], [1], (100,)).flatten()[:75])


def test_arguments_that_do_not_fit_are_refused_by_name():
    for name, arguments, options in [
        ("seeds", ([2**63], [0], (4,)), {}),
        ("seeds", (torch.zeros(2), [0, 0], (4,)), {}),
        ("indices", ([1, 2], [0], (4,)), {}),
        ("indices", ([1], [-1], (4,)), {}),
        ("stream", ([1], [0], (4,)), {"stream": -1}),
        ("stream", ([1], [0], (4,)), {"stream": [0, 1]}),
    ]:
        with pytest.raises(ValueError, match=name):
            noise(*arguments, **options)


def test_the_operator_is_registered_soundly_and_the_plain_version_reads_nothing_back():
    seeds = torch.arange(3)
    torch.library.opcheck(torch.ops.stepdial.noise.default, (seeds, seeds, seeds, [3, 4, 4]))
    with NoHostSync():
        plain_noise(seeds, seeds, seeds, [3, 4, 4])


@pytest.mark.parametrize(("batch", "shape"), [(1, (1,)), (7, (3, 5, 7)), (3, (3, 32, 32)), (2, (3, 120, 120))])
def test_on_a_cpu_the_noise_is_the_plain_versions_to_the_bit(batch, shape, monkeypatch):
    monkeypatch.setattr(gaussian_numpy, "COUNTERS", 1024)  # several images in a piece, and several pieces in an image
    draw = torch.Generator().manual_seed(3)
    seeds = torch.randint(-(2**63), 2**63 - 1, (batch,), generator=draw)
    indices, streams = torch.randint(0, 2**32, (2, batch), generator=draw)
    found = noise(seeds, indices, shape, stream=streams)
    assert found.is_contiguous() and torch.equal(found, gaussian.plain_noise(seeds, indices, streams, shape))

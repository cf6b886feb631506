"""The Triton kernels compiled for NVIDIA GPUs without one; run by test_triton_lanes.py in a process of its own.

The host code under test runs as it is, on CPU tensors: a driver without a device stands in for CUDA's, and every
launch stops after compilation.  So what is looked at is what would be launched, launch options included.
"""

import math
import os
import re
import struct
import subprocess
import tempfile

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from kernels import gaussian, gaussian_triton, heads_triton, modulation_triton, norms_triton, target_triton, wave_triton

CUOBJDUMP = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin", "cuobjdump")
SHAPES = [(3, 32, 32), (3, 64, 64), (4, 64, 64), (3, 128, 128)]


class OfflineDriver:
    """As much of Triton's CUDA driver as compiling asks for."""

    launcher_cls = staticmethod(lambda *_, **__: None)

    def __init__(self, architecture: int):
        self.target = GPUTarget("cuda", architecture, 32)
        self.utils = self

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return 0

    def get_current_stream(self, device=None):
        return 0

    def get_active_torch_device(self):
        return torch.device("cpu")

    def get_device_properties(self, device):
        return {"max_shared_mem": 101376, "multiprocessor_count": 100, "warpSize": 32, "max_num_regs": 65536}

    def is_active(self):
        return True


@pytest.fixture(params=[80, 90], ids=lambda architecture: f"sm_{architecture}")
def compiled(request, monkeypatch):
    """The kernels compiled so far in this test, by name."""
    driver.set_active(OfflineDriver(request.param))
    kernels, run = {}, JITFunction.run

    def compile_only(self, *args, grid, warmup, **options):
        kernels[self.__name__] = run(self, *args, grid=grid, warmup=True, **options)

    monkeypatch.setattr(JITFunction, "run", compile_only)
    return kernels


def accesses(kernel) -> dict[str, int]:
    """How often each width of global load and store occurs in the PTX, as {"ld.v4.b32": 2, ...}."""
    counts: dict[str, int] = {}
    for kind, options in re.findall(r"\b(ld|st)\.global((?:\.\w+|::\w+)*)", kernel.asm["ptx"]):
        key = kind + "".join(re.findall(r"\.v\d|\.[bfus]\d+", options))
        counts[key] = counts.get(key, 0) + 1
    return counts


def assert_spills_nothing(kernel) -> None:
    """Every value of a program stays in registers."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = subprocess.run([CUOBJDUMP, "--dump-resource-usage", file.name], capture_output=True, text=True).stdout
    assert re.search(r"STACK:0 .*LOCAL:0", usage), usage


def assert_lean(kernel) -> None:
    """No register spilled, and no fused multiply-add: the plain version has none."""
    assert_spills_nothing(kernel)
    assert "fma." not in kernel.asm["ptx"] and "approx" not in kernel.asm["ptx"]


@pytest.mark.parametrize("full", [False, True], ids=["bare", "guided and noisy"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_hops_spill_nothing_and_move_16_bytes_a_thread(shape, dtype, full, compiled):
    z = torch.randn(2, *shape)
    v, extra = z.to(dtype), torch.randn(2, *shape) if full else None
    wave_triton.hop(z, v, torch.ones(2, 8), v if full else None, extra)
    assert ("square_sums_kernel" in compiled) == (math.prod(shape) > wave_triton.SUM_BLOCK)
    for kernel in compiled.values():
        assert_lean(kernel)
        widths = accesses(kernel)
        # float32 latents in 16 bytes, bfloat16 predictions in the 8 that match them, none re-laid out in shared memory
        assert widths["ld.v4.b32"] >= 1 and ("ld.v2.b32" in widths) == (dtype == torch.bfloat16)
        assert not any(key.startswith("ld.b16") for key in widths) and kernel.metadata.shared <= 128
    assert accesses(compiled["hop_kernel"]).get("st.v4.b32") == 1


@pytest.mark.parametrize("full", [False, True], ids=["bare", "guided and noisy"])
@pytest.mark.parametrize("shape", [*SHAPES, (3, 17, 19)])
def test_last_hops_spill_nothing_and_store_four_bytes_a_thread(shape, full, compiled):
    z = torch.randn(2, *shape)
    wave_triton.last_hop(z, z.bfloat16(), torch.ones(2, 8), z.bfloat16() if full else None, z if full else None)
    for kernel in compiled.values():
        assert_lean(kernel)
    if math.prod(shape) % 16 == 0:
        assert accesses(compiled["hop_kernel"])["st.b32"] == 1


def test_noise_spills_nothing_and_keeps_its_constants_in_float64(compiled):
    seeds = torch.arange(2)
    gaussian_triton.noise(seeds, seeds, seeds, (3, 64, 64))
    kernel = compiled["noise_kernel"]
    assert_lean(kernel)
    assert accesses(kernel)["st.v4.b32"] == 4
    for constant in (math.log(2.0), 2.0 * math.pi * 2.0**-32, 1 / 17, 1 / 3, 1 / 6, 1 / 156, gaussian.LOG_SPLIT):
        assert f"0d{struct.pack('>d', constant).hex().upper()}" in kernel.asm["ptx"]
    assert "sqrt.rn.f64" in kernel.asm["ptx"] and "div.rn.f64" in kernel.asm["ptx"]


def assert_moves_16_bytes_a_thread(kernel) -> None:
    """Activations, gradients and results do; only what there is one of for a channel, a row or a group may be narrower."""
    widths = accesses(kernel)
    assert widths["ld.v4.b32"] >= 4 and not any(key.startswith("st.b16") for key in widths)
    if "statistics" not in kernel.metadata.name and "sums" not in kernel.metadata.name:
        assert widths.get("st.v4.b32", 0) >= 2
    assert kernel.metadata.shared <= 16384


@pytest.mark.parametrize(
    ("shape", "groups", "dtype", "following"),
    [
        ((2, 4096, 256), 32, torch.bfloat16, "skip"),
        ((2, 64, 4096), 0, torch.float32, "film"),
        ((2, 256, 48), 0, torch.bfloat16, "film"),
    ],
)
def test_norms_spill_nothing_and_move_16_bytes_a_thread(shape, groups, dtype, following, compiled):
    x, weight = torch.randn(shape).to(dtype), torch.ones(shape[2])
    film = torch.randn(shape[0], 2 * shape[2]).to(dtype) if following == "film" else None
    given = (x, weight, weight, film, None if film is not None else x)
    y, statistics = norms_triton.norm(*given, groups, 1e-6, True, dtype)
    norms_triton.norm_backward(x, *given, statistics, groups, 1e-6, True)
    assert len(compiled) == (4 if groups else 2)
    for kernel in compiled.values():
        assert_spills_nothing(kernel)
        assert_moves_16_bytes_a_thread(kernel)


def test_modulation_and_the_norm_of_heads_spill_nothing_and_move_16_bytes_a_thread(compiled):
    hidden, film = torch.randn(2, 256, 1024).bfloat16(), torch.randn(2, 2048).bfloat16()
    qkv, weight = torch.randn(2, 256, 768).bfloat16(), torch.ones(64)
    modulation_triton.modulate(hidden, film)
    modulation_triton.modulate_backward(hidden, hidden, film)
    normed = heads_triton.norm_heads(qkv, weight, weight, weight, weight, 1e-6)
    heads_triton.norm_heads_backward(normed, qkv, weight, weight, 1e-6)
    assert len(compiled) == 4
    for kernel in compiled.values():
        assert_spills_nothing(kernel)
        assert_moves_16_bytes_a_thread(kernel)


def test_the_target_spills_nothing_and_moves_16_bytes_a_thread(compiled):
    z = torch.randn(2, 3, 64, 64)
    given = (z.bfloat16(), z, z, z, torch.ones(2, 6))
    _, facts = target_triton.target_distance(*given, 1e-4)
    target_triton.target_gradient(torch.ones(2), *given, facts)
    for kernel in compiled.values():
        assert_lean(kernel)
        assert accesses(kernel)["ld.v4.b32"] >= 3

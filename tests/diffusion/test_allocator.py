"""Freed memory is kept for the next use where the C library can be told to, and given back when asked."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
from resource import RUSAGE_SELF, getrusage
from pathlib import Path
import torch
from diffusion.allocator import give_back_freed_memory, keep_freed_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

def faults():
    return getrusage(RUSAGE_SELF).ru_minflt

kept = keep_freed_memory()
for _ in range(10):  # the first few lie one behind the other, since what lies between them is kept apart for small pieces
    torch.ones(1 << 24)
full, before = resident(), faults()
for _ in range(10):
    torch.ones(1 << 24)
taken = faults() - before
give_back_freed_memory()
print(int(kept), taken, full - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc, which can be told to keep memory")
def test_memory_that_comes_and_goes_costs_no_page_faults_and_can_be_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=100)
    kept, faults, given_back = map(int, done.stdout.split())
    assert kept == 1
    assert faults < 1000  # of 64 MiB ten times: 163,840 if each came from the system
    assert given_back > 60 << 20

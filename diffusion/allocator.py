"""The C library's allocator, told to keep what is freed: a network's activations come and go by the megabyte at every evaluation.

By default glibc gives large pieces back to the system at once and asks for them again, and the system clears them page by page:
thousands of page faults an evaluation on a CPU. What that costs is in docs/performance.md.
"""

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""mallopt(3)'s names for: how much free memory at the heap's end goes back, and from which size on a piece is the system's."""
KEPT_BYTES = (2**30, 32 * 2**20)
"""Pieces up to this size are kept; the second is the most that glibc before 2.35 takes."""


def keep_freed_memory() -> bool:
    """Have this process keep what it frees for its next use, and return whether its C library can be told so.

    Memory stays at what the largest evaluation took. Only glibc can be told; elsewhere nothing changes.
    """
    libc = _glibc()
    # the second alone would do harm: any setting ends glibc's own adaptation, with large pieces still the system's
    return libc is not None and any(
        libc.mallopt(M_MMAP_THRESHOLD, size) and libc.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES[0]) for size in KEPT_BYTES
    )


def give_back_freed_memory() -> None:
    """Give what is free now back to the system once, where the C library is glibc."""
    if libc := _glibc():
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None

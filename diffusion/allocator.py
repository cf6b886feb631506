"""The C library's allocator, told to keep what is freed: a network's activations come and go by the megabyte at every evaluation.

By default glibc gives large pieces back to the system at once and asks for them again, and the system clears them page by page:
thousands of page faults an evaluation on a CPU. What that costs is in docs/performance.md.
"""

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""mallopt(3)'s names for: how much free memory at the heap's end goes back, and from which size on a piece is the system's."""
KEPT_BYTES = 2**30


def keep_freed_memory() -> bool:
    """Have this process keep up to a GiB of freed memory for its next use, and return whether its C library can be told so.

    Memory stays at what the largest evaluation took. Only glibc can be told; elsewhere nothing changes.
    """
    libc = _glibc()
    return libc is not None and all(libc.mallopt(what, KEPT_BYTES) for what in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD))


def give_back_freed_memory() -> None:
    """Give what is free now back to the system once, where the C library is glibc."""
    if libc := _glibc():
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None

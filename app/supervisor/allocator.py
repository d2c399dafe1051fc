"""How the C library keeps memory: for bodies of megabytes that come and go."""

from __future__ import annotations

import ctypes
import sys

MIB = 1024 * 1024
# From glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
# The most that glibc takes for it on 64 bits.
LARGEST_KEPT = 32 * MIB
MOST_KEPT = 32 * MIB


def keep_freed_memory() -> None:
    """Have glibc keep up to 32 MiB a process that was freed, instead of giving it back at once.

    A photo of a megabyte is copied a few times on its way, and each copy's memory would be given back to the kernel and
    faulted in again, page by page, for the next: two milliseconds of CPU a request, measured, more than its work takes.
    Other C libraries keep memory by rules of their own, and are left alone.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, LARGEST_KEPT)
        mallopt(_TRIM_THRESHOLD, MOST_KEPT)

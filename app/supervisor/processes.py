"""Operating-system functions for processes: memory, parent and exit status."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

MIB = 1024 * 1024
# From glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
# The largest value that glibc accepts for M_MMAP_THRESHOLD on 64-bit systems.
MMAP_THRESHOLD_BYTES = 32 * MIB
TRIM_THRESHOLD_BYTES = 32 * MIB
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def keep_freed_memory() -> None:
    """Make glibc keep up to 32 MiB of freed memory per process instead of returning it to the kernel.

    An image of a megabyte is copied several times per request. Without this, the kernel reclaims each copy and faults
    the pages in again for the next one: 2 ms of CPU per request, which is more than the work itself takes.
    Other C libraries have their own rules and are left unchanged.
    """
    mallopt = getattr(_libc, "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)
        mallopt(_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES)


def end_with_parent(parent: int, death_signal: signal.Signals) -> None:
    """Make the kernel send this process a signal when its parent ends; exit if the parent has ended already.

    Only Linux offers this, so every process also checks its parent from time to time. The kernel sends the signal when
    the *thread* that forked this process ends: masters fork in their main thread, which lives as long as they do. The
    setting survives `exec`, unless the program changes its user. The parent's process id is read before the fork.

    Raises:
        SystemExit: the parent has ended.
    """
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
    if os.getppid() != parent:
        raise SystemExit(0)


def describe_exit(code: int | None) -> str:
    """Describe an exit code: a status, or the negated number of the signal that killed the process; None if unknown.

    Example:
        >>> describe_exit(3)
        'exit status 3'
        >>> describe_exit(-9)
        'killed by SIGKILL (possibly out of memory)'
    """
    if code is None:
        return "exit status unknown"
    if code >= 0:
        return f"exit status {code}"
    name = next((known.name for known in signal.Signals if known == -code), f"signal {-code}")
    return f"killed by {name}{' (possibly out of memory)' if -code == signal.SIGKILL else ''}"

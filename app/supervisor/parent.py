"""Ending together with the parent process, in whatever way that ends."""

from __future__ import annotations

import ctypes
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import signal

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def end_with_parent(parent: int, number: signal.Signals) -> None:
    """Have the kernel send this process a signal when its parent ends; leave at once if it has ended already.

    Linux alone offers this, so every process also checks its parent from time to time. The signal comes when the
    *thread* that forked this process ends: masters fork in their main thread, which lives as long as they do. The
    request outlives an `exec`, unless the program changes its user.

    Args:
        parent: process id of the parent, read before the fork.
        number: signal to send.

    Raises:
        SystemExit: the parent has ended.
    """
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    if os.getppid() != parent:
        raise SystemExit(0)

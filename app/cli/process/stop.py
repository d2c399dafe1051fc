"""Stopping when told to: what was begun is ended first; told twice, at once."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Whether to stop.

    Attributes:
        signal_number: what told so; None while nothing has.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._told = threading.Event()

    def tell(self, number: int, _frame: FrameType | None) -> None:
        """Note a signal.

        Raises:
            KeyboardInterrupt: it is not the first.
        """
        if self._told.is_set():
            raise KeyboardInterrupt
        self.signal_number = number
        self._told.set()

    def is_set(self) -> bool:
        """Tell whether to stop."""
        return self._told.is_set()

    def wait(self, seconds: float) -> bool:
        """Wait, but no longer than until it is to stop; return whether it is."""
        return self._told.wait(seconds)


@contextmanager
def heed_signals() -> Iterator[Stop]:
    """Take what tells a process to stop as a wish to stop well, for as long as the block runs."""
    stop = Stop()
    before = {number: signal.signal(number, stop.tell) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

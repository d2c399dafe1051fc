"""The terminal as a screen: the alternate one while the view runs, given back as it was, however the view ends."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import termios
import tty
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console, RenderableType

QUIT_KEYS: Final = frozenset(b"qQ")
_ENDS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def ending_signals(end: Callable[[], object]) -> Iterator[None]:
    """Call a function on Ctrl-C, SIGTERM and SIGHUP, instead of what they do by themselves."""
    loop = asyncio.get_running_loop()
    for number in _ENDS:
        loop.add_signal_handler(number, end)
    try:
        yield
    finally:
        for number in _ENDS:
            loop.remove_signal_handler(number)


class Screen:
    """Draws over the whole terminal, again when its size changes.

    Args:
        console: of the terminal.
        draw: makes the picture for a width and a height.
        end: called where a person wants to leave.
    """

    def __init__(self, console: Console, draw: Callable[[int, int], RenderableType], end: Callable[[], object]) -> None:
        self._console = console
        self._draw = draw
        self._end = end
        self._keys = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else None
        self._keyboard: list[Any] | None = None  # how it was

    @contextmanager
    def open(self) -> Iterator[None]:
        """Take the terminal, and give it back as it was."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGWINCH, self.refresh)
        loop.add_signal_handler(signal.SIGTSTP, self._suspend)
        self._take()
        if self._keys is not None:
            loop.add_reader(self._keys, self._on_key, self._keys)
        try:
            yield
        finally:
            if self._keys is not None:
                loop.remove_reader(self._keys)
            self._give_back()
            loop.remove_signal_handler(signal.SIGTSTP)
            loop.remove_signal_handler(signal.SIGWINCH)

    def refresh(self) -> None:
        """Draw."""
        width, height = self._console.size
        self._console.update_screen(self._draw(width, height))

    def _take(self) -> None:
        if self._keys is not None:
            self._keyboard = termios.tcgetattr(self._keys)
            tty.setcbreak(self._keys)  # keys one by one, and not echoed into the picture
        self._console.set_alt_screen(enable=True)
        self._console.show_cursor(show=False)

    def _give_back(self) -> None:
        with suppress(OSError):  # the terminal is gone, where its window was closed
            self._console.show_cursor(show=True)
            self._console.set_alt_screen(enable=False)
        if self._keys is not None and self._keyboard is not None:
            with suppress(OSError, termios.error):
                termios.tcsetattr(self._keys, termios.TCSADRAIN, self._keyboard)

    def _suspend(self) -> None:
        """Give the terminal to the shell on Ctrl-Z, and take it again on `fg`."""
        self._give_back()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._take()
        self.refresh()

    def _on_key(self, source: int) -> None:
        keys = os.read(source, 64)
        if not keys:
            asyncio.get_running_loop().remove_reader(source)
        elif QUIT_KEYS & frozenset(keys):
            self._end()

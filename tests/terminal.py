"""A terminal for a command: a pty, and the screen after all output."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import signal
    from collections.abc import Callable

# Makes the pty the controlling terminal, as a login does, so that keys become signals; then runs the command in it.
SHIM = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
TOKEN = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])|([^\x1b]+)")
LIMIT_S = 60.0


class Grid:
    """Screen of a terminal, with the control sequences that the programs here use."""

    def __init__(self, columns: int, lines: int) -> None:
        self.cells = [[" "] * columns for _ in range(lines)]
        self.row = self.column = 0

    def write(self, text: str) -> None:
        """Process output of a program."""
        for parameters, final, plain in TOKEN.findall(text):
            if plain:
                self._put(plain)
            elif final == "H":
                row, column = (int(part or 1) for part in (parameters or "1;1").split(";"))
                self.row, self.column = row - 1, column - 1

    def _put(self, text: str) -> None:
        for letter in text:
            if letter == "\r":
                self.column = 0
            elif letter == "\n":
                self.row += 1
            elif self.row < len(self.cells) and self.column < len(self.cells[0]):
                self.cells[self.row][self.column] = letter
                self.column += 1

    def text(self) -> str:
        """Return the lines."""
        return "\n".join("".join(line).rstrip() for line in self.cells)


class Terminal:
    """A command that runs in a terminal.

    Args:
        arguments: arguments of ``facial-service``.
        columns: width of the terminal.
        lines: height of the terminal.
        env: additional environment variables.
    """

    def __init__(self, *arguments: str, columns: int = 120, lines: int = 40, **env: str) -> None:
        self._master, self._slave = pty.openpty()
        self._size = columns, lines
        self._set_size()
        self.before = termios.tcgetattr(self._slave)
        inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        command = [sys.executable, "-c", SHIM, sys.executable, "-m", "app", *arguments]
        self.process = subprocess.Popen(
            command,
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            env={**inherited, "TERM": "xterm-256color", "PYTHONUTF8": "1", **env},
            start_new_session=True,
        )
        self._written = b""
        self._resized_at = 0
        self._lock = threading.Lock()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._slave)
        self._reader.join(LIMIT_S)
        os.close(self._master)

    def _read(self) -> None:
        with suppress(OSError):  # the other side is closed
            while part := os.read(self._master, 1 << 16):
                with self._lock:
                    self._written += part

    def raw(self) -> str:
        """Return all output so far."""
        with self._lock:
            return self._written.decode("utf-8", "replace")

    def text(self) -> str:
        """Return the current screen."""
        grid = Grid(*self._size)
        with self._lock:
            written = self._written[self._resized_at :]
        grid.write(written.decode("utf-8", "replace"))
        return grid.text()

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Wait until a text is on the screen.

        Raises:
            TimeoutError: the text does not appear.
        """
        found = self._wait(lambda: re.search(pattern, self.text()), pattern)
        assert isinstance(found, re.Match)
        return found

    def wait_written(self, pattern: str, times: int = 1) -> None:
        """Wait until a text has been written a number of times, on the screen or not."""
        self._wait(lambda: len(re.findall(pattern, self.raw())) >= times, pattern)

    def _wait(self, condition: Callable[[], Any], what: str) -> Any:
        deadline = time.monotonic() + LIMIT_S
        while not (found := condition()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what!r}: not within {LIMIT_S:g} s in\n{self.text()}")
            time.sleep(0.02)
        return found

    def press(self, keys: bytes) -> None:
        """Send keys."""
        os.write(self._master, keys)

    def resize(self, columns: int, lines: int) -> None:
        """Change the size, which sends SIGWINCH, and clear the screen."""
        with self._lock:
            self._resized_at = len(self._written)
        self._size = columns, lines
        self._set_size()

    def end(self, number: signal.Signals | None = None) -> int:
        """Send a signal, if given; wait for the command to end, and return its exit code."""
        if number is not None:
            self.process.send_signal(number)
        return self.process.wait(LIMIT_S)

    def settings(self) -> list[Any]:
        """Return the settings of the terminal."""
        return termios.tcgetattr(self._slave)

    def _set_size(self) -> None:
        columns, lines = self._size
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

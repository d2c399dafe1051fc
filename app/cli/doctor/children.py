"""Python in a process of its own, for what may crash: a library that is broken, a file that is damaged."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).parents[3]
# The folder that this package is in, whatever the current one is.
_START = "import sys; sys.path.insert(0, sys.argv.pop(1)); "


class ChildError(Exception):
    """It did not end well; the message says how.

    Attributes:
        output: what it had printed by then.
    """

    def __init__(self, message: str, output: str = "") -> None:
        super().__init__(message)
        self.output = output


def run_python(code: str, *arguments: str, limit_s: float) -> str:
    """Run a line of Python that may import the app, and return what it prints.

    Raises:
        ChildError: it failed, crashed, or took too long.
    """
    command = [sys.executable, "-P", "-c", _START + code, str(_ROOT), *arguments]
    try:
        done = subprocess.run(  # noqa: S603 - this Python, and code of ours
            command, capture_output=True, text=True, errors="replace", check=False, timeout=limit_s
        )
    except subprocess.TimeoutExpired as late:
        output = late.stdout.decode(errors="replace") if isinstance(late.stdout, bytes) else ""
        raise ChildError(f"it took longer than {limit_s:g} s", output) from None
    except OSError as fault:
        raise ChildError(f"it could not be started: {fault.strerror}") from None
    if done.returncode < 0:
        names = {number.value: number.name for number in signal.Signals}
        raise ChildError(f"it crashed ({names.get(-done.returncode, -done.returncode)})", done.stdout)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise ChildError(last[:300], done.stdout)
    return done.stdout

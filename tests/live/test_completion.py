"""A real shell at a terminal completes verbs, options, values and file names when TAB is pressed."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.live

REPOSITORY = Path(__file__).parents[2]
LIMIT_S = 60.0


class Terminal:
    """A shell at a pseudo-terminal."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def type(self, text: str) -> None:
        """Send keys."""
        os.write(self._descriptor, text.encode())

    def wait_for(self, *wanted: str) -> None:
        """Read until all texts have appeared.

        Raises:
            TimeoutError: a text does not appear.
        """
        seen, limit = "", time.monotonic() + LIMIT_S
        while not all(text in seen for text in wanted):
            ready, _, _ = select.select([self._descriptor], [], [], max(0.0, limit - time.monotonic()))
            if not ready:
                raise TimeoutError(f"expected {wanted!r}, got {seen!r}")
            seen += os.read(self._descriptor, 65536).decode(errors="replace")


@contextmanager
def open_terminal(command: list[str], home: Path) -> Iterator[Terminal]:
    """Run a shell in the repository's folder, without the user's settings."""
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {"PATH": programs, "HOME": str(home), "TERM": "dumb", "LC_ALL": "C", "PS1": "> "}
    descriptor, its_own = pty.openpty()
    process = subprocess.Popen(
        command, cwd=REPOSITORY, env=env, stdin=its_own, stdout=its_own, stderr=its_own, start_new_session=True
    )
    os.close(its_own)
    try:
        yield Terminal(descriptor)
    finally:
        process.kill()
        process.wait()
        os.close(descriptor)


@pytest.fixture(scope="module")
def bash(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    program = shutil.which("bash")
    assert program is not None
    home = tmp_path_factory.mktemp("home")
    with open_terminal([program, "--norc", "--noprofile", "-i"], home) as terminal:
        terminal.type("source <(facial-service completion bash)\n")
        terminal.type("echo ready-'to'-type\n")  # quoted, so that the echo of the keys differs from the output
        terminal.wait_for("ready-to-type")
        yield terminal


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("facial-service doct", "facial-service doctor "),
        ("facial-service tasks de", "facial-service tasks dead "),
        ("facial-service tasks dead list --j", "facial-service tasks dead list --json "),
        ("facial-service doctor --stri", "facial-service doctor --strict "),
        ("facial-service doctor --only metr", "facial-service doctor --only metric-files "),
        ("facial-service completion fi", "facial-service completion fish "),
        ("facial-service doctor --cgroup-root exam", "facial-service doctor --cgroup-root examples/"),
    ],
)
def test_tab_completes(bash: Terminal, typed: str, completed: str) -> None:
    bash.type(f"{typed}\t")
    try:
        bash.wait_for(completed)
    finally:
        bash.type("\x15")  # discards the line


def test_two_tabs_list_what_there_is(bash: Terminal) -> None:
    bash.type("facial-service \t\t")
    try:
        bash.wait_for("doctor", "process", "worker")
    finally:
        bash.type("\x15")

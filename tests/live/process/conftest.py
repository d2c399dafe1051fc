"""The command as a user starts it, and small images for it."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conftest import Sample

# The settings of the environment in which the tests run must not change their results.
INHERITED = ("PATH", "HOME", "LANG", "TMPDIR", "VIRTUAL_ENV")


@dataclass(frozen=True)
class Completed:
    """Result of a command.

    Attributes:
        status: exit status.
        stdout: machine-readable output.
        stderr: messages for the user.
    """

    status: int
    stdout: str
    stderr: str

    @property
    def summary(self) -> dict[str, Any]:
        """The document of ``--json``."""
        document: dict[str, Any] = json.loads(self.stdout)
        return document

    @property
    def codes(self) -> dict[str, str]:
        """The error code of each failed image, by path."""
        return {failure["photo"]: failure["code"] for failure in self.summary["failed"]}


def command(*arguments: object) -> list[str | bytes]:
    return [sys.executable, "-m", "app", "process", *(one if isinstance(one, bytes) else str(one) for one in arguments)]


def environment(**env: str) -> dict[str, str]:
    return {**{name: os.environ[name] for name in INHERITED if name in os.environ}, **env}


@pytest.fixture(scope="session")
def run_process() -> Callable[..., Completed]:
    """Return ``run_process(*arguments, cwd=…, **env)``, which runs the command to its end, without input."""

    def run(*arguments: object, cwd: Path | None = None, **env: str) -> Completed:
        done = subprocess.run(
            command(*arguments),
            cwd=cwd,
            env=environment(**env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=120,
        )
        return Completed(done.returncode, done.stdout.decode(), done.stderr.decode())

    return run


@pytest.fixture
def start_process(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Return ``start_process(*arguments, **env)``, which starts the command in a process group; kill it at the end."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: object, **env: str) -> subprocess.Popen[bytes]:
        with (tmp_path / f"{len(started)}.stderr").open("wb") as stderr:
            process = subprocess.Popen(
                command(*arguments),
                env=environment(**env),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                start_new_session=True,
            )
        started.append(process)
        return process

    yield start
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture(scope="session")
def start_in_terminal() -> Callable[..., tuple[int, str]]:
    """Return ``start_in_terminal(*arguments)``, which runs the command on a terminal: its status and its output."""

    def start(*arguments: object) -> tuple[int, str]:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 200, 0, 0))
        env = environment(TERM="xterm")
        process = subprocess.Popen(command(*arguments), env=env, stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)
        shown = b""
        with suppress(OSError):  # A terminal reports its end as an error.
            while part := os.read(ours, 65536):
                shown += part
        os.close(ours)
        return process.wait(60), re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())

    return start


@pytest.fixture(scope="session")
def make_images(sample: Sample) -> Callable[..., list[Path]]:
    """Return ``make_images(folder, count, suffix=".png")``: small, different copies of the sample, with landmarks."""
    whole = cv2.imdecode(np.frombuffer(sample.photo, np.uint8), cv2.IMREAD_COLOR)

    def make(folder: Path, count: int, suffix: str = ".png") -> list[Path]:
        folder.mkdir(parents=True, exist_ok=True)
        images = []
        for number in range(count):
            side = 120 + number
            image = folder / f"{number:03}{suffix}"
            pixels = cv2.resize(whole, (side, side), interpolation=cv2.INTER_AREA)
            image.write_bytes(cv2.imencode(suffix, pixels)[1].tobytes())
            scaled = [[x * side / 512, y * side / 512] for x, y in sample.pairs]
            image.with_suffix(".landmarks.json").write_text(json.dumps(scaled))
            images.append(image)
        return images

    return make

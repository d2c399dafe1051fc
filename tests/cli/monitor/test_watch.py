"""The terminal is restored however the monitor ends; no running service is needed."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.terminal import LIMIT_S, Terminal

if TYPE_CHECKING:
    from collections.abc import Callable

ENTER, LEAVE, HIDE, SHOW = "\x1b[?1049h", "\x1b[?1049l", "\x1b[?25l", "\x1b[?25h"


@pytest.fixture(scope="module")
def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


def press_key(key: bytes) -> Callable[[Terminal], int]:
    def end(terminal: Terminal) -> int:
        terminal.press(key)
        return terminal.end()

    return end


ENDS = {
    "q": press_key(b"q"),
    "Ctrl-C": press_key(b"\x03"),
    "SIGTERM": lambda terminal: terminal.end(signal.SIGTERM),
    "SIGHUP": lambda terminal: terminal.end(signal.SIGHUP),
}


@pytest.mark.parametrize("ending", ENDS)
def test_terminal_is_restored(closed_port: str, ending: str) -> None:
    with Terminal("monitor", closed_port) as terminal:
        terminal.wait_for(r"UNREACHABLE.*q quits")
        assert terminal.settings() != terminal.before
        assert ENDS[ending](terminal) == 0
        assert terminal.settings() == terminal.before
        terminal.wait_written(re.escape(LEAVE))
        raw = terminal.raw()
    assert (raw.count(ENTER), raw.count(LEAVE)) == (1, 1)
    assert raw.rindex(SHOW) > raw.rindex(HIDE)
    assert "Traceback" not in raw


def test_other_keys_are_ignored(closed_port: str) -> None:
    with Terminal("monitor", closed_port, "--interval", "0.2") as terminal:
        terminal.wait_for("UNREACHABLE")
        terminal.press(b"x[A\x1b[B ")
        written = len(terminal.raw())
        terminal.wait_written("UNREACHABLE", terminal.raw().count("UNREACHABLE") + 2)
        assert len(terminal.raw()) > written
        assert terminal.process.poll() is None


def test_suspend_and_resume(closed_port: str) -> None:
    with Terminal("monitor", closed_port, "--interval", "0.2") as terminal:
        terminal.wait_for("UNREACHABLE")
        terminal.process.send_signal(signal.SIGTSTP)
        terminal.wait_written(re.escape(LEAVE))
        watched = psutil.Process(terminal.process.pid)
        terminal._wait(lambda: watched.status() == psutil.STATUS_STOPPED, "a stopped process")
        assert terminal.settings() == terminal.before
        terminal.process.send_signal(signal.SIGCONT)
        terminal.wait_written(re.escape(ENTER), 2)
        terminal.wait_for("UNREACHABLE")
        terminal.press(b"q")
        assert terminal.end() == 0


def test_resize_redraws_at_once(closed_port: str) -> None:
    with Terminal("monitor", closed_port, "--interval", "600", columns=120, lines=35) as terminal:
        terminal.wait_for("UNREACHABLE")
        assert max(map(len, terminal.text().splitlines())) == 120
        terminal.resize(80, 24)
        terminal.wait_for("UNREACHABLE")
        terminal.wait_for(r"╰─+╯\Z")
        lines = terminal.text().splitlines()
        assert (max(map(len, lines)), len(lines)) == (80, 24)
        terminal.resize(200, 60)
        terminal.wait_for("UNREACHABLE")
        terminal.wait_for(r"╰─+╯\Z")
        assert "Image steps" in terminal.text()


def test_no_color_disables_colours(closed_port: str) -> None:
    with Terminal("monitor", closed_port, NO_COLOR="1") as terminal:
        terminal.wait_for("UNREACHABLE")
        assert ENTER in terminal.raw()
        assert not re.search(r"\x1b\[[\d;]*3[0-7]m", terminal.raw())


def test_dumb_terminal_gets_consecutive_frames(closed_port: str) -> None:
    with Terminal("monitor", closed_port, "--interval", "0.2", TERM="dumb") as terminal:
        terminal.wait_written("UNREACHABLE", 3)
        assert terminal.end(signal.SIGINT) == 0
        assert "\x1b" not in terminal.raw()


def test_interrupted_once_exits_with_130(closed_port: str) -> None:
    with Terminal("monitor", closed_port, "--once", "--interval", "600") as terminal:
        terminal.wait_written("Next scrape in 600 s")
        terminal.press(b"\x03")
        assert terminal.end() == 130
        assert "Traceback" not in terminal.raw()


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_closed_pipe_ends_the_command_quietly(closed_port: str, form: list[str]) -> None:
    command = [sys.executable, "-m", "app", "monitor", closed_port, "--interval", "0.2", *form]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()
        assert process.wait(LIMIT_S) == 1
        assert process.stderr.read() == b""

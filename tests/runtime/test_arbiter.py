"""Why a worker ended, as the master tells it."""

from __future__ import annotations

import signal
from types import SimpleNamespace
from typing import Any, cast

import pytest

from app.observability.board import State
from app.runtime.arbiter import _exit_reason
from app.runtime.banner import sample_command
from app.runtime.server import gunicorn_options
from app.settings import Settings


@pytest.mark.parametrize(
    ("status", "aborted", "state", "reason"),
    [
        (0, False, State.READY, "stopped"),
        (-signal.SIGTERM, False, State.DRAINING, "stopped"),
        (-signal.SIGQUIT, False, State.READY, "stopped"),
        (-signal.SIGKILL, False, State.READY, "killed"),
        (-signal.SIGKILL, False, State.DRAINING, "killed"),
        (-signal.SIGSEGV, False, State.READY, "crashed"),
        (1, False, State.READY, "crashed"),
        (-signal.SIGABRT, True, State.READY, "timeout"),
        (-signal.SIGKILL, True, State.READY, "timeout"),
        (None, False, State.DRAINING, "stopped"),
        (None, False, State.READY, "killed"),
    ],
)
def test_exit_reason(status: int | None, aborted: bool, state: State, reason: str) -> None:
    worker = cast("Any", SimpleNamespace(exit_status=status, aborted=aborted))
    assert _exit_reason(worker, state) == reason


@pytest.mark.parametrize(("host", "bind"), [("127.0.0.1", "127.0.0.1:8000"), ("::1", "[::1]:8000")])
def test_bind_is_written_as_gunicorn_reads_it(host: str, bind: str) -> None:
    assert gunicorn_options(Settings(host=host))["bind"] == [bind]


def test_sample_command_needs_no_shell_tricks() -> None:
    command = sample_command("http://127.0.0.1:8000")
    assert command.startswith("curl -fsS ")
    assert command.endswith(" http://127.0.0.1:8000/api/v1/frontal/crop")

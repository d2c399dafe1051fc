"""Why a worker ended, and gunicorn's options for the settings."""

from __future__ import annotations

import signal
from types import SimpleNamespace
from typing import Any, cast

import pytest

from app.observability.health import WorkerState
from app.settings import Settings
from app.supervisor.api_server import ApiApplication
from app.supervisor.gunicorn_adapter import _exit_reason
from app.supervisor.task_server import TaskApplication


@pytest.mark.parametrize(
    ("code", "aborted", "state", "reason"),
    [
        (0, False, WorkerState.READY, "stopped"),
        (-signal.SIGTERM, False, WorkerState.DRAINING, "stopped"),
        (-signal.SIGQUIT, False, WorkerState.READY, "stopped"),
        (-signal.SIGKILL, False, WorkerState.READY, "killed"),
        (-signal.SIGKILL, False, WorkerState.DRAINING, "killed"),
        (-signal.SIGSEGV, False, WorkerState.READY, "crashed"),
        (1, False, WorkerState.READY, "crashed"),
        (-signal.SIGABRT, True, WorkerState.READY, "timeout"),
        (-signal.SIGKILL, True, WorkerState.READY, "timeout"),
        (None, False, WorkerState.DRAINING, "stopped"),
        (None, False, WorkerState.READY, "killed"),
    ],
)
def test_exit_reason(code: int | None, aborted: bool, state: WorkerState, reason: str) -> None:
    worker = cast("Any", SimpleNamespace(exit_code=code, aborted=aborted))
    assert _exit_reason(worker, state) == reason


@pytest.mark.parametrize(("host", "bind"), [("127.0.0.1", "127.0.0.1:8000"), ("::1", "[::1]:8000")])
def test_bind_address_is_in_gunicorns_form(host: str, bind: str) -> None:
    assert ApiApplication(Settings(host=host)).gunicorn_options()["bind"] == [bind]


def test_task_workers_listen_on_no_port() -> None:
    application = TaskApplication(Settings(task_workers=3))
    assert application.cfg.address == []
    assert application.cfg.workers == 3
    assert application.scoreboard.worker_name(2) == "task-2"

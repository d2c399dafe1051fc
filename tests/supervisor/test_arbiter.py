"""Why a worker ended, as the master tells it."""

from __future__ import annotations

import signal
from types import SimpleNamespace
from typing import Any, cast

import pytest

from app.observability.board import State
from app.settings import Settings
from app.supervisor.arbiter import _exit_reason
from app.supervisor.banner import describe_servers, sample_command, url_of
from app.supervisor.server import ApiApplication
from app.supervisor.task_server import TaskApplication


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
    assert ApiApplication(Settings(host=host)).gunicorn_options()["bind"] == [bind]


def test_task_workers_listen_on_nothing() -> None:
    application = TaskApplication(Settings(task_workers=3))
    assert application.cfg.address == []
    assert application.cfg.workers == 3
    assert application.board.worker_name(2) == "task-2"


@pytest.mark.parametrize(
    ("address", "url"),
    [
        (("127.0.0.1", 8000), "http://127.0.0.1:8000"),
        (("0.0.0.0", 8000), "http://127.0.0.1:8000"),  # noqa: S104 - not bound
        (("::1", 8000, 0, 0), "http://[::1]:8000"),
    ],
)
def test_address_is_told_as_one_can_open_it(address: tuple[Any, ...], url: str) -> None:
    assert url_of(address) == url


def test_servers_are_told_without_credentials() -> None:
    settings = Settings(nats_url="nats://user:secret@one:4222,tls://[::1]:4223")
    assert describe_servers(settings) == "nats://one:4222, tls://[::1]:4223"


def test_sample_command_needs_no_shell_tricks() -> None:
    command = sample_command("http://127.0.0.1:8000")
    assert command.startswith("curl -fsS ")
    assert command.endswith(" http://127.0.0.1:8000/api/v1/frontal/crop")

"""Managed processes: restarts, logged exits, and a stop that includes their children."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import socket
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from app.supervisor import managed_processes
from app.supervisor.managed_processes import ManagedProcess, execute

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Make = Callable[..., ManagedProcess]

LIMIT_S = 20.0


def wait_for(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + LIMIT_S
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


def close_nothing(_process: ManagedProcess) -> None:
    """Stand for a master that keeps no resources open."""


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(managed_processes, "PAUSE_S", 0.0)


@pytest.fixture
def make() -> Iterator[Make]:
    """Return ``make(run, …)``, which creates a process that is stopped after the test."""
    made = []

    def make(run: Callable[[], Any], **options: Any) -> ManagedProcess:
        made.append(ManagedProcess("helper", run, **{"stop_limit_s": LIMIT_S, **options}))
        return made[-1]

    yield make
    for process in made:
        process.stop(lambda: True)


def test_it_is_restarted_and_its_exit_is_logged_and_counted_once(
    make: Make, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = make(signal.pause, hint="/var/log/helper")
    exits: list[str] = []
    monkeypatch.setattr(managed_processes, "record_child_exit", exits.append)
    process.keep_running(close_nothing)
    first = process.pid
    process.keep_running(close_nothing)
    assert process.pid == first, "it is running"
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: not process.is_alive())
    wait_for(lambda: process.keep_running(close_nothing) or process.pid)
    assert process.pid != first
    assert exits == ["helper"]
    assert [record.message for record in caplog.records] == [
        f"helper exited unexpectedly (pid {first}): killed by SIGKILL (possibly out of memory); see /var/log/helper"
    ]


@pytest.mark.parametrize(("life_s", "expected"), [(0.0, [0.5, 1, 2, 4, 8, 16, 30, 30]), (6.0, [6.0] * 8)])
def test_the_pause_doubles_only_if_the_process_exits_soon_after_its_start(
    make: Make, monkeypatch: pytest.MonkeyPatch, life_s: float, expected: list[float]
) -> None:
    now, starts, lives = [1000.0], [], [life_s] * 100
    monkeypatch.setattr(managed_processes, "PAUSE_S", 0.5)
    process = make(lambda: None)

    def start(_close: object) -> None:
        starts.append(now[0])
        process.pid = 1

    monkeypatch.setattr(process, "_start", start)

    def wait(pid: int, _options: int) -> tuple[int, int]:
        return (pid if now[0] >= starts[-1] + lives[len(starts)] else 0, 0)

    monkeypatch.setattr(os, "waitpid", wait)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def run_until(count: int) -> list[float]:
        while len(starts) < count:
            process.keep_running(close_nothing)
            now[0] += 0.125
        return [later - earlier for earlier, later in itertools.pairwise(starts)]

    assert run_until(9) == expected
    lives[10:] = [60.0, 0.0, 0.0]
    assert run_until(13)[9:] == [60.0, 0.5, 1], "the pause is short again after the process ran for longer"
    monkeypatch.undo()
    process.pid = 0


@pytest.mark.parametrize("reaped", [False, True])
def test_an_exit_that_another_caller_reaped_is_noticed(
    make: Make, caplog: pytest.LogCaptureFixture, reaped: bool
) -> None:
    process = make(lambda: None)
    process.keep_running(close_nothing)
    if reaped:
        os.waitpid(process.pid, 0)  # as gunicorn does with every child
    wait_for(lambda: not process.is_alive())
    assert ("exit status unknown" if reaped else "exit status 0") in caplog.text


@pytest.fixture
def handle_ctrl_c() -> Iterator[None]:
    """Install Python's own handler, because tests started in the background of a script ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("handle_ctrl_c")
def test_it_closes_what_it_does_not_need_and_ctrl_c_does_not_reach_it(make: Make) -> None:
    ours, theirs = socket.socketpair()

    def report() -> None:
        theirs.sendall(f"{os.getpgid(0) == os.getpid()} {signal.getsignal(signal.SIGINT) == signal.SIG_DFL}".encode())

    closed = []
    process = make(report, needs=[theirs])
    process.keep_running(lambda process: closed.append(process.needs) or ours.close())
    theirs.close()
    with ours:
        assert ours.recv(100) == b"True True"
    assert closed == [], "the function was called in the other process"


def test_process_that_does_not_stop_is_killed_with_its_children(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(managed_processes, "QUICK_STOP_S", 0.1)
    reader, writer = os.pipe()

    def refuse_to_end() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if not os.fork():
            os.write(writer, b"x")
        while True:
            signal.pause()

    process = make(refuse_to_end)
    process.keep_running(close_nothing)
    os.close(writer)
    assert os.read(reader, 1) == b"x"
    with caplog.at_level(logging.ERROR):
        process.stop(lambda: True)
    assert not process.is_alive()
    assert os.read(reader, 1) == b"", "no process has the other end open"
    os.close(reader)
    assert [record.message for record in caplog.records] == ["helper did not stop in time; killing it"]


def test_the_next_process_waits_for_the_children_of_the_previous_one(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = os.pipe()

    def leave_a_child() -> None:
        if not os.fork():
            os.write(writer, str(os.getpid()).encode())
            while True:
                signal.pause()
        signal.pause()

    process = make(leave_a_child)
    process.keep_running(close_nothing)
    child = int(os.read(reader, 20))
    os.kill(process.pid, signal.SIGKILL)
    wait_for(lambda: not process.is_alive())
    process.keep_running(close_nothing)
    assert not process.pid, "a child of the previous process is alive"
    monkeypatch.setattr(managed_processes, "ORPHANS_S", 0.0)
    wait_for(lambda: process.keep_running(close_nothing) or process.pid)
    assert int(os.read(reader, 20)) != child
    os.close(reader)
    os.close(writer)


def test_execute_passes_only_the_given_descriptors(make: Make, tmp_path: Path) -> None:
    kept, lost = (tmp_path / "kept").open("wb"), (tmp_path / "lost").open("wb")
    script = f"import os; print('out', os.write({kept.fileno()}, b'kept'), flush=True); os.write({lost.fileno()}, b'x')"
    command, output = [sys.executable, "-c", script], tmp_path / "output"
    output.write_text("before\n")
    process = make(lambda: execute(command, keep=[kept.fileno()], output=output))
    with kept, lost:
        process.keep_running(close_nothing)
        _, status = os.waitpid(process.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 1, "the other descriptor is closed"
    assert (tmp_path / "kept").read_text() == "kept"
    assert (tmp_path / "lost").read_text() == ""
    written = output.read_text().splitlines()
    assert written[:2] == ["before", "out 4"]
    assert "Bad file descriptor" in written[-1]


@pytest.mark.parametrize(("own", "seen"), [(None, "'default'"), ("own", "'own'"), ("", "''")])
def test_execute_keeps_variables_that_are_set(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str | None, seen: str
) -> None:
    monkeypatch.delenv("LIMIT_OF_TEST", raising=False)
    if own is not None:
        monkeypatch.setenv("LIMIT_OF_TEST", own)
    monkeypatch.setenv("OTHER_OF_TEST", "other")
    script = "import os; print(repr(os.environ['LIMIT_OF_TEST']), os.environ['OTHER_OF_TEST'])"
    command, output = [sys.executable, "-c", script], tmp_path / "output"
    process = make(lambda: execute(command, keep=[], output=output, defaults={"LIMIT_OF_TEST": "default"}))
    process.keep_running(close_nothing)
    os.waitpid(process.pid, 0)
    assert output.read_text() == f"{seen} other\n"

"""Processes that the master keeps: started again, told apart by how they ended, stopped with all that is theirs."""

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

from app.supervisor import companions
from app.supervisor.companions import Companion, describe_status, execute

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

LIMIT_S = 20.0


def wait_for(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + LIMIT_S
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


def leave_nothing(_companion: Companion) -> None:
    """Stand for a master that holds nothing open."""


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(companions, "PAUSE_S", 0.0)


@pytest.fixture
def make() -> Iterator[Callable[..., Companion]]:
    """Give ``make(run, …)``: a companion that is stopped at the end."""
    made = []

    def make(run: Callable[[], Any], **options: Any) -> Companion:
        made.append(Companion("helper", run, **{"stop_limit_s": LIMIT_S, **options}))
        return made[-1]

    yield make
    for companion in made:
        companion.stop(lambda: True)


def test_it_is_started_again_and_its_end_is_told_once(
    make: Callable[..., Companion], caplog: pytest.LogCaptureFixture
) -> None:
    companion = make(signal.pause, hint="/var/log/helper")
    companion.keep(leave_nothing)
    first = companion.pid
    companion.keep(leave_nothing)
    assert companion.pid == first, "it runs"
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: not companion.is_alive())
    wait_for(lambda: companion.keep(leave_nothing) or companion.pid)
    assert companion.pid != first
    assert [record.message for record in caplog.records] == [
        f"helper ended unexpectedly: SIGKILL (pid {first}); see /var/log/helper"
    ]


def test_the_pause_doubles_while_it_does_not_stay(
    make: Callable[..., Companion], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    starts = []
    companion = make(lambda: None)
    monkeypatch.setattr(companions, "PAUSE_S", 0.5)
    monkeypatch.setattr(companions, "STEADY_S", 60.0)
    monkeypatch.setattr(companion, "is_alive", lambda: False)
    monkeypatch.setattr(companion, "_start", lambda _leave: starts.append(now[0]))
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    for _ in range(2400):
        companion.keep(leave_nothing)
        now[0] += 0.125
    pauses = [later - earlier for earlier, later in itertools.pairwise(starts)]
    assert pauses[:7] == [0.5, 1, 2, 4, 8, 16, 30]
    assert set(pauses[6:]) == {30}
    now[0] += 100
    companion.keep(leave_nothing)
    now[0] += 0.5
    companion.keep(leave_nothing)
    assert starts[-1] - starts[-2] == 0.5, "after a minute of steadiness it is as at first"


@pytest.mark.parametrize("collected", [False, True])
def test_an_end_that_somebody_else_collected_is_an_end(
    make: Callable[..., Companion], caplog: pytest.LogCaptureFixture, collected: bool
) -> None:
    companion = make(lambda: None)
    companion.keep(leave_nothing)
    if collected:
        os.waitpid(companion.pid, 0)  # as gunicorn does with every child
    wait_for(lambda: not companion.is_alive())
    assert ("status unknown" if collected else "exit status 0") in caplog.text


@pytest.fixture
def heed_ctrl_c() -> Iterator[None]:
    """Heed it as Python does by itself; tests that a script started in its background would ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heed_ctrl_c")
def test_it_closes_what_it_is_told_to_and_is_out_of_reach_of_ctrl_c(make: Callable[..., Companion]) -> None:
    ours, theirs = socket.socketpair()

    def tell() -> None:
        theirs.sendall(f"{os.getpgid(0) == os.getpid()} {signal.getsignal(signal.SIGINT) == signal.SIG_DFL}".encode())

    left = []
    companion = make(tell, needs=[theirs])
    companion.keep(lambda companion: left.append(companion.needs) or ours.close())
    theirs.close()
    with ours:
        assert ours.recv(100) == b"True True"
    assert left == [], "that happened in the other process"


def test_stubborn_one_is_killed_with_its_children(
    make: Callable[..., Companion], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(companions, "QUICK_STOP_S", 0.1)
    reader, writer = os.pipe()

    def refuse_to_end() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if not os.fork():
            os.write(writer, b"x")
        while True:
            signal.pause()

    companion = make(refuse_to_end)
    companion.keep(leave_nothing)
    os.close(writer)
    assert os.read(reader, 1) == b"x"
    with caplog.at_level(logging.ERROR):
        companion.stop(lambda: True)
    assert not companion.is_alive()
    assert os.read(reader, 1) == b"", "nobody holds the other end any more"
    os.close(reader)
    assert [record.message for record in caplog.records] == ["helper does not end; killing it"]


def test_the_next_one_waits_for_the_children_of_the_last(
    make: Callable[..., Companion], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = os.pipe()

    def leave_a_child() -> None:
        if not os.fork():
            os.write(writer, str(os.getpid()).encode())
            while True:
                signal.pause()
        signal.pause()

    companion = make(leave_a_child)
    companion.keep(leave_nothing)
    child = int(os.read(reader, 20))
    os.kill(companion.pid, signal.SIGKILL)
    wait_for(lambda: not companion.is_alive())
    companion.keep(leave_nothing)
    assert not companion.pid, "a child of the last one lives"
    monkeypatch.setattr(companions, "ORPHANS_S", 0.0)
    wait_for(lambda: companion.keep(leave_nothing) or companion.pid)
    assert int(os.read(reader, 20)) != child
    os.close(reader)
    os.close(writer)


def test_execute_gives_the_program_what_it_shall_have(make: Callable[..., Companion], tmp_path: Path) -> None:
    kept, lost = (tmp_path / "kept").open("wb"), (tmp_path / "lost").open("wb")
    script = f"import os; print('out', os.write({kept.fileno()}, b'told'), flush=True); os.write({lost.fileno()}, b'x')"
    command, output = [sys.executable, "-c", script], tmp_path / "output"
    output.write_text("before\n")
    companion = make(lambda: execute(command, keep=[kept.fileno()], output=output))
    with kept, lost:
        companion.keep(leave_nothing)
        _, status = os.waitpid(companion.pid, 0)
    assert describe_status(status) == "exit status 1", "what it shall not have is closed"
    assert (tmp_path / "kept").read_text() == "told"
    assert (tmp_path / "lost").read_text() == ""
    written = output.read_text().splitlines()
    assert written[:2] == ["before", "out 4"]
    assert "Bad file descriptor" in written[-1]


@pytest.mark.parametrize(("own", "seen"), [(None, "'usual'"), ("own", "'own'"), ("", "''")])
def test_execute_keeps_variables_that_are_set(
    make: Callable[..., Companion], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str | None, seen: str
) -> None:
    monkeypatch.delenv("LIMIT_OF_TEST", raising=False)
    if own is not None:
        monkeypatch.setenv("LIMIT_OF_TEST", own)
    monkeypatch.setenv("OTHER_OF_TEST", "other")
    script = "import os; print(repr(os.environ['LIMIT_OF_TEST']), os.environ['OTHER_OF_TEST'])"
    command, output = [sys.executable, "-c", script], tmp_path / "output"
    companion = make(lambda: execute(command, keep=[], output=output, defaults={"LIMIT_OF_TEST": "usual"}))
    companion.keep(leave_nothing)
    os.waitpid(companion.pid, 0)
    assert output.read_text() == f"{seen} other\n"


@pytest.mark.parametrize(
    ("status", "text"),
    [(0, "exit status 0"), (3 << 8, "exit status 3"), (9, "SIGKILL"), (40, "signal 40"), (None, "status unknown")],
)
def test_status_in_words(status: int | None, text: str) -> None:
    assert describe_status(status) == text

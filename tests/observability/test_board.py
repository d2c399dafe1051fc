"""Health, as the board tells it."""

from __future__ import annotations

import os
import time

import pytest

from app.observability.board import Board, State
from app.observability.exporter import health_report, probe


@pytest.fixture
def board() -> Board:
    return Board(expected_workers=2, timeout_s=60)


def test_ready_once_all_have_booted_and_while_one_serves(board: Board) -> None:
    assert (board.is_live(), board.is_ready()) == (True, False), "while it boots"
    board.beat(0, State.READY)
    board.beat(1, State.STARTING)
    assert not board.is_ready(), "one of two has booted"
    board.beat(1, State.READY)
    assert board.is_ready()
    board.clear(1)
    assert board.is_ready(), "a worker that is being replaced takes nothing away from callers"
    board.beat(0, State.DRAINING)
    assert not board.is_ready(), "nobody serves"


def test_draining_is_not_ready_but_live(board: Board) -> None:
    board.beat(0, State.READY)
    board.beat(1, State.READY)
    assert board.is_ready()
    board.drain()
    assert (board.is_live(), board.is_ready(), board.is_draining) == (True, False, True)


def test_silence_is_death(monkeypatch: pytest.MonkeyPatch, board: Board) -> None:
    board.beat(0, State.READY)
    board.beat(1, State.READY)
    assert board.is_ready()
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 61)
    assert (board.is_live(), board.is_ready()) == (False, False)
    board.beat(1, State.READY)
    assert (board.is_live(), board.is_ready()) == (True, True)


def test_a_start_that_never_ends_is_death(monkeypatch: pytest.MonkeyPatch, board: Board) -> None:
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 61)
    assert not board.is_live()


def test_another_process_writes_its_own_row(board: Board) -> None:
    child = os.fork()
    if not child:
        board.beat(3, State.READY)
        os._exit(0)
    os.waitpid(child, 0)
    (row,) = board.rows()
    assert (row.slot, row.pid, row.state) == (3, child, State.READY)
    assert board.state(3) is State.READY


def test_another_master_starts_anew(board: Board) -> None:
    board.beat(0, State.READY)
    board.drain()
    board.note_companion(0, "exporter", 17)
    child = os.fork()
    if not child:
        board.take_over()
        os._exit(0)
    os.waitpid(child, 0)
    assert board.master_pid == child
    assert (board.rows(), board.companions(), board.is_draining) == ([], {}, False)


def test_companions_are_those_that_run(board: Board) -> None:
    board.note_companion(0, "exporter", 17)
    board.note_companion(1, "nats-server", 18)
    assert board.companions() == {"exporter": 17, "nats-server": 18}
    board.note_companion(0, "exporter", 0)
    assert board.companions() == {"nats-server": 18}


def test_workers_beside_are_told_of_and_change_nothing() -> None:
    tasks = Board(expected_workers=1, timeout_s=60, worker_name="task")
    board = Board(expected_workers=1, timeout_s=60, beside=tasks)
    board.beat(0, State.READY)
    assert health_report(board)["task_workers"] == []
    tasks.beat(0, State.STARTING)
    report = health_report(board)
    assert [worker["name"] for worker in report["workers"]] == ["worker-0"]
    assert [(worker["name"], worker["state"]) for worker in report["task_workers"]] == [("task-0", "starting")]
    assert (report["live"], report["ready"]) == (True, True)


@pytest.mark.parametrize("slot", [-1, 1024])
def test_slot_beyond_the_board_is_refused(board: Board, slot: int) -> None:
    with pytest.raises(ValueError, match="room"):
        board.beat(slot, State.READY)


@pytest.mark.parametrize(
    ("path", "status"), [("/health", 200), ("/health/live", 200), ("/health/ready", 503), ("/health/live/", 200)]
)
def test_probe(board: Board, path: str, status: int) -> None:
    board.beat(0, State.STARTING)
    assert probe(board, path.rstrip("/"))[0] == status
    report = health_report(board)
    assert report["workers"][0]["name"] == "worker-0"
    assert report["workers"][0]["state"] == "starting"

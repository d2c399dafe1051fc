"""Slots, and the health that the scoreboard reports."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.observability.health import WorkerState, probe
from app.supervisor.scoreboard import Scoreboard, SlotPool


@pytest.fixture
def scoreboard() -> Scoreboard:
    return Scoreboard(expected_workers=2, timeout_s=60)


def health_of(scoreboard: Scoreboard) -> tuple[bool, bool]:
    """Return whether the instance is live and whether it is ready."""
    health = scoreboard.health()
    return health.is_live, health.is_ready


def test_ready_once_all_workers_have_booted_and_while_one_serves(scoreboard: Scoreboard) -> None:
    assert health_of(scoreboard) == (True, False), "during startup"
    scoreboard.heartbeat(0, WorkerState.READY)
    scoreboard.heartbeat(1, WorkerState.STARTING)
    assert not scoreboard.health().is_ready, "one of two has booted"
    scoreboard.heartbeat(1, WorkerState.READY)
    assert scoreboard.health().is_ready
    scoreboard.clear(1)
    assert scoreboard.health().is_ready, "callers do not notice that a worker is replaced"
    scoreboard.heartbeat(0, WorkerState.DRAINING)
    assert not scoreboard.health().is_ready, "no worker serves"


def test_draining_instance_is_live_but_not_ready(scoreboard: Scoreboard) -> None:
    scoreboard.heartbeat(0, WorkerState.READY)
    scoreboard.heartbeat(1, WorkerState.READY)
    assert scoreboard.health().is_ready
    scoreboard.drain()
    assert (*health_of(scoreboard), scoreboard.is_draining) == (True, False, True)


def test_exhausted_worker_makes_the_instance_unready(scoreboard: Scoreboard) -> None:
    scoreboard.heartbeat(0, WorkerState.READY)
    scoreboard.heartbeat(1, WorkerState.READY)
    assert health_of(scoreboard) == (True, True)
    scoreboard.heartbeat(1, WorkerState.EXHAUSTED)
    assert health_of(scoreboard) == (True, False)


def test_instance_without_heartbeats_is_not_live(monkeypatch: pytest.MonkeyPatch, scoreboard: Scoreboard) -> None:
    scoreboard.heartbeat(0, WorkerState.READY)
    scoreboard.heartbeat(1, WorkerState.READY)
    assert scoreboard.health().is_ready
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 61)
    assert health_of(scoreboard) == (False, False)
    scoreboard.heartbeat(1, WorkerState.READY)
    assert health_of(scoreboard) == (True, True)


def test_instance_that_does_not_finish_startup_is_not_live(
    monkeypatch: pytest.MonkeyPatch, scoreboard: Scoreboard
) -> None:
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 61)
    assert not scoreboard.health().is_live


def test_another_process_writes_its_own_row(scoreboard: Scoreboard) -> None:
    child = os.fork()
    if not child:
        scoreboard.heartbeat(3, WorkerState.READY)
        os._exit(0)
    os.waitpid(child, 0)
    (worker,) = scoreboard.workers()
    assert (worker.slot, worker.pid, worker.state) == (3, child, WorkerState.READY)
    assert scoreboard.state(3) is WorkerState.READY


def test_a_new_master_resets_the_scoreboard(scoreboard: Scoreboard) -> None:
    scoreboard.heartbeat(0, WorkerState.READY)
    scoreboard.drain()
    scoreboard.record_managed_process(0, "exporter", 17)
    child = os.fork()
    if not child:
        scoreboard.take_over()
        os._exit(0)
    os.waitpid(child, 0)
    assert scoreboard.master_pid == child
    assert (scoreboard.workers(), scoreboard.managed_processes(), scoreboard.is_draining) == ([], {}, False)


def test_managed_processes_are_listed_while_they_run(scoreboard: Scoreboard) -> None:
    scoreboard.record_managed_process(0, "exporter", 17)
    scoreboard.record_managed_process(1, "nats-server", 18)
    assert scoreboard.managed_processes() == {"exporter": 17, "nats-server": 18}
    scoreboard.record_managed_process(0, "exporter", 0)
    assert scoreboard.managed_processes() == {"nats-server": 18}


def test_task_workers_are_reported_and_do_not_affect_health() -> None:
    tasks = Scoreboard(expected_workers=1, timeout_s=60, worker_name="task")
    scoreboard = Scoreboard(expected_workers=1, timeout_s=60, task_scoreboard=tasks)
    scoreboard.heartbeat(0, WorkerState.READY)
    assert scoreboard.health().report().task_workers == []
    tasks.heartbeat(0, WorkerState.STARTING)
    report = scoreboard.health().report()
    assert [worker.name for worker in report.workers] == ["worker-0"]
    assert [(worker.name, worker.state) for worker in report.task_workers] == [("task-0", "starting")]
    assert (report.live, report.ready) == (True, True)


@pytest.mark.parametrize("slot", [-1, 1024])
def test_slot_out_of_range_is_rejected(scoreboard: Scoreboard, slot: int) -> None:
    with pytest.raises(ValueError, match="slot: expected 0 to 1023"):
        scoreboard.heartbeat(slot, WorkerState.READY)


@pytest.mark.parametrize(
    ("path", "status"), [("/health", 200), ("/health/live", 200), ("/health/ready", 503), ("/health/live/", 200)]
)
def test_probe(scoreboard: Scoreboard, path: str, status: int) -> None:
    scoreboard.heartbeat(0, WorkerState.STARTING)
    assert probe(scoreboard, path.rstrip("/"))[0] == status
    report = scoreboard.health().report()
    assert report.workers[0].name == "worker-0"
    assert report.workers[0].state == "starting"


@given(st.lists(st.booleans(), max_size=60), st.randoms())
def test_pool_returns_the_lowest_free_slot(steps: list[bool], random: Any) -> None:
    pool, held = SlotPool(), set()
    for is_acquired in steps:
        if is_acquired or not held:
            slot = pool.acquire()
            assert slot == min(set(range(len(held) + 1)) - held)
            held.add(slot)
        else:
            slot = random.choice(sorted(held))
            held.remove(slot)
            pool.release(slot)

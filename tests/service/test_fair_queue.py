"""Fair queueing: the CPU time that each caller gets."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import CancelledError
from contextvars import copy_context
from itertools import pairwise

import pytest

from app.codec.decoding_policy import require_decoding
from app.service import fair_queue as module
from app.service.fair_queue import EXPRESS_IMAGE_BYTES, MAX_IDLE, FairQueue, Job


class Machine:
    """A thread with a simulated clock, which advances by the cost of the jobs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.used: Counter[str] = Counter()
        self.order: list[str] = []
        self.next_calls = 0
        self.express_calls = 0
        self.queue = FairQueue(1, self.note_next, self.note_express)
        monkeypatch.setattr(module.time, "thread_time", lambda: self.now)

    def note_next(self) -> None:
        self.next_calls += 1

    def note_express(self) -> None:
        self.express_calls += 1

    def put(self, caller: str, cost_s: float) -> Job:
        def work() -> None:
            self.now += cost_s
            self.used[caller] += cost_s
            self.order.append(caller)

        job = Job(caller, work, copy_context())
        self.queue.put(job)
        return job


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


@pytest.mark.parametrize("cost_s", [0.001, 0.01, 0.1, 1.0])
def test_callers_get_equal_time_for_any_job_cost(machine: Machine, cost_s: float) -> None:
    for _ in range(10):
        machine.put("busy", cost_s)
    machine.put("other", 0.01)
    machine.put("other", 0.01)
    while machine.now < 100 * max(cost_s, 0.01):
        machine.queue.run_next()
        machine.put(machine.order[-1], cost_s if machine.order[-1] == "busy" else 0.01)
    assert machine.used["other"] == pytest.approx(machine.used["busy"], rel=0.1)


def test_idle_caller_saves_up_no_time(machine: Machine) -> None:
    machine.put("idle", 0.1)
    for _ in range(200):
        machine.put("busy", 0.1)
    for _ in range(100):
        machine.queue.run_next()
    machine.order.clear()
    for _ in range(50):
        machine.put("idle", 0.1)
    for _ in range(20):
        machine.queue.run_next()
    assert 9 <= machine.order.count("idle") <= 12


def test_jobs_of_one_caller_run_in_their_order(machine: Machine) -> None:
    jobs = [machine.put("one", 0.1) for _ in range(5)]
    done = []
    for job in jobs:
        job.future.add_done_callback(done.append)
    for _ in range(5):
        machine.queue.run_next()
    assert done == [job.future for job in jobs]


def test_running_jobs_count_before_they_end(machine: Machine) -> None:
    for caller in ("busy", "other"):
        machine.put(caller, 1.0)
        machine.queue.run_next()
    for _ in range(4):
        machine.put("busy", 1.0)
    for _ in range(2):
        machine.put("other", 1.0)
    taken = [machine.queue._take(is_express=False) for _ in range(4)]  # as four threads would
    callers = [found[0].caller for found in taken if found is not None]
    assert Counter(callers) == {"busy": 2, "other": 2}


def test_discarded_and_cancelled_jobs_do_not_run(machine: Machine) -> None:
    first, second, third = (machine.put("one", 0.1) for _ in range(3))
    assert machine.queue.discard(first)
    assert not machine.queue.discard(first)
    second.future.cancel()
    machine.queue.run_next()
    assert (third.future.done(), len(machine.order)) == (True, 1)
    machine.queue.run_next()
    assert len(machine.order) == 1


def test_errors_are_set_on_the_future(machine: Machine) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    job = Job("one", fail, copy_context())
    machine.queue.put(job)
    machine.queue.run_next()
    assert isinstance(job.future.exception(), ZeroDivisionError)


def test_idle_callers_are_removed(machine: Machine) -> None:
    for number in range(5 * MAX_IDLE):
        machine.put(str(number), 0.001)
        machine.queue.run_next()
    assert len(machine.queue._lanes) <= MAX_IDLE
    assert all(low <= high for low, high in pairwise([0, machine.queue._virtual_s]))


def test_the_express_thread_runs_cheap_jobs_of_callers_that_are_behind(machine: Machine) -> None:
    for _ in range(20):  # until their cost is known
        machine.put("busy", 1.0)
        machine.put("other", 0.01)
        machine.queue.run_next()
        machine.queue.run_next()
    machine.queue.run_express()
    machine.put("busy", 1.0)
    taken = machine.queue._take(is_express=False)
    assert taken is not None
    before = machine.express_calls
    machine.put("busy", 1.0)
    assert machine.express_calls == before, "a caller is not behind itself"
    for _ in range(300):
        machine.put("other", 0.01)
    assert machine.express_calls == before + 1
    machine.order.clear()
    machine.queue.run_express()
    assert machine.order == ["other"] * len(machine.order)
    assert 80 <= len(machine.order) <= 210, "the time of the other job, and the difference of the virtual times"
    machine.queue._settle(taken[1], taken[2], 1.0, is_express=False)
    machine.put("other", 0.01)
    assert machine.express_calls == before + 1, "a thread is free"


def test_the_express_thread_runs_no_expensive_jobs(machine: Machine) -> None:
    for caller in ("one", "two") * 5:
        machine.put(caller, 1.0)
        machine.queue.run_next()
    machine.queue.run_express()
    machine.put("one", 1.0)
    assert machine.queue._take(is_express=False) is not None
    before = machine.express_calls
    machine.put("two", 1.0)
    assert machine.express_calls == before


@pytest.mark.parametrize("end", ["run", "close", "discard"])
def test_large_images_are_moved_from_the_express_thread(machine: Machine, end: str) -> None:
    def decode() -> str:
        require_decoding(EXPRESS_IMAGE_BYTES + 1)
        return "decoded"

    machine.put("busy", 1.0)
    running = machine.queue._take(is_express=False)
    assert running is not None
    job = Job("other", decode, copy_context())
    machine.queue.put(job)
    machine.put("other", 0.01)
    starts = machine.next_calls
    machine.queue.run_express()
    assert (job.is_started, machine.next_calls) == (False, starts + 1)
    assert machine.order == [], "jobs of a caller stay in their order"
    if end == "close":
        machine.queue.close()
        assert isinstance(job.future.exception(), CancelledError)
    elif end == "discard":
        assert machine.queue.discard(job)
    else:
        machine.queue._settle(running[1], running[2], 1.0, is_express=False)
        machine.queue.run_next()
        assert job.future.result() == "decoded"


def test_small_images_are_decoded_on_the_express_thread(machine: Machine) -> None:
    machine.put("busy", 1.0)
    assert machine.queue._take(is_express=False) is not None
    job = Job("other", lambda: require_decoding(EXPRESS_IMAGE_BYTES), copy_context())
    machine.queue.put(job)
    machine.queue.run_express()
    assert job.future.done()

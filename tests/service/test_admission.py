"""Admission control: slots, eviction and work threads."""

from __future__ import annotations

import asyncio
import threading
from contextlib import ExitStack
from contextvars import ContextVar
from typing import TYPE_CHECKING

import pytest

from app.service.admission import Admission
from app.service.body_budget import SaturatedError

if TYPE_CHECKING:
    from collections.abc import Callable

label: ContextVar[str] = ContextVar("label", default="none")


def make(max_concurrency: int = 1, threads: int = 1) -> Admission:
    return Admission(max_concurrency=max_concurrency, threads=threads, max_buffered_bytes=100, max_body_bytes=100)


@pytest.mark.parametrize("slots", [1, 3])
def test_request_above_the_number_of_slots_is_rejected(slots: int) -> None:
    admission = make(slots)
    with ExitStack() as held:
        for _ in range(slots):
            held.enter_context(admission.enter())
        with pytest.raises(SaturatedError), admission.enter():
            pytest.fail("a slot too many")
    with admission.enter():
        pass


def test_slot_is_released_after_an_error() -> None:
    admission = make()
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), admission.enter():
            raise ZeroDivisionError


def test_rejected_request_takes_no_slot() -> None:
    admission = make()
    with admission.enter():
        for _ in range(3):
            with pytest.raises(SaturatedError), admission.enter():
                pass
    with admission.enter():
        pass


def test_work_runs_on_a_thread_with_the_context_of_the_caller() -> None:
    admission = make()

    def work(number: int, *, factor: int) -> tuple[int, str, str]:
        seen = label.get()
        label.set("changed")
        return number * factor, seen, threading.current_thread().name

    async def run() -> tuple[int, str, str]:
        label.set("mine")
        with admission.enter() as slot:
            result = await slot.run(work, 6, factor=7)
        assert label.get() == "mine"
        return result

    number, seen, thread = asyncio.run(run())
    assert (number, seen) == (42, "mine")
    assert thread.startswith("work")
    admission.close()


def test_errors_of_the_work_reach_the_caller() -> None:
    admission = make()

    async def run() -> int:
        with admission.enter() as slot:
            return await slot.run(lambda: 1 // 0)

    with pytest.raises(ZeroDivisionError):
        asyncio.run(run())
    admission.close()


@pytest.mark.parametrize("threads", [1, 3])
def test_concurrent_work_is_limited_by_threads(threads: int) -> None:
    admission = make(4 * threads, threads)
    together = threading.Barrier(threads)
    running, most = 0, 0
    lock = threading.Lock()

    def work() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        together.wait(10)  # returns only if all threads arrive
        with lock:
            running -= 1

    async def one() -> None:
        with admission.enter() as slot:
            await slot.run(work)

    async def run() -> None:
        await asyncio.gather(*(one() for _ in range(4 * threads)))

    asyncio.run(run())
    admission.close()
    assert most == threads


def test_the_event_loop_is_not_blocked_by_work() -> None:
    admission = make()
    is_awaited = threading.Event()

    async def run() -> bool:
        with admission.enter() as slot:
            task = slot.run(is_awaited.wait, 10)
            await asyncio.sleep(0)
            is_awaited.set()  # in time only if the loop is not blocked
            return await task

    assert asyncio.run(run())
    admission.close()


def test_saturation_is_detected_before_a_body_is_read() -> None:
    admission = make()
    admission.require_slot()
    with admission.enter(), pytest.raises(SaturatedError):
        admission.require_slot()


class Gate:
    """A job that blocks the only work thread until the gate opens, and the order of the jobs behind it."""

    def __init__(self, slots: int) -> None:
        self.admission = make(slots)
        self.order: list[str] = []
        self.refused: list[str] = []
        self._opened = threading.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def send(self, caller: str, work: Callable[[], object] | None = None) -> None:
        """Start a request, and return when it waits or was rejected."""
        self._tasks.append(asyncio.create_task(self._request(caller, work)))
        await asyncio.sleep(0)

    async def block(self, caller: str) -> None:
        """Start a request that runs until the gate is opened."""
        is_running = threading.Event()

        def wait() -> None:
            is_running.set()
            self._opened.wait(30)

        await self.send(caller, wait)
        await asyncio.to_thread(is_running.wait, 30)

    async def finish(self) -> None:
        self._opened.set()
        await asyncio.gather(*self._tasks)
        self.admission.close()
        assert not self.admission._held
        assert not self.admission._slots

    async def _request(self, caller: str, work: Callable[[], object] | None) -> None:
        try:
            self.admission.require_slot(caller)
            with self.admission.enter(caller) as slot:
                await slot.run(work or (lambda: self.order.append(caller)))
        except SaturatedError:
            self.refused.append(caller)


@pytest.fixture
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make no job cheap enough for the express thread."""
    monkeypatch.setattr("app.service.fair_queue.EXPRESS_COST_S", -1.0)


@pytest.mark.usefixtures("_one_thread")
def test_callers_take_turns() -> None:
    async def run() -> Gate:
        gate = Gate(16)
        await gate.block("busy")
        for caller in ["busy"] * 6 + ["second"] * 3 + ["third"]:
            await gate.send(caller)
        await gate.finish()
        return gate

    gate = asyncio.run(run())
    assert set(gate.order[:3]) == {"busy", "second", "third"} or set(gate.order[:2]) == {"second", "third"}
    assert gate.order.index("third") <= 2
    assert [caller for caller in gate.order if caller != "busy"].count("second") == 3
    assert max(at for at, caller in enumerate(gate.order) if caller == "second") <= 7
    assert not gate.refused


@pytest.mark.usefixtures("_one_thread")
def test_caller_below_its_share_evicts_the_latest_request_of_the_largest() -> None:
    async def run() -> Gate:
        gate = Gate(4)
        await gate.block("busy")
        for caller in ["busy"] * 5 + ["other"] * 3:
            await gate.send(caller)
        await gate.finish()
        return gate

    gate = asyncio.run(run())
    # Two of the first five exceed the limit, two more are evicted, and the third of the other is above its share.
    assert gate.refused.count("busy") == 4
    assert gate.refused.count("other") == 1
    assert sorted(gate.order) == ["busy", "other", "other"]


@pytest.mark.usefixtures("_one_thread")
def test_equal_callers_do_not_evict_each_other() -> None:
    async def run() -> Gate:
        gate = Gate(4)
        await gate.block("0")
        for number in range(1, 20):
            await gate.send(str(number))
        await gate.finish()
        return gate

    gate = asyncio.run(run())
    assert sorted(gate.order) == ["1", "2", "3"]
    assert len(gate.refused) == 16


@pytest.mark.usefixtures("_one_thread")
def test_running_work_is_not_evicted() -> None:
    async def run() -> Gate:
        gate = Gate(1)
        await gate.block("busy")
        await gate.send("other")
        await gate.finish()
        return gate

    assert asyncio.run(run()).refused == ["other"]


@pytest.mark.usefixtures("_one_thread")
def test_work_of_an_abandoned_request_never_starts() -> None:
    async def run() -> Gate:
        gate = Gate(4)
        await gate.block("busy")
        await gate.send("gone")
        gate._tasks.pop().cancel()
        await asyncio.sleep(0)
        await gate.send("other")
        await gate.finish()
        return gate

    assert asyncio.run(run()).order == ["other"]


def test_a_cheap_request_does_not_wait_for_an_expensive_one() -> None:
    async def run() -> Gate:
        gate = Gate(4)
        await gate.block("busy")
        await gate.send("other")
        await gate._tasks[-1]  # while the only regular thread is occupied
        await gate.finish()
        return gate

    assert asyncio.run(run()).order == ["other"]

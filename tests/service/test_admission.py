"""How much a process takes on at once."""

from __future__ import annotations

import asyncio
import threading
from contextlib import ExitStack
from contextvars import ContextVar
from typing import TYPE_CHECKING

import pytest

from app.service.admission import Admission, SaturatedError

if TYPE_CHECKING:
    from collections.abc import Callable

label: ContextVar[str] = ContextVar("label", default="none")


def make(max_concurrency: int = 1, threads: int = 1) -> Admission:
    return Admission(max_concurrency=max_concurrency, threads=threads, max_buffered_bytes=100, max_body_bytes=100)


@pytest.mark.parametrize("places", [1, 3])
def test_one_more_than_there_are_places_is_refused(places: int) -> None:
    admission = make(places)
    with ExitStack() as held:
        for _ in range(places):
            held.enter_context(admission.enter())
        with pytest.raises(SaturatedError), admission.enter():
            pytest.fail("a place too many")
    with admission.enter():
        pass


def test_a_place_is_given_back_after_an_error() -> None:
    admission = make()
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), admission.enter():
            raise ZeroDivisionError


def test_refusal_takes_no_place() -> None:
    admission = make()
    with admission.enter():
        for _ in range(3):
            with pytest.raises(SaturatedError), admission.enter():
                pass
    with admission.enter():
        pass


def test_work_is_done_on_a_thread_of_its_own_within_the_callers_context() -> None:
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
def test_as_much_work_runs_at_once_as_there_are_threads(threads: int) -> None:
    admission = make(4 * threads, threads)
    together = threading.Barrier(threads)
    running, most = 0, 0
    lock = threading.Lock()

    def work() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        together.wait(10)  # ends only if as many come as there are threads
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


def test_the_loop_goes_on_while_work_is_done() -> None:
    admission = make()
    is_awaited = threading.Event()

    async def run() -> bool:
        with admission.enter() as slot:
            task = slot.run(is_awaited.wait, 10)
            await asyncio.sleep(0)
            is_awaited.set()  # only a loop that is not blocked gets here before the wait is over
            return await task

    assert asyncio.run(run())
    admission.close()


def test_a_full_process_is_known_before_a_body_is_read() -> None:
    admission = make()
    admission.require_slot()
    with admission.enter(), pytest.raises(SaturatedError):
        admission.require_slot()


class Gate:
    """Occupies the only work thread until it is opened, and notes the order of the work behind it."""

    def __init__(self, slots: int) -> None:
        self.admission = make(slots)
        self.order: list[str] = []
        self.refused: list[str] = []
        self._opened = threading.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def send(self, caller: str, work: Callable[[], object] | None = None) -> None:
        """Start a request, and return when it waits or has been refused."""
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
    """Let no job be cheap enough for the express thread."""
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
def test_a_caller_below_its_share_takes_over_the_newest_slot_of_the_largest() -> None:
    async def run() -> Gate:
        gate = Gate(4)
        await gate.block("busy")
        for caller in ["busy"] * 5 + ["other"] * 3:
            await gate.send(caller)
        await gate.finish()
        return gate

    gate = asyncio.run(run())
    # Two of the first five are over the limit; two more make room; the other's third is above its share.
    assert gate.refused.count("busy") == 4
    assert gate.refused.count("other") == 1
    assert sorted(gate.order) == ["busy", "other", "other"]


@pytest.mark.usefixtures("_one_thread")
def test_equal_callers_do_not_take_over_each_others_slots() -> None:
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
def test_work_that_has_begun_keeps_its_slot() -> None:
    async def run() -> Gate:
        gate = Gate(1)
        await gate.block("busy")
        await gate.send("other")
        await gate.finish()
        return gate

    assert asyncio.run(run()).refused == ["other"]


@pytest.mark.usefixtures("_one_thread")
def test_work_of_a_request_that_was_given_up_is_never_begun() -> None:
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

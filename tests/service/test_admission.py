"""How much a process takes on at once."""

from __future__ import annotations

import asyncio
import threading
from contextlib import ExitStack
from contextvars import ContextVar

import pytest

from app.service.admission import Admission, SaturatedError

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
        result = await admission.run(work, 6, factor=7)
        assert label.get() == "mine"
        return result

    number, seen, thread = asyncio.run(run())
    assert (number, seen) == (42, "mine")
    assert thread.startswith("work")
    admission.close()


def test_errors_of_the_work_reach_the_caller() -> None:
    admission = make()

    async def run() -> int:
        return await admission.run(lambda: 1 // 0)

    with pytest.raises(ZeroDivisionError):
        asyncio.run(run())
    admission.close()


@pytest.mark.parametrize("threads", [1, 3])
def test_as_much_work_runs_at_once_as_there_are_threads(threads: int) -> None:
    admission = make(threads=threads)
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

    async def run() -> None:
        await asyncio.gather(*(admission.run(work) for _ in range(4 * threads)))

    asyncio.run(run())
    admission.close()
    assert most == threads


def test_the_loop_goes_on_while_work_is_done() -> None:
    admission = make()
    is_awaited = threading.Event()

    async def run() -> bool:
        task = admission.run(is_awaited.wait, 10)
        await asyncio.sleep(0)
        is_awaited.set()  # only a loop that is not blocked gets here before the wait is over
        return await task

    assert asyncio.run(run())
    admission.close()


def test_a_full_process_is_known_before_a_body_is_read() -> None:
    admission = make()
    admission.require_place()
    with admission.enter(), pytest.raises(SaturatedError):
        admission.require_place()


class TestFairness:
    """Callers who ask for more than there is."""

    def test_work_of_callers_is_run_in_turn(self) -> None:
        admission = make(max_concurrency=64)
        order: list[str] = []

        async def run() -> None:
            hold = threading.Event()
            first = admission.run_for("a", hold.wait, 10)
            waiting = [admission.run_for("a", order.append, "a") for _ in range(10)]
            waiting += [admission.run_for(caller, order.append, caller) for caller in "bbbc"]
            hold.set()
            await asyncio.gather(first, *waiting)

        asyncio.run(run())
        admission.close()
        assert len(order) == 14

        assert order.index("c") <= 4
        assert [at for at, caller in enumerate(order) if caller == "b"][-1] <= 8

    def test_a_caller_below_its_share_gets_the_slot_of_the_one_with_the_most(self) -> None:
        admission = make(max_concurrency=4)

        async def request(caller: str, hold: threading.Event) -> str:
            try:
                with admission.enter(caller):
                    await admission.run_for(caller, hold.wait, 10)
            except SaturatedError:
                return "refused"
            return "done"

        async def run() -> tuple[list[str], str, str]:
            hold = threading.Event()
            many = [asyncio.ensure_future(request("a", hold)) for _ in range(4)]
            await asyncio.sleep(0)
            admission.require_place("b")
            with pytest.raises(SaturatedError):
                admission.require_place("a")
            others = [asyncio.ensure_future(request("b", hold)) for _ in range(3)]
            await asyncio.sleep(0)
            hold.set()
            results = await asyncio.gather(*many)
            return results, *await asyncio.gather(others[0], others[2])

        many, first, third = asyncio.run(run())
        admission.close()
        assert (first, third) == ("done", "refused")
        assert many.count("refused") == 2
        assert many[0] == "done", "the one that has waited longest keeps its slot"

    def test_what_is_cancelled_while_it_waits_is_not_run(self) -> None:
        admission = make()
        ran: list[int] = []

        async def run() -> None:
            hold = threading.Event()
            first = [admission.run(hold.wait, 10) for _ in range(2)]
            waiting = [admission.run(ran.append, number) for number in range(5)]
            waiting[1].cancel()
            hold.set()
            await asyncio.gather(*first, *waiting, return_exceptions=True)

        asyncio.run(run())
        admission.close()
        assert ran == [0, 2, 3, 4]

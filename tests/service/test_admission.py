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

"""Memory for request bodies: shares, the leader, waiting, and dropping slow senders."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from app.service import body_budget
from app.service.body_budget import BodyBudget, BodyBuffer, SaturatedError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

MIB = 1024 * 1024
BODY = 16 * MIB
PIECE = 64 * 1024


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_budget, "TICK_S", 0.01)


def make_budget(bodies: int = 8) -> BodyBudget:
    return BodyBudget(max_bytes=bodies * BODY, max_body_bytes=BODY)


async def send(buffer: BodyBuffer, size: int) -> None:
    for start in range(0, size, PIECE):
        piece = min(PIECE, size - start)
        if not buffer.reserve(piece):
            await buffer.wait(piece)
        await asyncio.sleep(0)


class Sender:
    """A client that sends a body, optionally without its last byte."""

    def __init__(self, budget: BodyBudget, size: int, *, stalls: bool = False, client: str = "") -> None:
        self.budget, self.size, self.stalls, self.client = budget, size, stalls, client
        self.is_dropped = False

    async def run(self) -> bool:
        """Return whether the body arrived."""
        gone = asyncio.Event()
        with self.budget.open(self.size, self.client) as buffer:
            buffer.on_drop = gone.set
            work = asyncio.ensure_future(send(buffer, self.size - self.stalls))
            waiter = asyncio.ensure_future(gone.wait())
            try:
                await asyncio.wait({work, waiter}, return_when=asyncio.FIRST_COMPLETED)
                if self.stalls and not gone.is_set():
                    await work
                    await gone.wait()
            finally:
                work.cancel()
                waiter.cancel()
            self.is_dropped = gone.is_set()
            if not self.is_dropped:
                buffer.finish()
                work.result()
                return True
        return False


def run(scenario: Callable[[BodyBudget], Awaitable[None]], bodies: int = 8) -> None:
    async def main() -> None:
        async with asyncio.timeout(30):
            await scenario(make_budget(bodies))

    asyncio.run(main())


@pytest.mark.parametrize("bodies", [1, 2, 8])
def test_all_of_many_quick_bodies_arrive(bodies: int) -> None:
    async def scenario(budget: BodyBudget) -> None:
        assert all(await asyncio.gather(*(Sender(budget, BODY).run() for _ in range(30))))
        assert budget._used == 0

    run(scenario, bodies)


def test_the_limit_is_never_exceeded() -> None:
    async def scenario(budget: BodyBudget) -> None:
        senders = [Sender(budget, BODY).run() for _ in range(40)]
        work = asyncio.gather(*senders)
        most = 0
        while not work.done():
            most = max(most, budget._used)
            await asyncio.sleep(0)
        assert all(work.result())
        assert BODY < most <= 8 * BODY

    run(scenario)


@pytest.mark.parametrize(("client", "largest"), [("one", 3 * MIB), ("another", BODY)])
def test_only_stalled_bodies_are_dropped(client: str, largest: int) -> None:
    async def scenario(budget: BodyBudget) -> None:
        stalled = [Sender(budget, BODY, stalls=True, client="one") for _ in range(60)]
        tasks = [asyncio.ensure_future(one.run()) for one in stalled]
        await asyncio.sleep(0.02)
        others = [Sender(budget, size, client=client) for size in (1000, MIB, largest) for _ in range(5)]
        assert all([await one.run() for one in others])
        assert not any(one.is_dropped for one in others)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert budget._used == 0

    run(scenario)


def test_no_body_is_dropped_while_there_is_room() -> None:
    async def scenario(budget: BodyBudget) -> None:
        with budget.open(BODY) as slow:
            slow.on_drop = lambda: pytest.fail("dropped")
            await send(slow, MIB)
            await asyncio.sleep(0.3)
            assert await Sender(budget, BODY).run()

    run(scenario)


def test_of_two_slow_bodies_the_slower_is_dropped() -> None:
    async def scenario(budget: BodyBudget) -> None:
        dropped: list[str] = []
        is_over = asyncio.Event()

        def note(name: str) -> None:
            dropped.append(name)
            is_over.set()

        with budget.open(BODY) as slow, budget.open(BODY) as slower, budget.open(BODY) as third:
            slow.on_drop, slower.on_drop = lambda: note("slow"), lambda: note("slower")
            await send(slow, BODY // 2)
            await send(slower, BODY // 2)
            while third.reserve(PIECE):
                pass
            waiting = asyncio.ensure_future(third.wait(PIECE))
            while not is_over.is_set():
                slow._measured -= 100  # as if so many bytes had arrived
                await asyncio.sleep(body_budget.TICK_S)
            waiting.cancel()
        assert dropped[0] == "slower"

    run(scenario, bodies=4)


def test_body_without_room_is_finally_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_budget, "WAIT_LIMIT_S", 0.05)

    async def scenario(budget: BodyBudget) -> None:
        with ExitStack() as stack:
            held = stack.enter_context(budget.open(BODY))
            await send(held, BODY)
            held.finish()  # complete, so it must not be dropped
            with budget.open(BODY) as buffer:
                assert not buffer.reserve(PIECE)
                with pytest.raises(SaturatedError):
                    await buffer.wait(PIECE)
        with budget.open(BODY) as buffer:
            assert buffer.reserve(PIECE)

    run(scenario, bodies=1)


def test_waiting_bodies_are_limited_by_rank(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(body_budget, "MAX_WAITING", 10)

    async def scenario(budget: BodyBudget) -> None:
        with ExitStack() as stack:
            full = stack.enter_context(budget.open(BODY))
            assert full.reserve(BODY)
            modest = [budget.open(BODY, f"client {number}") for number in range(3)]
            greedy = [budget.open(PIECE, "greedy") for _ in range(20)]
            longest = budget.open(2 * PIECE, "greedy")
            bodies = [stack.enter_context(body) for body in (*greedy[:10], longest, *modest, *greedy[10:])]
            waits = [asyncio.ensure_future(body.wait(PIECE)) for body in bodies]
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            refused = [body for body, wait in zip(bodies, waits, strict=True) if wait.done()]
            assert all(isinstance(wait.exception(), SaturatedError) for wait in waits if wait.done())
            assert len(bodies) - len(refused) == 10
            assert {body.client for body in refused} == {"greedy"}
            assert bodies[10] in refused, "the longest"
            for wait in waits:
                wait.cancel()

    run(scenario, bodies=1)


def test_small_bodies_find_room_next_to_large_ones() -> None:
    async def scenario(budget: BodyBudget) -> None:
        with ExitStack() as stack:
            large = [stack.enter_context(budget.open(BODY)) for _ in range(60)]
            for buffer in large:  # as much as possible
                while buffer.size < BODY and buffer.reserve(PIECE):
                    pass
            with budget.open(MIB) as small:
                assert small.reserve(MIB)

    run(scenario)

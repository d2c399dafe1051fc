"""Long polls: number of waiting requests, shares of callers, and notices of finished tasks."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from app.service.body_budget import SaturatedError
from app.settings import Settings
from app.tasks import long_polls as module
from app.tasks.connection import Connection
from app.tasks.long_polls import LongPolls

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from app.service.crop import CheckedInput
    from tests.tasks.conftest import Desk


TASK = "b" * 32


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_LONG_POLLS", 4)


def test_a_caller_with_fewer_takes_over_the_newest_of_the_one_with_most() -> None:
    polls = LongPolls(Connection(Settings(), "test"))
    with ExitStack() as stack:
        greedy = [stack.enter_context(polls.enter("greedy", TASK)) for _ in range(4)]
        with pytest.raises(SaturatedError):
            stack.enter_context(polls.enter("greedy", TASK))
        stack.enter_context(polls.enter("modest", TASK))
        assert [poll.is_over for poll in greedy] == [False, False, False, True]
        stack.enter_context(polls.enter("modest", TASK))
        assert [poll.is_over for poll in greedy] == [False, False, True, True]
        with pytest.raises(SaturatedError):
            stack.enter_context(polls.enter("modest", TASK))
    with ExitStack() as stack:
        for _ in range(4):  # all slots are free again
            stack.enter_context(polls.enter("modest", TASK))


@pytest.mark.parametrize(("count", "expected_s"), [(1, 1), (50, 1), (400, 8)])
def test_all_together_read_records_again_at_a_bounded_rate(
    monkeypatch: pytest.MonkeyPatch, count: int, expected_s: float
) -> None:
    monkeypatch.setattr(module, "MAX_LONG_POLLS", 512)
    polls = LongPolls(Connection(Settings(), "test"))
    with ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(polls.enter("caller", TASK))
        assert polls.recheck_s == expected_s


def test_a_request_that_loses_its_slot_returns_the_current_record(
    desk: Callable[..., AbstractAsyncContextManager[Desk]],
    check: Callable[..., CheckedInput],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "RECHECK_S", 0.1)

    async def main() -> None:
        async with desk() as opened:
            record = await opened.queue.submit(check())

            def wait(caller: str) -> asyncio.Task[object]:
                return asyncio.create_task(opened.queue.status(record.task_id, caller=caller, wait_s=300))

            greedy = [wait("greedy") for _ in range(4)]
            await opened.until(lambda: opened.queue._long_polls._held["greedy"] == 4, "the requests that wait")
            with pytest.raises(SaturatedError):
                await wait("greedy")
            modest = wait("modest")
            async with asyncio.timeout(30):
                done, _ = await asyncio.wait(greedy, return_when=asyncio.FIRST_COMPLETED)
            assert [task.result() for task in done] == [record]
            assert not modest.done()
            for task in (*greedy, modest):
                task.cancel()
            await asyncio.gather(*greedy, modest, return_exceptions=True)

    asyncio.run(main())


def test_all_requests_of_a_process_share_one_subscription(
    desk: Callable[..., AbstractAsyncContextManager[Desk]],
    check: Callable[..., CheckedInput],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_LONG_POLLS", 512)
    monkeypatch.setattr(module, "RECHECK_S", 300.0)  # so that only a notice can end a wait

    async def main() -> None:
        async with desk() as opened:
            polls, subscriptions = opened.queue._long_polls, opened.connection.client._subs
            records = [await opened.queue.submit(check()) for _ in range(10)]
            before = len(subscriptions)
            waits = [asyncio.create_task(opened.queue.status(record.task_id, wait_s=300)) for record in records * 3]
            await opened.until(lambda: len(polls._polls) == 30 and len(subscriptions) > before, "the waiting requests")
            assert len(subscriptions) == before + 1
            cancelled = {record.task_id: await opened.queue.cancel(record.task_id) for record in records}
            async with asyncio.timeout(30):
                found = await asyncio.gather(*waits)
            assert all(record == cancelled[record.task_id] for record in found)
            assert not polls._by_task
            assert len(subscriptions) == before

    asyncio.run(main())


def test_a_new_connection_gets_a_new_subscription(
    desk: Callable[..., AbstractAsyncContextManager[Desk]],
    check: Callable[..., CheckedInput],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "RECHECK_S", 0.1)

    async def main() -> None:
        async with desk() as opened:
            polls = opened.queue._long_polls
            record = await opened.queue.submit(check())
            waiting = asyncio.create_task(opened.queue.status(record.task_id, wait_s=300))
            await opened.until(lambda: polls._subscription is not None, "the subscription")
            first, polls._client = polls._subscription, None
            await opened.until(lambda: polls._client is opened.connection.client, "the new subscription")
            assert polls._subscription is not first
            cancelled = await opened.queue.cancel(record.task_id)
            async with asyncio.timeout(30):
                assert await waiting == cancelled

    asyncio.run(main())

"""How many requests may wait for tasks, and who gives way."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from app.service.admission import SaturatedError
from app.tasks import long_polls as module
from app.tasks.long_polls import LongPolls

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from app.service.crop import CheckedInput
    from tests.tasks.conftest import Desk


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_LONG_POLLS", 4)


def test_a_caller_with_fewer_takes_over_the_newest_of_the_one_with_most() -> None:
    polls = LongPolls()
    with ExitStack() as stack:
        greedy = [stack.enter_context(polls.enter("greedy")) for _ in range(4)]
        with pytest.raises(SaturatedError):
            stack.enter_context(polls.enter("greedy"))
        stack.enter_context(polls.enter("modest"))
        assert [poll.is_over for poll in greedy] == [False, False, False, True]
        stack.enter_context(polls.enter("modest"))
        assert [poll.is_over for poll in greedy] == [False, False, True, True]
        with pytest.raises(SaturatedError):
            stack.enter_context(polls.enter("modest"))
    with ExitStack() as stack:
        for _ in range(4):  # all slots are free again
            stack.enter_context(polls.enter("modest"))


@pytest.mark.parametrize(("count", "expected_s"), [(1, 1), (50, 1), (400, 8)])
def test_all_together_read_records_again_at_a_bounded_rate(
    monkeypatch: pytest.MonkeyPatch, count: int, expected_s: float
) -> None:
    monkeypatch.setattr(module, "MAX_LONG_POLLS", 512)
    polls = LongPolls()
    with ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(polls.enter("caller"))
        assert polls.recheck_s == expected_s


def test_a_request_that_gives_way_returns_what_is_known(
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

"""Tasks of several callers: each waits in its caller's lane, and workers take from the lanes in turn."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from app.tasks.stream import LANES, consumer_config, lane_of, parse_task_subject, task_subject
from app.tasks.stream_state import read_state

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from app.service.crop import CheckedInput
    from app.settings import Settings
    from tests.tasks.conftest import Desk

    OpenDesk = Callable[..., AbstractAsyncContextManager[Desk]]
    Check = Callable[..., CheckedInput]


def callers(count: int) -> list[str]:
    """Return callers of as many lanes."""
    found: dict[int, str] = {}
    for number in range(1000):
        found.setdefault(lane_of(str(number)), str(number))
    return list(found.values())[:count]


@pytest.mark.parametrize("lane", range(LANES))
def test_a_subject_is_of_one_lane_and_of_its_consumer_alone(lane: int, make_settings: Callable[..., Settings]) -> None:
    subject = task_subject("a" * 32, lane)
    assert parse_task_subject(subject) == ("a" * 32, lane)
    filters = [str(consumer_config(make_settings(), number).filter_subject).split(".") for number in range(LANES)]
    tokens = subject.split(".")
    matching = [
        number
        for number, pattern in enumerate(filters)
        if len(pattern) == len(tokens) and all(a in {"*", b} for a, b in zip(pattern, tokens, strict=True))
    ]
    assert matching == [lane]


def test_callers_are_spread_evenly_and_no_caller_is_lane_0() -> None:
    counts = Counter(lane_of(str(number)) for number in range(8000))
    assert set(counts) == set(range(LANES))
    assert max(counts.values()) < 1.2 * min(counts.values())
    assert lane_of("") == 0


@pytest.mark.parametrize("options", [{"verify": "pixels", "background": "image"}, {}], ids=["heavy", "light"])
def test_a_caller_with_a_backlog_does_not_delay_another(
    at_work: OpenDesk, desk: OpenDesk, check: Check, options: dict[str, str]
) -> None:
    async def main() -> None:
        busy, other = callers(2)
        async with desk() as opened:
            backlog = [await opened.queue.submit(check(**options), caller=busy) for _ in range(200)]
            few = [await opened.queue.submit(check(**options), caller=other) for _ in range(20)]
            async with at_work() as working:
                ended = [await working.end_of(record.task_id) for record in few]
                last = max(record.completed_at or 0 for record in ended)
                for record in backlog:
                    await working.end_of(record.task_id)
                done = [(await working.queue.status(record.task_id)).completed_at or 0 for record in backlog]
            # In turn: 20 of each. Some more, because the other lane is only probed now and then.
            assert sum(at < last for at in done) < 100

    asyncio.run(main())


def test_what_each_of_many_callers_submits_is_worked_on(at_work: OpenDesk, check: Check) -> None:
    async def main() -> None:
        async with at_work(workers=2) as opened:
            taken = [await opened.queue.submit(check(), caller=caller) for caller in callers(LANES) for _ in range(5)]
            assert set((await read_state(opened.connection)).lanes.values()) <= set(range(LANES))
            for record in taken:
                assert (await opened.end_of(record.task_id)).attempts == 1
            await opened.drained()

    asyncio.run(main())


def test_an_idle_worker_takes_a_task_of_any_lane_at_once(at_work: OpenDesk, check: Check) -> None:
    async def main() -> None:
        async with at_work() as opened:
            waits = []
            for caller in callers(LANES):
                record = await opened.queue.submit(check(), caller=caller)
                ended = await opened.end_of(record.task_id)
                waits.append((ended.started_at or 0) - ended.submitted_at)
            assert sorted(waits)[LANES // 2] < 0.5, "polls wait at the server; without them it takes a whole period"

    asyncio.run(main())

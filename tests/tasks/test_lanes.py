"""Lanes: each caller has one, and workers take tasks from the lanes in turn."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from app.tasks.stream import LANES, consumer_config, lane_of, parse_task_subject, task_subject
from app.tasks.stream_state import read_state
from app.web.auth import Caller, KeyRing, _caller_at

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from app.service.crop import CheckedInput
    from app.settings import Settings
    from tests.tasks.conftest import Desk

    OpenDesk = Callable[..., AbstractAsyncContextManager[Desk]]
    Check = Callable[..., CheckedInput]

KEYS = [f"key-{number}" for number in range(LANES)]


@pytest.mark.parametrize("lane", range(LANES))
def test_a_subject_belongs_to_one_lane_and_its_consumer(lane: int, make_settings: Callable[..., Settings]) -> None:
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


@pytest.mark.parametrize(
    "found",
    [
        [KeyRing(KEYS).find(key.encode()) for key in KEYS],
        [_caller_at(f"192.0.2.{number}") for number in range(17, 17 + LANES)],
        [_caller_at(f"2001:db8:0:{number:x}::1") for number in range(17, 17 + LANES)],
    ],
    ids=["keys", "IPv4", "IPv6"],
)
def test_as_many_callers_as_lanes_have_different_lanes(found: list[Caller | None]) -> None:
    assert {lane_of(caller.number) for caller in found if caller} == set(range(LANES))


@pytest.mark.parametrize("options", [{"verify": "pixels", "background": "image"}, {}], ids=["heavy", "light"])
def test_a_caller_with_a_backlog_does_not_delay_another(
    at_work: OpenDesk, desk: OpenDesk, check: Check, options: dict[str, str]
) -> None:
    async def main() -> None:
        busy, other = range(2)
        async with desk() as opened:
            backlog = [await opened.queue.submit(check(**options), caller_number=busy) for _ in range(200)]
            few = [await opened.queue.submit(check(**options), caller_number=other) for _ in range(20)]
            async with at_work() as working:
                ended = [await working.end_of(record.task_id) for record in few]
                last = max(record.completed_at or 0 for record in ended)
                for record in backlog:
                    await working.end_of(record.task_id)
                done = [(await working.queue.status(record.task_id)).completed_at or 0 for record in backlog]
            # 20 of each lane in turn, and some more, because the other lane is only probed occasionally.
            assert sum(at < last for at in done) < 100

    asyncio.run(main())


def test_tasks_of_all_callers_are_processed(at_work: OpenDesk, check: Check) -> None:
    async def main() -> None:
        async with at_work(workers=2) as opened:
            taken = [await opened.queue.submit(check(), caller_number=lane) for lane in range(LANES) for _ in range(5)]
            assert set((await read_state(opened.connection)).lanes.values()) <= set(range(LANES))
            for record in taken:
                assert (await opened.end_of(record.task_id)).attempts == 1
            await opened.drained()

    asyncio.run(main())


def test_an_idle_worker_takes_a_task_of_any_lane_at_once(at_work: OpenDesk, check: Check) -> None:
    async def main() -> None:
        async with at_work() as opened:
            waits = []
            for lane in range(LANES):
                record = await opened.queue.submit(check(), caller_number=lane)
                ended = await opened.end_of(record.task_id)
                waits.append((ended.started_at or 0) - ended.submitted_at)
            assert sorted(waits)[LANES // 2] < 0.5, "polls wait at the server; without them it takes a whole period"

    asyncio.run(main())

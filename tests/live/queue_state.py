"""Leftovers in the queue of a running service."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from app.tasks.connection import Connection
from app.tasks.stream_state import QueueState, read_state

if TYPE_CHECKING:
    from app.settings import Settings
    from tests.live.conftest import RunningService

GAUGES = ("task_queue_size", "active_tasks_count", "task_oldest_age_seconds", "api_requests_in_progress")


def describe_rest(settings: Settings, service: RunningService) -> str:
    """Describe leftovers in the stream, its consumers and the gauges; empty if there are none."""
    state = asyncio.run(_read(settings))
    tracked = {lane: consumer for lane, consumer in state.after.items() if consumer.tracked}
    gauges = {key: value for key, value in service.scrape().items() if key[0] in GAUGES and value}
    return f"{state.lanes} {tracked} {gauges}" if state.lanes or tracked or gauges else ""


async def _read(settings: Settings) -> QueueState:
    connection = Connection(settings, "test", manages_streams=False)
    await connection.start()
    try:
        assert await connection.wait_up(lambda: False)
        return await read_state(connection)
    finally:
        await connection.close()

"""What one process works on tasks with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from concurrent.futures import Executor

    from app.service.crop import CropService
    from app.settings import Settings
    from app.tasks.records import Records


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerContext:
    """What a process works with.

    Attributes:
        settings: how long things may take.
        records: where ends are written.
        service: what does the work.
        pool: the threads that it is done on.
        benches: one a thread. Whoever waits for one has not begun, and is not to blame should the process die.
        closing: set when whoever waits for a bench is to give its task back.
    """

    settings: Settings
    records: Records
    service: CropService
    pool: Executor
    benches: asyncio.Semaphore
    closing: asyncio.Event

"""The metrics of all processes as text, for ``/metrics`` of the API."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

from prometheus_client.exposition import choose_encoder
from starlette.concurrency import run_in_threadpool

from app.service.coalescing import Coalescer

if TYPE_CHECKING:
    from collections.abc import Callable

    from prometheus_client import CollectorRegistry

PAUSE_FACTOR: Final = 4  # a pause this many times as long as the last encoding leaves the CPU to other requests


class Exposition:
    """Encodes the metrics, for all requests that come at the same time at once.

    The path needs no API key, and encoding takes some 20 ms of CPU.

    Args:
        registry: what is encoded.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._encodings = Coalescer[bytes]()
        self._next_at = 0.0

    async def encode(self, accept: str) -> tuple[bytes, str]:
        """Return the text and its content type.

        Args:
            accept: the request's ``Accept``.
        """
        encode, content_type = choose_encoder(accept)
        return await self._encodings.run(content_type, lambda: self._encode(encode)), content_type

    async def _encode(self, encode: Callable[[CollectorRegistry], bytes]) -> bytes:
        await asyncio.sleep(max(0.0, self._next_at - time.monotonic()))
        start = time.monotonic()
        text = await run_in_threadpool(encode, self._registry)
        end = time.monotonic()
        self._next_at = end + PAUSE_FACTOR * (end - start)
        return text

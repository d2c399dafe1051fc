"""Read request bodies within limits of size, idle time and rate."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from starlette.requests import ClientDisconnect

from app.web.problems import ProblemError

if TYPE_CHECKING:
    from fastapi import Request

    from app.service.body_budget import BodyBuffer

T = TypeVar("T")

SMALL_CHUNK = 4096
MERGED_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """Limits of one request body."""

    max_bytes: int
    timeout_s: float  # without progress
    min_rate: float  # bytes per second below which a sender uses up `timeout_s`; 0 for no minimum


def declared_size(request: Request) -> int | None:
    """Return the Content-Length, which the HTTP parser has validated, or None."""
    declared = request.headers.get("content-length")
    return None if declared is None else int(declared)


def require_declared_size(request: Request, max_bytes: int) -> None:
    """Reject a body by its declared size, before reading any of it.

    Raises:
        ProblemError: ``body_too_large``.
    """
    declared = declared_size(request)
    if declared is not None and declared > max_bytes:
        raise _too_large(str(declared), max_bytes)


async def read_body(request: Request, buffer: BodyBuffer, limits: BodyLimits) -> bytes:
    """Read the whole body.

    Raises:
        ProblemError: ``body_too_large`` or ``body_timeout``.
        SaturatedError: no memory became free for the body.
        starlette.requests.ClientDisconnect: the client disconnected.
    """
    chunks, waited_s = _Chunks(), 0.0
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(limits.timeout_s) as timer:
            buffer.on_drop = lambda: timer.reschedule(loop.time())
            deadline = loop.time() + limits.timeout_s
            while True:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                chunk = message.get("body", b"")
                if chunks.size + len(chunk) > limits.max_bytes:
                    chunks.size += len(chunk)
                    raise _too_large("more", limits.max_bytes)
                before = loop.time()
                if not buffer.reserve(len(chunk)):
                    timer.reschedule(None)  # the sender is not late while the service does not read
                    await buffer.wait(len(chunk))
                chunks.append(chunk)
                if not message.get("more_body", False):
                    break
                now = loop.time()
                waited_s += now - before
                deadline = _extend(deadline + now - before, now, len(chunk), limits)
                if not buffer.is_dropped:
                    timer.reschedule(deadline)
        buffer.finish()
    except TimeoutError:
        raise _too_slow(chunks.size, limits, is_dropped=buffer.is_dropped) from None
    finally:
        buffer.on_drop = lambda: None
        request.state.body_bytes = chunks.size
        # The time in which the service did not read is its own, and not that of the client's network.
        request.state.body_read_s = time.perf_counter() - waited_s
    return chunks.join()


async def cancel_on_disconnect(request: Request, work: asyncio.Future[T]) -> T:
    """Wait for work of a request whose body has been read, and cancel it if the client disconnects.

    Work that has not started then never starts.

    Raises:
        starlette.requests.ClientDisconnect: the client disconnected before the work ended.
        asyncio.CancelledError: the request itself was cancelled, even if the client disconnected as well.
    """
    disconnect = asyncio.ensure_future(request.receive())  # after the body, the only message left is the disconnect
    disconnect.add_done_callback(lambda _: work.cancel())
    task = asyncio.current_task()
    try:
        return await work
    except asyncio.CancelledError:
        is_own_cancellation = task is not None and task.cancelling() > 0
        if is_own_cancellation or not disconnect.done() or disconnect.cancelled():
            raise
        raise ClientDisconnect from None
    finally:
        disconnect.cancel()


def _extend(deadline: float, now: float, size: int, limits: BodyLimits) -> float:
    """Return the new deadline: bytes extend it at the minimum rate, to at most one timeout from now.

    An idle sender times out after `timeout_s`, and a sender below the minimum rate somewhat later.
    """
    latest = now + limits.timeout_s
    if limits.min_rate and size:
        return min(deadline + size / limits.min_rate, latest)
    return latest if size else deadline


class _Chunks:
    """Chunks of a body. Small chunks are merged, because single bytes take forty times their size as objects."""

    def __init__(self) -> None:
        self.size = 0
        self._pieces: list[bytes | bytearray] = []

    def append(self, chunk: bytes) -> None:
        if not chunk:
            return
        self.size += len(chunk)
        last = self._pieces[-1] if self._pieces else b""
        if not last or len(chunk) >= SMALL_CHUNK or len(last) >= MERGED_BYTES:
            self._pieces.append(chunk)
        elif isinstance(last, bytearray):
            last += chunk
        else:
            self._pieces[-1] = bytearray(last + chunk)

    def join(self) -> bytes:
        """Return the whole body, without a copy if it arrived in one chunk."""
        return bytes(self._pieces[0]) if len(self._pieces) == 1 else b"".join(self._pieces)


def _too_slow(size: int, limits: BodyLimits, *, is_dropped: bool) -> ProblemError:
    if is_dropped:
        expected = "a faster sender while memory for bodies is low"
    else:
        rate = f" and at least {limits.min_rate:g} bytes/s" if limits.min_rate else ""
        expected = f"no pause of {limits.timeout_s:g} s{rate}"
    detail = f"body: expected {expected}, got {size} bytes so far"
    return ProblemError("body_timeout", detail, headers={"Connection": "close"})


def _too_large(received: str, max_bytes: int) -> ProblemError:
    detail = f"body: expected at most {max_bytes} bytes, got {received}"
    return ProblemError("body_too_large", detail, extra={"max_bytes": max_bytes})

"""Read the body of a request: bounded in bytes, in silence and in slowness."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from starlette.requests import ClientDisconnect

from app.web.problem_codes import ProblemError

if TYPE_CHECKING:
    from fastapi import Request

    from app.service.body_budget import BodyBuffer

T = TypeVar("T")

SMALL_CHUNK = 4096
MERGED_BYTES = 65_536


def require_declared_size(request: Request, max_bytes: int) -> None:
    """Refuse a body by its declared length, before any of it is read.

    Raises:
        ProblemError: ``body_too_large``.
    """
    declared = declared_size(request)
    if declared is not None and declared > max_bytes:
        raise _too_large(f"got {declared}", max_bytes)


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """Limits of one body.

    Attributes:
        max_bytes: size.
        timeout_s: silence of the sender, in seconds.
        min_rate: bytes per second below which the sender uses up the time of `timeout_s`; 0 for no minimum.
    """

    max_bytes: int
    timeout_s: float
    min_rate: float


def declared_size(request: Request) -> int | None:
    """Return the Content-Length, or None without one; the HTTP parser has checked that it is a number."""
    declared = request.headers.get("content-length")
    return None if declared is None else int(declared)


async def read_body(request: Request, buffer: BodyBuffer, limits: BodyLimits) -> bytes:
    """Read the whole body.

    Raises:
        ProblemError: ``body_too_large`` or ``body_timeout``.
        SaturatedError: no memory became free for the body.
        starlette.requests.ClientDisconnect: the caller went away.
    """
    chunks = _Chunks()
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
                    raise _too_large("got more", limits.max_bytes)
                before = loop.time()
                if not buffer.reserve(len(chunk)):
                    timer.reschedule(None)  # the sender is not late while the service does not read
                    await buffer.wait(len(chunk))
                chunks.append(chunk)
                if not message.get("more_body", False):
                    break
                now = loop.time()
                deadline = _extend(deadline + now - before, now, len(chunk), limits)
                if not buffer.is_dropped:
                    timer.reschedule(deadline)
        buffer.finish()
    except TimeoutError:
        raise _too_slow(chunks.size, limits, is_dropped=buffer.is_dropped) from None
    finally:
        buffer.on_drop = lambda: None
        request.state.body_bytes = chunks.size
    return chunks.join()


def _extend(deadline: float, now: float, size: int, limits: BodyLimits) -> float:
    """Return the new deadline: bytes buy time at the minimum rate, up to the timeout from now.

    A sender that is silent runs out of time after `timeout_s`, and one below the minimum rate somewhat later.
    """
    latest = now + limits.timeout_s
    if limits.min_rate and size:
        return min(deadline + size / limits.min_rate, latest)
    return latest if size else deadline


class _Chunks:
    """The pieces of a body. Small ones are merged: as objects, single bytes would take forty times their size."""

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
        """Return the whole body; one that came in one piece is not copied."""
        return bytes(self._pieces[0]) if len(self._pieces) == 1 else b"".join(self._pieces)


def _too_slow(size: int, limits: BodyLimits, *, is_dropped: bool) -> ProblemError:
    if is_dropped:
        detail = f"expected a faster sender, because memory for bodies is short; got {size} bytes so far"
    else:
        rate = f" and at least {limits.min_rate:g} bytes/s" if limits.min_rate else ""
        detail = f"expected no pause of {limits.timeout_s:g} s{rate}, got {size} bytes so far"
    return ProblemError("body_timeout", detail, headers={"Connection": "close"})


async def unless_gone(request: Request, work: asyncio.Future[T]) -> T:
    """Wait for work on a request whose body has been read, as long as somebody waits for the answer.

    Args:
        request: what the work is for.
        work: cancelled when the caller goes away, so that it is not begun where it has not been.

    Raises:
        starlette.requests.ClientDisconnect: the caller went away first.
    """
    gone = asyncio.ensure_future(request.receive())  # after the body, all that can come is the end
    gone.add_done_callback(lambda _: work.cancel())
    try:
        return await work
    except asyncio.CancelledError:
        if gone.done() and not gone.cancelled():
            raise ClientDisconnect from None
        raise
    finally:
        gone.cancel()


def _too_large(came: str, max_bytes: int) -> ProblemError:
    return ProblemError("body_too_large", f"expected at most {max_bytes} bytes, {came}", extra={"max_bytes": max_bytes})

"""Taking in a request's body: bounded in bytes and in time, whether its length was declared or not."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from starlette.requests import ClientDisconnect

from app.web.problem_codes import ProblemError

if TYPE_CHECKING:
    from fastapi import Request

    from app.service.admission import Buffer

T = TypeVar("T")


def require_declared_size(request: Request, max_bytes: int) -> None:
    """Refuse a body by its declared length, before any of it is read.

    Raises:
        ProblemError: ``body_too_large``.
    """
    declared = request.headers.get("content-length")
    if declared is not None and int(declared) > max_bytes:  # the HTTP parser has seen to it that it is a number
        raise _too_large(f"got {declared}", max_bytes)


async def read_body(request: Request, buffer: Buffer, *, max_bytes: int, timeout_s: float) -> bytes:
    """Read the whole body.

    Args:
        request: what to read.
        buffer: told of every byte that is kept.
        max_bytes: the most that is read.
        timeout_s: how long it may take.

    Raises:
        ProblemError: ``body_too_large`` or ``body_timeout``.
        SaturatedError: the process keeps as many bytes as it may.
        starlette.requests.ClientDisconnect: the caller went away.
    """
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                chunk = message.get("body", b"")
                size += len(chunk)
                if size > max_bytes:
                    raise _too_large("got more", max_bytes)
                buffer.keep(len(chunk))
                chunks.append(chunk)
                if not message.get("more_body", False):
                    break
    except TimeoutError:
        detail = f"expected the whole body within {timeout_s:g} s, got {size} bytes"
        raise ProblemError("body_timeout", detail, headers={"Connection": "close"}) from None
    finally:
        request.state.body_bytes = size
    return b"".join(chunks) if len(chunks) > 1 else chunks[0]


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

"""The response to requests that are cancelled because the process stops."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from app.web.shutdown import ShutdownGuard
from app.web.state import Shutdown

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

SCOPE = {"type": "http", "method": "POST", "path": "/", "headers": []}
START = {"type": "http.response.start", "status": 200, "headers": []}


async def receive() -> Any:
    return {"type": "http.request"}


def run(app: Callable[..., Awaitable[None]], *, is_ending: bool) -> list[dict[str, Any]]:
    """Start a request, stop the process if so wanted, cancel the request, and return what was sent."""
    sent: list[dict[str, Any]] = []
    shutdown = Shutdown()
    guard = ShutdownGuard(app, shutdown=shutdown, retry_after_s=7)

    async def send(message: Any) -> None:
        sent.append(message)

    async def main() -> None:
        request = asyncio.ensure_future(guard(SCOPE, receive, send))
        await asyncio.sleep(0)
        if is_ending:
            shutdown.end()
        request.cancel()
        await request

    asyncio.run(main())
    return sent


async def wait_for_ever(_scope: Any, _receive: Any, _send: Any) -> None:
    await asyncio.Event().wait()


async def wait_after_start(_scope: Any, _receive: Any, send: Any) -> None:
    await send(START)
    await asyncio.Event().wait()


def test_cancelled_request_gets_a_problem() -> None:
    start, body = run(wait_for_ever, is_ending=True)
    headers = dict(start["headers"])
    assert start["status"] == 503
    assert headers[b"retry-after"] == b"7"
    assert headers[b"connection"] == b"close"
    assert json.loads(body["body"])["code"] == "shutting_down"


def test_response_that_has_begun_is_not_followed_by_another() -> None:
    with pytest.raises(asyncio.CancelledError):
        run(wait_after_start, is_ending=True)


def test_other_cancellations_are_errors() -> None:
    with pytest.raises(RuntimeError, match="not stopping"):
        run(wait_for_ever, is_ending=False)


def test_request_that_comes_too_late_is_not_begun() -> None:
    shutdown, sent = Shutdown(), []
    shutdown.end()

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(ShutdownGuard(wait_for_ever, shutdown=shutdown, retry_after_s=1)(SCOPE, receive, send))
    assert [message.get("status") for message in sent] == [503, None]

"""The last response of a stopping process: a problem document for each request that cannot be finished."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from app.observability import recording
from app.web.problem_codes import PROBLEMS
from app.web.problems import NO_STORE, problem_response

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from app.web.state import Shutdown

CODE = "shutting_down"
DETAIL = "the process that handled the request is stopping; retry after the time in Retry-After"


def shutdown_headers(retry_after_s: int) -> dict[str, str]:
    """Return the headers of a response that says the process is stopping."""
    return {"Retry-After": str(retry_after_s), "Connection": "close", **NO_STORE}


class ShutdownGuard:
    """Responds with 503 to a request that the server cancels because the process stops.

    It belongs inside the middleware that counts and logs, so that the response has its access line and its metrics.

    Args:
        app: the application inside.
        shutdown: shared with the server.
        retry_after_s: for the header.
    """

    def __init__(self, app: ASGIApp, *, shutdown: Shutdown, retry_after_s: int) -> None:
        self._app = app
        self._shutdown = shutdown
        self._headers = shutdown_headers(retry_after_s)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._shutdown.has_ended():
            await self._respond(scope, receive, send)
            return
        sent: list[str] = []

        async def send_noting(message: Message) -> None:
            sent.append(message["type"])
            await send(message)

        try:
            await self._app(scope, receive, send_noting)
        except asyncio.CancelledError:
            if not self._shutdown.has_ended():
                raise RuntimeError("the request was cancelled although the process is not stopping") from None
            if sent:
                raise
            _uncancel()
            await self._respond(scope, receive, send)

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        recording.record_error(CODE, "api")
        status, title = PROBLEMS[CODE]
        await problem_response(CODE, status, title, DETAIL, headers=self._headers)(scope, receive, send)


def _uncancel() -> None:
    task = asyncio.current_task()
    while task is not None and task.cancelling():
        task.uncancel()

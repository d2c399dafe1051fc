"""Middleware that records the metrics of requests.

prometheus-fastapi-instrumentator resolves the route template of a request. Its own middleware is not used, because it
cannot record the gauge of requests in progress under our labels, and takes four times the CPU time of this one.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from prometheus_fastapi_instrumentator.routing import get_route_name
from starlette.requests import HTTPConnection

from app.observability import metrics, recording
from app.web.middleware import refusal_of

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send


class RequestMetrics:
    """Middleware that records the count, durations and sizes of requests after the response has been sent."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._static_paths: set[str] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method, endpoint = metrics.method_label(scope["method"]), self._endpoint_label(scope)
        start_s = time.perf_counter()
        response_s: float | None = None  # None if the client disconnected, or the request failed before the response
        status, response_bytes = 500, 0

        async def send_observed(message: Message) -> None:
            nonlocal response_s, status, response_bytes
            if message["type"] == "http.response.start":
                response_s = time.perf_counter()
                status = message["status"]
                headers = message["headers"]
                response_bytes = next((int(value) for name, value in headers if name == b"content-length"), 0)
            await send(message)

        with recording.deferred():
            recording.record_request_started(method, endpoint)
            try:
                await self._app(scope, receive, send_observed)
            finally:
                end_s = time.perf_counter() if response_s is None else response_s
                state = scope.get("state", {})
                if (refusal := refusal_of(scope)) is not None:
                    status = refusal.status
                upload_s = max(0.0, state.get("body_read_s", start_s) - start_s)
                recording.record_request_ended(method, endpoint)
                recording.record_response(
                    method,
                    endpoint,
                    str(int(status)),
                    # Without the time that the client's network takes, for the body and for the response: a slow client
                    # is not a slow service.
                    duration_s=max(0.0, end_s - start_s - upload_s),
                    upload_s=upload_s,
                    # The received size, because Content-Length can contain any number.
                    request_bytes=state.get("body_bytes", 0),
                    response_bytes=response_bytes,
                )

    def _endpoint_label(self, scope: Scope) -> str:
        """Return the route template; cache routes without parameters, whose number is bounded."""
        path: str = scope["path"]
        if path in self._static_paths:
            return path
        template = get_route_name(HTTPConnection(scope), should_include_root_path=False)
        if template == path:
            self._static_paths.add(path)
        return template or metrics.UNMATCHED_ENDPOINT

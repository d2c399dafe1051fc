"""Middleware that records each request as a span; installed only if traces are on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.observability import metrics, tracing
from app.web.middleware import refusal_of

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send


class RequestTrace:
    """Middleware around all others that see the paths of the service, so that their log lines contain the trace id.

    The response has a ``traceparent``, with which a caller finds its request among the traces.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method = metrics.method_label(scope["method"])
        attributes = {
            "url.scheme": scope.get("scheme", "http"),
            "network.protocol.version": scope.get("http_version", "1.1"),
        }
        request = tracing.begin_request(method, scope["headers"], attributes)
        if request is None:
            await self._app(scope, receive, send)
            return
        status = 0

        async def send_with_context(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"traceparent", request.traceparent)]
            await send(message)

        try:
            await self._app(scope, receive, send_with_context)
        finally:
            state = scope.get("state", {})
            route = getattr(scope.get("route"), "path", None)
            if (refusal := refusal_of(scope)) is not None:
                status = refusal.status
            code, body_bytes = state.get("error_code"), state.get("body_bytes", 0)
            tracing.end_request(request, method, route, status, code=code, body_bytes=body_bytes)

"""Adapter for prometheus-fastapi-instrumentator: request metrics with the names and labels of `app.observability`.

It subclasses the middleware of the instrumentator, because the public interface (``Instrumentator().add(…)``) cannot
record the gauge of requests in progress under our labels, and resolves the route again for each request. The attributes
and the method that it relies on are listed in `tests/contracts/test_web_internals.py`.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, cast

from prometheus_fastapi_instrumentator.middleware import PrometheusInstrumentatorMiddleware

from app.observability import metrics, recording

if TYPE_CHECKING:
    from prometheus_client import Gauge
    from prometheus_fastapi_instrumentator.metrics import Info
    from starlette.requests import Request
    from starlette.types import ASGIApp, Receive, Scope, Send


class _InProgressGauge:
    """The gauge of requests in progress, with the interface that the instrumentator expects."""

    @staticmethod
    def labels(method: str, endpoint: str) -> Any:
        """Return the gauge of one method and route."""
        return metrics.child("api_requests_in_progress", metrics.method_label(method), _endpoint_label(endpoint))


class RequestMetrics(PrometheusInstrumentatorMiddleware):
    """Middleware of the instrumentator that records our metrics instead of its own."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__(
            app,
            should_group_status_codes=False,
            should_instrument_requests_inprogress=False,
            instrumentations=[record_request],
        )
        # Set after the constructor, which would register a gauge with other labels in the default registry.
        self.should_instrument_requests_inprogress = True
        self.inprogress_labels = True
        self.inprogress = cast("Gauge", _InProgressGauge())
        self._static_routes: dict[str, tuple[str, bool]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request, and record its metrics after the response has been sent."""
        with recording.deferred():
            await super().__call__(scope, receive, send)

    def _get_handler(self, request: Request) -> tuple[str, bool]:
        """Return the route template of a request; cache routes without parameters, whose number is bounded."""
        path = request.scope["path"]
        handler = self._static_routes.get(path)
        if handler is None:
            handler = super()._get_handler(request)
            if handler == (path, True):
                self._static_routes[path] = handler
        return handler


def record_request(info: Info) -> None:
    """Record the count, durations and sizes of a request.

    The duration excludes the time that the client's network takes, for the body and for the response: a slow client is
    not a slow service.
    """
    method, endpoint = metrics.method_label(info.method), _endpoint_label(info.modified_handler)
    state = info.request.scope.get("state", {})
    start_s = time.perf_counter() - info.modified_duration
    upload_s = max(0.0, state.get("body_read_s", start_s) - start_s)
    # 0 if no response was sent, because the client disconnected or the request failed.
    until_response_s = info.modified_duration_without_streaming or info.modified_duration
    # The server may have responded instead of the application, to a body that is not valid HTTP.
    status = str(state["refusal"].status) if "refusal" in state else info.modified_status
    metrics.child("api_requests_total", method, endpoint, status).inc()
    metrics.child("api_request_duration_seconds", method, endpoint).observe(max(0.0, until_response_s - upload_s))
    metrics.child("api_request_upload_seconds", method, endpoint).observe(upload_s)
    # The received size, because Content-Length can contain any number.
    metrics.child("api_request_size_bytes", method, endpoint).observe(state.get("body_bytes", 0))
    headers = [] if info.response is None else info.response.raw_headers
    response_bytes = next((int(value) for name, value in headers if name == b"content-length"), 0)
    metrics.child("api_response_size_bytes", method, endpoint).observe(response_bytes)


def _endpoint_label(handler: str) -> str:
    return metrics.UNMATCHED_ENDPOINT if handler == "none" else handler

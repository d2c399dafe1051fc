"""What surrounds every request: its ids, its access line, its metrics, and the last catch."""

from __future__ import annotations

import ipaddress
import time
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

from prometheus_fastapi_instrumentator.middleware import PrometheusInstrumentatorMiddleware
from starlette.datastructures import Headers

from app.observability import context, metrics, recording
from app.observability.rich_logging import get_logger
from app.web.problems import internal_error_response

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client import Gauge
    from prometheus_fastapi_instrumentator.metrics import Info
    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = get_logger("api")

MAX_LOGGED_PATH = 256

_NOSNIFF = (b"x-content-type-options", b"nosniff")
# An SVG opened on its own is a document: no scripts in it, nothing fetched; its background image is a data URL.
_SVG_POLICY = (
    b"content-security-policy",
    b"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'none'; sandbox",
)


class RequestContext:
    """Gives a request its ids, writes its access line, and turns what nobody caught into a 500.

    Args:
        app: the application inside.
        is_access_logged: whether to write the line.
    """

    def __init__(self, app: ASGIApp, *, is_access_logged: bool) -> None:
        self._app = app
        self._is_access_logged = is_access_logged

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        headers = Headers(scope=scope)
        request_id = context.accept_request_id(headers.get("x-request-id"))
        context.request_id.set(request_id)
        context.trace_id.set(context.parse_trace_id(headers.get("traceparent")))
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = _add_headers(message["headers"], request_id)
                if (limit := scope.get("state", {}).get("rate_limit")) is not None:
                    limits = limit.headers().items()
                    message["headers"] += [(name.lower().encode(), value.encode()) for name, value in limits]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            log.exception("Unhandled error")
            if status:  # the response has begun; only a broken connection can still show that it is not whole
                recording.record_error("internal_error", "api")
                raise
            await internal_error_response()(scope, receive, send_with_id)
        finally:
            if self._is_access_logged:
                _log_access(scope, status, 1000 * (time.perf_counter() - start))


def _add_headers(headers: Iterable[tuple[bytes, bytes]], request_id: str) -> list[tuple[bytes, bytes]]:
    """Add what every response has, and the policy of an SVG."""
    given = dict(headers)
    added = [*headers, (b"x-request-id", request_id.encode())]
    if _NOSNIFF[0] not in given:
        added.append(_NOSNIFF)
    if given.get(b"content-type", b"").startswith(b"image/svg+xml") and _SVG_POLICY[0] not in given:
        added.append(_SVG_POLICY)
    return added


def record_refusal(client: str, status: int) -> str:
    """Give an id, an access line and a count to a request that never became one: no HTTP, or too long a head.

    Returns:
        The id, which is set for what is done next.
    """
    request_id = context.accept_request_id(None)
    context.request_id.set(request_id)
    fields = {"method": metrics.OTHER_METHOD, "path": "-", "status": status, "duration_ms": 0.0, "client": client}
    log.info("%s - %d 0.0ms %s", metrics.OTHER_METHOD, status, client, extra=fields)
    recording.record_answer(metrics.OTHER_METHOD, metrics.UNMATCHED_ENDPOINT, status)
    return request_id


def _log_access(scope: Scope, status: int, duration_ms: float) -> None:
    client = _client_address(scope)
    method = metrics.method_label(scope["method"])
    # As it came: decoded, it could hold line breaks and what a terminal takes for commands.
    path = scope["raw_path"][:MAX_LOGGED_PATH].decode("ascii", "replace")
    fields = {"method": method, "path": path, "status": status, "duration_ms": round(duration_ms, 2), "client": client}
    caller = scope.get("state", {}).get("caller")
    if caller is not None and caller.label:
        fields["api_key"] = caller.label
        client = f"{client} {caller.label}"
    log.info("%s %s %d %.1fms %s", method, path, status, duration_ms, client, extra=fields)


def _client_address(scope: Scope) -> str:
    """Return the caller's address; a proxy header that holds anything else is the caller's text, and not repeated."""
    return _checked_address(scope["client"][0]) if scope.get("client") else "-"


@lru_cache(maxsize=1024)
def _checked_address(host: str) -> str:
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return "-"


class _InProgress:
    """Speaks to the instrumentator as its gauge would, under the labels of our table."""

    @staticmethod
    def labels(method: str, endpoint: str) -> Any:
        """Return the gauge of one method and route."""
        return metrics.child("api_requests_in_progress", metrics.method_label(method), _endpoint(endpoint))


class RequestMetrics(PrometheusInstrumentatorMiddleware):
    """The instrumentator, with its own metrics replaced by ours."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__(
            app,
            should_group_status_codes=False,
            should_instrument_requests_inprogress=False,
            instrumentations=[record_request],
        )
        # Its constructor would make a gauge in the default registry under a label of another name.
        self.should_instrument_requests_inprogress = True
        self.inprogress_labels = True
        self.inprogress = cast("Gauge", _InProgress())
        self._plain: dict[str, tuple[str, bool]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Record everything that comes of one request once its answer is out."""
        with recording.deferred():
            await super().__call__(scope, receive, send)

    def _get_handler(self, request: Request) -> tuple[str, bool]:
        """Find the route's template; where that is the path itself, once for all."""
        path = request.scope["path"]
        found = self._plain.get(path)
        if found is None:
            found = super()._get_handler(request)
            if found == (path, True):  # as many as there are routes without parameters
                self._plain[path] = found
        return found


def record_request(info: Info) -> None:
    """Record one answered request: count, duration and sizes."""
    method, endpoint = metrics.method_label(info.method), _endpoint(info.modified_handler)
    metrics.child("api_requests_total", method, endpoint, info.modified_status).inc()
    metrics.child("api_request_duration_seconds", method, endpoint).observe(info.modified_duration)
    # What came, not what was declared: a header can declare any number.
    body_bytes = info.request.scope.get("state", {}).get("body_bytes", 0)
    metrics.child("api_request_size_bytes", method, endpoint).observe(body_bytes)
    if info.response is not None:
        metrics.child("api_response_size_bytes", method, endpoint).observe(_content_length(info.response.raw_headers))


def _content_length(headers: list[tuple[bytes, bytes]]) -> int:
    return next((int(value) for name, value in headers if name == b"content-length"), 0)


def _endpoint(handler: str) -> str:
    return metrics.UNMATCHED_ENDPOINT if handler == "none" else handler

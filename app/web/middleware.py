"""Middleware around every request: request id, access log, unhandled exceptions and shutdown."""

from __future__ import annotations

import asyncio
import ipaddress
import time
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from starlette.datastructures import Headers
from starlette.responses import RedirectResponse

from app.observability import metrics, recording, rich_logging, tracing
from app.observability.rich_logging import get_logger
from app.web.error_handlers import NO_STORE, internal_error_response, problem_response
from app.web.problems import PROBLEMS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send


log = get_logger("api")

MAX_LOGGED_PATH: Final = 256
SHUTDOWN_CODE: Final = "shutting_down"
SHUTDOWN_DETAIL: Final = "worker is shutting down; retry after the time in Retry-After"

_NOSNIFF = (b"x-content-type-options", b"nosniff")
# A browser that opens the SVG itself must not run scripts or load anything; the background image is a data URL.
_SVG_POLICY = (
    b"content-security-policy",
    b"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'none'; sandbox",
)


class RequestContext:
    """Middleware that sets the request id, writes the access log and converts unhandled exceptions to status 500."""

    def __init__(self, app: ASGIApp, *, is_access_logged: bool) -> None:
        self._app = app
        self._is_access_logged = is_access_logged

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        headers = Headers(scope=scope)
        request_id = rich_logging.accept_request_id(headers.get("x-request-id"))
        rich_logging.request_id.set(request_id)
        if not tracing.is_enabled():  # otherwise `RequestTrace` has set the id
            rich_logging.trace_id.set(rich_logging.parse_trace_id(headers.get("traceparent")))
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
            if status:  # the response has started; only closing the connection can show that it is incomplete
                recording.record_error("internal_error", "api")
                raise
            await internal_error_response()(scope, receive, send_with_id)
        finally:
            if self._is_access_logged:
                _log_access(scope, status, 1000 * (time.perf_counter() - start))


def _add_headers(headers: Iterable[tuple[bytes, bytes]], request_id: str) -> list[tuple[bytes, bytes]]:
    """Add the headers of every response, and the security policy of an SVG."""
    given = dict(headers)
    added = [*headers, (b"x-request-id", request_id.encode())]
    if _NOSNIFF[0] not in given:
        added.append(_NOSNIFF)
    if given.get(b"content-type", b"").startswith(b"image/svg+xml") and _SVG_POLICY[0] not in given:
        added.append(_SVG_POLICY)
    return added


class PathPrefix:
    """Middleware that removes the prefix of a reverse proxy from the paths of requests, if the proxy has not done so.

    It must be outside of all others, which see the paths of the service.
    """

    def __init__(self, app: ASGIApp, *, prefix: str) -> None:
        self._app = app
        self._prefix = prefix
        self._raw_prefix = prefix.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; one for the prefix alone is redirected, because links of the page are relative."""
        if scope["type"] == "http":
            path: str = scope["path"]
            if path == self._prefix:
                await RedirectResponse(f"{self._prefix}/", 308)(scope, receive, send)
                return
            if path.startswith(f"{self._prefix}/"):
                raw_path = scope.get("raw_path") or b""
                scope = {**scope, "path": path.removeprefix(self._prefix)}
                scope["raw_path"] = raw_path.removeprefix(self._raw_prefix)
        await self._app(scope, receive, send)


class ShutdownGuard:
    """Middleware that responds with 503 to requests that the server cancels during shutdown.

    It must be inside the middleware for metrics and logs, so that the response is counted and logged.
    """

    def __init__(self, app: ASGIApp, *, shutdown: asyncio.Event, retry_after_s: int) -> None:
        self._app = app
        self._shutdown = shutdown
        self._headers = shutdown_headers(retry_after_s)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._shutdown.is_set():
            await self._respond(scope, receive, send)
            return
        has_started = False

        async def send_tracked(message: Message) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        try:
            await self._app(scope, receive, send_tracked)
        except asyncio.CancelledError:
            if not self._shutdown.is_set():
                raise RuntimeError("the request was cancelled although the process is not stopping") from None
            if has_started:
                raise
            _uncancel()
            await self._respond(scope, receive, send)

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        recording.record_error(SHUTDOWN_CODE, "api")
        status, title = PROBLEMS[SHUTDOWN_CODE]
        response = problem_response(SHUTDOWN_CODE, status, title, SHUTDOWN_DETAIL, headers=self._headers)
        await response(scope, receive, send)


def shutdown_headers(retry_after_s: int) -> dict[str, str]:
    """Return the headers of a response during shutdown."""
    return {"Retry-After": str(retry_after_s), "Connection": "close", **NO_STORE}


def _uncancel() -> None:
    task = asyncio.current_task()
    while task is not None and task.cancelling():
        task.uncancel()


def record_unparsed_request(client: str, status: int) -> str:
    """Log and count a request that never reached the application: invalid HTTP, or headers that are too large.

    Return a new request id, which is also set in the context.
    """
    request_id = rich_logging.accept_request_id(None)
    rich_logging.request_id.set(request_id)
    fields = {"method": metrics.OTHER_METHOD, "path": "-", "status": status, "duration_ms": 0.0, "client": client}
    log.info("%s - %d 0.0ms %s", metrics.OTHER_METHOD, status, client, extra=fields)
    recording.record_response(metrics.OTHER_METHOD, metrics.UNMATCHED_ENDPOINT, status)
    return request_id


def _log_access(scope: Scope, status: int, duration_ms: float) -> None:
    client = _valid_address(scope["client"][0]) if scope.get("client") else "-"
    method = metrics.method_label(scope["method"])
    # Logged undecoded, because a decoded path can contain line breaks and terminal escape sequences.
    path = scope["raw_path"][:MAX_LOGGED_PATH].decode("ascii", "replace")
    fields = {"method": method, "path": path, "status": status, "duration_ms": round(duration_ms, 2), "client": client}
    caller = scope.get("state", {}).get("caller")
    if caller is not None and caller.label:
        fields["api_key"] = caller.label
        client = f"{client} {caller.label}"
    log.info("%s %s %d %.1fms %s", method, path, status, duration_ms, client, extra=fields)


@lru_cache(maxsize=1024)
def _valid_address(host: str) -> str:
    """Return an address, or ``-`` for other text from a proxy header, which is not logged."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return "-"

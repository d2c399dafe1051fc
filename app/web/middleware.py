"""Middleware around every request: request id, access log, unhandled exceptions and shutdown."""

from __future__ import annotations

import asyncio
import ipaddress
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from starlette.datastructures import Headers

from app.observability import metrics, recording, rich_logging, tracing
from app.observability.rich_logging import get_logger
from app.web.error_handlers import (
    NO_STORE,
    TYPE_PREFIX,
    internal_error_response,
    note_error,
    note_status,
    problem_response,
)
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


@dataclass(frozen=True, slots=True)
class Refusal:
    """A response that the server sent instead of the application."""

    status: int
    bytes_out: int


def refusal_of(scope: Scope) -> Refusal | None:
    """Return the response that the client received instead of that of the application, if there is one."""
    refusal: Refusal | None = scope.get("state", {}).get("refusal")
    return refusal


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
        state = scope.setdefault("state", {})
        request_id = request_id_of(scope)
        rich_logging.request_id.set(request_id)
        _set_trace_id(headers)
        status = bytes_out = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status, bytes_out
            if message["type"] == "http.response.body":
                bytes_out += len(message.get("body", b""))
            elif message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = _add_headers(message["headers"], request_id)
                if (limit := state.get("rate_limit")) is not None:
                    limits = limit.headers().items()
                    message["headers"] += [(name.lower().encode(), value.encode()) for name, value in limits]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            log.exception("Unhandled error")
            note_error(scope, "internal_error")
            if status:  # the response has started; only closing the connection can show that it is incomplete
                raise
            await internal_error_response()(scope, receive, send_with_id)
        finally:
            if (refusal := refusal_of(scope)) is not None:
                status, bytes_out = refusal.status, refusal.bytes_out
            note_status(scope, status)
            if self._is_access_logged:
                _log_access(scope, status, start, 0 if scope["method"] == "HEAD" else bytes_out)


def _set_trace_id(headers: Headers) -> None:
    if not tracing.is_enabled():  # otherwise `RequestTrace` has set it
        rich_logging.trace_id.set(rich_logging.parse_trace_id(headers.get("traceparent")))


def request_id_of(scope: Scope) -> str:
    """Return the id of a request: that of its header if it is valid, or a new one."""
    state = scope.setdefault("state", {})
    request_id: str | None = state.get("request_id")
    if request_id is None:
        header = next((value for name, value in scope["headers"] if name == b"x-request-id"), None)
        request_id = state["request_id"] = rich_logging.accept_request_id(
            None if header is None else header.decode("latin-1")
        )
    return request_id


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
        """Handle one request; the application redirects one for the prefix alone."""
        if scope["type"] == "http":
            path: str = scope["path"]
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
        note_error(scope, SHUTDOWN_CODE)
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


def record_unparsed_request(client: str, code: str, status: int, bytes_out: int) -> None:
    """Log and count a request that never reached the application: invalid HTTP, or headers that are too large."""
    recording.record_error(code, "api")
    recording.record_response(metrics.OTHER_METHOD, metrics.UNMATCHED_ENDPOINT, str(status))
    fields = {
        "method": metrics.OTHER_METHOD,
        "path": "-",
        "status": status,
        "duration_ms": 0.0,
        "client": client,
        "bytes_in": 0,
        "bytes_out": bytes_out,
        "upload_ms": 0.0,
        "code": code,
        "type": TYPE_PREFIX + code,
    }
    log.info("%s - %d 0.0ms %s %s", metrics.OTHER_METHOD, status, client, code, extra=fields)


def record_closed_connection(client: str, code: str, reason: str) -> None:
    """Log and count an error that only closes the connection, because a response has been sent already."""
    recording.record_error(code, "api")
    extra = {"event": "connection_closed", "client": client, "code": code}
    log.info("%s: connection closed, because %s [%s]", client, reason, code, extra=extra)


def _log_access(scope: Scope, status: int, start: float, bytes_out: int) -> None:
    """Log a request that started at `start`, as `time.perf_counter` returned it."""
    state = scope["state"]
    duration_ms = 1000 * (time.perf_counter() - start)
    client = _valid_address(scope["client"][0]) if scope.get("client") else "-"
    method = metrics.method_label(scope["method"])
    # Logged undecoded, because a decoded path can contain line breaks and terminal escape sequences.
    path = scope["raw_path"][:MAX_LOGGED_PATH].decode("ascii", "replace")
    fields: dict[str, Any] = {
        "method": method,
        "path": path,
        "status": status,
        "duration_ms": round(duration_ms, 2),
        "client": client,
        "bytes_in": state.get("body_bytes", 0),
        "bytes_out": bytes_out,
        "upload_ms": round(max(0.0, 1000 * (state["body_read_s"] - start)), 2) if "body_read_s" in state else 0.0,
    }
    caller = state.get("caller")
    if caller is not None and caller.label:
        fields["api_key"] = caller.label
        fields["api_key_hash"] = caller.key_hash
        client = f"{client} {caller.label}"
    code = state.get("error_code")
    if code is not None:
        fields["code"] = code
        fields["type"] = TYPE_PREFIX + code
        client = f"{client} {code}"
    message = f"{method} {path} {status} {duration_ms:.1f}ms {client}"  # faster than arguments
    rich_logging.log_request(log, message, fields)


@lru_cache(maxsize=1024)
def _valid_address(host: str) -> str:
    """Return an address, or ``-`` for other text from a proxy header, which is not logged."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return "-"

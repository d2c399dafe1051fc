"""HTTP as uvicorn reads it, with a bound on a request's head, and with offers of other protocols passed over."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from app.observability import metrics
from app.observability.context import accept_request_id
from app.observability.recording import record_error
from app.runtime.closing import LingeringTransport
from app.web.middleware import record_refusal
from app.web.problem_codes import PROBLEMS
from app.web.problems import problem_response

if TYPE_CHECKING:
    from collections.abc import Iterator

# Proxies send on 8 to 32 KiB. The parser joins a header's pieces anew with each one that comes, so that without a
# bound one long header keeps a worker busy until it is taken for dead.
MAX_HEAD_BYTES = 65_536

IDLE_LINGER_S = 1.0  # how long a silent connection of a stopping process may still send a request
HEAD_TIMEOUT_S = 30.0  # from the connection, or a request's first byte, to the end of its head

# A second value is a request for two servers on the way to read the request differently.
_SINGLE_HEADERS = (
    b"host",
    b"content-type",
    b"content-encoding",
    b"content-length",
    b"transfer-encoding",
    b"authorization",
    b"idempotency-key",
)
_HOST = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]*)(:[0-9]{0,5})?")
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
# The parser reports an unknown method at its first wrong byte; the rest of the line shows whether it is HTTP at all.
_UNKNOWN_METHOD = re.compile(rb"^([!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}) [!-~]+ HTTP/1\.[01]\r?$", re.MULTILINE)
MAX_LINE_BYTES = 8192

_UPGRADE_HEADERS = {b"upgrade", b"http2-settings"}


class _RefusedError(Exception):
    """The head of a request is refused; raised within a callback of the parser."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


class ServiceProtocol(HttpToolsProtocol):
    """One connection.

    A client that offers to go on in another protocol (Java's offers HTTP/2 with each request) is answered in this one,
    as RFC 9110 has it; the parser alone would drop the request's body.
    """

    transport: LingeringTransport  # type: ignore[assignment]
    _is_offer = False
    _is_pausing = True
    _text_bytes = 0
    _head_bytes = 0
    _is_head_complete = False
    _has_target = False
    _refusal: _RefusedError | None = None
    _bad_line: bytes | None = None  # a request line that the parser refused, until it is complete
    _head_timer: asyncio.TimerHandle | None = None
    _is_stopping = False
    _is_head_open = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._unread: list[bytes] = []
        self._line = b""  # the bytes of a request line whose target has not come yet

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in the base class
        """Begin to wait for the first request's head."""
        super().connection_made(transport)
        self.transport = LingeringTransport(transport, self.loop, self._is_client_sending)
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._stop_head_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read what came, after what is still to be read again."""
        if self.transport.is_closing():
            self.transport.discard(len(data))
            return
        if self._unread:
            self._unread.append(data)
            return
        if self._bad_line is not None:
            self._refuse_line(data)
            return
        self._unset_keepalive_if_required()
        line = self._line
        # What is read without a step of the body or the message is text of headers or trailers, or between chunks.
        self._is_pausing = True
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            self._pass_over_offer(data[offer.args[0] :])
        except httptools.HttpParserInvalidMethodError:
            self._bad_line = line
            self._refuse_line(data)
        except httptools.HttpParserError:
            refusal = self._refusal or _RefusedError("http_invalid", "request: expected HTTP/1.1, got something else")
            self._refuse(refusal.code, refusal.detail)
        else:
            self._line = b"" if self._has_target else (line + data)[-MAX_LINE_BYTES:]
            self._text_bytes = self._text_bytes + len(data) if self._is_pausing else 0
            if self._text_bytes > MAX_HEAD_BYTES:
                refusal = _head_too_large()
                self._refuse(refusal.code, refusal.detail)

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._is_offer = self._is_head_complete = self._has_target = False
        self._head_bytes = 0
        self._is_head_open = True
        if self._head_timer is None:
            self._start_head_timer()
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Take a piece of the request's target."""
        self._has_target = True
        self._count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; the fields of a trailer are dropped, because they must not become headers."""
        self._count_head(len(name) + len(value) + len(b": \r\n"))
        if not self._is_head_complete:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start the request, unless it is to be read again without its offer."""
        self._is_pausing = False
        self._is_head_open = False
        self._stop_head_timer()
        self._is_head_complete = True
        self._is_offer = self.parser.should_upgrade()
        if not self._is_offer:
            self._count_head(len(self.parser.get_method()) + len(b"  HTTP/1.1\r\n\r\n"))
            self._require_valid_head()
            super().on_headers_complete()
            self.cycle.keep_alive = self.cycle.keep_alive and not self._is_stopping

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        self._is_pausing = False
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End the request's body."""
        self._is_pausing = self._has_target = False
        if not self._is_offer:
            super().on_message_complete()

    def shutdown(self) -> None:
        """Close the connection after the response to its last request; if it is idle, after a moment for another.

        A client may send a request while the connection that it reuses is being closed, and would not know whether it
        was handled.
        """
        self._is_stopping = True
        if self._is_busy():
            self.cycle.keep_alive = False
        else:
            self.loop.call_later(IDLE_LINGER_S, self._close_idle)

    def refuse_unanswered(self, headers: dict[str, str], code: str, detail: str) -> None:
        """Respond to a request that has no response yet, and close the connection."""
        if self.transport.is_closing():
            return
        if self._has_begun() or (self._is_busy() and not self.cycle.response_started):
            self._refuse(code, detail, headers)
        elif not self._is_busy():
            self.transport.close()

    def _close_idle(self) -> None:
        if not self._is_busy() and not self._has_begun():
            self.transport.close()

    def _is_busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _has_begun(self) -> bool:
        return self._is_head_open or bool(self._unread)

    def _is_client_sending(self) -> bool:
        return self._has_begun() or bool(self.pipeline) or (self.cycle is not None and self.cycle.more_body)

    def _count_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES:
            raise self._refused(_head_too_large())

    def _require_valid_head(self) -> None:
        version = self.parser.get_http_version()
        method = self.parser.get_method().decode("ascii")
        if (problem := head_problem(method, version, self.headers)) is not None:
            raise self._refused(problem)

    def _refused(self, refusal: _RefusedError) -> _RefusedError:
        self._refusal = refusal
        return refusal

    def _refuse_line(self, data: bytes) -> None:
        """Refuse a request line once it is complete: as an unknown method, or as no HTTP."""
        self._bad_line = (self._bad_line or b"") + data
        if b"\n" not in self._bad_line and len(self._bad_line) < MAX_LINE_BYTES and _is_like_method(self._bad_line):
            return
        is_http = any(line[1].decode() not in metrics.HTTP_METHODS for line in _UNKNOWN_METHOD.finditer(self._bad_line))
        self._bad_line = None
        if is_http:
            self._refuse("method_unknown", "method: expected one of HTTP's own, got another")
        else:
            self._refuse("http_invalid", "request: expected HTTP/1.1, got something else")

    def _pass_over_offer(self, rest: bytes) -> None:
        method = self.parser.get_method()
        if method == b"CONNECT":
            self._refuse("http_invalid", "method: expected a request, got CONNECT")
            return
        version = self.parser.get_http_version().encode()
        head = [method, b" ", self.url, b" HTTP/", version, b"\r\n", *self._other_headers(), b"\r\n"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as the base class does
        # In a turn of its own: requests with offers, many in one packet, would nest as deep as they are many.
        self._unread = [*head, rest]
        asyncio.get_running_loop().call_soon(self._read_again)

    def _read_again(self) -> None:
        data, self._unread = b"".join(self._unread), []
        if not self.transport.is_closing():
            self.data_received(data)

    def _other_headers(self) -> Iterator[bytes]:
        for name, value in self.headers:
            if name == b"connection":
                tokens = [token for token in value.split(b",") if token.strip().lower() not in _UPGRADE_HEADERS]
                yield b"connection: " + b",".join(tokens) + b"\r\n" if tokens else b""
            elif name not in _UPGRADE_HEADERS:
                yield name + b": " + value + b"\r\n"

    def _start_head_timer(self) -> None:
        self._head_timer = asyncio.get_running_loop().call_later(HEAD_TIMEOUT_S, self._give_up)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self) -> None:
        self.transport.close()

    def _refuse(self, code: str, detail: str, headers: dict[str, str] | None = None) -> None:
        status, title = PROBLEMS[code]
        record_error(code, "api")
        if self.cycle is None or self.cycle.response_complete:
            request_id = record_refusal(self.client[0] if self.client else "-", status)
        elif not self.cycle.response_started:
            request_id = accept_request_id(None)  # the request has its line and count, as one whose caller went away
        else:
            self.transport.close()  # an answer of its own would run into the one that is under way
            return
        every = {
            **(headers or {}),
            "Connection": "close",
            "X-Request-ID": request_id,
            "X-Content-Type-Options": "nosniff",
        }
        response = problem_response(code, status, title, detail, headers=every)
        head = b"".join(name + b": " + value + b"\r\n" for name, value in response.raw_headers)
        self.transport.write(STATUS_LINE[status] + head + b"\r\n" + response.body)
        self.transport.close()


def head_problem(method: str, version: str, headers: list[tuple[bytes, bytes]]) -> _RefusedError | None:
    """Return what is wrong with a request's head, beyond what the parser refuses."""
    if version in {"1.0", "1.1"} and method not in metrics.HTTP_METHODS:
        return _RefusedError("method_unknown", "method: expected one of HTTP's own, got another")
    detail = next(_find_faults(version, headers), None)
    return None if detail is None else _RefusedError("http_invalid", detail)


def _find_faults(version: str, headers: list[tuple[bytes, bytes]]) -> Iterator[str]:
    if version not in {"1.0", "1.1"}:
        yield "version: expected HTTP/1.0 or HTTP/1.1, got another"
    names = [name for name, _ in headers]
    for name in _SINGLE_HEADERS:
        if (count := names.count(name)) > 1:
            yield f"{name.decode().title()}: expected one field, got {count}"
    if version == "1.1" and b"host" not in names:
        yield "Host: required in HTTP/1.1, got none"
    for name, value in headers:
        if _CONTROL.search(value):
            yield "headers: expected no control characters, got some"
        if name == b"host" and not _HOST.fullmatch(value.strip()):
            yield "Host: expected a host and an optional port, got something else"
        if name == b"transfer-encoding" and (version == "1.0" or value.strip().lower() != b"chunked"):
            yield "Transfer-Encoding: expected chunked in HTTP/1.1, got another"


def _head_too_large() -> _RefusedError:
    return _RefusedError("head_too_large", f"headers: expected at most {MAX_HEAD_BYTES} bytes, got more")


def _is_like_method(line: bytes) -> bool:
    return re.match(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}( |$)", line) is not None

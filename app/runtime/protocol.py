"""The API's side of an HTTP connection: uvicorn's protocol with stricter parsing and with limits."""

from __future__ import annotations

from contextvars import Context
from typing import TYPE_CHECKING, Any

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from app.observability import context
from app.observability.context import accept_request_id
from app.observability.recording import record_error
from app.observability.rich_logging import get_logger
from app.runtime.closing import LingeringTransport
from app.runtime.framing import Head, body_of, invalid_body
from app.runtime.request_head import RefusedError, replace_host, require_valid_headers, split_target
from app.runtime.response_budget import response_budget
from app.runtime.write_timeout import WRITE_TIMEOUT_S, WriteTimeout
from app.web.error_handlers import problem_response
from app.web.middleware import record_unparsed_request
from app.web.problems import PROBLEMS

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator

    from app.runtime.framing import Part

log = get_logger("api")

IDLE_LINGER_S = 1.0  # how long a silent connection of a stopping process may still send a request
MAX_HEADERS = 128  # browsers and proxies send up to 50
HEAD_TIMEOUT_S = 30.0  # from the connection, or a request's first byte, to the end of its head

_UPGRADE_HEADERS = {b"upgrade", b"http2-settings"}


class ServiceProtocol(HttpToolsProtocol):
    """One connection.

    Requests are parsed one at a time: what is pipelined behind a request stays unread until its response has been
    written. So responses have the order of the requests, also if one is refused, and a client that does not read its
    responses causes no more work.

    A client that offers to go on in another protocol (Java's offers HTTP/2 with each request) gets its response in this
    one, as RFC 9110 requires; the parser alone would drop the request's body.
    """

    transport: LingeringTransport  # type: ignore[assignment]
    _write_timeout: WriteTimeout
    _head_timer: asyncio.TimerHandle | None = None
    _is_head_complete = False
    _is_message_complete = False
    _is_offer = False
    _is_refused = False
    _is_stopping = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._unread = bytearray()
        self._part: Part = Head()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in the base class
        """Begin to wait for the first request's head."""
        super().connection_made(transport)
        self.transport = LingeringTransport(transport, self.loop, self._is_client_sending)
        self._write_timeout = WriteTimeout(
            self.transport, self.loop, lambda: self._abort(f"the client read no response for {WRITE_TIMEOUT_S:g} s")
        )
        self.flow = _FlowControl(transport, self._unread)
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._stop_head_timer()
        self._write_timeout.stop()
        response_budget(self.loop).forget(self.transport)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what came, and parse what is due."""
        if self.transport.is_closing():
            self.transport.discard(len(data))
            return
        self._unset_keepalive_if_required()
        self._read(data)

    def pause_writing(self) -> None:
        """Note that the client does not read as fast as its response is written."""
        super().pause_writing()
        reason = "the client reads slowly, and memory for responses is short"
        response_budget(self.loop).watch(self.transport, lambda: self._abort(reason))

    def resume_writing(self) -> None:
        """Go on with the next request, which may have waited until the client read its responses."""
        super().resume_writing()
        self._read_later()

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._is_offer = self._is_head_complete = self._is_message_complete = False
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; the fields of a trailer are dropped, because they must not become headers."""
        if not self._is_head_complete:
            if len(self.headers) == MAX_HEADERS:
                raise RefusedError("head_too_large", f"headers: expected at most {MAX_HEADERS} fields, got more")
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start the request, unless it is to be parsed again without its offer."""
        self._stop_head_timer()
        self._is_head_complete = True
        self._is_offer = self.parser.should_upgrade()
        if self._is_offer:
            return
        version = self.parser.get_http_version()
        require_valid_headers(version, self.headers)
        authority, self.url = split_target(self.url)
        if authority is not None:
            replace_host(self.headers, authority)
        self.expect_100_continue = self.expect_100_continue and version != "1.0"
        super().on_headers_complete()
        self._close_after_last_request()

    def on_message_complete(self) -> None:
        """End the request's body."""
        self._is_message_complete = True
        if not self._is_offer:
            super().on_message_complete()
            self._close_after_last_request()

    def on_response_complete(self) -> None:
        """Go on with the next request, or close the connection of a stopping process."""
        super().on_response_complete()
        if self._unread:
            self._unset_keepalive_if_required()
            self._read_later()
        elif self._is_stopping:
            self.transport.close()

    def shutdown(self) -> None:
        """Close the connection after the response to its last request; if it is idle, after a moment for another.

        A client may send a request while the connection that it reuses is being closed, and would not know whether it
        was handled.
        """
        self._is_stopping = True
        if self._is_busy():
            self._close_after_last_request()
        else:
            self.loop.call_later(IDLE_LINGER_S, self._close_idle)

    def refuse_unanswered(self, headers: dict[str, str], code: str, detail: str) -> None:
        """Respond to a request that has no response yet, and close the connection."""
        if self.transport.is_closing():
            return
        if self._is_busy():
            if not self.cycle.response_started:
                self._refuse(code, detail, headers)
        elif self._has_begun():
            self._refuse(code, detail, headers)
        else:
            self.transport.close()

    def _read(self, data: bytes = b"") -> None:
        """Parse what has come, up to a request that has to wait for the response before it."""
        try:
            if data and not self._unread and not isinstance(self._part, Head):  # most of a body needs no copy
                size = self._part.measure(data)
                self._parse(data[:size])
                data = data[size:]
            self._unread += data
            while self._unread and not self.transport.is_closing() and (piece := self._take_piece()):
                self._parse(piece)
        except RefusedError as refusal:
            self._is_refused = True
            self._refuse(refusal.code, refusal.detail)
        self._start_timeouts()

    def _read_later(self) -> None:
        """Parse in a turn of its own, in a context that has nothing of the request before."""
        if self._unread:
            self.loop.call_soon(self._read, context=Context())

    def _take_piece(self) -> bytes:
        if isinstance(self._part, Head):
            self._part.skip_empty_lines(self._unread)
            if self._is_busy() or self.flow.write_paused:
                if len(self._unread) > HIGH_WATER_LIMIT:  # below it, reading on shows when the client goes away
                    self.flow.pause_reading()
                return b""
        size = self._part.measure(self._unread)
        piece = bytes(memoryview(self._unread)[:size])
        del self._unread[:size]
        return piece

    def _parse(self, piece: bytes) -> None:
        is_head = isinstance(self._part, Head)
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade:
            self._parse_without_offer()
        except httptools.HttpParserError as error:
            if isinstance(error.__context__, RefusedError):  # raised in a callback
                raise error.__context__ from None
            raise (_invalid_head() if is_head else invalid_body()) from None
        # The parser decides where a message ends; if it was divided otherwise, what follows cannot be trusted.
        if is_head and not self._is_head_complete:
            raise _invalid_head()
        if not is_head and self._part.is_complete != self._is_message_complete:
            raise invalid_body()
        if self._is_message_complete:
            self._part = Head()
        elif is_head:
            self._part = body_of(self.headers)

    def _parse_without_offer(self) -> None:
        version = self.parser.get_http_version().encode()
        line = self.parser.get_method() + b" " + self.url + b" HTTP/" + version + b"\r\n"
        head = b"".join([line, *self._other_headers(), b"\r\n"])
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as the base class does
        self._parse(head)

    def _other_headers(self) -> Iterator[bytes]:
        for name, value in self.headers:
            if name == b"connection":
                tokens = [token for token in value.split(b",") if token.strip().lower() not in _UPGRADE_HEADERS]
                yield b"connection: " + b",".join(tokens) + b"\r\n" if tokens else b""
            elif name not in _UPGRADE_HEADERS:
                yield name + b": " + value + b"\r\n"

    def _is_busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _has_begun(self) -> bool:
        return isinstance(self._part, Head) and bool(self._unread)

    def _is_client_sending(self) -> bool:
        return bool(self._unread) or self._is_refused or not isinstance(self._part, Head)

    def _close_after_last_request(self) -> None:
        if self._is_stopping and not self._unread:
            self.cycle.keep_alive = False

    def _close_idle(self) -> None:
        if not self._is_busy() and not self._has_begun():
            self.transport.close()

    def _start_timeouts(self) -> None:
        """Limit the time of a client that has to send more: a head, or the rest of a body that has its response."""
        if self.transport.is_closing() or self._is_busy() or self._head_timer is not None:
            return
        if not self._has_begun():
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
        elif not self.flow.write_paused:  # otherwise the head is complete, or not read
            self._start_head_timer()

    def _start_head_timer(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._end_head)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _end_head(self) -> None:
        if self._has_begun():
            self._refuse("head_timeout", f"headers: expected within {HEAD_TIMEOUT_S:g} s, got an incomplete head")
        else:
            self.transport.close()

    def _abort(self, reason: str) -> None:
        record_error("response_timeout", "api")
        log.info("%s: connection closed, because %s", self.client[0] if self.client else "-", reason)
        self.transport.abort()

    def _refuse(self, code: str, detail: str, headers: dict[str, str] | None = None) -> None:
        """Respond in place of the application, or only close if the request has a response, or part of one."""
        record_error(code, "api")
        has_response = self.cycle.response_started if self._is_busy() else not isinstance(self._part, Head)
        if has_response:
            self.transport.close()
            return
        # In a context of its own: the id of this response is not that of what happens next.
        Context().run(self._respond, code, detail, headers or {})
        self.transport.close()

    def _respond(self, code: str, detail: str, headers: dict[str, str]) -> None:
        status, title = PROBLEMS[code]
        if self._is_busy():
            request_id = accept_request_id(None)  # the request has its line and count, as one whose caller went away
            context.request_id.set(request_id)
        else:
            request_id = record_unparsed_request(self.client[0] if self.client else "-", status)
        every = {
            **headers,
            "Connection": "close",
            "X-Request-ID": request_id,
            "X-Content-Type-Options": "nosniff",
        }
        response = problem_response(code, status, title, detail, headers=every)
        head = b"".join(name + b": " + value + b"\r\n" for name, value in response.raw_headers)
        body = b"" if self._is_head_request() else response.body
        self.transport.write(STATUS_LINE[status] + head + b"\r\n" + body)

    def _is_head_request(self) -> bool:
        if self._is_busy():
            return self.cycle.scope["method"] == "HEAD"
        return isinstance(self._part, Head) and self._part.method == b"HEAD"


class _FlowControl(FlowControl):
    """Flow control that keeps reading paused while much is unread, although each request resumes it.

    Args:
        transport: the connection.
        unread: what has come and waits.
    """

    def __init__(self, transport: asyncio.Transport, unread: bytearray) -> None:
        super().__init__(transport)
        self._unread = unread

    def resume_reading(self) -> None:
        if len(self._unread) <= HIGH_WATER_LIMIT:
            super().resume_reading()


def _invalid_head() -> RefusedError:
    return RefusedError("http_invalid", "headers: expected valid HTTP/1.1, got something else")

"""uvicorn's HTTP protocol and server, and uvicorn-worker's gunicorn worker, as the API uses them.

This is the only module that overrides methods of uvicorn and uvicorn-worker or uses attributes that they do not
document. `tests/contracts/test_server_internals.py` checks each of them.
"""

from __future__ import annotations

import asyncio
import functools
import math
import os
import random
import signal
import sys
import time
from contextlib import nullcontext, suppress
from contextvars import Context
from typing import TYPE_CHECKING, Any, cast

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import Server
from uvicorn_worker import UvicornWorker

from app.observability import rich_logging, tracing
from app.observability.health import WorkerState
from app.observability.log_text import count_of
from app.observability.rich_logging import LogLimit, get_logger
from app.supervisor.connections import (
    WRITE_TIMEOUT_S,
    LingeringTransport,
    WriteTimeout,
    accept_waiting,
    refuse_connections,
    response_budget,
)
from app.supervisor.framing import (
    Head,
    RefusedError,
    body_of,
    invalid_body,
    replace_host,
    require_valid_headers,
    split_target,
)
from app.supervisor.gunicorn_adapter import BOOT_ERROR, SlotWorker
from app.web.error_handlers import note_error, problem_response
from app.web.middleware import (
    SHUTDOWN_CODE,
    SHUTDOWN_DETAIL,
    Refusal,
    record_closed_connection,
    record_unparsed_request,
    request_id_of,
    shutdown_headers,
)
from app.web.problems import PROBLEMS

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator, MutableMapping
    from types import FrameType

    from app.supervisor.framing import Part
    from app.web.state import WebState

server_log = get_logger("server")

IDLE_LINGER_S = 1.0  # how long a stopping process still accepts a request on an idle connection
MAX_REQUESTS = 1000  # per connection
AGE_JITTER = 0.2  # connections that were opened together end at different times
MAX_HEADERS = 128  # browsers and proxies send up to 50
HEAD_TIMEOUT_S = 30.0  # from the connection, or a request's first byte, to the end of its head
HEARTBEAT_S = 1.0
EXHAUSTED_LOG_S = 10.0
QUICK_STOP_S = 1.0  # time for requests in flight in a quick stop
POLL_S = 0.02
LAST_CALL_S = 0.3  # how long a worker waits, after its own signal, to see whether the whole instance is stopping
# Time limits after the graceful timeout, all within the master's margin: until each request has a response, until the
# responses have been sent, and until the application has released its resources.
RESPONSE_S, SEND_S, QUICK_SEND_S, CLOSE_S = 0.3, 1.5, 0.3, 0.2
# For the export of traces: at most the rest of the graceful timeout, but always a moment.
FLUSH_S, QUICK_FLUSH_S, MAX_FLUSH_S = 0.5, 0.2, 5.0

_MAPPED = "::ffff:"
_UPGRADE_HEADERS = {b"upgrade", b"http2-settings"}


def unmapped(address: tuple[str, int] | None) -> tuple[str, int] | None:
    """Return a client's address, with IPv4 in its own form: a socket for both families reports ``::ffff:10.0.0.1``."""
    if address is not None and address[0].startswith(_MAPPED) and "." in address[0]:
        return address[0].removeprefix(_MAPPED), address[1]
    return address


class ServiceProtocol(HttpToolsProtocol):
    """One HTTP connection of the API: uvicorn's protocol with stricter parsing and limits.

    Requests are parsed one at a time: requests pipelined behind the current one stay unread until its response has been
    written. So responses keep the order of the requests, even if one is refused, and a client that does not read its
    responses causes no further work.

    A client that offers to upgrade to another protocol (Java's offers HTTP/2 with each request) gets its response in
    HTTP/1.1, as RFC 9110 requires; the parser alone would drop the body of such a request.

    A connection that is old, or has had many requests, ends with the response to its next request. A Service of
    Kubernetes balances connections, not requests: callers that keep theirs would never reach a new pod.
    """

    transport: LingeringTransport  # type: ignore[assignment]
    _write_timeout: WriteTimeout
    _head_timer: asyncio.TimerHandle | None = None
    _is_head_complete = False
    _is_message_complete = False
    _is_upgrade_offered = False
    _is_refused = False
    _is_stopping = False
    _requests = 0
    _old_at = math.inf  # by the event loop's clock

    def __init__(self, *args: Any, max_age_s: float = math.inf, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._max_age_s = max_age_s
        self._unread = bytearray()
        self._part: Part = Head()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in the base class
        """Start to wait for the head of the first request."""
        super().connection_made(transport)
        self.client = unmapped(self.client)
        self.transport = LingeringTransport(transport, self.loop, self._is_client_sending)
        self._write_timeout = WriteTimeout(
            self.transport, self.loop, lambda: self._abort(f"the client read no response for {WRITE_TIMEOUT_S:g} s")
        )
        self.flow = _FlowControl(transport, self._unread)
        self._old_at = self.loop.time() + self._max_age_s * random.uniform(1 - AGE_JITTER, 1)  # noqa: S311
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all timers of the connection."""
        self._stop_head_timer()
        self._write_timeout.stop()
        response_budget(self.loop).forget(self.transport)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse received data, or discard it after the last response."""
        if self.transport.is_closing():
            self.transport.discard(len(data))
            return
        self._unset_keepalive_if_required()
        self._read(data)

    def pause_writing(self) -> None:
        """Watch the connection, because the client reads more slowly than its response is written."""
        super().pause_writing()
        reason = "the client reads too slowly while memory for responses is short"
        response_budget(self.loop).watch(self.transport, lambda: self._abort(reason))

    def resume_writing(self) -> None:
        """Continue with the next request, which may have waited until the client read its responses."""
        super().resume_writing()
        self._read_later()

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._is_upgrade_offered = self._is_head_complete = self._is_message_complete = False
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header; fields of a trailer are dropped, because they must not become headers."""
        if not self._is_head_complete:
            if len(self.headers) == MAX_HEADERS:
                raise RefusedError("head_too_large", f"headers: expected at most {MAX_HEADERS} fields, got more")
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start the request, unless it must be parsed again without its upgrade offer."""
        self._stop_head_timer()
        self._is_head_complete = True
        self._is_upgrade_offered = self.parser.should_upgrade()
        if self._is_upgrade_offered:
            return
        version = self.parser.get_http_version()
        require_valid_headers(version, self.headers)
        authority, self.url = split_target(self.url)
        if authority is not None:
            replace_host(self.headers, authority)
        self.expect_100_continue = self.expect_100_continue and version != "1.0"
        super().on_headers_complete()
        self._requests += 1
        self._close_after_last_request()

    def on_message_complete(self) -> None:
        """End the request's body."""
        self._is_message_complete = True
        if not self._is_upgrade_offered:
            super().on_message_complete()
            self._close_after_last_request()

    def on_response_complete(self) -> None:
        """Continue with the next request, or close the connection if the process is stopping."""
        super().on_response_complete()
        if self._unread:
            self._unset_keepalive_if_required()
            self._read_later()
        elif self._is_stopping:
            self.transport.close()

    def shutdown(self) -> None:
        """Close the connection after the response to its last request; if it is idle, wait a moment for another one.

        A client that reuses a connection while it is being closed would not know whether its request was processed.
        """
        self._is_stopping = True
        if self._is_busy():
            self._close_after_last_request()
        else:
            self.loop.call_later(IDLE_LINGER_S, self._close_idle)

    def refuse_unfinished(self, headers: dict[str, str], code: str, detail: str) -> None:
        """Respond with an error to a request that has no response yet, and close the connection."""
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
        """Parse received data, up to a request that must wait for the response before it."""
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
        """Parse in a new turn of the event loop, with no context variables of the previous request."""
        if self._unread:
            self.loop.call_soon(self._read, context=Context())

    def _take_piece(self) -> bytes:
        if isinstance(self._part, Head):
            self._part.skip_empty_lines(self._unread)
            if self._is_busy() or self.flow.write_paused:
                if len(self._unread) > HIGH_WATER_LIMIT:  # below it, reading continues, to detect a disconnect
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
            self._parse_without_upgrade()
        except httptools.HttpParserError as error:
            if isinstance(error.__context__, RefusedError):  # raised in a callback
                raise error.__context__ from None
            raise (_invalid_head() if is_head else invalid_body()) from None
        # The parser decides where a message ends. If the framing disagrees, the following bytes cannot be trusted.
        if is_head and not self._is_head_complete:
            raise _invalid_head()
        if not is_head and self._part.is_complete != self._is_message_complete:
            raise invalid_body()
        if self._is_message_complete:
            self._part = Head()
        elif is_head:
            self._part = body_of(self.headers)

    def _parse_without_upgrade(self) -> None:
        version = self.parser.get_http_version().encode()
        line = self.parser.get_method() + b" " + self.url + b" HTTP/" + version + b"\r\n"
        head = b"".join([line, *self._headers_without_upgrade(), b"\r\n"])
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as in the base class
        self._parse(head)

    def _headers_without_upgrade(self) -> Iterator[bytes]:
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
        is_old = self._requests >= MAX_REQUESTS or self.loop.time() >= self._old_at
        if (self._is_stopping or is_old) and not self._unread:
            self.cycle.keep_alive = False

    def _close_idle(self) -> None:
        if not self._is_busy() and not self._has_begun():
            self.transport.close()

    def _start_timeouts(self) -> None:
        """Limit the time for the client's next bytes: a head, or the rest of a body that already has its response."""
        if self.transport.is_closing() or self._is_busy() or self._head_timer is not None:
            return
        if not self._has_begun():
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
        elif not self.flow.write_paused:  # otherwise the head is complete, or reading is paused
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
        Context().run(self._log_closed, "response_timeout", reason)
        self.transport.abort()

    def _refuse(self, code: str, detail: str, headers: dict[str, str] | None = None) -> None:
        """Respond instead of the application; only close the connection if a response has been started."""
        has_response = self.cycle.response_started if self._is_busy() else not isinstance(self._part, Head)
        if has_response:
            Context().run(self._log_closed, code, detail)
            self.transport.close()
            return
        # In its own context, so that the id of this response does not apply to later work.
        Context().run(self._respond, code, detail, headers or {})
        self.transport.close()

    def _respond(self, code: str, detail: str, headers: dict[str, str]) -> None:
        status, title = PROBLEMS[code]
        request_id = request_id_of(self._scope) if self._is_busy() else rich_logging.accept_request_id(None)
        rich_logging.request_id.set(request_id)
        every = {
            **headers,
            "Connection": "close",
            "X-Request-ID": request_id,
            "X-Content-Type-Options": "nosniff",
        }
        # The application ends the span of a request that it has received.
        with nullcontext() if self._is_busy() else tracing.refused_request(code, status):
            response = problem_response(code, status, title, detail, headers=every)
        head = b"".join(name + b": " + value + b"\r\n" for name, value in response.raw_headers)
        body = b"" if self._is_head_request() else bytes(response.body)
        if self._is_busy():
            # The application logs and counts the request itself, when it notices that the connection is closed.
            self._scope["state"]["refusal"] = Refusal(status, len(body))
            note_error(self._scope, code)
        else:
            record_unparsed_request(self._client_address(), code, status, len(body))
        self.transport.write(STATUS_LINE[status] + head + b"\r\n" + body)

    def _log_closed(self, code: str, reason: str) -> None:
        if self.cycle is not None:
            rich_logging.request_id.set(request_id_of(self._scope))
        record_closed_connection(self._client_address(), code, reason)

    @property
    def _scope(self) -> MutableMapping[str, Any]:
        """The scope of the current or last request."""
        return cast("MutableMapping[str, Any]", self.cycle.scope)

    def _client_address(self) -> str:
        return self.client[0] if self.client else "-"

    def _is_head_request(self) -> bool:
        if self._is_busy():
            return self.cycle.scope["method"] == "HEAD"
        return isinstance(self._part, Head) and self._part.method == b"HEAD"


class _FlowControl(FlowControl):
    """Flow control that keeps reading paused while many bytes are not parsed, although each request resumes it."""

    def __init__(self, transport: asyncio.Transport, unread: bytearray) -> None:
        super().__init__(transport)
        self._unread = unread

    def resume_reading(self) -> None:
        if len(self._unread) <= HIGH_WATER_LIMIT:
            super().resume_reading()


class GracefulServer(Server):
    """uvicorn's server with a shutdown in which every request gets a response."""

    def __init__(self, worker: ApiWorker, web: WebState) -> None:
        super().__init__(worker.config)
        self._worker = worker
        self._web = web
        self._deadline = math.inf
        self._is_quick = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Mark the worker as draining, then stop."""
        if sig == signal.SIGINT:  # Ctrl-C reaches the whole foreground group; the master signals its workers
            return
        self._worker.scoreboard.heartbeat(self._worker.slot, WorkerState.DRAINING)
        super().handle_exit(sig, frame)

    def stop_quickly(self) -> None:
        """Stop within `QUICK_STOP_S`, even if a slower stop is in progress."""
        self._is_quick = True
        self._deadline = min(self._deadline, time.monotonic() + QUICK_STOP_S)
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish the requests that have been sent within the time limit, and respond with 503 to the others.

        Connections that wait to be accepted are accepted, and idle connections may send one more request. Work in a
        thread cannot be cancelled, so the response is sent without its result.
        """
        self._deadline = min(self._deadline, time.monotonic() + self._worker.settings.graceful_timeout_s)
        await self._stop_accepting(sockets or [])
        for connection in list(self.server_state.connections):
            connection.shutdown()
        if not await self._wait_idle():
            await self._refuse_unfinished()
            self._deadline = time.monotonic() + (QUICK_SEND_S if self._is_quick else SEND_S)
            await self._wait_idle()
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await self.lifespan.shutdown()
        # Here, because uvicorn then raises the signal again, which ends the process.
        tracing.stop(self._flush_limit_s())

    def _flush_limit_s(self) -> float:
        """Return how long the exit may wait for the export of traces."""
        if self._is_quick:
            return QUICK_FLUSH_S
        return min(max(FLUSH_S, self._deadline - time.monotonic()), MAX_FLUSH_S)

    async def _stop_accepting(self, sockets: list[socket.socket]) -> None:
        loop = asyncio.get_running_loop()
        if await self._is_last_call():  # otherwise other workers accept the waiting connections
            for listener in sockets:
                refuse_connections(listener)
                for waiting in accept_waiting(listener):
                    await loop.connect_accepted_socket(self._make_protocol, waiting)
        for server in self.servers:
            server.close()
        for listener in sockets:
            listener.close()

    async def _is_last_call(self) -> bool:
        """Return whether no other process will accept the waiting connections."""
        if self._worker.is_socket_shared:
            return False
        end = time.monotonic() + LAST_CALL_S
        # A supervisor may signal all processes at once, and this worker may be faster than its master.
        while not self._worker.is_instance_stopping():
            if time.monotonic() > end:
                return False
            await asyncio.sleep(POLL_S)
        return True

    def _make_protocol(self) -> ServiceProtocol:
        protocol = cast("Callable[..., ServiceProtocol]", self.config.http)
        return protocol(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)

    async def _refuse_unfinished(self) -> None:
        in_flight = set(self.server_state.tasks)
        if in_flight:
            unfinished = count_of(len(in_flight), "request")
            server_log.warning("Stopping: %s did not finish in time; responding with 503", unfinished)
        self._web.shutdown.set()
        # A task that has not started yet would be cancelled without a chance to respond.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        for task in in_flight:
            task.cancel()
        if in_flight:
            await asyncio.wait(in_flight, timeout=RESPONSE_S)
        for connection in list(self.server_state.connections):
            if isinstance(connection, ServiceProtocol):
                headers = shutdown_headers(self._web.retry_after_s)
                connection.refuse_unfinished(headers, SHUTDOWN_CODE, SHUTDOWN_DETAIL)

    async def _wait_idle(self) -> bool:
        """Wait until no request is in flight, or for the deadline, which a second signal may bring forward."""
        next_heartbeat = 0.0
        while self.server_state.connections or self.server_state.tasks:
            now = time.monotonic()
            if now > self._deadline:
                return False
            if now > next_heartbeat:
                next_heartbeat = now + HEARTBEAT_S
                self._worker.send_heartbeat(WorkerState.DRAINING)  # uvicorn sends none from here on
                if self._worker.is_orphan():
                    self.stop_quickly()
            await asyncio.sleep(POLL_S)
        return True


class ApiWorker(SlotWorker, UvicornWorker):
    """A worker process that serves the API."""

    CONFIG_KWARGS: dict[str, Any] = {  # noqa: RUF012 - declared like this in the base class
        "loop": "uvloop",
        "ws": "none",
        "access_log": False,
        "server_header": False,
    }

    server: GracefulServer
    _is_exhausted = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.config.timeout_notify = HEARTBEAT_S
        self._exhausted_lines = LogLimit(EXHAUSTED_LOG_S)

    async def _serve(self) -> None:
        self.config.app = self.wsgi
        max_age_s = self.settings.connection_max_age_s or math.inf
        self.config.http = functools.partial(ServiceProtocol, max_age_s=max_age_s)
        self.server = GracefulServer(self, cast("Any", self.wsgi).state.web)
        # The handler of the base class sets an attribute that uvicorn never reads, so it would not stop quickly.
        asyncio.get_running_loop().add_signal_handler(signal.SIGQUIT, self._stop_quickly)
        await self.server.serve(sockets=self.sockets)
        if not self.server.started:
            sys.exit(BOOT_ERROR)
        sys.stderr.flush()
        # Any other exit would wait for threads that are still working.
        os._exit(0)

    def _stop_quickly(self) -> None:
        self.scoreboard.heartbeat(self.slot, WorkerState.DRAINING)
        self.server.stop_quickly()

    def is_instance_stopping(self) -> bool:
        """Return whether all workers are stopping, not only this one."""
        return self.scoreboard.is_draining or self.is_orphan()

    async def callback_notify(self) -> None:
        """Send a heartbeat, and stop if the master has exited; the event loop calls this about once a second."""
        if self.is_orphan():
            self._stop_quickly()
        self.send_heartbeat(WorkerState.DRAINING if self.server.should_exit else self._accept_state())

    def _accept_state(self) -> WorkerState:
        """Return whether this process can accept connections; log changes, at a limited rate.

        The event loop does not report this: without a free file descriptor, it closes connections silently.
        """
        try:
            os.close(os.dup(self.sockets[0].fileno()))
        except OSError as error:
            if self._exhausted_lines.is_due():
                server_log.error("connections: cannot accept more (%s); raise the limit on open files", error.strerror)
            self._is_exhausted = True
            return WorkerState.EXHAUSTED
        if self._is_exhausted:
            self._is_exhausted = False
            server_log.info("connections: accepted again")
        return WorkerState.READY


def _invalid_head() -> RefusedError:
    return RefusedError("http_invalid", "headers: expected valid HTTP/1.1, got something else")

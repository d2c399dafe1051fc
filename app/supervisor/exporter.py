"""HTTP server for metrics and probes, in its own process, so that it responds even if all workers are busy."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from http import HTTPStatus
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any, cast
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import make_wsgi_app

from app.observability.health import probe
from app.observability.rich_logging import LogLimit, get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from prometheus_client import CollectorRegistry

    from app.observability.health import ScoreboardView

log = get_logger("server")

StartResponse = Any
ORPHAN_CHECK_S = 1.0
MAX_CONNECTIONS = 64  # Prometheus and the kubelet use a few; each one costs a thread
HEAD_LIMIT_S = 5.0  # from the connection to the end of the request's head
REQUEST_LIMIT_S = 30.0  # from the connection to the end of the response
REPLACEABLE_S = 5.0  # age from which a connection that reads its response slowly may be closed for a new one
ACCEPT_PAUSE_S = 0.1  # pause after a failed accept, so that the loop does not spin
ERROR_LOG_S = 10.0  # minimum time between two log lines about the same kind of error
NOSNIFF = ("X-Content-Type-Options", "nosniff")


def exporter_app(scoreboard: ScoreboardView, registry: CollectorRegistry | None) -> Callable[..., Iterable[bytes]]:
    """Create the WSGI application of the metrics port; without a registry, ``/metrics`` does not exist."""
    metrics_app = make_wsgi_app(registry) if registry is not None else None
    scrape_errors = LogLimit(ERROR_LOG_S)

    def application(environ: dict[str, Any], start: StartResponse) -> Iterable[bytes]:
        def start_response(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            return start(status, [*headers, NOSNIFF], *rest)

        path = environ["PATH_INFO"].rstrip("/")
        if path == "/metrics" and metrics_app is not None:
            try:
                return cast("Iterable[bytes]", metrics_app(environ, start_response))
            except Exception:
                if scrape_errors.is_due():
                    log.exception("A scrape failed")
                start_response("500 Internal Server Error", [("Content-Length", "0")])
                return [b""]
        if path in {"/health", "/health/live", "/health/ready"}:
            status, body = probe(scoreboard, path)
        else:
            status, body = HTTPStatus.NOT_FOUND, b'{"paths":["/metrics","/health","/health/live","/health/ready"]}'
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        start_response(f"{status.value} {status.phrase}", headers)
        return [body]

    return application


class _Server(ThreadingMixIn, WSGIServer):
    """Server with one thread per connection, and limits on their number and duration.

    Without limits, a client that sends its request byte by byte would occupy a thread indefinitely. When the server is
    full, the oldest connection with an incomplete request is closed, so that scrapes and probes are served during an
    attack.
    """

    daemon_threads = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lock = threading.Lock()
        self._starts: dict[socket.socket, float] = {}  # oldest first
        self._complete: set[socket.socket] = set()  # connections whose request head has arrived
        self._accept_errors, self._response_errors = LogLimit(ERROR_LOG_S), LogLimit(ERROR_LOG_S)
        self._is_failing = False

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection; log, at a limited rate, when this fails and when it works again."""
        try:
            accepted = super().get_request()
        except OSError as error:
            if self._accept_errors.is_due():
                log.error("exporter: cannot accept connections (%s); raise the limit on open files", error.strerror)  # noqa: TRY400
                self._is_failing = True
            time.sleep(ACCEPT_PAUSE_S)
            raise
        if self._is_failing:
            self._is_failing = False
            log.info("exporter: connections accepted again")
        return accepted

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start the connection's thread; if the server is full, close another connection or this one."""
        with self._lock:
            if len(self._starts) >= MAX_CONNECTIONS:
                oldest = self._find_replaceable(time.monotonic())
                if oldest is not None:
                    self._abort(oldest)
            is_admitted = len(self._starts) < MAX_CONNECTIONS
            if is_admitted:
                self._starts[request] = time.monotonic()
        if is_admitted:
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection and remove it from the limits."""
        with self._lock:
            self._starts.pop(request, None)
            self._complete.discard(request)
        super().shutdown_request(request)

    def mark_complete(self, request: socket.socket) -> None:
        """Record that a connection's request head has arrived."""
        with self._lock:
            if request in self._starts:
                self._complete.add(request)

    def service_actions(self) -> None:
        """Close connections that exceed their time limit; called twice a second."""
        now = time.monotonic()
        with self._lock:
            for request, start in list(self._starts.items()):
                if now - start > (REQUEST_LIMIT_S if request in self._complete else HEAD_LIMIT_S):
                    self._abort(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the base class's signature
        """Log an error, unless the client closed its connection or sent nothing."""
        if not isinstance(sys.exception(), OSError) and self._response_errors.is_due():
            log.error("exporter: cannot respond to a request", exc_info=sys.exception())

    def _find_replaceable(self, now: float) -> socket.socket | None:
        for request in self._starts:
            if request not in self._complete and not _has_whole_head(request):
                return request
        return next((request for request, start in self._starts.items() if now - start > REPLACEABLE_S), None)

    def _abort(self, request: socket.socket) -> None:
        del self._starts[request]
        self._complete.discard(request)
        with suppress(OSError):  # the client has closed the connection
            request.shutdown(socket.SHUT_RDWR)  # wakes the thread, which closes the socket


def _has_whole_head(request: socket.socket) -> bool:
    """Return whether a complete head has arrived that the connection's thread has not read yet."""
    try:
        # Python waits for data on a socket with a timeout, regardless of the flags; the duplicate has no timeout.
        with socket.socket(fileno=os.dup(request.fileno())) as duplicate:
            return b"\r\n\r\n" in duplicate.recv(4096, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except OSError:
        return False


class _QuietHandler(WSGIRequestHandler):
    timeout = 10.0  # maximum time without data from the client

    def parse_request(self) -> bool:
        """Read the request's head and record that it has arrived."""
        is_complete = super().parse_request()
        cast("_Server", self.server).mark_complete(self.connection)
        return is_complete

    def end_headers(self) -> None:
        """Add a header to the base class's error responses; the application adds it to all others."""
        self.send_header(*NOSNIFF)
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Log nothing: probes and scrapes arrive every few seconds."""


def serve_exporter(listener: socket.socket, scoreboard: ScoreboardView, registry: CollectorRegistry | None) -> None:
    """Serve metrics and probes until the master ends or SIGTERM arrives.

    The socket is that of the master, which passes it to the next exporter if this process dies.
    """
    server = _Server(listener.getsockname()[:2], _QuietHandler, bind_and_activate=False)
    server.socket.close()
    server.socket = listener
    server.server_name, server.server_port = listener.getsockname()[:2]
    server.setup_environ()
    server.set_app(exporter_app(scoreboard, registry))
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    threading.Thread(target=server.serve_forever, daemon=True).start()
    while not stop.wait(ORPHAN_CHECK_S) and os.getppid() == scoreboard.master_pid:
        pass
    server.shutdown()

"""Metrics and probes from a process of their own, which answers however busy the workers are."""

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

import orjson
from prometheus_client import make_wsgi_app

from app.observability.rich_logging import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from prometheus_client import CollectorRegistry

    from app.observability.board import Board

log = get_logger("server")

StartResponse = Any
ORPHAN_CHECK_S = 1.0
MAX_CONNECTIONS = 64  # Prometheus and the kubelet use a few; each one costs a thread
HEAD_LIMIT_S = 5.0  # from the connection to the end of the request's head
REQUEST_LIMIT_S = 30.0  # from the connection to the end of the response
REPLACEABLE_S = 5.0  # age at which a connection that reads its response slowly makes room for a new one
ACCEPT_PAUSE_S = 0.1  # after a failed accept, so that the loop does not spin
ERROR_LOG_S = 10.0  # at least this long between two lines about one kind of error
NOSNIFF = ("X-Content-Type-Options", "nosniff")


class _LogLimit:
    """Decides whether an error that may occur at every request is logged now."""

    def __init__(self) -> None:
        self._last = -ERROR_LOG_S

    def is_due(self) -> bool:
        """Return whether `ERROR_LOG_S` has passed since the last line."""
        now = time.monotonic()
        if now - self._last < ERROR_LOG_S:
            return False
        self._last = now
        return True


def health_report(board: Board) -> dict[str, Any]:
    """Describe what the board says: the body of ``/health``."""
    return {
        "live": board.is_live(),
        "ready": board.is_ready(),
        "draining": board.is_draining,
        "workers": _list_workers(board),
        "task_workers": _list_workers(board.beside) if board.beside is not None else [],
    }


def _list_workers(board: Board) -> list[dict[str, Any]]:
    return [
        {
            "name": row.name,
            "pid": row.pid,
            "state": row.state.name.lower(),
            "last_beat_s": round(row.beat_age_s, 3),
        }
        for row in board.rows()
    ]


def probe(board: Board, path: str) -> tuple[HTTPStatus, bytes]:
    """Answer one of the three health paths.

    Returns:
        200, or 503 where the service is not live or not ready; and a JSON body that says why.
    """
    report = health_report(board)
    is_good = {"/health/live": report["live"], "/health/ready": report["ready"]}.get(path, report["live"])
    return HTTPStatus.OK if is_good else HTTPStatus.SERVICE_UNAVAILABLE, orjson.dumps(report)


def exporter_app(board: Board, registry: CollectorRegistry | None) -> Callable[..., Iterable[bytes]]:
    """Build the WSGI application of the metrics port.

    Args:
        board: the health of the service.
        registry: what ``/metrics`` reads; None leaves it out (404).
    """
    metrics_app = make_wsgi_app(registry) if registry is not None else None
    scrape_errors = _LogLimit()

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
            status, body = probe(board, path)
        else:
            status, body = HTTPStatus.NOT_FOUND, b'{"paths":["/metrics","/health","/health/live","/health/ready"]}'
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        start_response(f"{status.value} {status.phrase}", headers)
        return [body]

    return application


class _Server(ThreadingMixIn, WSGIServer):
    """A thread per connection, with bounds on their number and on the time of each.

    A sender that drips its request would otherwise keep a thread for as long as it likes. When the server is full, the
    oldest connection whose request is incomplete is closed, so that scrapes and probes are served during an attack.
    """

    daemon_threads = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lock = threading.Lock()
        self._starts: dict[socket.socket, float] = {}  # oldest first
        self._complete: set[socket.socket] = set()  # connections whose request head has arrived
        self._accept_errors, self._response_errors = _LogLimit(), _LogLimit()
        self._is_failing = False

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection; log, at a limited rate, that the process cannot, and that it can again."""
        try:
            accepted = super().get_request()
        except OSError as error:
            if self._accept_errors.is_due():
                log.error("exporter: cannot accept connections (%s); raise the limit of open files", error.strerror)  # noqa: TRY400
                self._is_failing = True
            time.sleep(ACCEPT_PAUSE_S)
            raise
        if self._is_failing:
            self._is_failing = False
            log.info("exporter: connections are accepted again")
        return accepted

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start the connection's thread, after making room for it if necessary."""
        with self._lock:
            if len(self._starts) >= MAX_CONNECTIONS:
                victim = self._find_victim(time.monotonic())
                if victim is not None:
                    self._abort(victim)
            is_admitted = len(self._starts) < MAX_CONNECTIONS
            if is_admitted:
                self._starts[request] = time.monotonic()
        if is_admitted:
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def shutdown_request(self, request: Any) -> None:
        """Forget a connection and close it."""
        with self._lock:
            self._starts.pop(request, None)
            self._complete.discard(request)
        super().shutdown_request(request)

    def mark_complete(self, request: socket.socket) -> None:
        """Note that a connection's request head has arrived."""
        with self._lock:
            if request in self._starts:
                self._complete.add(request)

    def service_actions(self) -> None:
        """Close connections that took too long; called twice a second."""
        now = time.monotonic()
        with self._lock:
            for request, start in list(self._starts.items()):
                if now - start > (REQUEST_LIMIT_S if request in self._complete else HEAD_LIMIT_S):
                    self._abort(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the base class's signature
        """Log what is not caused by a peer that closed its connection or never sent anything."""
        if not isinstance(sys.exception(), OSError) and self._response_errors.is_due():
            log.error("The exporter failed to answer", exc_info=sys.exception())

    def _find_victim(self, now: float) -> socket.socket | None:
        for request in self._starts:
            if request not in self._complete and not _has_whole_head(request):
                return request
        return next((request for request, start in self._starts.items() if now - start > REPLACEABLE_S), None)

    def _abort(self, request: socket.socket) -> None:
        del self._starts[request]
        self._complete.discard(request)
        with suppress(OSError):  # the peer was first
            request.shutdown(socket.SHUT_RDWR)  # wakes the thread, which closes it


def _has_whole_head(request: socket.socket) -> bool:
    """Return whether a head waits that the connection's thread has not read yet."""
    try:
        # A socket with a timeout waits for data before it reads, whatever the flags; its duplicate has no timeout.
        with socket.socket(fileno=os.dup(request.fileno())) as duplicate:
            return b"\r\n\r\n" in duplicate.recv(4096, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except OSError:
        return False


class _QuietHandler(WSGIRequestHandler):
    timeout = 10.0  # an additional bound on the silence of a peer

    def parse_request(self) -> bool:
        """Read the request's head."""
        is_complete = super().parse_request()
        cast("_Server", self.server).mark_complete(self.connection)
        return is_complete

    def end_headers(self) -> None:
        """End the headers of an error of the base class; other responses have theirs from the application."""
        self.send_header(*NOSNIFF)
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Write nothing: probes and scrapes come every few seconds."""


def serve_exporter(listener: socket.socket, board: Board, registry: CollectorRegistry | None) -> None:
    """Serve until the master is gone or SIGTERM comes; runs in a process forked from the master.

    Args:
        listener: bound and listening; owned by the master, which hands it to a successor if this process dies.
        board: the health of the service.
        registry: what a scrape reads.
    """
    server = _Server(listener.getsockname()[:2], _QuietHandler, bind_and_activate=False)
    server.socket.close()
    server.socket = listener
    server.server_name, server.server_port = listener.getsockname()[:2]
    server.setup_environ()
    server.set_app(exporter_app(board, registry))
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    threading.Thread(target=server.serve_forever, daemon=True).start()
    while not stop.wait(ORPHAN_CHECK_S) and os.getppid() == board.master_pid:
        pass
    server.shutdown()

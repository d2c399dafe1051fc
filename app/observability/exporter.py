"""Metrics and probes from a process of their own, which answers however busy the workers are."""

from __future__ import annotations

import os
import signal
import sys
import threading
from http import HTTPStatus
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any, cast
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import orjson
from prometheus_client import make_wsgi_app

from app.observability.rich_logging import get_logger

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable

    from prometheus_client import CollectorRegistry

    from app.observability.board import Board

log = get_logger("server")

StartResponse = Any
ORPHAN_CHECK_S = 1.0


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

    def application(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        path = environ["PATH_INFO"].rstrip("/")
        if path == "/metrics" and metrics_app is not None:
            try:
                return cast("Iterable[bytes]", metrics_app(environ, start_response))
            except Exception:
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
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the base class's signature
        """Say nothing of peers that went away or never spoke; log the rest as everything else is logged."""
        if not isinstance(sys.exception(), OSError):
            log.error("The exporter failed to answer", exc_info=sys.exception())


class _QuietHandler(WSGIRequestHandler):
    timeout = 10.0  # a peer that connects and says nothing does not keep its thread

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

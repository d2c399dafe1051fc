"""Paths and connections of the metrics port."""

from __future__ import annotations

import json
import logging
import socket
import time
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from app.observability.health import WorkerState
from app.observability.resources import BuildCollector
from app.supervisor.exporter import _has_whole_head, exporter_app
from app.supervisor.scoreboard import Scoreboard


class Broken:
    """A collector that fails."""

    def collect(self) -> Any:
        raise OSError("no folder")


def get(app: Any, path: str) -> tuple[str, bytes]:
    statuses: list[str] = []
    environ = {"PATH_INFO": path, "REQUEST_METHOD": "GET", "QUERY_STRING": ""}
    body = b"".join(app(environ, lambda status, _headers: statuses.append(status)))
    return statuses[0][:3], body


@pytest.fixture
def scoreboard() -> Scoreboard:
    scoreboard = Scoreboard(expected_workers=1, timeout_s=60)
    scoreboard.heartbeat(0, WorkerState.READY)
    return scoreboard


def registry_of(*collectors: Any) -> CollectorRegistry:
    registry = CollectorRegistry(auto_describe=False)
    for collector in collectors:
        registry.register(collector)
    return registry


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/metrics", "200"),
        ("/metrics/", "200"),
        ("/health", "200"),
        ("/health/ready", "200"),
        ("/", "404"),
        ("/x", "404"),
    ],
)
def test_paths(scoreboard: Scoreboard, path: str, status: str) -> None:
    assert get(exporter_app(scoreboard, registry_of(BuildCollector("1.2.3"))), path)[0] == status


def test_disabled_metrics_are_not_found(scoreboard: Scoreboard) -> None:
    app = exporter_app(scoreboard, None)
    assert get(app, "/metrics")[0] == "404"
    status, body = get(app, "/health/ready")
    assert (status, json.loads(body)["ready"]) == ("200", True)


def test_failing_scrape_is_logged_and_reported(scoreboard: Scoreboard, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        assert get(exporter_app(scoreboard, registry_of(Broken())), "/metrics") == ("500", b"")
    assert "A scrape failed" in caplog.text
    assert "no folder" in caplog.text


def test_an_idle_connection_is_inspected_without_blocking() -> None:
    peer, accepted = socket.socketpair()
    with peer, accepted:
        accepted.settimeout(60)  # as the connection handler does
        start = time.monotonic()
        assert not _has_whole_head(accepted)
        peer.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert _has_whole_head(accepted)
        assert time.monotonic() - start < 30
        assert accepted.recv(100) == b"GET / HTTP/1.1\r\n\r\n"

"""The metrics port's paths."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import time
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily

from app.observability.board import Board, State
from app.observability.exporter import _has_whole_head, exporter_app
from app.observability.resources import BuildCollector, ResourceCollector


class Broken:
    """A collector that fails."""

    def collect(self) -> Any:
        raise OSError("no folder")


def get(app: Any, path: str) -> tuple[str, bytes]:
    seen: list[str] = []
    environ = {"PATH_INFO": path, "REQUEST_METHOD": "GET", "QUERY_STRING": ""}
    body = b"".join(app(environ, lambda status, _headers: seen.append(status)))
    return seen[0][:3], body


@pytest.fixture
def board() -> Board:
    board = Board(expected_workers=1, timeout_s=60)
    board.beat(0, State.READY)
    return board


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
def test_paths(board: Board, path: str, status: str) -> None:
    assert get(exporter_app(board, registry_of(BuildCollector("1.2.3"))), path)[0] == status


def test_metrics_off(board: Board) -> None:
    app = exporter_app(board, None)
    assert get(app, "/metrics")[0] == "404"
    status, body = get(app, "/health/ready")
    assert (status, json.loads(body)["ready"]) == ("200", True)


def test_failing_scrape_is_logged_and_told(board: Board, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        assert get(exporter_app(board, registry_of(Broken())), "/metrics") == ("500", b"")
    assert "A scrape failed" in caplog.text
    assert "no folder" in caplog.text


def test_build_info() -> None:
    (family,) = BuildCollector("1.2.3").collect()
    assert isinstance(family, GaugeMetricFamily)
    assert family.samples[0].labels["version"] == "1.2.3"


def test_resources_of_this_process(board: Board) -> None:
    collector = ResourceCollector(board)
    first = {family.name: family for family in collector.collect()}
    second = {family.name: family for family in collector.collect()}
    (memory,) = first["memory_usage_bytes"].samples
    assert memory.labels == {"process": "master"}
    assert memory.value > 1e6
    assert all(family.samples[0].value >= 0 for family in (first["cpu_usage_percent"], second["cpu_usage_percent"]))


def test_resources_of_companions_and_of_workers_beside(board: Board) -> None:
    tasks = Board(expected_workers=1, timeout_s=60, worker_name="task")
    board.beside = tasks
    child = os.fork()
    if not child:
        tasks.beat(0, State.READY)
        signal.pause()
    try:
        board.note_companion(0, "nats-server", child)
        while not tasks.rows():
            time.sleep(0.01)
        memory, *_ = ResourceCollector(board).collect()
        assert {sample.labels["process"] for sample in memory.samples} == {"master", "nats-server", "task-0"}
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_silent_connection_is_inspected_without_waiting() -> None:
    peer, accepted = socket.socketpair()
    with peer, accepted:
        accepted.settimeout(60)  # as the handler of a connection sets it
        start = time.monotonic()
        assert not _has_whole_head(accepted)
        peer.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert _has_whole_head(accepted)
        assert time.monotonic() - start < 30
        assert accepted.recv(100) == b"GET / HTTP/1.1\r\n\r\n"

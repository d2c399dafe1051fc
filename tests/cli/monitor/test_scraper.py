"""Addresses in every form that users type, and servers that misbehave."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from contextlib import aclosing, contextmanager
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING

import pytest

from app.cli.monitor.scraper import AddressError, Scraper, parse_target, parse_targets
from tests.scraping import serve

if TYPE_CHECKING:
    from collections.abc import Iterator

    from app.cli.monitor.instance import TrackedInstance

HEALTH = b'{"live":true,"ready":true,"draining":false,"workers":[],"task_workers":[]}'
METRICS = b"# TYPE queue_up gauge\nqueue_up 1\n"


@pytest.mark.parametrize(
    ("text", "url", "name"),
    [
        ("http://127.0.0.1:9000", "http://127.0.0.1:9000/", "127.0.0.1:9000"),
        ("127.0.0.1:9000", "http://127.0.0.1:9000/", "127.0.0.1:9000"),
        ("localhost:8000/metrics", "http://localhost:8000/", "localhost:8000"),
        ("https://example.com/faces/metrics/", "https://example.com/faces", "example.com"),
        ("http://h:1/health/ready?x=1#y", "http://h:1/", "h:1"),
        ("http://[::1]:9000", "http://[::1]:9000/", "[::1]:9000"),
        ("http://me:secret@h:1", "http://me:secret@h:1/", "h:1"),
    ],
)
def test_addresses(text: str, url: str, name: str) -> None:
    target = parse_target(text)
    assert (str(target.url.copy_with()), target.name) == (str(target.url), name)
    assert target.url == url


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        (["ftp://h"], "got scheme 'ftp'"),
        (["http://"], "got no host"),
        (["http://h:70000"], "expected a port from 1 to 65535, got 70000"),
        (["http://h:x"], "got an invalid URL"),
        (["h:1", "http://h:1/metrics"], "got h:1 twice"),
    ],
)
def test_invalid_addresses_are_rejected(texts: list[str], reason: str) -> None:
    with pytest.raises(AddressError, match=reason):
        parse_targets(texts)


@contextmanager
def serving(pages: dict[str, tuple[int, bytes]]) -> Iterator[str]:
    """Serve pages by path; status 0 closes the connection, 1 never responds, 2 never ends the body."""
    stop = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = pages[self.path]
            if status == 1:
                stop.wait(30)
            if status > 99:
                self.send_response(status)
                self.send_header("Location", "http://127.0.0.1:9/")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
            elif status == 2:
                self.send_response(200)
                self.end_headers()
                while not stop.is_set():
                    try:
                        self.wfile.write(b"#" * (1 << 20))
                    except OSError:
                        return

        def log_message(self, *_: object) -> None:
            pass

    with serve(Handler) as address:
        try:
            yield address
        finally:
            stop.set()


def scrape(address: str, timeout_s: float = 10.0) -> TrackedInstance:
    async def run() -> TrackedInstance:
        async with aclosing(Scraper(parse_targets([address]), timeout_s=timeout_s, window_s=10)) as scraper:
            await scraper.scrape()
            return scraper.instances[0]

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("health", "metrics", "reason"),
    [
        ((200, HEALTH), (200, METRICS), ""),
        ((503, HEALTH), (200, METRICS), ""),
        ((404, b"{}"), (404, b""), "/health: expected the health report of facial-service, got something else"),
        ((200, HEALTH), (200, b"node_load1 1\n"), "/metrics: expected metrics of facial-service, got none"),
        ((200, HEALTH), (200, b"\xff{{{"), "/metrics: expected the Prometheus text format, got something else"),
        ((200, HEALTH), (500, b""), "/metrics: expected status 200, got 500"),
        ((200, HEALTH), (302, b""), "/metrics: expected status 200, got 302"),
        ((200, HEALTH), (0, b""), "connection lost"),
        ((200, HEALTH), (2, b""), "/metrics: expected at most 32 MiB, got more"),
    ],
)
def test_responses(health: tuple[int, bytes], metrics: tuple[int, bytes], reason: str) -> None:
    with serving({"/health": health, "/metrics": metrics}) as address:
        instance = scrape(address)
    assert instance.reason == reason
    assert instance.is_unreachable == bool(reason)


def test_health_is_kept_if_metrics_are_disabled() -> None:
    with serving({"/health": (200, HEALTH), "/metrics": (404, b"")}) as address:
        instance = scrape(address)
    assert not instance.is_unreachable
    assert instance.latest is not None
    assert instance.latest.samples is None


def test_missing_response_is_reported_after_the_timeout() -> None:
    with serving({"/health": (200, HEALTH), "/metrics": (1, b"")}) as address:
        began = time.monotonic()
        instance = scrape(address, timeout_s=0.3)
        assert time.monotonic() - began >= 0.3
    assert instance.reason == "no response within 0.3 s"


def test_connection_failures() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert scrape(f"127.0.0.1:{port}").reason == "connection refused"
    assert scrape(f"{'a' * 70}:80").reason == "host name cannot be resolved"

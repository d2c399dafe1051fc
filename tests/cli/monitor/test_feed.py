"""Addresses as people write them, and servers that are not what they should be."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

from app.cli.monitor.feed import AddressError, Feed, parse_target, parse_targets

if TYPE_CHECKING:
    from collections.abc import Iterator

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
    ("texts", "why"),
    [
        (["ftp://h"], "got scheme 'ftp'"),
        (["http://"], "got no host"),
        (["http://h:70000"], "expected a port of 1 to 65535, got 70000"),
        (["http://h:x"], "got no URL"),
        (["h:1", "http://h:1/metrics"], "got h:1 twice"),
    ],
)
def test_wrong_addresses_are_refused(texts: list[str], why: str) -> None:
    with pytest.raises(AddressError, match=why):
        parse_targets(texts)


@contextmanager
def serving(pages: dict[str, tuple[int, bytes]]) -> Iterator[str]:
    """Serve pages by path; a status of 0 closes the connection, 1 keeps silent, 2 never ends."""
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

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        stop.set()
        server.shutdown()
        thread.join()
        server.server_close()


def scrape(address: str, timeout_s: float = 10.0) -> Feed:
    async def run() -> Feed:
        async with Feed(parse_targets([address]), timeout_s=timeout_s, window_s=10) as feed:
            await feed.scrape()
            return feed

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("health", "metrics", "reason"),
    [
        ((200, HEALTH), (200, METRICS), ""),
        ((503, HEALTH), (200, METRICS), ""),
        ((404, b"{}"), (404, b""), "expected the health of facial-service, got something else"),
        ((200, HEALTH), (200, b"node_load1 1\n"), "expected the metrics of facial-service, got none of them"),
        ((200, HEALTH), (200, b"\xff{{{"), "expected Prometheus's text format, got something else"),
        ((200, HEALTH), (500, b""), "/metrics: expected 200, got 500"),
        ((200, HEALTH), (302, b""), "/metrics: expected 200, got 302"),
        ((200, HEALTH), (0, b""), "the connection broke"),
        ((200, HEALTH), (2, b""), "/metrics: expected some 100 kB, got more than 32 MiB"),
    ],
)
def test_answers(health: tuple[int, bytes], metrics: tuple[int, bytes], reason: str) -> None:
    with serving({"/health": health, "/metrics": metrics}) as address:
        (instance,) = scrape(address).instances
    assert instance.reason == reason
    assert instance.is_away == bool(reason)


def test_metrics_that_are_off_leave_health() -> None:
    with serving({"/health": (200, HEALTH), "/metrics": (404, b"")}) as address:
        (instance,) = scrape(address).instances
    assert not instance.is_away
    assert instance.latest is not None
    assert instance.latest.samples is None


def test_silence_is_told_after_the_timeout() -> None:
    with serving({"/health": (200, HEALTH), "/metrics": (1, b"")}) as address:
        began = time.monotonic()
        (instance,) = scrape(address, timeout_s=0.3).instances
        assert time.monotonic() - began >= 0.3
    assert instance.reason == "no answer within 0.3 s"


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert scrape(f"127.0.0.1:{port}").instances[0].reason == "connection refused"
    assert scrape(f"{'a' * 70}:80").instances[0].reason == "its name is not known"

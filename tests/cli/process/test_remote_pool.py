"""Responses of a service or a proxy, and how the pool handles each."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from app.cli.process.jobs import Format, Job, JobConfig, Outcome, RunError
from app.cli.process.remote_pool import RemotePool
from app.service.crop import CropService, ImageLimits
from app.service.options import CropOptions
from app.service.serialization import result_to_json

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from app.service.crop import CropInput

COUNT = 12
ODD = b"the odd one"

Process = Callable[..., dict[int, Outcome]]


@contextmanager
def server(respond: Callable[[BaseHTTPRequestHandler, bytes, int], None]) -> Iterator[str]:
    """Run a server that calls a function for each request, with its body and how often that image was sent."""
    counts: Counter[bytes] = Counter()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            send(self, 200, b"{}")

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            image = body.partition(b"image ")[2][:8]
            counts[image] += 1
            respond(self, body, counts[image])

        def log_message(self, *_: Any) -> None:
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{running.server_port}"
    finally:
        running.shutdown()
        thread.join()
        running.server_close()


def send(handler: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(body)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def drop(handler: BaseHTTPRequestHandler) -> None:
    """Close the connection without a response."""
    handler.close_connection = True


@pytest.fixture(scope="module")
def document(make_input: Callable[..., CropInput]) -> bytes:
    return result_to_json(CropService(ImageLimits()).process(make_input()))


@pytest.fixture
def process(tmp_path: Path) -> Process:
    """Return ``process(url, stall_timeout_s)``, which sends images, number 3 with `ODD`, and returns the outcomes."""
    jobs = []
    for number in range(COUNT):
        image = tmp_path / f"{number}.png"
        image.write_bytes(b"image %08d " % number + (ODD if number == 3 else b""))
        jobs.append(Job(number, str(image), None, None, (str(tmp_path / "out" / f"{number}.json"),)))
    config = JobConfig(
        options=CropOptions(),
        formats=(Format.JSON,),
        max_bytes=1000,
        max_image_pixels=1000,
        landmark_margin=0.25,
        models=None,
    )

    def run(url: str, stall_timeout_s: float = 0.4) -> dict[int, Outcome]:
        pool = RemotePool(config, url=url, key="", size=3, stall_timeout_s=stall_timeout_s)
        return {outcome.number: outcome for outcome in pool.run(iter(jobs), threading.Event())}

    return run


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (422, b'{"code": "image_corrupt", "detail": "it is"}', "image_corrupt"),
        (500, b'{"code": "internal_error", "detail": "ours"}', "internal_error"),
        (413, b"<html>too much</html>", "http_error"),
        (422, b'{"code": 7}', "http_error"),
    ],
)
def test_error_response_fails_only_the_image_it_is_about(
    process: Process, document: bytes, status: int, body: bytes, code: str
) -> None:
    with server(lambda handler, sent, _: send(handler, *((status, body) if ODD in sent else (200, document)))) as url:
        outcomes = process(url)
    assert {number: outcome.code for number, outcome in outcomes.items() if outcome.code} == {3: code}
    assert len(outcomes) == COUNT


def test_response_that_is_not_a_result_writes_nothing(process: Process, tmp_path: Path) -> None:
    with server(lambda handler, _sent, _: send(handler, 200, b"<html>welcome to the hotel</html>")) as url:
        outcomes = process(url)
    assert {outcome.code for outcome in outcomes.values()} == {"answer_invalid"}
    assert not (tmp_path / "out").exists()


def test_image_that_gets_no_response_fails_while_others_are_done(process: Process, document: bytes) -> None:
    with server(lambda handler, sent, _: drop(handler) if ODD in sent else send(handler, 200, document)) as url:
        outcomes = process(url, 3.0)
    assert {number: outcome.code for number, outcome in outcomes.items() if outcome.code} == {3: "service_unreachable"}
    assert len(outcomes) == COUNT


def test_temporary_errors_are_retried(process: Process, document: bytes) -> None:
    def respond(handler: BaseHTTPRequestHandler, _sent: bytes, count: int) -> None:
        errors = {1: lambda: drop(handler), 2: lambda: send(handler, 502, b"bad gateway")}
        errors.get(count, lambda: send(handler, 200, document))()

    with server(respond) as url:
        outcomes = process(url, 30.0)
    assert {outcome.code for outcome in outcomes.values()} == {""}
    assert len(outcomes) == COUNT


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "401 unauthorized: a key; check FACIAL_SERVICE_API_KEY"),
        (403, "403 unauthorized: a key"),
        (404, "404 unauthorized: a key"),
        (308, "308 unauthorized: a key"),
    ],
)
def test_response_that_every_image_would_get_ends_the_run(process: Process, status: int, message: str) -> None:
    body = b'{"code": "unauthorized", "detail": "a key"}'
    with (
        server(lambda handler, _sent, _: send(handler, status, body, Location="/elsewhere")) as url,
        pytest.raises(RunError) as raised,
    ):
        process(url)
    assert str(raised.value) == message


@pytest.mark.parametrize("respond", [lambda handler: send(handler, 503, b"", Retry_After="3600"), drop])
def test_stall_timeout_ends_the_run(process: Process, respond: Callable[[BaseHTTPRequestHandler], None]) -> None:
    with (
        server(lambda handler, _sent, _: respond(handler)) as url,
        pytest.raises(RunError, match=r"no progress for 0\.4 s \(--stall-timeout\): "),
    ):
        process(url)

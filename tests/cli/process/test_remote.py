"""What answers a service, or something before it, may give, and what is made of each."""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from app.cli.process.jobs import Format, Job, Outcome, Recipe, RunError
from app.cli.process.remote import RemotePool
from app.cli.process.stop import Stop
from app.service.crop import CropService, Limits
from app.service.document import result_to_json
from app.service.options import CropOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from app.service.crop import CropInput

COUNT = 12
ODD = b"the odd one"


@contextmanager
def server(answer: Callable[[BaseHTTPRequestHandler, bytes, int], None]) -> Iterator[str]:
    """Run a server that leaves answers to a function, which is given the body and how often it was asked for it."""
    asked: Counter[bytes] = Counter()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            reply(self, 200, b"{}")

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            marker = body.partition(b"photo ")[2][:8]
            asked[marker] += 1
            answer(self, body, asked[marker])

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


def reply(handler: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(body)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def drop(handler: BaseHTTPRequestHandler) -> None:
    """Go away without an answer."""
    handler.close_connection = True


@pytest.fixture(scope="module")
def document(make_input: Callable[..., CropInput]) -> bytes:
    return result_to_json(CropService(Limits()).process(make_input()))


@pytest.fixture
def do(tmp_path: Path) -> Callable[..., dict[int, Outcome]]:
    """Give ``do(url, patience_s)``: sends photos of which number 3 is odd, and returns what came of each."""
    jobs = []
    for number in range(COUNT):
        photo = tmp_path / f"{number}.png"
        photo.write_bytes(b"photo %08d " % number + (ODD if number == 3 else b""))
        jobs.append(Job(number, str(photo), None, None, (str(tmp_path / "out" / f"{number}.json"),)))
    recipe = Recipe(
        options=CropOptions(),
        formats=(Format.JSON,),
        max_bytes=1000,
        max_image_pixels=1000,
        landmark_margin=0.25,
        models=None,
    )

    def send(url: str, patience_s: float = 0.4) -> dict[int, Outcome]:
        pool = RemotePool(recipe, url=url, key="", size=3, patience_s=patience_s)
        return {outcome.number: outcome for outcome in pool.run(iter(jobs), Stop())}

    return send


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (422, b'{"code": "image_corrupt", "detail": "it is"}', "image_corrupt"),
        (500, b'{"code": "internal_error", "detail": "ours"}', "internal_error"),
        (413, b"<html>too much</html>", "http_error"),
        (422, b'{"code": 7}', "http_error"),
    ],
)
def test_what_is_said_of_a_photo_is_its_failure_alone(
    do: Callable[..., dict[int, Outcome]], document: bytes, status: int, body: bytes, code: str
) -> None:
    with server(lambda handler, sent, _: reply(handler, *((status, body) if ODD in sent else (200, document)))) as url:
        outcomes = do(url)
    assert {number: outcome.code for number, outcome in outcomes.items() if outcome.code} == {3: code}
    assert len(outcomes) == COUNT


def test_what_is_no_result_is_told_and_nothing_is_written(
    do: Callable[..., dict[int, Outcome]], tmp_path: Path
) -> None:
    with server(lambda handler, _sent, _: reply(handler, 200, b"<html>welcome to the hotel</html>")) as url:
        outcomes = do(url)
    assert {outcome.code for outcome in outcomes.values()} == {"answer_invalid"}
    assert not (tmp_path / "out").exists()


def test_a_photo_that_is_never_answered_fails_while_others_are_done(
    do: Callable[..., dict[int, Outcome]], document: bytes
) -> None:
    with server(lambda handler, sent, _: drop(handler) if ODD in sent else reply(handler, 200, document)) as url:
        outcomes = do(url, 3.0)
    assert {number: outcome.code for number, outcome in outcomes.items() if outcome.code} == {3: "service_unreachable"}
    assert len(outcomes) == COUNT


def test_what_waiting_mends_is_waited_for(do: Callable[..., dict[int, Outcome]], document: bytes) -> None:
    def answer(handler: BaseHTTPRequestHandler, _sent: bytes, times: int) -> None:
        faults = {1: lambda: drop(handler), 2: lambda: reply(handler, 502, b"bad gateway")}
        faults.get(times, lambda: reply(handler, 200, document))()

    with server(answer) as url:
        outcomes = do(url, 30.0)
    assert {outcome.code for outcome in outcomes.values()} == {""}
    assert len(outcomes) == COUNT


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (401, "401 unauthorized: a key; FACIAL_SERVICE_API_KEY is what is sent"),
        (403, "403 unauthorized: a key"),
        (404, "404 unauthorized: a key"),
        (308, "308 unauthorized: a key"),
    ],
)
def test_what_every_photo_would_be_told_ends_the_run(
    do: Callable[..., dict[int, Outcome]], status: int, told: str
) -> None:
    body = b'{"code": "unauthorized", "detail": "a key"}'
    with (
        server(lambda handler, _sent, _: reply(handler, status, body, Location="/elsewhere")) as url,
        pytest.raises(RunError) as ended,
    ):
        do(url)
    assert str(ended.value) == told


@pytest.mark.parametrize("answer", [lambda handler: reply(handler, 503, b"", Retry_After="3600"), drop])
def test_where_nothing_is_done_patience_ends(
    do: Callable[..., dict[int, Outcome]], answer: Callable[[BaseHTTPRequestHandler], None]
) -> None:
    with (
        server(lambda handler, _sent, _: answer(handler)) as url,
        pytest.raises(RunError, match=r"nothing was done for 0\.4 s: "),
    ):
        do(url)

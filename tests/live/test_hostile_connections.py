"""Connections with malformed requests, or with requests for another protocol."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import TYPE_CHECKING

import httpx
import orjson
import pytest

if TYPE_CHECKING:
    from tests.conftest import Sample
    from tests.live.conftest import Attacker

pytestmark = pytest.mark.live

CANARY = b"QXcanaryQX"
MIB = 1024 * 1024
POST = b"POST /api/v1/frontal/crop HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
GET = b"GET /version HTTP/1.1\r\nHost: a\r\n"


def connect(attacker: Attacker) -> socket.socket:
    url = httpx.URL(attacker.target.api)
    return socket.create_connection((url.host, url.port or 80), timeout=30)


def receive(connection: socket.socket) -> bytes:
    data = connection.recv(65_536)
    assert data, "the connection was closed before the answer was whole"
    return data


def read_answer(connection: socket.socket) -> tuple[int, bytes]:
    """Read one response: its status and body."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += receive(connection)
    head, _, body = received.partition(b"\r\n\r\n")
    length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"content-length:"))
    while len(body) < length:
        body += receive(connection)
    return int(head.split()[1]), body


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + CANARY,
        CANARY * 10 + b"\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET http:// HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: a\r\n\r\n",
        b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n",
        GET + CANARY + b"\r\n\r\n",
        GET + b"X:\0" + CANARY + b"\r\n\r\n",
        POST + b"Content-Length: -1\r\n\r\n",
        POST + b"Content-Length: 99999999999999999999999\r\n\r\n",
        POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n" + CANARY + b"\r\n",
    ],
)
def test_what_is_no_http_is_refused(attacker: Attacker, data: bytes) -> None:
    with connect(attacker) as connection:
        connection.sendall(data)
        status, body = read_answer(connection)
        assert connection.recv(1) == b""
    assert (status, orjson.loads(body)["code"]) == (400, "http_invalid")
    assert CANARY not in body
    attacker.require_service()


BARE = b"GET /version HTTP/1.1\r\n"


@pytest.mark.parametrize("is_split", [False, True])
@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (BARE + b"\r\n", 400, "http_invalid"),
        (GET + b"Host: b\r\n\r\n", 400, "http_invalid"),
        (BARE + b"Host: a b\r\n\r\n", 400, "http_invalid"),
        (BARE + b"Host: a/b\r\n\r\n", 400, "http_invalid"),
        (b"GET /version\r\n", 400, "http_invalid"),
        (b"GET ftp://a/version HTTP/1.1\r\nHost: a\r\n\r\n", 400, "http_invalid"),
        (b"GET /version#x HTTP/1.1\r\nHost: a\r\n\r\n", 400, "http_invalid"),
        (b"GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400, "http_invalid"),
        (GET.replace(b"\r\n", b"\n") + b"\n", 400, "http_invalid"),
        (GET + b"X: a\n\r\n", 400, "http_invalid"),
        (POST + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}", 400, "http_invalid"),
        (POST + b"Content-Length: 2, 2\r\n\r\n{}", 400, "http_invalid"),
        (POST + b"Content-Length: +2\r\n\r\n{}", 400, "http_invalid"),
        (POST + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n0\r\n\r\n", 400, "http_invalid"),
        (POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", 400, "http_invalid"),
        (BARE + b"Host: u@a\r\n\r\n", 400, "http_invalid"),
        (BARE + b"Host: a:x\r\n\r\n", 400, "http_invalid"),
        (GET + b"X: a\r\n b\r\n\r\n", 400, "http_invalid"),
        (GET + b"X: a\rb\r\n\r\n", 400, "http_invalid"),
        (GET + b"X: a\x01b\r\n\r\n", 400, "http_invalid"),
        (GET + b"X : a\r\n\r\n", 400, "http_invalid"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "http_invalid"),
        (b"GET /version HTTP/2.0\r\nHost: a\r\n\r\n", 400, "http_invalid"),
        (POST + b"Content-Type: text/plain\r\nContent-Length: 2\r\n\r\n{}", 400, "http_invalid"),
        (POST + b"Content-Encoding: gzip\r\nContent-Encoding: identity\r\n\r\n", 400, "http_invalid"),
        (POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400, "http_invalid"),
        (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400, "http_invalid"),
        (b"BREW /version HTTP/1.1\r\nHost: a\r\n\r\n", 501, "method_unknown"),
        (b"get /version HTTP/1.1\r\nHost: a\r\n\r\n", 501, "method_unknown"),
        (b"GETX /version HTTP/1.1\r\nHost: a\r\n\r\n", 501, "method_unknown"),
        (b"PROPFIND /version HTTP/1.1\r\nHost: a\r\n\r\n", 501, "method_unknown"),
        (GET + b"X: " + b"a" * 70_000 + b"\r\n\r\n", 431, "head_too_large"),
        (GET + b"X: aaaaaa\r\n" * 7_000 + b"\r\n", 431, "head_too_large"),
        (GET + b"X:" + b" " * 70_000 + b"a\r\n\r\n", 431, "head_too_large"),
        (GET + b"X: a" + b"\t" * 70_000 + b"\r\n\r\n", 431, "head_too_large"),
        (b"\r\n" * 35_000 + GET + b"\r\n", 431, "head_too_large"),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 431, "head_too_large"),
    ],
)
def test_an_ambiguous_or_unknown_head_is_refused(
    attacker: Attacker, data: bytes, status: int, code: str, is_split: bool
) -> None:
    """Each rejection is a problem document with an id, has one access line and is counted once."""
    before = count_refusals(attacker, status)
    with connect(attacker) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        step = 1 if is_split and len(data) < 1000 else 5000 if is_split else len(data)
        with suppress(OSError):  # the service closes the connection early
            for start in range(0, len(data), step):
                connection.sendall(data[start : start + step])
        got, body = read_answer(connection)
    problem = orjson.loads(body)
    assert (got, problem["code"]) == (status, code)
    lines = attacker.target.wait_for_lines(lambda line: line.get("request_id") == problem["request_id"])
    assert [line["status"] for line in lines if "duration_ms" in line] == [status]
    assert count_refusals(attacker, status) == before + 1
    attacker.require_service()


@pytest.mark.parametrize(("size", "status"), [(65_536, 200), (65_537, 431)])
@pytest.mark.parametrize("step", [1_000, 100_000])
def test_the_limit_of_a_head_is_exact(attacker: Attacker, size: int, status: int, step: int) -> None:
    data = GET + b"X: " + b"a" * (size - len(GET) - len(b"X: \r\n\r\n")) + b"\r\n\r\n"
    assert len(data) == size
    with connect(attacker) as connection:
        with suppress(OSError):
            for start in range(0, len(data), step):
                connection.sendall(data[start : start + step])
        assert read_answer(connection)[0] == status


@pytest.mark.parametrize("target", [b"http://a/version", b"http://b:80/version", b"https://a/version?"])
def test_an_absolute_target_is_accepted(attacker: Attacker, target: bytes) -> None:
    with connect(attacker) as connection:
        connection.sendall(b"GET " + target + b" HTTP/1.1\r\nHost: a\r\n\r\n")
        assert read_answer(connection)[0] == 200


@pytest.mark.parametrize("host", [b"a", b"a:80", b"[::1]:80", b"a.b-c_d", b""])
def test_a_host_is_accepted(attacker: Attacker, host: bytes) -> None:
    with connect(attacker) as connection:
        connection.sendall(BARE + b"Host: " + host + b"\r\n\r\n")
        assert read_answer(connection)[0] == 200


def count_refusals(attacker: Attacker, status: int) -> float:
    labels = frozenset({("method", "OTHER"), ("endpoint", "unmatched"), ("status", str(status))})
    return attacker.target.scrape().get(("api_requests_total", labels), 0)


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (GET + b"X: ", b"a" * 60_000),
        (GET, b"X: a\r\n" * 10_000),
        (b"GET /", b"a" * 60_000),
        (GET.replace(b"/version", b"/version?" + b"a" * 60_000), b"X: a\r\n" * 10_000),
    ],
)
def test_an_endless_head_is_refused(attacker: Attacker, start: bytes, piece: bytes) -> None:
    with connect(attacker) as connection:
        connection.sendall(start)
        sent = 0
        try:
            while sent < 64 * MIB:
                connection.sendall(piece)
                sent += len(piece)
        except OSError:  # the service has closed the connection
            pass
        assert sent < 32 * MIB
    attacker.require_service()


def test_a_long_head_is_read(attacker: Attacker) -> None:
    with connect(attacker) as connection:
        for piece in (GET, b"X: " + b"a" * 30_000, b"a" * 30_000, b"\r\n\r\n"):
            connection.sendall(piece)
        assert read_answer(connection)[0] == 200


@pytest.mark.parametrize("offer", [b"h2c", b"websocket", b"TLS/1.2", CANARY])
@pytest.mark.parametrize("size", [1, 1000, 10**7])
def test_an_offer_of_another_protocol_is_passed_over(
    attacker: Attacker, sample: Sample, offer: bytes, size: int
) -> None:
    body = sample.json()
    data = POST + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: %b\r\nHTTP2-Settings: AAMA\r\n" % offer
    data += b"Content-Length: %d\r\n\r\n" % len(body)
    with connect(attacker) as connection:
        if size == 1:  # byte by byte up to the body
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for byte in data:
                connection.sendall(bytes([byte]))
            data = b""
        data += body
        for start in range(0, len(data), max(size, 1000)):
            connection.sendall(data[start : start + max(size, 1000)])
        assert read_answer(connection)[0] == 200
        connection.sendall(GET + b"\r\n")  # and the connection stays open
        assert read_answer(connection)[0] == 200


def test_endless_trailers_are_refused(attacker: Attacker) -> None:
    with connect(attacker) as connection:
        connection.sendall(POST.replace(b"application/json", b"text/plain") + b"Transfer-Encoding: chunked\r\n\r\n")
        connection.sendall(b"0\r\nX-A: ")
        sent = 0
        try:
            while sent < 64 * MIB:
                connection.sendall(b"a" * 60_000)
                sent += 60_000
        except OSError:  # the service has closed the connection
            pass
        assert sent < 32 * MIB
    attacker.require_service()


def test_many_offers_in_a_row_are_all_passed_over(attacker: Attacker) -> None:
    offers = 1500
    with connect(attacker) as connection:
        data = (GET + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n") * offers
        for start in range(0, len(data), 1000):  # so that some arrive while others are read again
            connection.sendall(data[start : start + 1000])
        answers = b""
        while answers.count(b"HTTP/1.1 200") < offers:
            answers += receive(connection)
    attacker.require_service()


def test_what_is_no_request_has_an_id_a_line_and_a_count(attacker: Attacker) -> None:
    before = refusals(attacker)
    with connect(attacker) as connection:
        connection.sendall(b"NONSENSE\r\n\r\n")
        _, body = read_answer(connection)
    problem = orjson.loads(body)
    lines = attacker.target.wait_for_lines(lambda line: line.get("request_id") == problem["request_id"])
    assert [(line["method"], line["status"]) for line in lines] == [("OTHER", 400)]
    assert refusals(attacker) == before + 1


def refusals(attacker: Attacker) -> float:
    labels = frozenset({("method", "OTHER"), ("endpoint", "unmatched"), ("status", "400")})
    return attacker.target.scrape().get(("api_requests_total", labels), 0)


def test_a_declared_size_is_not_a_size(attacker: Attacker) -> None:
    with connect(attacker) as connection:
        connection.sendall(POST + b"Content-Length: 18000000000000000000\r\n\r\n")
        assert read_answer(connection)[0] == 413
    sums = [value for (name, _), value in attacker.target.scrape().items() if name == "api_request_size_bytes_sum"]
    assert sum(sums) < 10**12


@pytest.mark.parametrize(
    ("bad", "status"),
    [
        pytest.param(b"BREW / HTTP/1.1\r\nHost: x\r\n\r\n", 501, id="an unknown method"),
        pytest.param(GET + b"A: " + b"a" * 70_000 + b"\r\n\r\n", 431, id="a long head"),
    ],
)
@pytest.mark.parametrize("good", [1, 5])
def test_a_refusal_follows_the_responses_to_the_requests_before_it(
    attacker: Attacker, sample: Sample, bad: bytes, status: int, good: int
) -> None:
    before = count_refusals(attacker, status)
    body = sample.json()
    with connect(attacker) as connection:
        connection.sendall((POST + b"Content-Length: %d\r\n\r\n" % len(body) + body) * good + bad)
        connection.settimeout(30)
        received = b"".join(iter(lambda: connection.recv(65_536), b""))
    statuses = [int(part[:3]) for part in received.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [200] * good + [status]
    assert count_refusals(attacker, status) == before + 1
    attacker.require_service()
    assert [line for line in attacker.target.log_lines() if "Traceback" in str(line) or "exc_info" in line] == []


def test_connections_left_no_trace(attacker: Attacker) -> None:
    attacker.require_service()
    attacker.require_bounded_memory(32 * MIB)
    assert CANARY.decode() not in attacker.target.log_text()
    assert "Traceback" not in attacker.target.log_text()

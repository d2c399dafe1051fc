"""One connection of the API: order of responses, limits that count every byte, and time limits of the client."""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import socket
from typing import TYPE_CHECKING, Any

import orjson
import pytest
import uvloop
from uvicorn.config import Config
from uvicorn.server import ServerState

from app.observability.rich_logging import get_logger, request_id
from app.supervisor import connections, uvicorn_adapter
from app.supervisor.framing import MAX_HEAD_BYTES
from app.supervisor.uvicorn_adapter import ServiceProtocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Scrape = Callable[[], dict[tuple[str, ...], float]]
    Talk = Callable[["Connection"], Awaitable[None]]

LIMIT_S = 20.0
GET = b"GET / HTTP/1.1\r\nHost: a\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
EARLY = b"POST /early HTTP/1.1\r\nHost: a\r\n"  # gets its response before its body is read
HOLD = b"GET /hold HTTP/1.1\r\nHost: a\r\n\r\n"
LARGE = 20_000_000


class Connection:
    """Both sides of a connection: the client's, and the protocol with an application behind it."""

    def __init__(self) -> None:
        self.requests: list[
            tuple[str, str, bytes]
        ] = []  # method, path and body of requests that reached the application
        self.hosts: list[str] = []
        self.held = 0
        self.reached = asyncio.Event()  # the application has a request
        self.release = asyncio.Event()
        self.lost = asyncio.Event()
        self.reader = asyncio.StreamReader()
        self.protocol: Any = None
        self._writer: Any = None

    async def open(self, address: Any) -> None:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # so that a client that does not read is noticed
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, address)
        self.reader, self._writer = await asyncio.open_connection(sock=client, limit=1024)

    async def send(self, data: bytes, step: int = 0) -> None:
        """Send data; if a step is given, in pieces of that size, which the service reads one by one."""
        for start in range(0, len(data), step or len(data)):
            self._writer.write(data[start : start + (step or len(data))])
            if step:
                for _ in range(3):  # both sides run on this loop
                    await asyncio.sleep(0)

    async def read_all(self) -> list[tuple[int, bytes]]:
        """Read until the service closes the connection; return the status and body of each response."""
        return split_responses(await self.reader.read())

    async def read_response(self) -> tuple[int, bytes]:
        head = await self.reader.readuntil(b"\r\n\r\n")
        return status_of(head), await self.reader.readexactly(length_of(head))

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while scope["path"] != "/early" and (message := await receive())["type"] == "http.request":
            body += message["body"]
            if not message["more_body"]:
                break
        self.requests.append((scope["method"], scope["path"], body))
        self.reached.set()
        self.hosts += [value.decode() for name, value in scope["headers"] if name == b"host"]
        if scope["path"] == "/listen":
            self.held = max(self.held, len(self.protocol._unread))
            listening = asyncio.ensure_future(receive())  # returns when the connection ends
            await asyncio.sleep(0.001)
            listening.cancel()
        if scope["path"] == "/hold":
            await self.release.wait()
        content = bytes(LARGE) if scope["path"] == "/large" else scope["path"].encode()
        headers = [(b"content-length", b"%d" % len(content))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})


def status_of(head: bytes) -> int:
    return int(head.split(b" ")[1])


def length_of(head: bytes) -> int:
    return next(int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))


def split_responses(data: bytes) -> list[tuple[int, bytes]]:
    found = []
    while data:
        head, _, rest = data.partition(b"\r\n\r\n")
        found.append((status_of(head), rest[: length_of(head)]))
        data = rest[length_of(head) :]
    return found


def code_of(response: tuple[int, bytes]) -> tuple[int, str]:
    return response[0], orjson.loads(response[1])["code"]


def converse(talk: Talk, *, keep_alive_s: float = 60, max_age_s: float = math.inf) -> Connection:
    """Run a client against the protocol; return once the service has ended the connection."""

    async def main() -> Connection:
        connection = Connection()
        config = Config(
            functools.partial(Connection.app, connection),
            interface="asgi3",
            log_config=None,
            lifespan="off",
            ws="none",
            proxy_headers=False,
            access_log=False,
            timeout_keep_alive=keep_alive_s,  # type: ignore[arg-type]
        )
        config.load()

        class Observed(ServiceProtocol):
            def connection_lost(self, exc: Exception | None) -> None:
                super().connection_lost(exc)
                connection.lost.set()

        def accept() -> ServiceProtocol:
            connection.protocol = Observed(config, ServerState(), {}, max_age_s=max_age_s)
            return connection.protocol  # type: ignore[no-any-return]

        loop = asyncio.get_running_loop()
        server = await loop.create_server(accept, "127.0.0.1", 0)
        await connection.open(server.sockets[0].getsockname())
        async with asyncio.timeout(LIMIT_S):
            await talk(connection)
            connection._writer.close()
            await connection.lost.wait()
        server.close()
        await server.wait_closed()
        return connection

    return asyncio.Runner(loop_factory=uvloop.new_event_loop).run(main())


BAD_HEADS = [
    pytest.param(b"BREW / HTTP/1.1\r\nHost: a\r\n\r\n", (501, "method_unknown"), id="method"),
    pytest.param(b"GET / HTTP/1.1\r\n\r\n", (400, "http_invalid"), id="no host"),
    pytest.param(b"GET /#x HTTP/1.1\r\nHost: a\r\n\r\n", (400, "http_invalid"), id="fragment"),
    pytest.param(b"GET /\r\n", (400, "http_invalid"), id="HTTP 0.9"),
    pytest.param(b"\x16\x03\x01", (400, "http_invalid"), id="TLS"),
    pytest.param(GET + b"X: " + b"a" * 70_000 + b"\r\n\r\n", (431, "head_too_large"), id="large"),
    pytest.param(GET + b"a:\r\n" * 200 + b"\r\n", (431, "head_too_large"), id="many fields"),
    pytest.param(GET + b"X : a\r\n\r\n", (400, "http_invalid"), id="blank before the colon"),
]


@pytest.mark.parametrize("good", [0, 1, 40])
@pytest.mark.parametrize(("bad", "expected"), BAD_HEADS)
def test_refusal_follows_the_responses_to_the_requests_before_it(
    bad: bytes, expected: tuple[int, str], good: int
) -> None:
    async def talk(connection: Connection) -> None:
        await connection.send(HOLD + (GET + b"\r\n") * good + bad + GET + b"\r\n")
        await connection.reached.wait()  # the bad head arrived in the same packet
        connection.release.set()
        *responses, refusal = await connection.read_all()
        assert responses == [(200, b"/hold")] + [(200, b"/")] * good
        assert code_of(refusal) == expected

    assert len(converse(talk).requests) == 1 + good


def test_a_bad_body_is_refused_instead_of_its_response() -> None:
    async def talk(connection: Connection) -> None:
        await connection.send(GET + b"\r\n" + CHUNKED + b"x\r\n")
        first, refusal = await connection.read_all()
        assert first == (200, b"/")
        assert code_of(refusal) == (400, "http_invalid")

    converse(talk)


def test_pipelined_requests_wait_for_their_turn() -> None:
    async def talk(connection: Connection) -> None:
        await connection.send(
            HOLD + POST + b"Content-Length: 3\r\n\r\nabc" + CHUNKED + b"3;x\r\nabc\r\n0\r\nA: b\r\n\r\n"
        )
        await connection.send(GET + b"Connection: close\r\n\r\n" + GET + b"\r\n")
        await connection.reached.wait()
        assert len(connection.requests) == 1
        connection.release.set()
        assert await connection.read_all() == [(200, b"/hold")] + [(200, b"/")] * 3

    bodies = [body for _, _, body in converse(talk).requests]
    assert bodies == [b"", b"abc", b"abc", b""]


def test_memory_for_waiting_requests_is_bounded() -> None:
    request = b"GET /listen HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 500 + b"\r\n\r\n"

    async def talk(connection: Connection) -> None:
        await connection.send(request * 10_000)
        for _ in range(500):
            await connection.read_response()

    assert converse(talk).held < 400_000  # the limit plus the size of one read


def test_a_stopping_process_responds_to_requests_that_have_arrived() -> None:
    async def talk(connection: Connection) -> None:
        await connection.send(HOLD + (GET + b"\r\n") * 2)
        await connection.reached.wait()
        connection.protocol.shutdown()
        connection.release.set()
        data = await connection.reader.read()
        assert [status for status, _ in split_responses(data)] == [200] * 3
        assert data.split(b"HTTP/1.1")[-1].count(b"connection: close") == data.count(b"connection: close") == 1

    converse(talk)


def test_a_stopping_process_refuses_the_request_that_runs_and_closes() -> None:
    async def talk(connection: Connection) -> None:
        await connection.send(HOLD + b"BREW / HTTP/1.1\r\nHost: a\r\n\r\n")
        await connection.reached.wait()
        connection.protocol.refuse_unfinished({}, "shutting_down", "the process is stopping")
        connection.release.set()
        data = await connection.reader.read()
        (refusal,) = split_responses(data)
        assert code_of(refusal) == (503, "shutting_down")
        assert b"x-request-id: " + orjson.loads(refusal[1])["request_id"].encode() in data.lower()

    converse(talk)


def test_the_id_of_a_refusal_stays_with_it() -> None:
    known: list[str | None] = []

    async def talk(connection: Connection) -> None:
        connection.protocol._start_timeouts = lambda: known.append(request_id.get())  # called after the refusal
        await connection.send(b"GET /\r\n")
        assert [status for status, _ in await connection.read_all()] == [400]

    converse(talk)
    assert known == [None]


@pytest.mark.parametrize("step", [0, 1])
def test_requests_are_the_same_in_whatever_pieces_they_arrive(step: int) -> None:
    async def talk(connection: Connection) -> None:
        await connection.send(b"\r\n" + GET + b"\r\n", step)
        await connection.send(POST + b"Content-Length: 3\r\n\r\nabc\r\n", step)
        await connection.send(CHUNKED + b'3;x="a;b"\r\nabc\r\n000A\r\n0123456789\r\n00\r\nA: b\r\n\r\n', step)
        await connection.send(
            b"GET /last HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, close\r\nUpgrade: h2c\r\n\r\n", step
        )
        assert [status for status, _ in await connection.read_all()] == [200] * 4

    bodies = [body for _, _, body in converse(talk).requests]
    assert bodies == [b"", b"abc", b"abc0123456789", b""]


def padded(size: int, before: bytes, after: bytes) -> bytes:
    """Return a head of the given size, padded at one position."""
    missing = size - len(before) - len(after)
    return before + (b" " if before else b"\r\n") * (missing if before else missing // 2) + after


@pytest.mark.parametrize("step", [0, 7000])
@pytest.mark.parametrize("size", [MAX_HEAD_BYTES, MAX_HEAD_BYTES + 2])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(GET + b"X:", b"a\r\n\r\n", id="before a value"),
        pytest.param(GET + b"X: a", b"\r\n\r\n", id="after a value"),
        pytest.param(GET + b"X:", b"\r\n\r\n", id="only blanks"),
        pytest.param(b"", b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n", id="empty lines"),
    ],
)
def test_every_byte_of_a_head_counts(before: bytes, after: bytes, size: int, step: int) -> None:
    head = padded(size, before, after)
    assert len(head) == size

    async def talk(connection: Connection) -> None:
        await connection.send(GET + b"\r\n" + head, step)
        assert (await connection.read_response())[0] == 200
        response = await connection.read_response()
        if size > MAX_HEAD_BYTES:
            assert code_of(response) == (431, "head_too_large")
        else:
            assert response[0] == 200

    converse(talk)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(b"1;" + b"x" * 70_000, (400, "http_invalid"), id="one chunk extension"),
        pytest.param((b"1;" + b"x" * 500 + b"\r\na\r\n") * 200, (400, "http_invalid"), id="many chunk extensions"),
        pytest.param(b"1\r\na\r\n" * 20_000, (400, "http_invalid"), id="many tiny chunks"),
        pytest.param(b"5\r\nabcde\r\n" * 20_000, (400, "http_invalid"), id="many small chunks"),
        pytest.param(b"0" * 70_000, (400, "http_invalid"), id="zeros before a size"),
        pytest.param(b"0\r\nX:" + b" " * 70_000 + b"\r\n\r\n", (431, "head_too_large"), id="one trailer"),
        pytest.param(b"0\r\n" + b"X: a\r\n" * 12_000 + b"\r\n", (431, "head_too_large"), id="many trailers"),
        pytest.param(b"FFFFFFFFFFFFFFFFF\r\n", (400, "http_invalid"), id="size beyond 64 bits"),
        pytest.param(b"-5\r\n", (400, "http_invalid"), id="negative size"),
        pytest.param(b"0x5\r\nabcde\r\n", (400, "http_invalid"), id="prefixed size"),
        pytest.param(b"5 \r\nabcde\r\n", (400, "http_invalid"), id="blank after a size"),
        pytest.param(b"5\nabcde\r\n", (400, "http_invalid"), id="bare LF after a size"),
        pytest.param(b"5\r\nabcdeX\n", (400, "http_invalid"), id="chunk longer than its size"),
        pytest.param(b"0\r\nX: a\n\r\n", (400, "http_invalid"), id="bare LF after a trailer"),
    ],
)
@pytest.mark.parametrize("step", [0, 7000])
def test_bad_chunks_and_trailers_are_refused(data: bytes, expected: tuple[int, str], step: int) -> None:
    async def talk(connection: Connection) -> None:
        await connection.send(CHUNKED + data, step)
        (refusal,) = await connection.read_all()
        assert code_of(refusal) == expected

    converse(talk)


LINE_CHUNK = b"32\r\n" + bytes(50) + b"\r\n"


def test_many_small_chunks_are_read() -> None:
    async def talk(connection: Connection) -> None:
        await connection.send(CHUNKED + b"1\r\na\r\n" * 10_000 + LINE_CHUNK * 50_000 + b"0\r\n\r\n")
        assert (await connection.read_response())[0] == 200

    assert converse(talk).requests[0][2] == b"a" * 10_000 + bytes(50) * 50_000


@pytest.mark.parametrize(
    "line",
    [
        b"GET ftp://a/version HTTP/1.1",
        b"GET file:///version HTTP/1.1",
        b"GET /version#x HTTP/1.1",
        b"GET http://a/version#x HTTP/1.1",
        b"GET http:///version HTTP/1.1",
        b"GET http://u@a/version HTTP/1.1",
        b"GET http://a:port/version HTTP/1.1",
        b"GET version HTTP/1.1",
        b"GET a:80 HTTP/1.1",
        b"GET * HTTP/1.1",
        b"OPTIONS ** HTTP/1.1",
        b"CONNECT a:443 HTTP/1.1",
        b"CONNECT / HTTP/1.1",
        b"GET /\xc3\xa9 HTTP/1.1",
        b"GET  / HTTP/1.1",
        b"GET /  HTTP/1.1",
        b"GET / HTTP/1.1 ",
        b"GET /\tHTTP/1.1",
        b"GET / RTSP/1.0",
        b"GET / HTTP/1.2",
        b"GET / HTTP/0.9",
        b"GET /",
        b"GET",
    ],
)
def test_a_bad_request_line_is_refused(line: bytes) -> None:
    async def talk(connection: Connection) -> None:
        await connection.send(line + b"\r\nHost: a\r\n\r\n")
        (refusal,) = await connection.read_all()
        assert code_of(refusal) == (400, "http_invalid")

    assert converse(talk).requests == []


@pytest.mark.parametrize(
    ("line", "path", "host"),
    [
        (b"GET http://b/version?a=1", "/version", "b"),
        (b"GET HTTPS://b:443/version", "/version", "b:443"),
        (b"GET http://[::1]:80/", "/", "[::1]:80"),
        (b"GET http://b", "/", "b"),
        (b"GET http://b?a=1", "/", "b"),
        (b"GET //b/version", "//b/version", "a"),
        (b"OPTIONS *", "*", "a"),
        (b"OPTIONS http://b", "/", "b"),
    ],
)
def test_a_target_is_accepted(line: bytes, path: str, host: str) -> None:
    async def talk(connection: Connection) -> None:
        await connection.send(line + b" HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await connection.read_response())[0] == 200

    connection = converse(talk)
    assert [found for _, found, _ in connection.requests] == [path]
    assert connection.hosts == [host]


@pytest.mark.parametrize("before", [b"", GET + b"\r\n"])
@pytest.mark.parametrize("head", [b"G", b"GET / HTTP/1.1\r\n", GET, GET + b"X: a"])
def test_an_incomplete_head_gets_408(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, scrape: Scrape, before: bytes, head: bytes
) -> None:
    monkeypatch.setattr(uvicorn_adapter, "HEAD_TIMEOUT_S", 0.5)
    caplog.set_level(logging.INFO, get_logger("api").name)

    async def talk(connection: Connection) -> None:
        await connection.send(before + head)
        *responses, refusal = await connection.read_all()
        assert responses == ([(200, b"/")] if before else [])
        assert code_of(refusal) == (408, "head_timeout")

    converse(talk)
    assert [record.status for record in caplog.records if hasattr(record, "status")] == [408]
    assert scrape()["errors_total", "api", "head_timeout"] == 1


@pytest.mark.parametrize("data", [b"", b"\r\n", b"\r\n\r\n\n"])
def test_a_connection_without_a_request_is_closed_silently(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, data: bytes
) -> None:
    monkeypatch.setattr(uvicorn_adapter, "HEAD_TIMEOUT_S", 0.5)
    caplog.set_level(logging.INFO, get_logger("api").name)

    async def talk(connection: Connection) -> None:
        await connection.send(data, 1)
        assert await connection.read_all() == []

    converse(talk)
    assert caplog.records == []


@pytest.mark.parametrize("data", [b"", b"\r\n", EARLY + b"Content-Length: 99\r\n\r\n" + b"abc" * 20])
def test_an_idle_connection_is_closed_silently_after_its_responses(data: bytes) -> None:
    async def talk(connection: Connection) -> None:
        await connection.send(GET + b"\r\n")
        assert (await connection.read_response())[0] == 200
        await connection.send(data, 20)
        assert await connection.read_all() == [(200, b"/early")] * (data[:4] == b"POST")

    converse(talk, keep_alive_s=0.5)


async def close_header_of(connection: Connection, request: bytes) -> bool:
    """Send a request, and return whether its response announces that the connection ends."""
    await connection.send(request)
    head = await connection.reader.readuntil(b"\r\n\r\n")
    assert status_of(head) == 200
    await connection.reader.readexactly(length_of(head))
    return b"connection: close" in head.lower()


def test_an_old_connection_ends_with_its_next_response() -> None:
    async def talk(connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        start = loop.time()
        while not await close_header_of(connection, GET + b"\r\n"):
            assert loop.time() < start + LIMIT_S
            await asyncio.sleep(0.01)
        assert loop.time() >= start + 0.5 * (1 - uvicorn_adapter.AGE_JITTER)
        assert await connection.reader.read() == b""

    converse(talk, max_age_s=0.5)


def test_a_connection_becomes_old_during_a_request() -> None:
    async def talk(connection: Connection) -> None:
        head = POST + b"Content-Length: 2\r\n\r\n"
        await connection.send(head)
        await asyncio.sleep(0.1)
        assert await close_header_of(connection, b"ab")

    assert converse(talk, max_age_s=0.1).requests == [("POST", "/", b"ab")]


def test_the_last_request_of_an_old_connection_is_the_last_that_was_sent() -> None:
    async def talk(connection: Connection) -> None:
        await asyncio.sleep(0.05)
        await connection.send(3 * (GET + b"\r\n"))
        assert [status for status, _ in await connection.read_all()] == [200, 200, 200]

    converse(talk, max_age_s=0.05)


def test_a_connection_ends_after_many_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uvicorn_adapter, "MAX_REQUESTS", 3)

    async def talk(connection: Connection) -> None:
        assert [await close_header_of(connection, GET + b"\r\n") for _ in range(3)] == [False, False, True]
        assert await connection.reader.read() == b""

    converse(talk)


def test_the_head_timeout_is_paused_while_the_request_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uvicorn_adapter, "HEAD_TIMEOUT_S", 0.5)

    async def talk(connection: Connection) -> None:
        await connection.send(HOLD + GET)
        await connection.reached.wait()
        assert connection.protocol._head_timer is None
        connection.release.set()
        assert [status for status, _ in await connection.read_all()] == [200, 408]

    converse(talk)


@pytest.mark.parametrize("data", [b"HEAD / HTTP/1.1\r\n\r\n", b"HEAD /#x HTTP/1.1\r\n\r\n"])
def test_the_refusal_of_a_head_request_has_no_body(data: bytes) -> None:
    async def talk(connection: Connection) -> None:
        await connection.send(data)
        head, _, body = (await connection.reader.read()).partition(b"\r\n\r\n")
        assert (status_of(head), body) == (400, b"")
        assert length_of(head) > 0

    converse(talk)


def test_the_refusal_is_not_lost_while_the_client_keeps_sending() -> None:
    async def talk(connection: Connection) -> None:
        await connection.send(POST + b"Host: b\r\nContent-Length: 1000000\r\n\r\n", 1)
        await connection.send(bytes(1_000_000))
        (refusal,) = await connection.read_all()
        assert code_of(refusal) == (400, "http_invalid")

    converse(talk)


def test_100_continue_is_sent_only_to_clients_that_support_it() -> None:
    async def talk(connection: Connection) -> None:
        await connection.send(b"POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n", 1)
        await connection.send(b"abc")
        assert await connection.read_all() == [(200, b"/")]

    converse(talk)


def test_a_client_that_reads_nothing_is_disconnected(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, scrape: Scrape
) -> None:
    monkeypatch.setattr(connections, "WRITE_TIMEOUT_S", 0.1)
    caplog.set_level(logging.INFO, get_logger("api").name)

    async def talk(connection: Connection) -> None:
        await connection.send(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n" * 50)
        await connection.lost.wait()

    connection = converse(talk)
    assert len(connection.requests) == 1, "no request is started behind a response that is not read"
    assert scrape()["errors_total", "api", "response_timeout"] == 1
    assert [record.levelname for record in caplog.records] == ["INFO"]


@pytest.mark.parametrize("close", [b"", b"Connection: close\r\n"])
def test_a_client_that_reads_slowly_gets_its_response(caplog: pytest.LogCaptureFixture, close: bytes) -> None:
    caplog.set_level(logging.INFO, get_logger("api").name)

    async def talk(connection: Connection) -> None:
        await connection.send(b"GET /large HTTP/1.1\r\nHost: a\r\n" + close + b"\r\n")
        await connection.reader.readuntil(b"\r\n\r\n")
        for _ in range(20):
            await connection.reader.readexactly(50_000)  # too little for the kernel to request more data
            assert connection.protocol.transport.get_write_buffer_size()
            connection.protocol._write_timeout._check()
        await connection.reader.readexactly(LARGE - 20 * 50_000)

    converse(talk)
    assert caplog.records == []

"""Closing without a reset: connections with unread bytes, and listening sockets with a backlog."""

from __future__ import annotations

import asyncio
import socket
import sys
from typing import TYPE_CHECKING, Any

import pytest
import uvloop

from app.supervisor import connections
from app.supervisor.connections import LingeringTransport, accept_waiting, refuse_connections

if TYPE_CHECKING:
    from collections.abc import Callable

LIMIT_S = 20.0


class Responder(asyncio.Protocol):
    """Responds to the first bytes it receives, and closes the connection."""

    def __init__(self, *, is_client_sending: bool) -> None:
        self.lost = asyncio.Event()
        self._is_client_sending = is_client_sending
        self._transport: LingeringTransport | None = None

    def connection_made(self, transport: Any) -> None:
        loop = asyncio.get_running_loop()
        self._transport = LingeringTransport(transport, loop, lambda: self._is_client_sending)

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        if self._transport.is_closing():
            self._transport.discard(len(data))
            return
        self._transport.write(b"response")
        self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the base class's signature
        self.lost.set()


def converse(talk: Callable[[socket.socket], bytes], *, is_client_sending: bool) -> bytes:
    """Run a client in a thread against a `Responder`; return what it received, once the connection has ended."""

    async def main() -> bytes:
        protocol = Responder(is_client_sending=is_client_sending)
        server = await asyncio.get_running_loop().create_server(lambda: protocol, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        with socket.create_connection(address, timeout=LIMIT_S) as client:
            received = await asyncio.to_thread(talk, client)
            await asyncio.wait_for(protocol.lost.wait(), LIMIT_S)
        server.close()
        return received

    return asyncio.Runner(loop_factory=uvloop.new_event_loop).run(main())


def test_response_is_not_lost_if_the_client_keeps_sending() -> None:
    def talk(client: socket.socket) -> bytes:
        client.sendall(b"first")
        first = client.recv(1)  # the server has closed its side
        client.sendall(b"x" * 200_000)
        rest = b"".join(iter(lambda: client.recv(4096), b""))
        client.close()
        return first + rest

    assert converse(talk, is_client_sending=True) == b"response"


def test_connection_closes_immediately_if_nothing_more_can_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "LINGER_S", 10 * LIMIT_S)

    def talk(client: socket.socket) -> bytes:
        client.sendall(b"first")
        return b"".join(iter(lambda: client.recv(4096), b""))

    assert converse(talk, is_client_sending=False) == b"response"


@pytest.mark.parametrize("name", ["LINGER_S", "LINGER_BYTES"])
def test_lingering_is_bounded(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(connections, "LINGER_S", 10 * LIMIT_S)
    monkeypatch.setattr(connections, name, 0.1)

    def talk(client: socket.socket) -> bytes:
        client.sendall(b"first")
        received = client.recv(4096)
        while True:
            try:
                client.sendall(b"x" * 4096)
            except OSError:
                return received

    assert converse(talk, is_client_sending=True) == b"response"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has socket filters")
def test_backlog_can_be_drained_before_the_socket_is_closed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        address = listener.getsockname()
        waiting = [socket.create_connection(address, timeout=LIMIT_S) for _ in range(3)]
        refuse_connections(listener)
        with socket.socket() as late:
            late.settimeout(0.2)
            with pytest.raises(TimeoutError):
                late.connect(address)
            accepted = list(accept_waiting(listener))
            assert len(accepted) == len(waiting)
            for client, server in zip(waiting, accepted, strict=True):
                client.sendall(b"still open")
                server.setblocking(True)
                assert server.recv(10) == b"still open"
                client.close()
                server.close()

"""How a connection or a listening socket is closed so that no client loses what it was sent."""

from __future__ import annotations

import ctypes
import socket
import struct
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator

# How much longer, and how much more, a client may send after the response that closes its connection.
LINGER_S = 2.0
LINGER_BYTES = 16 * 1024 * 1024

_SO_ATTACH_FILTER = 26
# Classic BPF over the TCP header: drop a segment that has SYN and not ACK, accept every other one.
_DROP_SYN = (
    (0x30, 0, 0, 13),  # load the byte of the flags
    (0x54, 0, 0, 0x12),  # and SYN|ACK
    (0x15, 0, 1, 0x02),  # if it is SYN alone,
    (0x06, 0, 0, 0),  # drop
    (0x06, 0, 0, 0xFFFFFFFF),  # otherwise accept
)


class LingeringTransport:
    """A transport that reads on for a moment after its last response, if the client may still be sending.

    The kernel resets a connection that is closed with unread bytes, and a reset discards the response that the client
    has received but not read yet.

    Args:
        transport: the connection.
        loop: for the time limit.
        is_client_sending: whether more of a request may be on its way.

    Attributes:
        is_lingering: whether only reading goes on.
        written_bytes: how many bytes were written in all.
    """

    def __init__(
        self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, is_client_sending: Callable[[], bool]
    ) -> None:
        self._transport = transport
        self._loop = loop
        self._is_client_sending = is_client_sending
        self.is_lingering = False
        self.written_bytes = 0
        self._discarded = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        """Return whether nothing more may be written."""
        return self.is_lingering or self._transport.is_closing()

    def write(self, data: bytes) -> None:
        """Send data, unless the last response has been sent: a request that is still running may respond later."""
        if not self.is_closing():
            self.written_bytes += len(data)
            self._transport.write(data)

    def close(self) -> None:
        """Send what is buffered and close, at once or after the client has stopped sending."""
        if self.is_closing():
            return
        if not self._is_client_sending() or not self._transport.can_write_eof():
            self._transport.close()
            return
        self.is_lingering = True
        self._transport.write_eof()
        with suppress(RuntimeError):  # reading was not paused
            self._transport.resume_reading()
        self._loop.call_later(LINGER_S, self._transport.close)

    def discard(self, size: int) -> None:
        """Count bytes that came after the last response, and close the connection if they are too many."""
        self._discarded += size
        if self._discarded > LINGER_BYTES:
            self._transport.close()


def refuse_connections(listener: socket.socket) -> None:
    """Drop new connection requests to a listening socket, so that it can be emptied and closed without a reset.

    A client whose first packet is dropped sends it again after a second, and then reaches the next process on the port
    or is refused. Clients that are connected already are not affected. The filter is a property of the socket, so one
    call is enough for all processes that share it. Other systems than Linux have no such filter.
    """
    if sys.platform != "linux":
        return
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in _DROP_SYN))
    program = struct.pack("@HP", len(_DROP_SYN), ctypes.addressof(code))
    with suppress(OSError):
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


def accept_waiting(listener: socket.socket) -> Iterator[socket.socket]:
    """Accept the connections that wait in the backlog of a listening socket that does not block."""
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:  # none waits, or there is no file descriptor for it
            return
        connection.setblocking(False)
        yield connection

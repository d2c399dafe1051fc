"""Closing connections and listening sockets without losing responses, and limits on clients that read slowly."""

from __future__ import annotations

import ctypes
import fcntl
import socket
import struct
import sys
import termios
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator

# How much longer, and how many more bytes, a client may send after the response that closes its connection.
LINGER_S = 2.0
LINGER_BYTES = 16 * 1024 * 1024

WRITE_TIMEOUT_S = 30.0

MAX_BUFFERED_BYTES = 64 * 1024 * 1024
WATCHED_BYTES = 256 * 1024  # connections with fewer buffered bytes are not watched
TICK_S = 0.5
MIN_READ_RATE = 256 * 1024  # bytes per second; a client that reads at least this fast is never dropped

_SO_ATTACH_FILTER = 26
# Classic BPF over the TCP header: drop segments with SYN but not ACK, accept all others.
_DROP_SYN = (
    (0x30, 0, 0, 13),  # load the byte of the flags
    (0x54, 0, 0, 0x12),  # and SYN|ACK
    (0x15, 0, 1, 0x02),  # if it is SYN alone,
    (0x06, 0, 0, 0),  # drop
    (0x06, 0, 0, 0xFFFFFFFF),  # otherwise accept
)


class LingeringTransport:
    """A transport that keeps reading for a moment after its last response if the client may still be sending.

    The kernel resets a connection that is closed with unread bytes, and a reset discards the response that the client
    has received but not read yet. `is_client_sending` returns whether more of a request may arrive.
    """

    def __init__(
        self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, is_client_sending: Callable[[], bool]
    ) -> None:
        self._transport = transport
        self._loop = loop
        self._is_client_sending = is_client_sending
        self.is_lingering = False  # the last response has been sent, and received bytes are discarded
        self.written_bytes = 0  # in total
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
        """Send buffered data and close, immediately or after the client has stopped sending."""
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
        """Count bytes received after the last response, and close the connection if there are too many."""
        self._discarded += size
        if self._discarded > LINGER_BYTES:
            self._transport.close()


def refuse_connections(listener: socket.socket) -> None:
    """Drop new connection requests to a listening socket, so that it can be drained and closed without a reset.

    A client whose first packet is dropped sends it again after a second. It then reaches the next process on the port,
    or is refused. Established connections are not affected. The filter belongs to the socket, so one call is enough for
    all processes that share it. Systems other than Linux have no such filter.
    """
    if sys.platform != "linux":
        return
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in _DROP_SYN))
    program = struct.pack("@HP", len(_DROP_SYN), ctypes.addressof(code))
    with suppress(OSError):
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


def accept_waiting(listener: socket.socket) -> Iterator[socket.socket]:
    """Accept the connections in the backlog of a non-blocking listening socket."""
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:  # the backlog is empty, or no file descriptor is free
            return
        connection.setblocking(False)
        yield connection


class WriteTimeout:
    """Detects a client that does not read, whose connection, buffered responses and request would stay forever.

    It measures what the client's system acknowledges. The transport's buffer alone can stand still for minutes while a
    slow client reads, because the kernel accepts more only when a third of its own buffer, up to megabytes, is free.
    It checks once per `WRITE_TIMEOUT_S`, so a client has one to two times that long, and calls `on_timeout` once.
    """

    def __init__(
        self, transport: LingeringTransport, loop: asyncio.AbstractEventLoop, on_timeout: Callable[[], None]
    ) -> None:
        self._transport = transport
        self._loop = loop
        self._on_timeout = on_timeout
        self._acknowledged = -1
        self._start()

    def stop(self) -> None:
        """Stop the checks."""
        self._timer.cancel()

    def _start(self) -> None:
        self._timer = self._loop.call_later(WRITE_TIMEOUT_S, self._check)

    def _check(self) -> None:
        buffered = self._transport.get_write_buffer_size()
        acknowledged = self._transport.written_bytes - buffered - self._count_kernel_bytes() if buffered else -1
        if buffered and acknowledged == self._acknowledged:
            self._on_timeout()
            return
        self._acknowledged = acknowledged
        self._start()

    def _count_kernel_bytes(self) -> int:
        """Return how many unacknowledged bytes the kernel holds, or 0 if it does not report them."""
        try:
            result = fcntl.ioctl(self._transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
        except OSError:
            return 0
        return int(struct.unpack("i", result)[0])


class ResponseBudget:
    """Limit on the buffered response bytes of one event loop.

    While they exceed `MAX_BUFFERED_BYTES`, the connections of slow clients are closed, those with the most bytes first.
    A client has at least one tick to start reading.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._watched: dict[LingeringTransport, tuple[Callable[[], None], int | None]] = {}
        self._ticker: asyncio.TimerHandle | None = None

    def watch(self, transport: LingeringTransport, on_drop: Callable[[], None]) -> None:
        """Watch a connection that has more than `WATCHED_BYTES` buffered; `on_drop` closes it immediately."""
        if transport.get_write_buffer_size() < WATCHED_BYTES:
            return
        self._watched.setdefault(transport, (on_drop, None))
        if self._ticker is None:
            self._ticker = self._loop.call_later(TICK_S, self._tick)

    def forget(self, transport: LingeringTransport) -> None:
        """Stop watching a connection that was lost."""
        self._watched.pop(transport, None)

    def _tick(self) -> None:
        self._ticker = None
        total, slow = 0, []
        for transport, (on_drop, before) in list(self._watched.items()):
            buffered = transport.get_write_buffer_size()
            if buffered < WATCHED_BYTES:
                del self._watched[transport]
                continue
            total += buffered
            sent = transport.written_bytes - buffered
            if before is not None and sent - before < MIN_READ_RATE * TICK_S:
                slow.append((buffered, on_drop))
            self._watched[transport] = (on_drop, sent)
        for buffered, on_drop in sorted(slow, key=lambda entry: -entry[0]):
            if total <= MAX_BUFFERED_BYTES:
                break
            on_drop()
            total -= buffered
        if self._watched:
            self._ticker = self._loop.call_later(TICK_S, self._tick)


_budgets: WeakKeyDictionary[asyncio.AbstractEventLoop, ResponseBudget] = WeakKeyDictionary()


def response_budget(loop: asyncio.AbstractEventLoop) -> ResponseBudget:
    """Return the budget of an event loop."""
    return _budgets.setdefault(loop, ResponseBudget(loop))

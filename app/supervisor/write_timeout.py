"""A limit on how long a client may take no byte of a response."""

from __future__ import annotations

import fcntl
import struct
import termios
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from app.supervisor.closing import LingeringTransport

WRITE_TIMEOUT_S = 30.0


class WriteTimeout:
    """Detects that a client does not read: its connection, buffered responses and waiting request would stay for ever.

    What counts is what the client's system acknowledges. The transport's buffer alone can stand still for minutes while
    a slow client reads, because the kernel accepts more only when a third of its own buffer, up to megabytes, is free.

    Args:
        transport: the connection.
        loop: for the checks, one per `WRITE_TIMEOUT_S`; so a client has once to twice that time.
        on_timeout: called at most once.
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
        """End the checks."""
        self._timer.cancel()

    def _start(self) -> None:
        self._timer = self._loop.call_later(WRITE_TIMEOUT_S, self._check)

    def _check(self) -> None:
        buffered = self._transport.get_write_buffer_size()
        acknowledged = self._transport.written_bytes - buffered - self._in_kernel() if buffered else -1
        if buffered and acknowledged == self._acknowledged:
            self._on_timeout()
            return
        self._acknowledged = acknowledged
        self._start()

    def _in_kernel(self) -> int:
        """Return how many bytes the kernel holds until they are acknowledged, or 0 if it does not report them."""
        try:
            answer = fcntl.ioctl(self._transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
        except OSError:
            return 0
        return int(struct.unpack("i", answer)[0])

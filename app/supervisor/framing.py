"""Where the parts of a request end in the bytes of a connection.

The parser reports neither positions nor bytes that it skips, such as blanks around the value of a header. So that every
byte counts against the limits, the bytes are divided before they are parsed. The parser decides whether they are valid.
"""

from __future__ import annotations

import re
from typing import Protocol

from app.supervisor.request_head import RefusedError, require_method_start, require_request_line

# Proxies send on 8 to 32 KiB.
MAX_HEAD_BYTES = 65_536
# Chunks may add a byte to as many bytes of data, and `MAX_HEAD_BYTES` in all: a chunk of 40 bytes adds 5 or 6.
DATA_PER_OVERHEAD = 8

_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]+")
_HEAD_END = re.compile(rb"\n\r?\n")  # a line break without CR is for the parser to refuse, and at once
_EMPTY_LINE = b"\r\n"


class Part(Protocol):
    """One part of a request.

    Attributes:
        is_complete: whether all of its bytes have been measured.
    """

    is_complete: bool

    def measure(self, unread: bytes | bytearray) -> int:
        """Return how many of the next bytes can be parsed as a piece of this part, 0 if more have to come first.

        Args:
            unread: what has come; the caller removes as many bytes as this returns before the next call.

        Raises:
            RefusedError: the part exceeds a limit, or is not HTTP.
        """


class Head:
    """The request line and the headers, measured as a whole; empty lines before them count against the limit.

    Attributes:
        is_complete: see `Part`.
        method: of the request; empty until the request line has arrived.
    """

    def __init__(self) -> None:
        self.is_complete = False
        self.method = b""
        self._skipped = 0
        self._searched = 0

    def skip_empty_lines(self, unread: bytearray) -> None:
        """Remove line breaks before the request line: some clients send them after a body."""
        if unread.startswith((b"\r", b"\n")):
            size = len(unread) - len(unread.lstrip(_EMPTY_LINE))
            self._skipped += size
            del unread[:size]

    def measure(self, unread: bytes | bytearray) -> int:
        """Return the size of the head once it has arrived; see `Part`."""
        if not self.method:
            self._check_line(unread)
        end = _HEAD_END.search(unread, max(0, self._searched - len(_EMPTY_LINE)))
        self._searched = len(unread)
        self.is_complete = end is not None
        size = end.end() if end else len(unread)
        if self._skipped + size > MAX_HEAD_BYTES:
            raise _head_too_large()
        return size if self.is_complete else 0

    def _check_line(self, unread: bytes | bytearray) -> None:
        end = unread.find(b"\n", self._searched) + 1
        if end:
            line = bytes(unread[:end])
            self.method = line.partition(b" ")[0]
            require_request_line(line)
        else:
            require_method_start(unread)


class SizedBody:
    """A body with a Content-Length.

    Args:
        size: in bytes.
    """

    def __init__(self, size: int) -> None:
        self.is_complete = False
        self._missing = size

    def measure(self, unread: bytes | bytearray) -> int:
        """Return what has arrived of the body; see `Part`."""
        size = min(self._missing, len(unread))
        self._missing -= size
        self.is_complete = not self._missing
        return size


class ChunkedBody:
    """A body in chunks, and its trailers.

    What the chunks add to their data is bounded: neither extensions nor tiny chunks count as the body's size, and each
    chunk takes a microsecond.
    """

    def __init__(self) -> None:
        self.is_complete = False
        self._missing = 0  # of a chunk's data and the line break after it
        self._searched = 0
        self._overhead = 0
        self._is_in_trailers = False

    def measure(self, unread: bytes | bytearray) -> int:
        """Return the size of the complete lines and the data that have arrived; see `Part`."""
        at, available = 0, len(unread)
        while at < available and not self.is_complete:
            if self._missing:
                size = min(self._missing, available - at)
                self._missing -= size
                at += size
                continue
            end = unread.find(b"\n", at + self._searched) + 1
            if not end:
                self._searched = available - at
                self._require_bounded(self._searched)
                break
            self._searched = 0
            if self._is_in_trailers:
                self._overhead += end - at
                self.is_complete = unread.startswith(_EMPTY_LINE, at)
            else:
                self._start_chunk(unread, at, end)
            self._require_bounded()
            at = end
        return at

    def _start_chunk(self, unread: bytes | bytearray, at: int, end: int) -> None:
        match = _CHUNK_SIZE.match(unread, at, end)
        if match is None:
            raise invalid_body()
        size = int(match[0], 16)
        if size:
            self._missing = size + len(_EMPTY_LINE)
            self._overhead += end - at + len(_EMPTY_LINE) - size // DATA_PER_OVERHEAD
        else:
            self._is_in_trailers = True
            self._overhead = 0

    def _require_bounded(self, more: int = 0) -> None:
        if self._overhead + more > MAX_HEAD_BYTES:
            if self._is_in_trailers:
                raise _head_too_large()
            detail = f"body: expected chunks of at least {5 * DATA_PER_OVERHEAD} bytes, got too many smaller ones"
            raise RefusedError("http_invalid", detail)


def body_of(headers: list[tuple[bytes, bytes]]) -> Part:
    """Return how the body is divided that follows a head; the parser has checked the length."""
    length = next((value for name, value in headers if name == b"content-length"), None)
    return ChunkedBody() if length is None else SizedBody(int(length))


def invalid_body() -> RefusedError:
    """Return the refusal of a body that is not divided into chunks as it should be."""
    return RefusedError("http_invalid", "body: expected valid chunks, got something else")


def _head_too_large() -> RefusedError:
    return RefusedError("head_too_large", f"headers: expected at most {MAX_HEAD_BYTES} bytes, got more")

"""Framing and validation of HTTP/1.1 requests, before and beyond what the parser checks.

The parser reports neither positions nor bytes that it skips, such as whitespace around a header's value. To count every
byte against the limits, the bytes are divided into requests before they are parsed.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Protocol

from app.observability import metrics

if TYPE_CHECKING:
    from collections.abc import Iterator

    Headers = list[tuple[bytes, bytes]]

# Proxies allow 8 to 32 KiB.
MAX_HEAD_BYTES = 65_536
# Chunk overhead may be one byte per this many bytes of data, plus `MAX_HEAD_BYTES`. A chunk of 40 bytes has 5 or 6.
DATA_PER_OVERHEAD = 8

_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]+")
_HEAD_END = re.compile(rb"\n\r?\n")  # includes line breaks without CR, which the parser then refuses immediately
_EMPTY_LINE = b"\r\n"

# Servers and proxies disagree on which of two values counts, which allows request smuggling.
_SINGLE_HEADERS = (
    b"host",
    b"content-type",
    b"content-encoding",
    b"content-length",
    b"transfer-encoding",
    b"authorization",
    b"idempotency-key",
)
_HOST_PATTERN = rb"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]*)(?::[0-9]{0,5})?"
_HOST = re.compile(_HOST_PATTERN)
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_METHOD_PATTERN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}"
_METHOD_START = re.compile(_METHOD_PATTERN + rb"(?: |\Z)")
_REQUEST_LINE = re.compile(rb"(" + _METHOD_PATTERN + rb") ([!-~]+) HTTP/1\.[01]\r\n")
_ABSOLUTE_TARGET = re.compile(rb"https?://(?=[^/?:])(" + _HOST_PATTERN + rb")(/[^?]*)?(\?.*)?", re.IGNORECASE)


class RefusedError(Exception):
    """A request is refused before it reaches the application; the code is a key of `PROBLEMS`."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


class Part(Protocol):
    """One part of a request."""

    is_complete: bool  # all of its bytes have been measured

    def measure(self, unread: bytes | bytearray) -> int:
        """Return how many of the next bytes belong to this part and can be parsed; 0 if more are needed first.

        The caller removes as many bytes as this returns before the next call.

        Raises:
            RefusedError: the part exceeds a limit, or is not HTTP.
        """


class Head:
    """The request line and the headers, measured as a whole; empty lines before them count against the limit."""

    def __init__(self) -> None:
        self.is_complete = False
        self.method = b""  # empty until the request line has arrived
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
            _require_request_line(line)
        elif unread and not _METHOD_START.match(unread):
            # Refused although it is incomplete, so that a client of another protocol does not wait.
            raise _no_request_line()


class SizedBody:
    """A body with a Content-Length."""

    def __init__(self, size: int) -> None:
        self.is_complete = False
        self._missing = size

    def measure(self, unread: bytes | bytearray) -> int:
        """Return how many bytes of the body have arrived; see `Part`."""
        size = min(self._missing, len(unread))
        self._missing -= size
        self.is_complete = not self._missing
        return size


class ChunkedBody:
    """A body in chunks, and its trailers.

    The overhead of the chunks is bounded, because neither extensions nor tiny chunks count towards the body's size, and
    each chunk costs a microsecond.
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


def body_of(headers: Headers) -> Part:
    """Return the framing of the body that follows a head; the parser has validated the length."""
    length = next((value for name, value in headers if name == b"content-length"), None)
    return ChunkedBody() if length is None else SizedBody(int(length))


def split_target(target: bytes) -> tuple[bytes | None, bytes]:
    """Split a valid target into its authority, if it is an absolute URL, and the path with the query.

    Example:
        >>> split_target(b"http://host:80?a=1")
        (b'host:80', b'/?a=1')
        >>> split_target(b"/path")
        (None, b'/path')
    """
    match = _ABSOLUTE_TARGET.fullmatch(target)
    if match is None:
        return None, target
    return match[1], (match[2] or b"/") + (match[3] or b"")


def require_valid_headers(version: str, headers: Headers) -> None:
    """Refuse ambiguous headers, control characters and requests without a host; names are in lower case.

    Raises:
        RefusedError: ``http_invalid``.
    """
    for detail in _find_header_errors(version, headers):
        raise RefusedError("http_invalid", detail)


def replace_host(headers: Headers, authority: bytes) -> None:
    """Set the host to that of the target, which takes precedence (RFC 9112, 3.2.2)."""
    headers[:] = [(name, value) for name, value in headers if name != b"host"] + [(b"host", authority)]


def invalid_body() -> RefusedError:
    """Return the error for a body with invalid chunks."""
    return RefusedError("http_invalid", "body: expected valid chunks, got something else")


def _require_request_line(line: bytes) -> None:
    """Refuse a request line with an unknown method, an invalid target or a version other than HTTP/1.0 and HTTP/1.1."""
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        raise _no_request_line()
    method, target = match[1].decode(), match[2]
    if method not in metrics.HTTP_METHODS:
        raise RefusedError("method_unknown", "method: expected a standard HTTP method, got another")
    if method == "CONNECT":
        raise RefusedError("http_invalid", "method: expected a request to this server, got CONNECT")
    if b"#" in target:
        raise RefusedError("http_invalid", "target: expected no fragment, got one")
    if target == b"*":
        if method != "OPTIONS":
            raise RefusedError("http_invalid", f"target: expected a path, got * with {method}")
    elif not target.startswith(b"/") and not _ABSOLUTE_TARGET.fullmatch(target):
        raise RefusedError("http_invalid", "target: expected a path or an http or https URL, got something else")


def _find_header_errors(version: str, headers: Headers) -> Iterator[str]:
    names = [name for name, _ in headers]
    for name in _SINGLE_HEADERS:
        if (count := names.count(name)) > 1:
            yield f"{name.decode().title()}: expected one field, got {count}"
    if version == "1.1" and b"host" not in names:
        yield "Host: expected in HTTP/1.1, got none"
    for name, value in headers:
        if _CONTROL.search(value):
            yield "headers: expected no control characters, got some"
        if name == b"host" and not _HOST.fullmatch(value.strip()):
            yield "Host: expected a host and an optional port, got something else"
        if name == b"transfer-encoding" and (version == "1.0" or value.strip().lower() != b"chunked"):
            yield "Transfer-Encoding: expected chunked in HTTP/1.1, got something else"


def _no_request_line() -> RefusedError:
    detail = "request line: expected a method, a target and HTTP/1.0 or HTTP/1.1, got something else"
    return RefusedError("http_invalid", detail)


def _head_too_large() -> RefusedError:
    return RefusedError("head_too_large", f"headers: expected at most {MAX_HEAD_BYTES} bytes, got more")

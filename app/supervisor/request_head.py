"""Which heads of requests are accepted: the request line and the headers, beyond what the parser checks."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from app.observability import metrics

if TYPE_CHECKING:
    from collections.abc import Iterator

    Headers = list[tuple[bytes, bytes]]

# A second value is a request for two servers on the way to read the request differently.
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
    """A request is refused before it reaches the application.

    Args:
        code: a key of `PROBLEMS`.
        detail: the thing, what was expected and what came.
    """

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


def require_method_start(line: bytes | bytearray) -> None:
    """Refuse an incomplete request line that cannot become one, so that a client of another protocol does not wait.

    Raises:
        RefusedError: ``http_invalid``.
    """
    if line and not _METHOD_START.match(line):
        raise _no_request_line()


def require_request_line(line: bytes) -> None:
    """Refuse a request line with an unknown method, an invalid target or another version than HTTP/1.0 or HTTP/1.1.

    Args:
        line: with its line break.

    Raises:
        RefusedError: ``http_invalid`` or ``method_unknown``.
    """
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        raise _no_request_line()
    method, target = match[1].decode(), match[2]
    if method not in metrics.HTTP_METHODS:
        raise RefusedError("method_unknown", "method: expected one of HTTP's own, got another")
    if method == "CONNECT":
        raise RefusedError("http_invalid", "method: expected a request, got CONNECT")
    if b"#" in target:
        raise RefusedError("http_invalid", "target: expected no fragment, got one")
    if target == b"*":
        if method != "OPTIONS":
            raise RefusedError("http_invalid", "target: expected * only with OPTIONS")
    elif not target.startswith(b"/") and not _ABSOLUTE_TARGET.fullmatch(target):
        raise RefusedError("http_invalid", "target: expected a path or an http or https URL, got something else")


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
    """Refuse headers that are ambiguous, that hold control characters, or that lack the host.

    Args:
        version: of HTTP.
        headers: names in lower case, and values.

    Raises:
        RefusedError: ``http_invalid``.
    """
    for detail in _find_faults(version, headers):
        raise RefusedError("http_invalid", detail)


def replace_host(headers: Headers, authority: bytes) -> None:
    """Set the host to that of the target, which takes precedence (RFC 9112, 3.2.2)."""
    headers[:] = [(name, value) for name, value in headers if name != b"host"] + [(b"host", authority)]


def _find_faults(version: str, headers: Headers) -> Iterator[str]:
    names = [name for name, _ in headers]
    for name in _SINGLE_HEADERS:
        if (count := names.count(name)) > 1:
            yield f"{name.decode().title()}: expected one field, got {count}"
    if version == "1.1" and b"host" not in names:
        yield "Host: required in HTTP/1.1, got none"
    for name, value in headers:
        if _CONTROL.search(value):
            yield "headers: expected no control characters, got some"
        if name == b"host" and not _HOST.fullmatch(value.strip()):
            yield "Host: expected a host and an optional port, got something else"
        if name == b"transfer-encoding" and (version == "1.0" or value.strip().lower() != b"chunked"):
            yield "Transfer-Encoding: expected chunked in HTTP/1.1, got another"


def _no_request_line() -> RefusedError:
    detail = "request line: expected a method, a target and HTTP/1.0 or HTTP/1.1, got something else"
    return RefusedError("http_invalid", detail)

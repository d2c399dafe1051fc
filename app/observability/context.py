"""Context variables of one request or task, which every log line contains."""

from __future__ import annotations

import re
import secrets
from contextvars import ContextVar

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
trace_id: ContextVar[str | None] = ContextVar("trace_id", default=None)

# Long enough for a UUID with a prefix, and without characters that could forge a line or a field.
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}", re.ASCII)
# W3C Trace Context, level 1: version, trace id, parent id, flags; an all-zero trace id is invalid.
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?", re.ASCII)


def accept_request_id(header: str | None) -> str:
    """Return the caller's request id if it is safe to log, or a new one.

    Example:
        >>> accept_request_id("order-17")
        'order-17'
        >>> accept_request_id("forged line") == "forged line"
        False
    """
    if header is not None and _REQUEST_ID.fullmatch(header):
        return header
    return secrets.token_hex(8)


def parse_trace_id(traceparent: str | None) -> str | None:
    """Return the trace id of a W3C ``traceparent`` header, or None if it is missing or malformed.

    Example:
        >>> parse_trace_id("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
        '0af7651916cd43dd8448eb211c80319c'
    """
    match = _TRACEPARENT.fullmatch(traceparent) if traceparent else None
    return match[1] if match else None

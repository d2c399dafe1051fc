"""The memory that decoding may take in the current context.

Verification needs to decode only unusual files, such as a JPEG without an end marker. That may take too long for the
event loop. Decoding a large image on an additional thread may take more memory than the process has.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_max_bytes = ContextVar("max_bytes", default=math.inf)


class DecodingForbiddenError(Exception):
    """The file needs more memory for decoding than this context allows; process it on a regular work thread."""


@contextmanager
def limit_decoding(max_bytes: float) -> Iterator[None]:
    """Make decoding in this context raise `DecodingForbiddenError` if it needs more memory."""
    token = _max_bytes.set(max_bytes)
    try:
        yield
    finally:
        _max_bytes.reset(token)


def require_decoding(needed_bytes: float) -> None:
    """Check that decoding may take this much memory; call this before decoding.

    Raises:
        DecodingForbiddenError: this context allows less.
    """
    if needed_bytes > _max_bytes.get():
        raise DecodingForbiddenError

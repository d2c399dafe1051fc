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
    """Let decoding in this context raise `DecodingForbiddenError` if it takes more memory."""
    token = _max_bytes.set(max_bytes)
    try:
        yield
    finally:
        _max_bytes.reset(token)


def require_decoding(needed_bytes: float) -> None:
    """Announce that decoding is about to take this much memory.

    Raises:
        DecodingForbiddenError: that is more than this context allows.
    """
    if needed_bytes > _max_bytes.get():
        raise DecodingForbiddenError

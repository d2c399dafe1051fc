"""Whether the verification of a file may decode it.

Verification needs to decode only unusual files, such as a JPEG without an end marker. That may take too long for the
event loop.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_is_forbidden = ContextVar("is_forbidden", default=False)


class DecodingForbiddenError(Exception):
    """The file cannot be verified without decoding it; verify it on a work thread."""


@contextmanager
def forbid_decoding() -> Iterator[None]:
    """Let verification in this context raise `DecodingForbiddenError` instead of decoding a file."""
    token = _is_forbidden.set(True)
    try:
        yield
    finally:
        _is_forbidden.reset(token)


def require_decoding() -> None:
    """Announce that verification is about to decode.

    Raises:
        DecodingForbiddenError: decoding is forbidden in this context.
    """
    if _is_forbidden.get():
        raise DecodingForbiddenError

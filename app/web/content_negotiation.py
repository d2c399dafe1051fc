"""Content negotiation: the format of the response that an Accept header prefers."""

from __future__ import annotations

from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal

import mimeparse

from app.web.problems import ProblemError

if TYPE_CHECKING:
    from collections.abc import Mapping

JSON: Final = "application/json"
SVG: Final = "image/svg+xml"
PNG: Final = "image/png"
# Browsers send 150 characters. The parser takes quadratic time, and it runs on the event loop.
MAX_ACCEPT: Final = 1024

ResultFormat = Literal["json", "svg", "png", "mask"]
"""A result as a document, its overlay as SVG or PNG, or its label mask."""

MEDIA_TYPES: Final[Mapping[ResultFormat, str]] = MappingProxyType({"json": JSON, "svg": SVG, "png": PNG, "mask": PNG})

# Of equally preferred types, the last one wins.
_BY_PREFERENCE: Final[tuple[ResultFormat, ...]] = ("png", "svg", "json")


def negotiate_format(accept: str | None, *, is_mask: bool = False) -> ResultFormat:
    """Choose between JSON, which is the default, and the overlay as SVG or PNG by an ``Accept`` header.

    A label mask is not chosen by the header, but the header must allow PNG.

    Raises:
        ProblemError: ``not_acceptable`` if the header excludes all, is too long or is malformed.

    Example:
        >>> negotiate_format("image/svg+xml, */*;q=0.1")
        'svg'
    """
    return _negotiate(accept, ("mask",) if is_mask else _BY_PREFERENCE)


def require_json(accept: str | None) -> None:
    """Reject an ``Accept`` header that excludes JSON, for routes that respond in JSON only.

    Raises:
        ProblemError: ``not_acceptable``.
    """
    _negotiate(accept, ("json",))


@lru_cache(maxsize=256)
def _negotiate(accept: str | None, supported: tuple[ResultFormat, ...]) -> ResultFormat:
    if not accept:
        return supported[-1]
    formats = {MEDIA_TYPES[name]: name for name in supported}
    try:
        best = mimeparse.best_match(list(formats), accept) if len(accept) <= MAX_ACCEPT else ""
    except mimeparse.MimeTypeParseException:
        best = ""
    if not best:
        expected = " or ".join(reversed(formats))
        raise ProblemError("not_acceptable", f"Accept: expected {expected}, got other types")
    return formats[best]

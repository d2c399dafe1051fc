"""Content negotiation: the response format that an Accept header prefers."""

from __future__ import annotations

from functools import lru_cache
from typing import Final, Literal, cast

import mimeparse

from app.web.problems import ProblemError

JSON: Final = "application/json"
SVG: Final = "image/svg+xml"
PNG: Final = "image/png"
# Browsers send 150 characters. The parser takes quadratic time, and it runs on the event loop.
MAX_ACCEPT: Final = 1024

MediaType = Literal["application/json", "image/svg+xml", "image/png"]


def negotiate_media_type(accept: str | None, *, is_mask: bool = False) -> MediaType:
    """Choose between JSON, which is the default, and the SVG overlay by an ``Accept`` header; a mask is PNG only.

    Raises:
        ProblemError: ``not_acceptable`` if the header excludes all, is too long or is malformed.

    Example:
        >>> negotiate_media_type("image/svg+xml, */*;q=0.1")
        'image/svg+xml'
    """
    return _negotiate(accept, (PNG,) if is_mask else (SVG, JSON))


def require_json(accept: str | None) -> None:
    """Reject an ``Accept`` header that excludes JSON, for routes that respond in JSON only.

    Raises:
        ProblemError: ``not_acceptable``.
    """
    _negotiate(accept, (JSON,))


@lru_cache(maxsize=256)
def _negotiate(accept: str | None, supported: tuple[MediaType, ...]) -> MediaType:
    if not accept:
        return supported[-1]
    try:
        # Of equally preferred types, the last one wins.
        best = mimeparse.best_match(supported, accept) if len(accept) <= MAX_ACCEPT else ""
    except mimeparse.MimeTypeParseException:
        best = ""
    if not best:
        expected = " or ".join(reversed(supported))
        raise ProblemError("not_acceptable", f"Accept: expected {expected}, got other types")
    return cast("MediaType", best)

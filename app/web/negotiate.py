"""Which of the two forms of an answer the caller wants."""

from __future__ import annotations

from functools import lru_cache
from typing import Final, Literal

import mimeparse

from app.web.problems import ProblemError

JSON: Final = "application/json"
SVG: Final = "image/svg+xml"
# Browsers send 150. The parser's time grows with the square, and it runs where every other request waits.
MAX_ACCEPT: Final = 1024


@lru_cache(maxsize=256)
def choose_form(accept: str | None) -> Literal["application/json", "image/svg+xml"]:
    """Choose between JSON, the default, and the overlay as SVG.

    Args:
        accept: the request's ``Accept`` header.

    Raises:
        ProblemError: ``not_acceptable``, where the header rules out both, is too long or cannot be read.

    Example:
        >>> choose_form("image/svg+xml, */*;q=0.1")
        'image/svg+xml'
    """
    if not accept:
        return JSON
    try:
        # Of equals the last wins.
        best = mimeparse.best_match([SVG, JSON], accept) if len(accept) <= MAX_ACCEPT else ""
    except mimeparse.MimeTypeParseException:
        best = ""
    if not best:
        raise ProblemError("not_acceptable", f"expected {JSON} or {SVG} among the types of the Accept header")
    return SVG if best == SVG else JSON

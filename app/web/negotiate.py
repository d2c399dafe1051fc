"""Which of the forms on offer the caller wants as an answer."""

from __future__ import annotations

from functools import lru_cache
from typing import Final, Literal, cast

import mimeparse

from app.web.problem_codes import ProblemError

JSON: Final = "application/json"
SVG: Final = "image/svg+xml"
# Browsers send 150. The parser's time grows with the square, and it runs where every other request waits.
MAX_ACCEPT: Final = 1024

Form = Literal["application/json", "image/svg+xml"]


def choose_form(accept: str | None) -> Form:
    """Choose between JSON, the default, and the overlay as SVG.

    Args:
        accept: the request's ``Accept`` header.

    Raises:
        ProblemError: ``not_acceptable``, where the header rules out both, is too long or cannot be read.

    Example:
        >>> choose_form("image/svg+xml, */*;q=0.1")
        'image/svg+xml'
    """
    return _choose(accept, (SVG, JSON))


def require_json(accept: str | None) -> None:
    """Refuse a request whose ``Accept`` header rules out JSON, where nothing else is on offer.

    Raises:
        ProblemError: ``not_acceptable``.
    """
    _choose(accept, (JSON,))


@lru_cache(maxsize=256)
def _choose(accept: str | None, offers: tuple[Form, ...]) -> Form:
    if not accept:
        return JSON
    try:
        # Of equals the last wins.
        best = mimeparse.best_match(offers, accept) if len(accept) <= MAX_ACCEPT else ""
    except mimeparse.MimeTypeParseException:
        best = ""
    if not best:
        expected = " or ".join(reversed(offers))
        raise ProblemError("not_acceptable", f"expected {expected} among the types of the Accept header")
    return cast("Form", best)

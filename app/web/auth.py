"""API keys: who may call ``/api/``, where keys are set at all."""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING

from app.web.problem_codes import ProblemError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastapi import Request

BEARER = "bearer "


def require_key(request: Request, keys: Sequence[bytes]) -> bytes:
    """Let a request pass that carries one of the keys, in ``X-API-Key`` or as a bearer token.

    Every key is compared, each in constant time, so that the time taken tells nothing of which came close.

    Returns:
        The key; nothing where none is asked for.

    Raises:
        ProblemError: ``unauthorized``.
    """
    if not keys:
        return b""
    authorization = request.headers.get("authorization", "")
    token = authorization[len(BEARER) :] if authorization[: len(BEARER)].lower() == BEARER else ""
    # Headers are bytes, which the framework reads as latin-1: what was sent is had by the same way back.
    given = (request.headers.get("x-api-key") or token).encode("latin-1").strip(b" \t")
    matches = [hmac.compare_digest(given, key) for key in keys]
    if not any(matches):
        came = "a key that is not known" if given else "none"
        detail = f"expected a key in X-API-Key or as a bearer token, got {came}"
        raise ProblemError("unauthorized", detail, headers={"WWW-Authenticate": 'Bearer realm="facial-service"'})
    return given

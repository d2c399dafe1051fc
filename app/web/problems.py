"""Everything that can go wrong over HTTP, as RFC 9457 problem documents with a stable code.

    ProblemError               what is wrong with the request itself; the table below says which code has which status
    InputError (face)     what is wrong with the photo, landmarks or map; always 422, each leaf with its own code
    anything else         500 `internal_error`; the text is fixed, the cause is in the log under the request's id

Nothing of a request's body is echoed: a text names fields, positions, counts and limits.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import orjson
from fastapi import Request, Response
from starlette.exceptions import HTTPException

from app.face.errors import InputError
from app.observability import context, metrics, recording

if TYPE_CHECKING:
    from collections.abc import Mapping

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:facial-service:problem:"
CLIENT_CLOSED_REQUEST = 499  # nginx's number for it: nobody reads the answer, but metrics and logs should not say 500

PROBLEMS: dict[str, tuple[int, str]] = {
    "http_invalid": (400, "The request is not HTTP"),
    "invalid_json": (400, "The body is not JSON"),
    "invalid_multipart": (400, "The body is not multipart/form-data"),
    "unauthorized": (401, "An API key is needed"),
    "not_found": (404, "No such path"),
    "method_not_allowed": (405, "The path does not take this method"),
    "not_acceptable": (406, "No format on offer is accepted"),
    "body_timeout": (408, "The body took too long to arrive"),
    "body_too_large": (413, "The body is too large"),
    "unsupported_media_type": (415, "The body's type is not supported"),
    "field_missing": (422, "A field is missing"),
    "field_unknown": (422, "A field is not known"),
    "field_invalid": (422, "A field has a wrong value"),
    "field_duplicate": (422, "A field is given twice"),
    "parameter_invalid": (422, "A query parameter is wrong"),
    "image_encoding": (422, "An image is not valid base64"),
    "head_too_large": (431, "The headers are too large"),
    "internal_error": (500, "The service failed"),
    "saturated": (503, "The service is saturated"),
}
INPUT_STATUS = 422
INPUT_TITLE = "The input cannot be processed"

# Turned away before any work, and counted as such; the reason is the metric's label.
REJECTIONS = {
    "saturated": "saturated",
    "body_too_large": "too_large",
    "unauthorized": "unauthorized",
    "body_timeout": "body_timeout",
}
_STARLETTE_CODES = {404: "not_found", 405: "method_not_allowed"}


class ProblemError(Exception):
    """A request that cannot be answered.

    Args:
        code: a key of `PROBLEMS`.
        detail: what was wrong, what was expected and what came.
        headers: sent with the answer, such as ``Retry-After``.
        extra: further members of the document.
    """

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.status, self.title = PROBLEMS[code]
        self.detail = detail
        self.headers = dict(headers or {})
        self.extra = dict(extra or {})


def problem_response(
    code: str, status: int, title: str, detail: str, *, headers: Mapping[str, str] | None = None, **extra: Any
) -> Response:
    """Write a problem document."""
    document = {"type": TYPE_PREFIX + code, "title": title, "status": status, "code": code, "detail": detail, **extra}
    request_id = context.request_id.get()
    if request_id is not None:
        document["request_id"] = request_id
    return Response(orjson.dumps(document), status, headers=dict(headers or {}), media_type=MEDIA_TYPE)


async def handle_problem(_request: Request, error: Exception) -> Response:
    """Answer a `ProblemError`."""
    if not isinstance(error, ProblemError):
        raise error
    if error.code in REJECTIONS:
        recording.record_rejection(REJECTIONS[error.code])
    else:
        recording.record_error(error.code, "api")
    return problem_response(error.code, error.status, error.title, error.detail, headers=error.headers, **error.extra)


async def handle_input_error(_request: Request, error: Exception) -> Response:
    """Answer what is wrong with an input; the subclass gives the code."""
    if not isinstance(error, InputError):
        raise error
    recording.record_error(error.code, "images")
    return problem_response(error.code, INPUT_STATUS, INPUT_TITLE, str(error))


async def handle_http_exception(request: Request, error: Exception) -> Response:
    """Answer what the router itself refuses: an unknown path, a wrong method."""
    if not isinstance(error, HTTPException):
        raise error
    code = _STARLETTE_CODES.get(error.status_code)
    if code is None:
        phrase = HTTPStatus(error.status_code).phrase
        return problem_response("http_error", error.status_code, phrase, phrase, headers=error.headers)
    detail = "see /docs for the paths there are"
    if code == "method_not_allowed":
        allowed = (error.headers or {}).get("Allow", "another method")
        detail = f"expected {allowed}, got {metrics.method_label(request.method)}"
    recording.record_error(code, "api")
    return problem_response(code, error.status_code, PROBLEMS[code][1], detail, headers=error.headers)


def internal_error_response() -> Response:
    """Answer a fault of ours; the text says nothing of the cause."""
    status, title = PROBLEMS["internal_error"]
    recording.record_error("internal_error", "api")
    return problem_response("internal_error", status, title, "the cause is in the service's log, under the request id")

"""Problem codes, their statuses and titles, and the error that carries one.

This module imports no web framework, because the command line reports the same problems without a server.
`app.web.error_handlers` converts exceptions to responses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from app.face.errors import PUBLIC_CODES

if TYPE_CHECKING:
    from collections.abc import Mapping

IMAGE_ENCODING: Final = "image_encoding"

PROBLEMS: dict[str, tuple[int, str]] = {
    "http_invalid": (400, "The request is not valid HTTP"),
    "invalid_json": (400, "The body is not valid JSON"),
    "invalid_multipart": (400, "The body is not valid multipart/form-data"),
    "unauthorized": (401, "A valid API key is required"),
    "not_found": (404, "The path does not exist"),
    "task_unknown": (404, "The task does not exist"),
    "method_not_allowed": (405, "The path does not support this method"),
    "not_acceptable": (406, "No supported response format is acceptable"),
    "body_timeout": (408, "The body took too long to arrive"),
    "head_timeout": (408, "The headers took too long to arrive"),
    "idempotency_conflict": (409, "The idempotency key was used for a different request"),
    "task_ended": (409, "The task has already ended"),
    "body_too_large": (413, "The body is too large"),
    "task_too_large": (413, "The task is too large for the queue"),
    "unsupported_media_type": (415, "The media type of the body is not supported"),
    "field_missing": (422, "A required field is missing"),
    "field_unknown": (422, "A field is unknown"),
    "field_invalid": (422, "A field has an invalid value"),
    "field_duplicate": (422, "A form field was sent more than once"),
    "parameter_invalid": (422, "A query parameter or header is invalid"),
    IMAGE_ENCODING: (422, "An image is not valid base64"),
    "rate_limited": (429, "The caller exceeded its rate limit"),
    "head_too_large": (431, "The headers are too large"),
    "internal_error": (500, "The service failed to process the request"),
    "method_unknown": (501, "The method is not implemented"),
    "queue_full": (503, "The queue is full"),
    "queue_unavailable": (503, "The queue is unavailable"),
    "saturated": (503, "The service is at capacity"),
    "shutting_down": (503, "The service is shutting down"),
}
"""Code to HTTP status and title."""

INPUT_STATUS: Final = 422
INPUT_TITLE: Final = "The input cannot be processed"

TASK_ERRORS: Final = {
    "task_gave_up": "The task failed on every attempt",
    "task_lost": "The queue lost the task",
    "result_too_large": "The result is too large for the queue",
}
"""Codes that only tasks have. They have no status: a failed task is reported in a response with status 200."""

_UNKNOWN_TASK_ERROR: Final = "The task failed"  # a code of a newer worker


class ProblemError(Exception):
    """A request that the service rejects.

    Args:
        code: a key of `PROBLEMS`.
        detail: the field, the expected value and the received value. It must not contain text from the request.
        headers: response headers, such as ``Retry-After``.
        extra: further members of the problem document.
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


def task_error_title(code: str) -> str:
    """Return the title of a task's error code, which is the title of the same problem in a response.

    Example:
        >>> task_error_title("image_corrupt")
        'The input cannot be processed'
    """
    if code in PUBLIC_CODES:
        return INPUT_TITLE
    return TASK_ERRORS.get(code) or PROBLEMS.get(code, (0, _UNKNOWN_TASK_ERROR))[1]

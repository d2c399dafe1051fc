"""What can be wrong with a request itself: the codes, and the error that carries one.

They stand apart from the handlers that answer them, so that the command line can read the same texts with the same
findings, and load no web framework for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

PROBLEMS: dict[str, tuple[int, str]] = {
    "http_invalid": (400, "The request is not HTTP"),
    "invalid_json": (400, "The body is not JSON"),
    "invalid_multipart": (400, "The body is not multipart/form-data"),
    "unauthorized": (401, "An API key is needed"),
    "not_found": (404, "No such path"),
    "task_unknown": (404, "There is no such task"),
    "method_not_allowed": (405, "The path does not take this method"),
    "not_acceptable": (406, "No format on offer is accepted"),
    "body_timeout": (408, "The body took too long to arrive"),
    "head_timeout": (408, "The headers took too long to arrive"),
    "idempotency_conflict": (409, "The idempotency key was used for another request"),
    "task_ended": (409, "The task has ended"),
    "body_too_large": (413, "The body is too large"),
    "task_too_large": (413, "The task is larger than the queue takes"),
    "unsupported_media_type": (415, "The body's type is not supported"),
    "field_missing": (422, "A field is missing"),
    "field_unknown": (422, "A field is not known"),
    "field_invalid": (422, "A field has a wrong value"),
    "field_duplicate": (422, "A field is given twice"),
    "parameter_invalid": (422, "A parameter of the query or of a header is wrong"),
    "image_encoding": (422, "An image is not valid base64"),
    "rate_limited": (429, "The caller sent too many requests"),
    "head_too_large": (431, "The headers are too large"),
    "internal_error": (500, "The service failed"),
    "method_unknown": (501, "The method is not implemented"),
    "queue_full": (503, "The queue is full"),
    "queue_unavailable": (503, "The queue is unavailable"),
    "saturated": (503, "The service is saturated"),
    "shutting_down": (503, "The service is stopping"),
}


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

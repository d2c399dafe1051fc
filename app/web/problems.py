"""Everything that can go wrong over HTTP, as RFC 9457 problem documents with a stable code.

    ProblemError              what is wrong with the request itself; the table below says which code has which status
    InputError (face)         what is wrong with the photo, landmarks or map; always 422, each leaf with its own code
    QueueError (tasks)        what is wrong with a task or with the queue; each leaf has a code of the table
    SaturatedError (service)  503 `saturated`
    ClientDisconnect          499, for metrics and logs: nobody reads it
    anything else             500 `internal_error`; the text is fixed, the cause is in the log under the request's id

Nothing of a request's body is echoed: a text names fields, positions, counts and limits.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import orjson
from fastapi import Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match

from app.face.errors import InputError, public_codes
from app.observability import context, metrics, recording
from app.service.admission import SaturatedError
from app.tasks.errors import (
    IdempotencyConflictError,
    QueueError,
    QueueFullError,
    QueueUnavailableError,
    TaskEndedError,
    TaskTooLargeError,
    TaskUnknownError,
)
from app.web.problem_codes import PROBLEMS, ProblemError
from app.web.state import web_state

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:facial-service:problem:"
CLIENT_CLOSED_REQUEST = 499  # nginx's number for it: nobody reads the answer, but metrics and logs should not say 500

INPUT_STATUS = 422
INPUT_TITLE = "The input cannot be processed"

# What a task can fail by besides: these stand in its document, which is answered with 200, and have no status.
TASK_FAULTS = {
    "task_gave_up": "Work on the task was given up",
    "task_lost": "The queue lost the task",
    "result_too_large": "The result is larger than the queue stores",
}
_OTHER_FAULT = "The task failed"  # of a worker that is newer than this process

QUEUE_PROBLEMS: dict[type[QueueError], str] = {
    QueueUnavailableError: "queue_unavailable",
    QueueFullError: "queue_full",
    TaskTooLargeError: "task_too_large",
    TaskUnknownError: "task_unknown",
    TaskEndedError: "task_ended",
    IdempotencyConflictError: "idempotency_conflict",
}
NO_STORE = {"Cache-Control": "no-store"}

# Refused before any work. They are counted in api_rejections_total by reason, and all other problems in errors_total by
# code, so that each response with a problem is counted once.
REJECTIONS = {
    "saturated": "saturated",
    "body_too_large": "too_large",
    "unauthorized": "unauthorized",
    "body_timeout": "body_timeout",
    "queue_full": "queue_full",
    "queue_unavailable": "queue_unavailable",
    "rate_limited": "rate_limited",
}
OTHER_HTTP_ERROR = "http_error"
_STARLETTE_CODES = {404: "not_found", 405: "method_not_allowed"}


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


async def handle_queue_error(request: Request, error: Exception) -> Response:
    """Answer what is wrong with a task or with the queue; a submission that is turned away counts as such."""
    if not isinstance(error, QueueError):
        raise error
    code = QUEUE_PROBLEMS[type(error)]
    if code in REJECTIONS and request.method == "POST":
        recording.record_rejection(REJECTIONS[code])
    else:
        recording.record_error(code, "tasks")
    status, title = PROBLEMS[code]
    headers = dict(NO_STORE)
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = str(web_state(request).retry_after_s)
    return problem_response(code, status, title, str(error), headers=headers)


async def handle_saturated(request: Request, error: Exception) -> Response:
    """Answer that the process holds as much as it may."""
    if not isinstance(error, SaturatedError):
        raise error
    detail = "this worker is at capacity; retry after the time in Retry-After"
    # Come back to another process: this one keeps the connections that it has.
    headers = {"Retry-After": str(web_state(request).retry_after_s), "Connection": "close"}
    return await handle_problem(request, ProblemError("saturated", detail, headers=headers))


async def handle_disconnect(_request: Request, error: Exception) -> Response:
    """End the request of a caller who went away."""
    if not isinstance(error, ClientDisconnect):
        raise error
    return Response(status_code=CLIENT_CLOSED_REQUEST)


async def handle_http_exception(request: Request, error: Exception) -> Response:
    """Answer what the router itself refuses: an unknown path, a wrong method."""
    if not isinstance(error, HTTPException):
        raise error
    code = _STARLETTE_CODES.get(error.status_code)
    recording.record_error(code or OTHER_HTTP_ERROR, "api")
    if code is None:
        phrase = HTTPStatus(error.status_code).phrase
        return problem_response(OTHER_HTTP_ERROR, error.status_code, phrase, phrase, headers=error.headers)
    detail, headers = "see /docs for the paths there are", dict(error.headers or {})
    if code == "method_not_allowed":
        if "Allow" in headers:
            headers["Allow"] = _allowed_methods(request)
        detail = f"expected {headers.get('Allow', 'another method')}, got {metrics.method_label(request.method)}"
    return problem_response(code, error.status_code, PROBLEMS[code][1], detail, headers=headers)


def _allowed_methods(request: Request) -> str:
    """List every method of a path; the router names those of the first route that has it."""

    def is_taken(method: str) -> bool:
        scope = {**request.scope, "method": method}
        return any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)

    return ", ".join(sorted(filter(is_taken, metrics.HTTP_METHODS)))


def fault_title(code: str) -> str:
    """Return the title of what a task failed by: that of the problem that a request would have been answered with.

    Example:
        >>> fault_title("image_corrupt")
        'The input cannot be processed'
    """
    if code in public_codes():
        return INPUT_TITLE
    return TASK_FAULTS.get(code) or PROBLEMS.get(code, (0, _OTHER_FAULT))[1]


HANDLERS: dict[int | type[Exception], Callable[[Request, Any], Coroutine[Any, Any, Response]]] = {
    ProblemError: handle_problem,
    InputError: handle_input_error,
    QueueError: handle_queue_error,
    SaturatedError: handle_saturated,
    ClientDisconnect: handle_disconnect,
    HTTPException: handle_http_exception,
}
"""By what they answer; the application calls that of the nearest class."""


def internal_error_response() -> Response:
    """Answer a fault of ours; the text says nothing of the cause."""
    status, title = PROBLEMS["internal_error"]
    recording.record_error("internal_error", "api")
    return problem_response("internal_error", status, title, "the cause is in the service's log, under the request id")

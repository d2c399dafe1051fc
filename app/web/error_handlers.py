"""Conversion of exceptions to RFC 9457 problem documents.

    ProblemError              the request itself is invalid; the code determines the status
    InputError (face)         the image, landmarks or segmentation map are invalid; always 422, each class has its code
    QueueError (tasks)        the task or the queue is in a wrong state; each class has its code, a key of `PROBLEMS`
    SaturatedError (service)  503 `saturated`
    ClientDisconnect          499 `client_disconnected`, for metrics and logs only, because the client is gone
    any other exception       500 `internal_error`; the cause is logged under the request id

A document never echoes the request body: it contains names of fields, positions, counts and limits.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import orjson
from fastapi import Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match

from app.face.errors import ImageError, InputError
from app.observability import metrics, recording, rich_logging
from app.service.body_budget import SaturatedError
from app.tasks.errors import QueueError
from app.web.problems import IMAGE_ENCODING, INPUT_STATUS, INPUT_TITLE, PROBLEMS, ProblemError
from app.web.state import web_state

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    from starlette.types import Scope

MEDIA_TYPE: Final = "application/problem+json"
TYPE_PREFIX: Final = "urn:facial-service:problem:"
CLIENT_CLOSED_REQUEST: Final = 499  # nginx's status for a client that disconnected
NO_STORE: Final = {"Cache-Control": "no-store"}


REJECTIONS: Final = {
    "saturated": "saturated",
    "body_too_large": "too_large",
    "unauthorized": "unauthorized",
    "body_timeout": "body_timeout",
    "queue_full": "queue_full",
    "queue_unavailable": "queue_unavailable",
    "rate_limited": "rate_limited",
}
"""Reasons in ``api_rejections_total``, by code, of requests that are rejected before processing.

``errors_total`` counts all other codes, so that each problem response is counted once.
"""

UNSENT_CODES: Final = {CLIENT_CLOSED_REQUEST: "client_disconnected", HTTPStatus.SERVICE_UNAVAILABLE: "not_ready"}
"""Codes of responses with an error status that are no problem documents, for metrics and logs.

The client has disconnected, or the response reports the health of the instance.
"""

_ROUTER_CODES: Final = {404: "not_found", 405: "method_not_allowed"}
_OTHER_ROUTER_CODE: Final = "http_error"


def note_error(scope: Scope, code: str, component: str = "api") -> None:
    """Count the error of a request, and keep its code for the access log.

    The first error of a request counts: it is the one that the client receives.
    """
    state: dict[str, Any] = scope.setdefault("state", {})
    if "error_code" in state:
        return
    state["error_code"] = code
    is_work = component == "api" or scope["method"] == "POST"  # not a status request while the queue is unavailable
    if code in REJECTIONS and is_work:
        recording.record_rejection(REJECTIONS[code])
    else:
        recording.record_error(code, component)


def note_status(scope: Scope, status: int) -> None:
    """Count an error status for which no handler has noted an error; see `UNSENT_CODES`."""
    if status >= HTTPStatus.BAD_REQUEST:
        note_error(scope, UNSENT_CODES.get(status, _OTHER_ROUTER_CODE))


def problem_response(
    code: str, status: int, title: str, detail: str, *, headers: Mapping[str, str] | None = None, **extra: Any
) -> Response:
    """Return a problem document as a response."""
    document = {"type": TYPE_PREFIX + code, "title": title, "status": status, "code": code, "detail": detail, **extra}
    request_id = rich_logging.request_id.get()
    if request_id is not None:
        document["request_id"] = request_id
    if (trace_id := rich_logging.trace_id.get()) is not None:
        document["trace_id"] = trace_id
    return Response(orjson.dumps(document), status, headers=dict(headers or {}), media_type=MEDIA_TYPE)


async def handle_problem(request: Request, error: ProblemError) -> Response:
    """Respond to a `ProblemError`."""
    note_error(request.scope, error.code)
    if error.code == IMAGE_ENCODING:
        rich_logging.log_image_error(error.code, error.detail)
    return problem_response(error.code, error.status, error.title, error.detail, headers=error.headers, **error.extra)


async def handle_input_error(request: Request, error: InputError) -> Response:
    """Respond to an `InputError`, whose class has the code."""
    note_error(request.scope, error.code, "images")
    rich_logging.log_image_error(error.code, str(error), is_decoding=isinstance(error, ImageError))
    return problem_response(error.code, INPUT_STATUS, INPUT_TITLE, str(error))


async def handle_queue_error(request: Request, error: QueueError) -> Response:
    """Respond to a `QueueError`; a rejected submission counts as a rejection."""
    note_error(request.scope, error.code, "tasks")
    status, title = PROBLEMS[error.code]
    headers = dict(NO_STORE)
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = str(web_state(request).retry_after_s)
    return problem_response(error.code, status, title, str(error), headers=headers)


async def handle_saturated(request: Request, _error: SaturatedError) -> Response:
    """Respond that this worker is at capacity."""
    # A keep-alive connection would send the retry to the same worker.
    headers = {"Retry-After": str(web_state(request).retry_after_s), "Connection": "close"}
    detail = "worker is at capacity; retry after the time in Retry-After"
    return await handle_problem(request, ProblemError("saturated", detail, headers=headers))


async def handle_disconnect(_request: Request, _error: ClientDisconnect) -> Response:
    """End the request of a client that disconnected."""
    return Response(status_code=CLIENT_CLOSED_REQUEST)


async def handle_http_exception(request: Request, error: HTTPException) -> Response:
    """Respond to an error of the router: an unknown path or method."""
    code = _ROUTER_CODES.get(error.status_code)
    note_error(request.scope, code or _OTHER_ROUTER_CODE)
    if code is None:
        phrase = HTTPStatus(error.status_code).phrase
        return problem_response(_OTHER_ROUTER_CODE, error.status_code, phrase, phrase, headers=error.headers)
    detail, headers = "path: expected one of those listed in /docs, got another", dict(error.headers or {})
    if code == "method_not_allowed":
        if "Allow" in headers:
            headers["Allow"] = _allowed_methods(request)
        allowed = headers.get("Allow", "another method")
        detail = f"method: expected {allowed}, got {metrics.method_label(request.method)}"
    return problem_response(code, error.status_code, PROBLEMS[code][1], detail, headers=headers)


def _allowed_methods(request: Request) -> str:
    """Return all methods of a path; the router's own error lists those of the first matching route only."""

    def is_allowed(method: str) -> bool:
        scope = {**request.scope, "method": method}
        return any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)

    return ", ".join(sorted(filter(is_allowed, metrics.HTTP_METHODS)))


HANDLERS: dict[int | type[Exception], Callable[[Request, Any], Coroutine[Any, Any, Response]]] = {
    ProblemError: handle_problem,
    InputError: handle_input_error,
    QueueError: handle_queue_error,
    SaturatedError: handle_saturated,
    ClientDisconnect: handle_disconnect,
    HTTPException: handle_http_exception,
}
"""Handlers by exception class. Starlette selects the nearest base class."""


def internal_error_response() -> Response:
    """Respond to an unexpected exception without revealing its cause."""
    status, title = PROBLEMS["internal_error"]
    return problem_response("internal_error", status, title, "see the service log for this request id")

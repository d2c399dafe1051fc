"""Problems: codes, statuses, documents and metrics."""

from __future__ import annotations

import asyncio
import re
from types import SimpleNamespace
from typing import TYPE_CHECKING

import orjson
import pytest
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from app.face.errors import PUBLIC_CODES, InputError, NoFaceError
from app.observability import rich_logging
from app.service.body_budget import SaturatedError
from app.tasks.dead_letters import TASK_GAVE_UP
from app.tasks.errors import QueueError
from app.web.error_handlers import (
    CLIENT_CLOSED_REQUEST,
    REJECTIONS,
    handle_disconnect,
    handle_http_exception,
    handle_input_error,
    handle_problem,
    handle_queue_error,
    handle_saturated,
    internal_error_response,
)
from app.web.problems import INPUT_STATUS, PROBLEMS, TASK_ERRORS, ProblemError

if TYPE_CHECKING:
    from collections.abc import Callable

    Scrape = Callable[[], dict[tuple[str, ...], float]]

STATUSES = {
    "http_invalid": 400,
    "invalid_json": 400,
    "invalid_multipart": 400,
    "unauthorized": 401,
    "not_found": 404,
    "task_unknown": 404,
    "method_not_allowed": 405,
    "not_acceptable": 406,
    "body_timeout": 408,
    "head_timeout": 408,
    "idempotency_conflict": 409,
    "task_ended": 409,
    "body_too_large": 413,
    "task_too_large": 413,
    "unsupported_media_type": 415,
    "field_missing": 422,
    "field_unknown": 422,
    "field_invalid": 422,
    "field_duplicate": 422,
    "parameter_invalid": 422,
    "image_encoding": 422,
    "rate_limited": 429,
    "head_too_large": 431,
    "internal_error": 500,
    "method_unknown": 501,
    "queue_full": 503,
    "queue_unavailable": 503,
    "saturated": 503,
    "shutting_down": 503,
}
APP = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
APP.post("/path")(lambda: None)
APP.state.web = SimpleNamespace(retry_after_s=7)
REQUEST = Request({"type": "http", "method": "BREW", "path": "/path", "headers": [], "app": APP})
SUBMISSION = Request({**REQUEST.scope, "method": "POST"})


@pytest.fixture(autouse=True)
def forget_errors() -> None:
    """Remove the state of the requests, in which only the first error counts."""
    REQUEST.scope.pop("state", None)
    SUBMISSION.scope.pop("state", None)


def document(response: Response) -> dict[str, object]:
    assert response.media_type == "application/problem+json"
    found: dict[str, object] = orjson.loads(response.body)
    assert found["status"] == response.status_code
    assert found["type"] == f"urn:facial-service:problem:{found['code']}"
    return found


def test_codes_are_stable() -> None:
    assert {code: status for code, (status, _) in PROBLEMS.items()} == STATUSES


def test_codes_and_titles_are_unique() -> None:
    assert not PROBLEMS.keys() & PUBLIC_CODES.keys()
    assert not TASK_ERRORS.keys() & (PROBLEMS.keys() | PUBLIC_CODES.keys())
    assert TASK_GAVE_UP in TASK_ERRORS
    assert PUBLIC_CODES[NoFaceError.code] is NoFaceError
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)+|saturated|unauthorized", code) for code in (*PROBLEMS, *PUBLIC_CODES))
    titles = [title for _, title in PROBLEMS.values()] + list(TASK_ERRORS.values())
    assert len(set(titles)) == len(titles)


@pytest.mark.parametrize("code", PROBLEMS)
def test_problem_has_its_status(code: str) -> None:
    error = ProblemError(code, "what was wrong", headers={"Retry-After": "7"}, extra={"limit": 3})
    response = asyncio.run(handle_problem(REQUEST, error))
    assert response.headers["retry-after"] == "7"
    assert document(response) == {
        "type": f"urn:facial-service:problem:{code}",
        "title": PROBLEMS[code][1],
        "status": STATUSES[code],
        "code": code,
        "detail": "what was wrong",
        "limit": 3,
    }


@pytest.mark.parametrize("error", PUBLIC_CODES.values(), ids=PUBLIC_CODES)
def test_input_error_has_its_code(error: type[InputError], scrape: Scrape) -> None:
    response = asyncio.run(handle_input_error(REQUEST, error("what was wrong")))
    problem = document(response)
    assert (response.status_code, problem["code"], problem["detail"]) == (INPUT_STATUS, error.code, "what was wrong")
    assert scrape()["errors_total", "images", error.code] == 1


def test_every_queue_error_has_its_own_code() -> None:
    codes = [error.code for error in QueueError.__subclasses__()]
    assert len(set(codes)) == len(codes)
    assert set(codes) <= PROBLEMS.keys()


@pytest.mark.parametrize("error", QueueError.__subclasses__())
def test_queue_error_has_its_code(error: type[QueueError], scrape: Scrape) -> None:
    code = error.code
    for request in (REQUEST, SUBMISSION):
        response = asyncio.run(handle_queue_error(request, error("what was wrong")))
        assert document(response)["detail"] == "what was wrong"
        assert (response.status_code, document(response)["code"]) == (STATUSES[code], code)
        assert response.headers["cache-control"] == "no-store"
        assert response.headers.get("retry-after") == ("7" if response.status_code == 503 else None)
    counted = scrape()
    is_rejected = code in REJECTIONS
    assert counted["errors_total", "tasks", code] == 2 - is_rejected
    assert counted.get(("api_rejections_total", code), 0) == is_rejected


def test_a_worker_at_capacity_closes_the_connection(scrape: Scrape) -> None:
    response = asyncio.run(handle_saturated(REQUEST, SaturatedError()))
    assert (response.status_code, document(response)["code"]) == (503, "saturated")
    assert (response.headers["retry-after"], response.headers["connection"]) == ("7", "close")
    assert scrape()["api_rejections_total", "saturated"] == 1


def test_a_disconnect_has_an_empty_response() -> None:
    response = asyncio.run(handle_disconnect(REQUEST, ClientDisconnect()))
    assert (response.status_code, response.body) == (CLIENT_CLOSED_REQUEST, b"")


@pytest.mark.parametrize(
    ("status", "code"), [(404, "not_found"), (405, "method_not_allowed"), (418, "http_error"), (431, "http_error")]
)
def test_router_errors_are_problems(status: int, code: str) -> None:
    error = HTTPException(status, "from inside", headers={"Allow": "any"} if status == 405 else None)
    response = asyncio.run(handle_http_exception(REQUEST, error))
    problem = document(response)
    assert (response.status_code, problem["code"]) == (status, code)
    assert "from inside" not in str(problem)
    if status == 405:
        assert response.headers["allow"] == "POST"
        assert problem["detail"] == "method: expected POST, got OTHER"


def test_internal_error_does_not_reveal_its_cause() -> None:
    token = rich_logging.request_id.set("id-1")
    try:
        problem = document(internal_error_response())
    finally:
        rich_logging.request_id.reset(token)
    assert (problem["status"], problem["code"], problem["request_id"]) == (500, "internal_error", "id-1")


def test_rejections_are_counted_separately_from_errors(scrape: Scrape) -> None:
    assert REJECTIONS.keys() <= PROBLEMS.keys()
    for code in PROBLEMS:
        REQUEST.scope.pop("state", None)
        asyncio.run(handle_problem(REQUEST, ProblemError(code, "detail")))
    counted = scrape()
    assert {key[1] for key in counted if key[0] == "api_rejections_total"} == set(REJECTIONS.values())
    assert {key[2] for key in counted if key[0] == "errors_total"} == PROBLEMS.keys() - REJECTIONS.keys()


@pytest.mark.parametrize("status", [400, 404, 405, 418, 503])
def test_router_errors_are_counted(scrape: Scrape, status: int) -> None:
    response = asyncio.run(handle_http_exception(REQUEST, HTTPException(status)))
    counted = {key: count for key, count in scrape().items() if key[0] in {"errors_total", "api_rejections_total"}}
    assert {key: count for key, count in counted.items() if count} == {
        ("errors_total", "api", document(response)["code"]): 1
    }

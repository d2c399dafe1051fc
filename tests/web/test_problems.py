"""The table of problems: one code for each thing that can go wrong, one status for each code."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

import orjson
import pytest
from fastapi import Request, Response
from starlette.exceptions import HTTPException

from app.face.errors import InputError, public_codes
from app.observability import context
from app.service.options import OptionUnavailableError
from app.web.problems import (
    INPUT_STATUS,
    PROBLEMS,
    REJECTIONS,
    ProblemError,
    handle_http_exception,
    handle_input_error,
    handle_problem,
    internal_error_response,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    Scrape = Callable[[], dict[tuple[str, ...], float]]

STATUSES = {
    "http_invalid": 400,
    "invalid_json": 400,
    "invalid_multipart": 400,
    "unauthorized": 401,
    "not_found": 404,
    "method_not_allowed": 405,
    "not_acceptable": 406,
    "body_timeout": 408,
    "body_too_large": 413,
    "unsupported_media_type": 415,
    "field_missing": 422,
    "field_unknown": 422,
    "field_invalid": 422,
    "field_duplicate": 422,
    "parameter_invalid": 422,
    "image_encoding": 422,
    "head_too_large": 431,
    "internal_error": 500,
    "saturated": 503,
}
REQUEST = Request({"type": "http", "method": "BREW", "headers": []})


def document(response: Response) -> dict[str, object]:
    assert response.media_type == "application/problem+json"
    found: dict[str, object] = orjson.loads(response.body)
    assert found["status"] == response.status_code
    assert found["type"] == f"urn:facial-service:problem:{found['code']}"
    return found


def test_codes_are_stable() -> None:
    assert {code: status for code, (status, _) in PROBLEMS.items()} == STATUSES


def test_no_code_stands_for_two_things() -> None:
    assert not PROBLEMS.keys() & public_codes().keys()
    assert public_codes()[OptionUnavailableError.code] is OptionUnavailableError
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)+|saturated|unauthorized", code) for code in (*PROBLEMS, *public_codes()))
    titles = [title for _, title in PROBLEMS.values()]
    assert len(set(titles)) == len(titles)


@pytest.mark.parametrize("code", PROBLEMS)
def test_problem_is_answered_with_its_status(code: str) -> None:
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


@pytest.mark.parametrize("error", public_codes().values(), ids=public_codes())
def test_input_error_is_answered_with_its_code(error: type[InputError], scrape: Scrape) -> None:
    response = asyncio.run(handle_input_error(REQUEST, error("what was wrong")))
    answer = document(response)
    assert (response.status_code, answer["code"], answer["detail"]) == (INPUT_STATUS, error.code, "what was wrong")
    assert scrape()["errors_total", "images", error.code] == 1


@pytest.mark.parametrize(
    ("status", "code"), [(404, "not_found"), (405, "method_not_allowed"), (418, "http_error"), (431, "http_error")]
)
def test_what_the_router_refuses_is_a_problem_too(status: int, code: str) -> None:
    error = HTTPException(status, "from inside", headers={"Allow": "POST"} if status == 405 else None)
    response = asyncio.run(handle_http_exception(REQUEST, error))
    answer = document(response)
    assert (response.status_code, answer["code"]) == (status, code)
    assert "from inside" not in str(answer)
    if status == 405:
        assert response.headers["allow"] == "POST"
        assert answer["detail"] == "expected POST, got OTHER"


def test_a_fault_of_ours_says_nothing_of_its_cause() -> None:
    token = context.request_id.set("id-1")
    try:
        answer = document(internal_error_response())
    finally:
        context.request_id.reset(token)
    assert (answer["status"], answer["code"], answer["request_id"]) == (500, "internal_error", "id-1")


def test_rejections_are_counted_apart_from_errors(scrape: Scrape) -> None:
    assert REJECTIONS.keys() <= PROBLEMS.keys()
    for code in PROBLEMS:
        asyncio.run(handle_problem(REQUEST, ProblemError(code, "detail")))
    counted = scrape()
    assert {key[1] for key in counted if key[0] == "api_rejections_total"} == set(REJECTIONS.values())
    assert {key[2] for key in counted if key[0] == "errors_total"} == PROBLEMS.keys() - REJECTIONS.keys()


@pytest.mark.parametrize("handle", [handle_problem, handle_input_error, handle_http_exception])
def test_handlers_leave_what_is_not_theirs(handle: Callable[..., object]) -> None:
    with pytest.raises(ZeroDivisionError):
        asyncio.run(handle(REQUEST, ZeroDivisionError()))  # type: ignore[arg-type]

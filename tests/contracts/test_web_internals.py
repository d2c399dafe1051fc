"""Internals of libraries that `app/web` relies on. If an upgrade changes one, the failure names what to review."""

from __future__ import annotations

from importlib.resources import files
from typing import Annotated, Any

import fastapi_offline
import msgspec
import pytest
from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from msgspec import Meta
from prometheus_fastapi_instrumentator.routing import get_route_name
from python_multipart.multipart import parse_options_header
from starlette.requests import HTTPConnection, Request
from starlette.routing import Match

from app.service.options import CropOptions
from app.web.msgspec_errors import syntax_problem, validation_problem


class Body(msgspec.Struct, forbid_unknown_fields=True):
    number: Annotated[float, Meta(ge=0, le=1)]
    pair: Annotated[list[int], Meta(min_length=2, max_length=3)] | None = None
    points: list[Annotated[list[float], Meta(max_length=1)]] = []
    regions: dict[str, list[int]] = {}


# The sentence of msgspec, and the code and detail that `app.web.msgspec_errors` makes of it.
VALIDATION_TEXTS = [
    (Body, "[]", "Expected `object`, got `array`", "field_invalid", "body: expected an object, got an array"),
    (Body, "{}", "Object missing required field `number`", "field_missing", "number: expected a value, got none"),
    (
        Body,
        '{"number":0,"x":1}',
        "Object contains unknown field `x`",
        "field_unknown",
        "body: expected only a, b; got an unknown field",
    ),
    (
        Body,
        '{"number":"0"}',
        "Expected `float`, got `str` - at `$.number`",
        "field_invalid",
        "number: expected a number, got a string",
    ),
    (
        Body,
        '{"number":2}',
        "Expected `float` <= 1.0 - at `$.number`",
        "field_invalid",
        "number: expected a number <= 1, got another value",
    ),
    (
        Body,
        '{"number":-1}',
        "Expected `float` >= 0.0 - at `$.number`",
        "field_invalid",
        "number: expected a number >= 0, got another value",
    ),
    (
        Body,
        '{"number":0,"pair":true}',
        "Expected `array | null`, got `bool` - at `$.pair`",
        "field_invalid",
        "pair: expected an array or null, got a boolean",
    ),
    (
        Body,
        '{"number":0,"pair":[1]}',
        "Expected `array` of length >= 2 - at `$.pair`",
        "field_invalid",
        "pair: expected an array of length >= 2, got another length",
    ),
    (
        Body,
        '{"number":0,"points":[[],[1,2]]}',
        "Expected `array` of length <= 1 - at `$.points[1]`",
        "field_invalid",
        "points[1]: expected an array of length <= 1, got another length",
    ),
    (
        Body,
        '{"number":0,"regions":{"secret":[{}]}}',
        "Expected `int`, got `object` - at `$.regions[...][0]`",
        "field_invalid",
        "regions[...][0]: expected an integer, got an object",
    ),
    (
        list[Body],
        "[{}]",
        "Object missing required field `number` - at `$[0]`",
        "field_missing",
        "landmarks[0].number: expected a value, got none",
    ),
    (
        CropOptions,
        '{"crop":"secret - at `$.verify`"}',
        "Invalid enum value 'secret - at `$.verify`' - at `$.crop`",
        "field_invalid",
        "crop: expected 'face' or 'none', got another string",
    ),
    (
        CropOptions,
        '{"margin":1e999}',
        "Number out of range - at `$.margin`",
        "field_invalid",
        "margin: expected a finite number, got one out of range",
    ),
]


@pytest.mark.parametrize(("kind", "text", "sentence", "code", "detail"), VALIDATION_TEXTS)
def test_validation_errors_of_msgspec(kind: Any, text: str, sentence: str, code: str, detail: str) -> None:
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.json.decode(text, type=kind)
    assert str(caught.value) == sentence, "msgspec changed a text that app/web/msgspec_errors.py parses"
    source = "landmarks" if kind == list[Body] else "body"
    problem = validation_problem(caught.value, source, "ab")
    assert (problem.code, problem.detail) == (code, detail)


@pytest.mark.parametrize(
    ("text", "sentence", "received"),
    [
        (b"{", "Input data was truncated", "truncated text"),
        (b"{}}", "JSON is malformed: trailing characters (byte 3)", "malformed text: trailing characters (byte 3)"),
    ],
)
def test_syntax_errors_of_msgspec(text: bytes, sentence: str, received: str) -> None:
    with pytest.raises(msgspec.DecodeError) as caught:
        msgspec.json.decode(text)
    assert str(caught.value) == sentence, "msgspec changed a text that app/web/msgspec_errors.py parses"
    assert syntax_problem(caught.value, "body").detail == f"body: expected JSON, got {received}"


@pytest.mark.parametrize(
    ("text", "error"),
    [(b'"\xff"', UnicodeDecodeError), (b"[" * 100_000, RecursionError)],
)
def test_exceptions_of_msgspec_that_are_not_its_own(text: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        msgspec.json.decode(text)


def test_msgspec_keeps_the_last_of_repeated_members() -> None:
    found = msgspec.json.decode('{"number":0,"number":1}', type=Body)
    assert found.number == 1, "msgspec no longer uses the last of repeated members"


def test_route_templates_of_the_instrumentator() -> None:
    app = FastAPI(openapi_url=None, redirect_slashes=False)
    app.get("/path/{name}")(lambda: None)
    scope = {"type": "http", "method": "GET", "path": "/path/a", "headers": [], "root_path": "", "app": app}
    found = [get_route_name(HTTPConnection({**scope, "path": path}), False) for path in ("/path/a", "/other")]
    assert found == ["/path/{name}", None], "app/web/request_metrics.py expects a template, or None without a route"


def test_state_of_a_request_is_a_dict_in_the_scope() -> None:
    scope: dict[str, Any] = {"type": "http"}
    Request(scope).state.caller = "a"
    assert scope["state"].get("caller") == "a", "app/web/middleware.py reads request.state through scope['state']"


def test_every_route_of_fastapi_matches_a_scope() -> None:
    app = FastAPI(openapi_url=None)
    app.get("/path")(lambda: None)
    app.post("/path")(lambda: None)
    scope = {"type": "http", "method": "POST", "path": "/path", "root_path": "", "headers": []}
    found = [route.matches(scope)[0] for route in app.routes if getattr(route, "path", "") == "/path"]
    assert found == [Match.PARTIAL, Match.FULL], (
        "_allowed_methods of app/web/error_handlers.py uses route.matches(scope)"
    )


def test_documentation_assets() -> None:
    folder = files(fastapi_offline) / "static"
    names = {"swagger-ui-bundle.js", "swagger-ui.css", "favicon.png"}
    found = {path.name for path in folder.iterdir()}
    assert names <= found, f"/docs of app/web/routes/docs.py needs {names - found} from fastapi_offline"
    page = bytes(get_swagger_ui_html(openapi_url="/openapi.json", title="title").body)
    assert b"<script>" in page, "docs_policy of app/web/routes/docs.py computes hashes of the inline scripts"


def test_headers_parsed_by_python_multipart() -> None:
    header = b'form-data; name="a"; filename=""'
    assert parse_options_header(header) == (b"form-data", {b"name": b"a", b"filename": b""}), (
        "app/web/multipart_body.py reads the headers of parts with this function"
    )
    assert parse_options_header(None) == (b"", {})

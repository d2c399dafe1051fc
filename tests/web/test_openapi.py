"""The OpenAPI document: what generated clients and /docs rely on."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import jsonschema
import msgspec
import pytest

from app.face.errors import PUBLIC_CODES
from app.service.options import CropOptions, LandmarkOptions
from app.web.problems import PROBLEMS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import httpx
    from fastapi import FastAPI

    from tests.conftest import Sample

    Call = Callable[..., httpx.Response]
    MakeApp = Callable[..., FastAPI]

CROP = "/api/v1/frontal/crop"
LANDMARKS = "/api/v1/frontal/landmarks"
JSON = "application/json"
FORM = "multipart/form-data"
PROBLEM = "application/problem+json"
OPERATIONS = {
    "crop",
    "find_landmarks",
    "submit_crop",
    "get_task",
    "cancel_task",
    "cancel_task_by_short_path",
    "get_health",
    "get_liveness",
    "get_readiness",
    "get_metrics",
    "get_version",
}
RESULTS = {
    "crop": "CropResult",
    "find_landmarks": "LandmarksResult",
    "submit_crop": "Task",
    "get_task": "Task",
    "cancel_task": "Task",
    "cancel_task_by_short_path": "Task",
    "get_health": "Health",
    "get_liveness": "Health",
    "get_readiness": "Health",
    "get_version": "Version",
}


@pytest.fixture
def document(make_app: MakeApp) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(make_app().openapi()))
    return found


def operations(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found = [operation for methods in document["paths"].values() for operation in methods.values()]
    return {operation["operationId"]: operation for operation in found}


def responses(document: dict[str, Any]) -> Iterator[tuple[str, int, dict[str, Any]]]:
    for name, operation in operations(document).items():
        for status, response in operation["responses"].items():
            yield name, int(status), response


def resolve(document: dict[str, Any], value: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in value:
        found: Any = document
        for part in value["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        value = found
    return value


def walk(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from walk(item)


def codes_of(response: dict[str, Any]) -> set[str]:
    return set(response["content"][PROBLEM]["examples"])


def test_every_reference_is_defined(document: dict[str, Any]) -> None:
    references = [item["$ref"] for item in walk(document) if isinstance(item.get("$ref"), str)]
    assert len(references) > 100
    assert [ref for ref in references if not resolve(document, {"$ref": ref})] == []


def test_operations_have_the_names_of_client_functions(document: dict[str, Any]) -> None:
    assert operations(document).keys() == OPERATIONS


def test_a_successful_response_has_one_type(document: dict[str, Any]) -> None:
    """Another media type, such as that of the SVG, would make the type of a client's result a union with a string."""
    for name, schema in RESULTS.items():
        (success,) = (response for status, response in operations(document)[name]["responses"].items() if status < "3")
        assert success["content"].keys() == {JSON}, name
        found = json.dumps(success["content"][JSON]["schema"])
        assert set(re.findall(r"schemas/(\w+)", found)) == {schema}, name


def test_titles_are_the_names_of_the_schemas(document: dict[str, Any]) -> None:
    found = document["components"]["schemas"]
    assert {name: schema["title"] for name, schema in found.items()} == {name: name for name in found}
    assert [name for name in found if name.endswith("Response") or name in {"Warning", "Error"}] == []


def test_every_enumeration_is_named_and_typed(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    named = {name: schema for name, schema in schemas.items() if "enum" in schema}
    assert named.keys() == {
        "TaskStatus",
        "LandmarkUnits",
        "Verification",
        "CropArea",
        "Background",
        "Orientation",
        "AllFaces",
    }
    assert {schema["type"] for schema in named.values()} == {"string"}
    assert len([item for item in walk(document) if isinstance(item.get("enum"), list)]) == len(named)


@pytest.mark.parametrize(
    ("name", "options"), [("crop", CropOptions), ("submit_crop", CropOptions), ("find_landmarks", LandmarkOptions)]
)
def test_query_parameters_have_the_defaults_of_the_options(
    document: dict[str, Any], name: str, options: type[msgspec.Struct]
) -> None:
    parameters = operations(document)[name]["parameters"]
    found = {item["name"]: item["schema"].get("default") for item in parameters if item["in"] == "query"}
    assert found == msgspec.to_builtins(options())


@pytest.mark.parametrize("form", ["json", "multipart"])
def test_defaults_in_the_query_do_not_override_the_body(
    make_app: MakeApp, call: Call, sample: Sample, document: dict[str, Any], form: str
) -> None:
    """Generated clients and /docs send the default of every query parameter."""
    parameters = operations(document)["crop"]["parameters"]
    query = {item["name"]: item["schema"]["default"] for item in parameters if "default" in item["schema"]}
    text = "&".join(f"{name}={json.dumps(value).strip(chr(34))}" for name, value in query.items())
    body = sample.json(show_labels=True) if form == "json" else sample.form(show_labels=b"true")
    headers = {"content-type": JSON if form == "json" else sample.multipart, "accept": "image/svg+xml"}
    response = call(make_app(), path=f"{CROP}?{text}", content=body, headers=headers)
    assert response.status_code == 200, response.text
    assert "<text" in response.text


def test_bodies_have_no_defaults_because_generators_would_require_the_fields(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    for name in ("CropRequest", "CropForm", "LandmarksRequest", "LandmarksForm"):
        properties = schemas[name]["properties"]
        assert [field for field, schema in properties.items() if "default" in schema] == [], name
        assert schemas[name]["required"] == ["image"]
        assert properties["landmark_units"]["description"].endswith("Default: `pixels`."), name


@pytest.mark.parametrize(("settings", "expected"), [({}, None), ({"api_keys": "key"}, [{"key": []}, {"bearer": []}])])
def test_security_is_required_if_keys_are_set(make_app: MakeApp, settings: dict[str, str], expected: Any) -> None:
    document = make_app(**settings).openapi()
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert operation.get("security") == (expected if path.startswith("/api/") else None), path


def test_every_response_header_is_described(document: dict[str, Any]) -> None:
    for name, status, response in responses(document):
        headers = {key: resolve(document, value) for key, value in response["headers"].items()}
        assert "X-Request-ID" in headers, (name, status)
        assert all(header["description"] and header["schema"] for header in headers.values())
    expected = {401: "WWW-Authenticate", 405: "Allow", 429: "Retry-After", 503: "Retry-After", 202: "Location"}
    for name, status, response in responses(document):
        assert status not in expected or expected[status] in response["headers"], (name, status)


def test_every_content_has_valid_examples(document: dict[str, Any]) -> None:
    contents = [(name, content) for name, _, response in responses(document) for content in response["content"].items()]
    for name, operation in operations(document).items():
        body = operation.get("requestBody", {"content": {}})["content"]
        contents += [(name, item) for item in body.items() if item[0] in {JSON, FORM}]
    assert len(contents) > 60
    validated = set()
    for name, (media_type, content) in contents:
        assert content["examples"], (name, media_type)
        for reference in content["examples"].values():
            key = json.dumps([reference, content["schema"]])
            if key not in validated:
                validated.add(key)
                schema = {**content["schema"], "components": document["components"]}
                example = resolve(document, reference)
                assert example["summary"]
                jsonschema.Draft202012Validator(schema).validate(example["value"])


def test_every_code_is_declared_with_its_status(document: dict[str, Any]) -> None:
    declared: dict[str, set[int]] = {}
    for _, status, response in responses(document):
        if PROBLEM in response["content"]:
            listed = set(re.findall(r"`(\w+)`", response["description"]))
            assert codes_of(response) == listed
            for code in listed:
                declared.setdefault(code, set()).add(status)
    assert declared == {
        **{code: {status} for code, (status, _) in PROBLEMS.items()},
        **{code: {422} for code in PUBLIC_CODES},
    }


def test_a_result_as_an_image_can_be_too_large(document: dict[str, Any]) -> None:
    assert codes_of(operations(document)["get_task"]["responses"]["422"]) == {
        "parameter_invalid",
        "image_too_large",
        "label_map_too_complex",
    }


def test_landmarks_need_no_segmentation_map(document: dict[str, Any]) -> None:
    codes = codes_of(operations(document)["find_landmarks"]["responses"]["422"])
    assert {"no_face", "face_index", "image_corrupt", "field_missing"} <= codes
    assert not {code for code in codes if code.startswith(("landmarks_", "label_map_", "region_"))}


def test_docs_link_to_the_page_and_follow_the_colour_scheme(make_app: MakeApp, call: Call) -> None:
    app = make_app(root_path="/faces")
    text = call(app, "GET", "/docs").text
    assert '<a href="/faces/">' in text
    assert "prefers-color-scheme: dark" in text
    assert '<a href="/faces/">' not in call(make_app(root_path="/faces", enable_page=False), "GET", "/docs").text

"""The OpenAPI document, made from the structures that read requests and the table of problems."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import orjson
from fastapi import Path
from fastapi.openapi.utils import get_openapi

from app.service.options import CropOptions, LandmarkOptions
from app.web import schemas
from app.web.parameters import MAX_KEY, MAX_WAIT_S
from app.web.problem_codes import PROBLEMS
from app.web.problems import MEDIA_TYPE, QUEUE_PROBLEMS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fastapi import FastAPI

TaskId = Annotated[
    str,
    # Only told of: what has another form is answered like the id of a task that is not there.
    Path(description="As it was answered to the submission.", json_schema_extra={"pattern": schemas.TASK_ID_PATTERN}),
]

JSON = "application/json"
SVG = "image/svg+xml"
_REF = "#/components/schemas/{name}"
_STRUCTURES = (
    *(schemas.CropBody, schemas.LandmarksBody, schemas.CropAnswer, schemas.LandmarksAnswer, schemas.TaskAnswer),
    *(schemas.ProblemAnswer, schemas.HealthAnswer, schemas.VersionAnswer),
)


def _ref(structure: type[msgspec.Struct]) -> dict[str, str]:
    return {"$ref": _REF.format(name=structure.__name__)}


def _answer(description: str, structure: type[msgspec.Struct], media_type: str = JSON) -> dict[str, Any]:
    return {"description": description, "content": {media_type: {"schema": _ref(structure)}}}


# The router's own, for paths that are not in the document; and ids with a slash in them.
_NO_PATH = {"not_found"}
_QUEUE = set(QUEUE_PROBLEMS.values())
# Only POST requests are counted against a rate limit.
_OF_CROP = PROBLEMS.keys() - _NO_PATH - _QUEUE
_OF_SUBMIT = _OF_CROP | {"queue_unavailable", "queue_full", "task_too_large", "idempotency_conflict"}
# What any request can meet, and what one without a body that is read.
_OF_CANCEL = {
    *("http_invalid", "unauthorized", "not_found", "method_not_allowed", "not_acceptable", "parameter_invalid"),
    *(
        "head_timeout",
        "head_too_large",
        "internal_error",
        "task_unknown",
        "task_ended",
        "queue_unavailable",
        "queue_full",
        "shutting_down",
    ),
}
_OF_STATUS = _OF_CANCEL - {"task_ended", "queue_full"} | {"body_timeout", "body_too_large", "saturated"}

_RETRY_AFTER = {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 1}}}


def _problem_answers(codes: Iterable[str]) -> dict[int | str, dict[str, Any]]:
    by_status: dict[int, list[str]] = {}
    for code in PROBLEMS.keys() & codes:
        by_status.setdefault(PROBLEMS[code][0], []).append(code)
    is_input_read = "field_invalid" in codes
    answers: dict[int | str, dict[str, Any]] = {}
    for status, found in sorted(by_status.items()):
        listed = sorted(found, key=list(PROBLEMS).index)
        if status == 422 and is_input_read:  # noqa: PLR2004 - the status of an input that cannot be worked with
            listed.append("or a code of what is wrong with the photo, landmarks or map")
        answers[status] = _answer("; ".join(listed), schemas.ProblemAnswer, MEDIA_TYPE)
    answers[503]["headers"] = _RETRY_AFTER
    return answers


@cache
def option_schemas() -> dict[str, dict[str, Any]]:
    """Return the schema of every option, by name."""
    components = msgspec.json.schema_components([CropOptions], ref_template=_REF)[1]
    properties: dict[str, dict[str, Any]] = components["CropOptions"]["properties"]
    return properties


def _option_parameters(schemas_by_name: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    # Without their defaults: an option that is not in the query is the body's to set, and pages made from the document
    # send every default along.
    return [
        {
            "name": name,
            "in": "query",
            "description": schema["description"],
            "schema": {key: value for key, value in schema.items() if key not in {"default", "description"}},
        }
        for name, schema in schemas_by_name.items()
    ]


def _landmark_option_schemas() -> dict[str, dict[str, Any]]:
    components = msgspec.json.schema_components([LandmarkOptions], ref_template=_REF)[1]
    properties: dict[str, dict[str, Any]] = components["LandmarkOptions"]["properties"]
    return properties


def _multipart_schema() -> dict[str, Any]:
    landmarks = {"type": "string", "contentMediaType": JSON, "description": f"{schemas.LANDMARKS_TEXT} JSON."}
    properties = {
        "image": {"type": "string", "format": "binary", "description": "PNG, JPEG or WebP."},
        "landmarks": landmarks,
        "segmentation_map": {"type": "string", "format": "binary", "description": schemas.MAP_TEXT},
    }
    return {
        "type": "object",
        "properties": {**properties, **option_schemas()},
        "required": ["image"],
        "additionalProperties": False,
    }


def _landmarks_multipart_schema() -> dict[str, Any]:
    image = {"type": "string", "format": "binary", "description": "PNG, JPEG or WebP."}
    return {
        "type": "object",
        "properties": {"image": image, **_landmark_option_schemas()},
        "required": ["image"],
        "additionalProperties": False,
    }


def _text_header(description: str) -> dict[str, Any]:
    return {"description": description, "schema": {"type": "string"}}


_REQUEST: dict[str, Any] = {
    "required": True,
    "content": {
        JSON: {"schema": _ref(schemas.CropBody)},
        "multipart/form-data": {"schema": _multipart_schema()},
    },
}
_OVERLAY = {SVG: {"schema": {"type": "string"}}}
_WARNINGS = {"X-Warnings": _text_header("Codes of the result's warnings, where there are any.")}
_WAIT = {
    "name": "wait",
    "in": "query",
    "description": "Seconds to wait for the end of the task, should it not have ended.",
    "schema": {"type": "number", "minimum": 0, "maximum": MAX_WAIT_S},
}
_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "Of the caller's making: the same key with the same request gives the same task. Bare or in double "
    "quotes.",
    "schema": {"type": "string", "minLength": 1, "maxLength": MAX_KEY, "pattern": "^[!#-~]+$"},
}

CROP: dict[str, Any] = {
    "summary": "Regions of a face, from a photo and, if there are any, its landmarks",
    "tags": ["regions"],
    "responses": {
        200: {
            "description": "The regions; or the overlay alone, where `Accept` prefers it.",
            "headers": {**_WARNINGS, "X-Cache": _text_header("`hit` or `miss`, where results are looked up.")},
            "content": {JSON: {"schema": _ref(schemas.CropAnswer)}, **_OVERLAY},
        },
        **_problem_answers(_OF_CROP),
    },
    "openapi_extra": {"parameters": _option_parameters(option_schemas()), "requestBody": _REQUEST},
}
LANDMARKS: dict[str, Any] = {
    "summary": "Landmarks of a face, from a photo",
    "tags": ["regions"],
    "responses": {200: _answer("The landmarks.", schemas.LandmarksAnswer), **_problem_answers(_OF_CROP)},
    "openapi_extra": {
        "parameters": _option_parameters(_landmark_option_schemas()),
        "requestBody": {
            "required": True,
            "content": {
                JSON: {"schema": _ref(schemas.LandmarksBody)},
                "multipart/form-data": {"schema": _landmarks_multipart_schema()},
            },
        },
    },
}
SUBMIT: dict[str, Any] = {
    "summary": "The same, as a task",
    "tags": ["tasks"],
    "status_code": 202,
    "responses": {
        202: {
            **_answer("Taken.", schemas.TaskAnswer),
            "headers": {"Location": {**_text_header("Path of the task's status."), "required": True}},
        },
        **_problem_answers(_OF_SUBMIT),
    },
    "openapi_extra": {"parameters": [*_option_parameters(option_schemas()), _KEY], "requestBody": _REQUEST},
}
STATUS: dict[str, Any] = {
    "summary": "How far a task is, and its result",
    "tags": ["tasks"],
    "responses": {
        200: {
            "description": "The task; or the overlay alone, where `Accept` prefers it and the task has succeeded.",
            "headers": _WARNINGS,
            "content": {JSON: {"schema": _ref(schemas.TaskAnswer)}, **_OVERLAY},
        },
        **_problem_answers(_OF_STATUS),
    },
    "openapi_extra": {"parameters": [_WAIT]},
}
CANCEL: dict[str, Any] = {
    "summary": "Cancel a task",
    "tags": ["tasks"],
    "responses": {200: _answer("Cancelled, now or before.", schemas.TaskAnswer), **_problem_answers(_OF_CANCEL)},
}
HEALTH: dict[str, Any] = {
    "responses": {200: _answer("It is.", schemas.HealthAnswer), 503: _answer("It is not.", schemas.HealthAnswer)}
}
METRICS: dict[str, Any] = {
    "responses": {
        200: {"description": "Every metric.", "content": {"text/plain": {"schema": {"type": "string"}}}},
        404: _answer("Metrics are off.", schemas.ProblemAnswer, MEDIA_TYPE),
    }
}
VERSION: dict[str, Any] = {"responses": {200: _answer("Versions.", schemas.VersionAnswer)}}


def build_document(app: FastAPI) -> dict[str, Any]:
    """Build the document; called once, by the first who asks."""
    document = get_openapi(
        title=app.title,
        version=app.version,
        description=app.description,
        routes=app.routes,
        tags=app.openapi_tags,
        servers=app.servers,
    )
    _, components = msgspec.json.schema_components(_STRUCTURES, ref_template=_REF)
    body = components["CropBody"]["properties"]
    image = {"type": "string", "contentEncoding": "base64", "description": schemas.IMAGE_TEXT}
    body["image"] = components["LandmarksBody"]["properties"]["image"] = image
    regions = {"type": "object", "additionalProperties": {"type": "array", "items": {"type": "integer"}}}
    sources = [{"type": "string", "contentEncoding": "base64"}, regions, {"type": "null"}]
    body["segmentation_map"] = {"anyOf": sources, "description": schemas.MAP_TEXT}
    parts = document.setdefault("components", {})
    parts.setdefault("schemas", {}).update(components)
    parts["securitySchemes"] = {
        "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        "bearer": {"type": "http", "scheme": "bearer"},
    }
    examples = load_examples()
    for path, operations in document["paths"].items():
        if path.startswith("/api/"):
            for operation in operations.values():
                operation["security"] = [{}, {"key": []}, {"bearer": []}]
                if "requestBody" in operation:
                    found = landmarks_examples(examples) if path.endswith("/landmarks") else examples
                    operation["requestBody"]["content"][JSON]["examples"] = found
    return document


def landmarks_examples(examples: dict[str, Any]) -> dict[str, Any]:
    """Make the example of a landmarks request from those of crop requests: the photo alone."""
    image = examples["photo_alone"]["value"]["image"]
    return {"photo": {"summary": "A photo", "value": {"image": image}}}


def load_examples() -> dict[str, Any]:
    """Read the worked examples: a small photo of a face with its landmarks, once for each form of the map."""
    examples: dict[str, Any] = orjson.loads((files("app.web") / "static" / "examples.json").read_bytes())
    return examples

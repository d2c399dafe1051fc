"""The OpenAPI document, generated from the request and response structures and the table of problems."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import orjson
from fastapi import Path
from fastapi.openapi.utils import get_openapi

from app.observability.health import HealthResponse
from app.service.options import CropOptions, LandmarkOptions
from app.tasks.errors import QueueError
from app.web import json_body, schemas
from app.web.content_negotiation import JSON, PNG, SVG
from app.web.error_handlers import MEDIA_TYPE
from app.web.problems import INPUT_STATUS, PROBLEMS
from app.web.request_parsing import IMAGE_TYPES, MAX_KEY, MAX_WAIT_S, MULTIPART

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fastapi import FastAPI

TaskId = Annotated[
    str,
    # Documented but not validated by FastAPI: the response to a malformed id is that to an unknown task.
    Path(
        description="Task id from the response to the submission.",
        json_schema_extra={"pattern": schemas.TASK_ID_PATTERN},
    ),
]

_REF: Final = "#/components/schemas/{name}"
_STRUCTURES: Final = (
    json_body.CropRequest,
    json_body.LandmarksRequest,
    json_body.LandmarkResult,
    schemas.CropResponse,
    schemas.LandmarksResponse,
    schemas.TaskResponse,
    schemas.ProblemDocument,
    HealthResponse,
    schemas.VersionResponse,
)

_QUEUE_CODES: Final = {error.code for error in QueueError.__subclasses__()}
# `not_found` belongs to paths outside the document. Only POST requests are rate limited.
_CROP_CODES: Final = PROBLEMS.keys() - {"not_found"} - _QUEUE_CODES
_SUBMIT_CODES: Final = _CROP_CODES | {"queue_unavailable", "queue_full", "task_too_large", "idempotency_conflict"}
_CANCEL_CODES: Final = {
    "http_invalid",
    "unauthorized",
    "not_found",  # an id that contains a slash
    "method_not_allowed",
    "not_acceptable",
    "parameter_invalid",
    "head_timeout",
    "head_too_large",
    "internal_error",
    "task_unknown",
    "task_ended",
    "queue_unavailable",
    "queue_full",
    "shutting_down",
}
_STATUS_CODES: Final = _CANCEL_CODES - {"task_ended", "queue_full"} | {"body_timeout", "body_too_large", "saturated"}

_RETRY_AFTER: Final = {
    "Retry-After": {"description": "Seconds to wait before a retry.", "schema": {"type": "integer", "minimum": 1}}
}


def _ref(structure: type[msgspec.Struct]) -> dict[str, str]:
    return {"$ref": _REF.format(name=structure.__name__)}


def _response(description: str, structure: type[msgspec.Struct], media_type: str = JSON) -> dict[str, Any]:
    return {"description": description, "content": {media_type: {"schema": _ref(structure)}}}


def _ref_or_array(structure: type[msgspec.Struct]) -> dict[str, Any]:
    """Return the schema of a result, or of an array of results with the option `face=all`."""
    return {"anyOf": [_ref(structure), {"type": "array", "items": _ref(structure), "minItems": 1}]}


def _problem_responses(codes: Iterable[str]) -> dict[int | str, dict[str, Any]]:
    by_status: dict[int, list[str]] = {}
    for code in PROBLEMS.keys() & codes:
        by_status.setdefault(PROBLEMS[code][0], []).append(code)
    responses: dict[int | str, dict[str, Any]] = {}
    for status, found in sorted(by_status.items()):
        listed = sorted(found, key=list(PROBLEMS).index)
        if status == INPUT_STATUS and "field_invalid" in codes:
            listed.append("or the code of an invalid image, landmarks or segmentation map")
        responses[status] = _response("; ".join(listed), schemas.ProblemDocument, MEDIA_TYPE)
    responses[503]["headers"] = _RETRY_AFTER
    return responses


@cache
def option_schemas(options: type[msgspec.Struct] = CropOptions) -> dict[str, dict[str, Any]]:
    """Return the schemas of all options by name."""
    components = msgspec.json.schema_components([options], ref_template=_REF)[1]
    properties: dict[str, dict[str, Any]] = components[options.__name__]["properties"]
    return properties


def _option_parameters(options: type[msgspec.Struct] = CropOptions) -> list[dict[str, Any]]:
    # Without defaults, because the body determines an option that is not in the query, and pages generated from the
    # document send every default.
    return [
        {
            "name": name,
            "in": "query",
            "description": schema["description"],
            "schema": {key: value for key, value in schema.items() if key not in {"default", "description"}},
        }
        for name, schema in option_schemas(options).items()
    ]


_RAW_IMAGE: Final = {
    "type": "string",
    "format": "binary",
    "description": "The image file alone; options are in the query, and landmarks are detected.",
}


def _request_body(structure: type[msgspec.Struct], parts: dict[str, Any]) -> dict[str, Any]:
    form = {"type": "object", "properties": parts, "required": ["image"], "additionalProperties": False}
    content = {JSON: {"schema": _ref(structure)}, MULTIPART: {"schema": form}}
    images = {media_type: {"schema": _RAW_IMAGE} for media_type in IMAGE_TYPES}
    return {"required": True, "content": content | images}


def _text_header(description: str) -> dict[str, Any]:
    return {"description": description, "schema": {"type": "string"}}


_IMAGE_PART: Final = {"type": "string", "format": "binary", "description": "PNG, JPEG, WebP, AVIF or HEIC image."}
_CROP_BODY: Final = _request_body(
    json_body.CropRequest,
    {
        "image": _IMAGE_PART,
        "landmarks": {
            "type": "string",
            "contentMediaType": JSON,
            "default": "",  # pages generated from the document would otherwise send the text `string`
            "description": f"{json_body.LANDMARKS_TEXT} Format: JSON.",
        },
        "segmentation_map": {"type": "string", "format": "binary", "description": json_body.MAP_TEXT},
        **option_schemas(),
    },
)
_OVERLAY: Final = {SVG: {"schema": {"type": "string"}}, PNG: {"schema": {"type": "string", "format": "binary"}}}
_WARNINGS: Final = {"X-Warnings": _text_header("Codes of the result's warnings, if there are any.")}
_MASK: Final = {
    "name": "mask",
    "in": "query",
    "description": "`labels`: return the label mask of the result, a grey PNG of its size. The values of its pixels "
    "are the ids of the regions, and 0 elsewhere.",
    "schema": {"type": "string", "enum": ["labels"]},
}
_WAIT: Final = {
    "name": "wait",
    "in": "query",
    "description": "Maximum time to wait for the task to end, in seconds.",
    "schema": {"type": "number", "minimum": 0, "maximum": MAX_WAIT_S},
}
_KEY: Final = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "Key chosen by the caller, bare or in double quotes. The same key with the same request returns the "
    "same task.",
    "schema": {"type": "string", "minLength": 1, "maxLength": MAX_KEY, "pattern": "^[!#-~]+$"},
}

CROP: dict[str, Any] = {
    "summary": "Regions of a face",
    "tags": ["regions"],
    "responses": {
        200: {
            "description": "The regions, or the overlay alone as SVG or PNG if `Accept` prefers it. With `face=all`, "
            "an array of results, or an overlay of all faces. With `mask=labels`, the label mask, a PNG.",
            "headers": {**_WARNINGS, "X-Cache": _text_header("`hit` or `miss`, if the result cache is enabled.")},
            "content": {JSON: {"schema": _ref_or_array(schemas.CropResponse)}, **_OVERLAY},
        },
        **_problem_responses(_CROP_CODES),
    },
    "openapi_extra": {"parameters": [*_option_parameters(), _MASK], "requestBody": _CROP_BODY},
}
LANDMARKS: dict[str, Any] = {
    "summary": "Landmarks of a face",
    "tags": ["regions"],
    "responses": {
        200: {
            "description": "The landmarks. With `face=all`, an array of results.",
            "content": {JSON: {"schema": _ref_or_array(schemas.LandmarksResponse)}},
        },
        **_problem_responses(_CROP_CODES),
    },
    "openapi_extra": {
        "parameters": _option_parameters(LandmarkOptions),
        "requestBody": _request_body(
            json_body.LandmarksRequest, {"image": _IMAGE_PART, **option_schemas(LandmarkOptions)}
        ),
    },
}
SUBMIT: dict[str, Any] = {
    "summary": "Submit a task",
    "tags": ["tasks"],
    "status_code": 202,
    "responses": {
        202: {
            **_response("The accepted task.", schemas.TaskResponse),
            "headers": {"Location": {**_text_header("Path of the task's status."), "required": True}},
        },
        **_problem_responses(_SUBMIT_CODES),
    },
    "openapi_extra": {"parameters": [*_option_parameters(), _KEY], "requestBody": _CROP_BODY},
}
STATUS: dict[str, Any] = {
    "summary": "Status and result of a task",
    "tags": ["tasks"],
    "responses": {
        200: {
            "description": "The task. If it has succeeded, the overlay alone as SVG or PNG if `Accept` prefers it, or "
            "the label mask with `mask=labels`, a PNG.",
            "headers": _WARNINGS,
            "content": {JSON: {"schema": _ref(schemas.TaskResponse)}, **_OVERLAY},
        },
        **_problem_responses(_STATUS_CODES),
    },
    "openapi_extra": {"parameters": [_WAIT, _MASK]},
}
CANCEL: dict[str, Any] = {
    "summary": "Cancel a task",
    "tags": ["tasks"],
    "responses": {200: _response("The cancelled task.", schemas.TaskResponse), **_problem_responses(_CANCEL_CODES)},
}
HEALTH: dict[str, Any] = {
    "responses": {
        200: _response("The check passed.", HealthResponse),
        503: _response("The check failed.", HealthResponse),
    }
}
METRICS: dict[str, Any] = {
    "responses": {
        200: {"description": "All metrics.", "content": {"text/plain": {"schema": {"type": "string"}}}},
        404: _response("Metrics are disabled.", schemas.ProblemDocument, MEDIA_TYPE),
    }
}
VERSION: dict[str, Any] = {"responses": {200: _response("The versions.", schemas.VersionResponse)}}


def build_document(app: FastAPI) -> dict[str, Any]:
    """Build the OpenAPI document."""
    document = get_openapi(
        title=app.title,
        version=app.version,
        description=app.description,
        routes=app.routes,
        tags=app.openapi_tags,
        servers=app.servers,
    )
    (points, *_), components = msgspec.json.schema_components((json_body.Points, *_STRUCTURES), ref_template=_REF)
    body = components["CropRequest"]["properties"]
    image = {"type": "string", "contentEncoding": "base64", "description": json_body.IMAGE_TEXT}
    body["image"] = components["LandmarksRequest"]["properties"]["image"] = image
    regions = {"type": "object", "additionalProperties": {"type": "array", "items": {"type": "integer"}}}
    forms = [points, {"type": "array", "items": points}, _ref(json_body.LandmarkResult), {"type": "null"}]
    body["landmarks"] = {"anyOf": forms, "description": json_body.LANDMARKS_TEXT}
    forms = [{"type": "string", "contentEncoding": "base64"}, regions, {"type": "null"}]
    body["segmentation_map"] = {"anyOf": forms, "description": json_body.MAP_TEXT}
    parts = document.setdefault("components", {})
    parts.setdefault("schemas", {}).update(components)
    parts["securitySchemes"] = {
        "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        "bearer": {"type": "http", "scheme": "bearer"},
    }
    # A small image with its landmarks, and each form of the segmentation map.
    examples = orjson.loads((files("app.web") / "static" / "examples.json").read_bytes())
    image_alone = {"image": examples["photo_alone"]["value"]["image"]}
    landmarks_examples = {"photo": {"summary": "An image", "value": image_alone}}
    for path, operations in document["paths"].items():
        if path.startswith("/api/"):
            for operation in operations.values():
                operation["security"] = [{}, {"key": []}, {"bearer": []}]
                if "requestBody" in operation:
                    found = landmarks_examples if path.endswith("/landmarks") else examples
                    operation["requestBody"]["content"][JSON]["examples"] = found
    return document

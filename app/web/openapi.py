"""The OpenAPI document, generated from the request and response structures and the table of problems.

The names in the document are those of generated clients: each operation has an id, and each enumeration a schema.
"""

# Longer than 600 lines, because the descriptions, examples and codes of one document belong together.

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import orjson
from fastapi import Path
from fastapi.openapi.utils import get_openapi
from fastapi.responses import PlainTextResponse

from app.face.errors import PUBLIC_CODES, FaceError, ImageError
from app.observability.health import HealthResponse
from app.service.options import CropOptions, LandmarkOptions
from app.tasks.errors import QueueError
from app.web import json_body, schemas
from app.web.content_negotiation import JSON
from app.web.error_handlers import MEDIA_TYPE, TYPE_PREFIX
from app.web.problems import INPUT_STATUS, INPUT_TITLE, PROBLEMS
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

_SCHEMA_REF: Final = "#/components/schemas/{name}"
_STRUCTURES: Final = (
    json_body.Points,
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
# Names in the document of the structures whose own names distinguish them from other classes of the service.
_NAMES: Final = {
    "CropResponse": "CropResult",
    "LandmarksResponse": "LandmarksResult",
    "TaskResponse": "Task",
    "TaskErrorResponse": "TaskError",
    "RegionResponse": "Region",
    "DetectionResponse": "Detection",
    "LandmarkResult": "MediaPipeResult",
    "ProblemDocument": "Problem",
    "HealthResponse": "Health",
    "VersionResponse": "Version",
    "Warning": "ResultWarning",  # `Warning` is a built-in of Python
}
# Options with one schema for their values in bodies, forms and queries, so that clients have one enumeration for each.
_ENUMERATIONS: Final = {
    "landmark_units": "LandmarkUnits",
    "verify": "Verification",
    "crop": "CropArea",
    "background": "Background",
    "orientation": "Orientation",
}
_ALL_FACES: Final = "AllFaces"

# --- problems ---------------------------------------------------------------------------------------------------------

_IMAGE_CODES: Final = {code for code, error in PUBLIC_CODES.items() if issubclass(error, ImageError)}
_FACE_CODES: Final = {code for code, error in PUBLIC_CODES.items() if issubclass(error, FaceError)}
_QUEUE_CODES: Final = {error.code for error in QueueError.__subclasses__()}
# Any operation can have these: they occur before the request is routed, or independently of what it does.
_COMMON_CODES: Final = {
    "http_invalid",
    "method_not_allowed",
    "method_unknown",
    "head_timeout",
    "head_too_large",
    "internal_error",
    "shutting_down",
}
# `not_found` belongs to paths outside the document. Only POST requests are rate limited.
_BODY_CODES: Final = PROBLEMS.keys() - {"not_found"} - _QUEUE_CODES
_CROP_CODES: Final = _BODY_CODES | PUBLIC_CODES.keys()
_LANDMARKS_CODES: Final = _BODY_CODES | _IMAGE_CODES | _FACE_CODES
# A submission is checked without decoding pixels. The errors that need them become those of the task.
_SUBMIT_CODES: Final = (_CROP_CODES - {"no_face", "label_map_labels", "label_map_too_complex"}) | {
    "queue_unavailable",
    "queue_full",
    "task_too_large",
    "idempotency_conflict",
}
_TASK_CODES: Final = _COMMON_CODES | {
    "unauthorized",
    "not_found",  # an id that contains a slash
    "not_acceptable",
    "parameter_invalid",
    "task_unknown",
    "queue_unavailable",
}
_CANCEL_CODES: Final = _TASK_CODES | {"task_ended", "queue_full"}
# The result of a task can be too large for a PNG or a label mask.
_STATUS_CODES: Final = _TASK_CODES | {
    "body_timeout",
    "body_too_large",
    "saturated",
    "image_too_large",
    "label_map_too_complex",
}

# Details of the examples that are not the title or the description of the code.
_DETAILS: Final = {
    "field_missing": "image: expected a value, got none",
    "field_unknown": f"body: expected only {', '.join(json_body.FIELDS)}; got an unknown field",
    "field_invalid": "region_opacity: expected a number <= 1, got another value",
    "parameter_invalid": "query: expected each parameter once, got a duplicate",
    "image_encoding": "image: expected standard base64 with padding and without line breaks, got invalid base64",
    "landmarks_count": "landmarks: expected 468 or 478 points, got 12",
    "saturated": "worker is at capacity; retry after the time in Retry-After",
    "shutting_down": "worker is shutting down; retry after the time in Retry-After",
    "task_unknown": "task_id: expected 32 hexadecimal digits, got another value",
    "internal_error": "see the service log for this request id",
}
_REQUEST_ID: Final = "5d1f0a9c2f8e4b0f9a3c6e7d8b1a2c3d"

# --- headers ----------------------------------------------------------------------------------------------------------


def _text_header(description: str) -> dict[str, Any]:
    return {"description": description, "schema": {"type": "string"}}


_HEADERS: Final[dict[str, dict[str, Any]]] = {
    "X-Request-ID": _text_header("Id of the request: that of the request's header of this name, or a new one."),
    "Vary": _text_header("`Accept`: the header of the request selects the form of the response."),
    "X-Warnings": _text_header("Codes of the result's warnings, if there are any."),
    "X-Cache": _text_header("`hit` or `miss`, if the result cache is enabled."),
    "Location": {**_text_header("Path of the task's status."), "required": True},
    "Cache-Control": _text_header("`no-store`: the state of a task changes."),
    "Retry-After": {"description": "Seconds to wait before a retry.", "schema": {"type": "integer", "minimum": 1}},
    "Allow": _text_header("Methods that the path supports."),
    "WWW-Authenticate": _text_header("The authentication scheme."),
    "RateLimit-Policy": _text_header("Requests per period of a caller, if there is a rate limit."),
    "RateLimit": _text_header("Remaining requests of the caller and seconds until its quota is restored."),
}
_RATE_LIMIT_HEADERS: Final = ("RateLimit-Policy", "RateLimit")
_STATUS_HEADERS: Final = {
    401: ("WWW-Authenticate",),
    405: ("Allow",),
    429: ("Retry-After", *_RATE_LIMIT_HEADERS),
    503: ("Retry-After",),
}


def _headers(*names: str) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in ("X-Request-ID", *names)}


# --- schemas ----------------------------------------------------------------------------------------------------------


def _ref(name: str) -> dict[str, str]:
    return {"$ref": _SCHEMA_REF.format(name=name)}


def _ref_or_array(name: str) -> dict[str, Any]:
    """Return the schema of a result, or of an array of results with the option `face=all`."""
    return {"anyOf": [_ref(name), {"type": "array", "items": _ref(name), "minItems": 1}]}


@cache
def option_schemas(options: type[msgspec.Struct] = CropOptions) -> dict[str, dict[str, Any]]:
    """Return the schemas of all options by name."""
    components = msgspec.json.schema_components([options], ref_template=_SCHEMA_REF)[1]
    properties: dict[str, dict[str, Any]] = components[options.__name__]["properties"]
    return properties


def _query_options(options: type[msgspec.Struct]) -> dict[str, dict[str, Any]]:
    """Return the schemas of options in a query, which cannot contain null."""
    found = {}
    for name, schema in option_schemas(options).items():
        query_schema = dict(schema)
        if name in _ENUMERATIONS:
            del query_schema["enum"]
            # Not a reference alone, because many generators ignore all other keys of one.
            query_schema["allOf"] = [_ref(_ENUMERATIONS[name])]
        elif name == "face":
            query_schema["anyOf"] = [schema["anyOf"][0], _ref(_ALL_FACES)]
        elif schema["default"] is None:
            del query_schema["default"]
            query_schema |= next(kind for kind in query_schema.pop("anyOf") if kind["type"] != "null")
        found[name] = query_schema
    return found


def _body_options(options: type[msgspec.Struct]) -> dict[str, dict[str, Any]]:
    """Return the schemas of options in a body.

    The default is part of the description, because some generators require a value for each property with a default.
    """
    found = {}
    for name, schema in _query_options(options).items():
        body_schema = dict(schema)
        default = body_schema.pop("default", None)
        if default is not None:
            text = default if isinstance(default, str) else orjson.dumps(default).decode()
            body_schema["description"] += f" Default: `{text}`."
        found[name] = body_schema
    return found


def _form_options(options: type[msgspec.Struct]) -> dict[str, dict[str, Any]]:
    """Return the schemas of options in a form, with the default as an example.

    Pages generated from the document fill in the example, or else a value of their own. Without a default, it is an
    empty text, which counts as absent.
    """
    defaults = {name: schema["default"] for name, schema in option_schemas(options).items()}
    return {
        name: {**schema, "examples": ["" if defaults[name] is None else defaults[name]]}
        for name, schema in _body_options(options).items()
    }


def _json_options(options: type[msgspec.Struct]) -> dict[str, dict[str, Any]]:
    """Return the schemas of options in a JSON body, in which null selects the default of some options."""
    found = _body_options(options)
    for name, schema in option_schemas(options).items():
        if schema["default"] is None:
            found[name] = {"description": schema["description"], "anyOf": schema["anyOf"]}
    return found


def _enumeration_schemas() -> dict[str, dict[str, Any]]:
    options = option_schemas()
    schemas_by_name: dict[str, dict[str, Any]] = {
        title: {
            "title": title,
            "description": options[name]["description"],
            "type": "string",
            "enum": options[name]["enum"],
        }
        for name, title in _ENUMERATIONS.items()
    }
    all_faces = "Selects all faces, so that the response is an array with one result per face."
    schemas_by_name[_ALL_FACES] = {"title": _ALL_FACES, "description": all_faces, "type": "string", "enum": ["all"]}
    return schemas_by_name


def _rename(value: Any) -> Any:
    """Return a schema with the names of the document in its titles and references."""
    if isinstance(value, list):
        return [_rename(item) for item in value]
    if not isinstance(value, dict):
        return value
    renamed = {key: _rename(item) for key, item in value.items()}
    if isinstance(title := renamed.get("title"), str):
        renamed["title"] = _NAMES.get(title, title)
    if isinstance(ref := renamed.get("$ref"), str):
        prefix, _, name = ref.rpartition("/")
        renamed["$ref"] = f"{prefix}/{_NAMES.get(name, name)}"
    return renamed


def _component_schemas() -> dict[str, Any]:
    (points, *_), components = msgspec.json.schema_components(_STRUCTURES, ref_template=_SCHEMA_REF)
    image = {"type": "string", "contentEncoding": "base64", "description": json_body.IMAGE_TEXT}
    landmarks = [points, {"type": "array", "items": points}, _ref("LandmarkResult"), {"type": "null"}]
    regions = {"type": "object", "additionalProperties": {"type": "array", "items": {"type": "integer"}}}
    maps = [{"type": "string", "contentEncoding": "base64"}, regions, {"type": "null"}]
    components["CropRequest"]["properties"] = {
        "image": image,
        "landmarks": {"anyOf": landmarks, "description": json_body.LANDMARKS_TEXT},
        "segmentation_map": {"anyOf": maps, "description": json_body.MAP_TEXT},
        **_json_options(CropOptions),
    }
    components["LandmarksRequest"]["properties"] = {"image": image, **_json_options(LandmarkOptions)}
    components["TaskStatus"]["type"] = "string"
    renamed = {_NAMES.get(name, name): _rename(schema) for name, schema in components.items()}
    forms_by_name = {"CropForm": _CROP_FORM, "LandmarksForm": _LANDMARKS_FORM}
    return {**renamed, **forms_by_name, **_enumeration_schemas()}


def _form(title: str, parts: dict[str, Any]) -> dict[str, Any]:
    return {
        "title": title,
        "description": "Form with the same fields as the JSON body; an empty optional field counts as absent.",
        "type": "object",
        "properties": {"image": _IMAGE_PART, **parts},
        "required": ["image"],
        "additionalProperties": False,
    }


_IMAGE_PART: Final = {"type": "string", "format": "binary", "description": "PNG, JPEG, WebP, AVIF or HEIC image."}
_CROP_FORM: Final = _form(
    "CropForm",
    {
        "landmarks": {
            "type": "string",
            "contentMediaType": JSON,
            "examples": [""],  # pages generated from the document would otherwise send the text `string`
            "description": f"{json_body.LANDMARKS_TEXT} Format: JSON.",
        },
        "segmentation_map": {"type": "string", "format": "binary", "description": json_body.MAP_TEXT},
        **_form_options(CropOptions),
    },
)
_LANDMARKS_FORM: Final = _form("LandmarksForm", _form_options(LandmarkOptions))

# --- parts of operations ----------------------------------------------------------------------------------------------


def _example_ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/examples/{name}"}


def _json_response(
    description: str, schema: dict[str, Any], *headers: str, examples: Iterable[str] = ()
) -> dict[str, Any]:
    content = {"schema": schema, "examples": {name: _example_ref(name) for name in examples}}
    return {"description": description, "headers": _headers(*headers), "content": {JSON: content}}


def _problem_responses(codes: Iterable[str]) -> dict[int | str, dict[str, Any]]:
    """Return the responses with a problem document by status; each lists its codes and has an example for each."""
    known = [code for code in (*PROBLEMS, *PUBLIC_CODES) if code in codes]
    by_status: dict[int, list[str]] = {}
    for code in known:
        by_status.setdefault(_status(code), []).append(code)
    return {
        status: {
            "description": "Codes: " + ", ".join(f"`{code}`" for code in found) + ".",
            "headers": _headers(*_STATUS_HEADERS.get(status, ())),
            "content": {
                MEDIA_TYPE: {"schema": _ref("Problem"), "examples": {code: _example_ref(code) for code in found}}
            },
        }
        for status, found in sorted(by_status.items())
    }


def _status(code: str) -> int:
    return PROBLEMS[code][0] if code in PROBLEMS else INPUT_STATUS


def _problem_examples() -> dict[str, Any]:
    """Return an example of a problem document for each code."""
    titles = {code: title for code, (_, title) in PROBLEMS.items()}
    meanings = {code: (error.__doc__ or "").strip().partition("\n")[0] for code, error in PUBLIC_CODES.items()}
    return {
        code: {
            "summary": meanings.get(code, titles.get(code)),
            "value": {
                "type": TYPE_PREFIX + code,
                "title": titles.get(code, INPUT_TITLE),
                "status": _status(code),
                "code": code,
                "detail": _DETAILS.get(code) or meanings.get(code) or titles[code],
                "request_id": _REQUEST_ID,
            },
        }
        for code in (*titles, *meanings)
    }


def _option_parameters(options: type[msgspec.Struct] = CropOptions) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "query", "description": schema.pop("description"), "schema": schema}
        for name, schema in _query_options(options).items()
    ]


_RAW_IMAGE: Final = {
    "type": "string",
    "format": "binary",
    "description": "The image file alone; options are in the query, and landmarks are detected.",
}


def _request_body(form: str, structure: str, examples: Iterable[str]) -> dict[str, Any]:
    # The form comes first, because pages generated from the document select it: a file can be chosen there.
    return {
        "required": True,
        "content": {
            MULTIPART: {
                "schema": _ref(form),
                "examples": {"photo": _example_ref(_FORM_EXAMPLES[form])},
            },
            JSON: {"schema": _ref(structure), "examples": {name: _example_ref(name) for name in examples}},
            **{media_type: {"schema": _RAW_IMAGE} for media_type in IMAGE_TYPES},
        },
    }


_FORM_EXAMPLES: Final = {"CropForm": "crop_form", "LandmarksForm": "landmarks_form"}
_CROP_BODY: Final = _request_body("CropForm", "CropRequest", ("catalogue", "photo_alone", "label_image", "regions"))
_WAIT: Final = {
    "name": "wait",
    "in": "query",
    "description": "Maximum time to wait for the task to end, in seconds.",
    "schema": {"type": "number", "minimum": 0, "maximum": MAX_WAIT_S, "default": 0},
}
_KEY: Final = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "Key chosen by the caller, bare or in double quotes. The same key with the same request returns the "
    "same task.",
    "schema": {"type": "string", "minLength": 1, "maxLength": MAX_KEY, "pattern": "^[!#-~]+$"},
}

# --- operations -------------------------------------------------------------------------------------------------------

_IMAGES: Final = (
    "With `Accept: image/svg+xml` or `image/png`, the response is the overlay alone. With the query parameter "
    "`mask=labels`, it is the label mask, a grey PNG whose pixels are the ids of the regions, and 0 elsewhere. These "
    "forms are not part of the schema, so that clients generated from it return one type."
)

CROP: dict[str, Any] = {
    "operation_id": "crop",
    "summary": "Regions of a face",
    "description": f"Return the regions of a face, or of all faces with `face=all`.\n\n{_IMAGES}",
    "tags": ["regions"],
    "responses": {
        200: _json_response(
            "The regions. With `face=all`, an array of results.",
            _ref_or_array("CropResult"),
            "Vary",
            "X-Warnings",
            "X-Cache",
            *_RATE_LIMIT_HEADERS,
            examples=("crop_result", "crop_results"),
        ),
        **_problem_responses(_CROP_CODES),
    },
    "openapi_extra": {"parameters": _option_parameters(), "requestBody": _CROP_BODY},
}
LANDMARKS: dict[str, Any] = {
    "operation_id": "find_landmarks",
    "summary": "Landmarks of a face",
    "tags": ["regions"],
    "responses": {
        200: _json_response(
            "The landmarks. With `face=all`, an array of results.",
            _ref_or_array("LandmarksResult"),
            *_RATE_LIMIT_HEADERS,
            examples=("landmarks_result",),
        ),
        **_problem_responses(_LANDMARKS_CODES),
    },
    "openapi_extra": {
        "parameters": _option_parameters(LandmarkOptions),
        "requestBody": _request_body("LandmarksForm", "LandmarksRequest", ("photo",)),
    },
}
SUBMIT: dict[str, Any] = {
    "operation_id": "submit_crop",
    "summary": "Submit a task",
    "tags": ["tasks"],
    "status_code": 202,
    "responses": {
        202: _json_response(
            "The accepted task.",
            _ref("Task"),
            "Location",
            "Cache-Control",
            *_RATE_LIMIT_HEADERS,
            examples=("task_pending",),
        ),
        **_problem_responses(_SUBMIT_CODES),
    },
    "openapi_extra": {"parameters": [*_option_parameters(), _KEY], "requestBody": _CROP_BODY},
}
STATUS: dict[str, Any] = {
    "operation_id": "get_task",
    "summary": "Status and result of a task",
    "description": "Return the status of a task, and its result or error. With `wait`, respond when the task has ended "
    "or the time is over. The status code is 200 for a failed task, too: its `error` contains the reason.\n\n"
    f"If the task has succeeded: {_IMAGES[0].lower()}{_IMAGES[1:]}",
    "tags": ["tasks"],
    "responses": {
        200: _json_response(
            "The task.",
            _ref("Task"),
            "Vary",
            "X-Warnings",
            "Cache-Control",
            examples=("task_success", "task_started", "task_failure"),
        ),
        **_problem_responses(_STATUS_CODES),
    },
    "openapi_extra": {"parameters": [_WAIT]},
}
CANCEL: dict[str, Any] = {
    "operation_id": "cancel_task",
    "summary": "Cancel a task",
    "tags": ["tasks"],
    "responses": {
        200: _json_response("The cancelled task.", _ref("Task"), "Cache-Control", examples=("task_cancelled",)),
        **_problem_responses(_CANCEL_CODES),
    },
}
# Another path of the same operation, for which clients need another name.
CANCEL_SHORT: dict[str, Any] = {
    **CANCEL,
    "operation_id": "cancel_task_by_short_path",
    "summary": "Cancel a task, by its short path",
}


def _health(operation_id: str) -> dict[str, Any]:
    passed = _json_response("The check passed.", _ref("Health"), examples=("health_ready",))
    failed = _json_response("The check failed.", _ref("Health"), "Retry-After", examples=("health_draining",))
    problems = _problem_responses({*_COMMON_CODES, "not_found"})
    failed["description"] = f"The check failed. {problems[503]['description']}"
    failed["content"] |= problems[503]["content"]
    return {"operation_id": operation_id, "responses": {200: passed, **problems, 503: failed}}


HEALTH: Final = _health("get_health")
LIVENESS: Final = _health("get_liveness")
READINESS: Final = _health("get_readiness")
METRICS: dict[str, Any] = {
    "operation_id": "get_metrics",
    "response_class": PlainTextResponse,  # so that FastAPI does not add JSON
    "responses": {
        200: {
            "description": "All metrics.",
            "headers": _headers(),
            "content": {
                "text/plain": {"schema": {"type": "string"}, "examples": {"metrics": _example_ref("metrics")}},
            },
        },
        **_problem_responses({*_COMMON_CODES, "not_found"}),  # not found if metrics are disabled
    },
}
VERSION: dict[str, Any] = {
    "operation_id": "get_version",
    "responses": {
        200: _json_response("The versions.", _ref("Version"), examples=("version",)),
        **_problem_responses(_COMMON_CODES),
    },
}

# --- document ---------------------------------------------------------------------------------------------------------


def _load_examples() -> dict[str, Any]:
    """Return the examples of requests and responses by name.

    Those of requests are a small image with its landmarks, and each form of the segmentation map.
    """
    folder = files("app.web") / "static"
    requests = orjson.loads((folder / "examples.json").read_bytes())
    image_alone = {"image": requests["photo_alone"]["value"]["image"]}
    return {
        **requests,
        "photo": {"summary": "An image", "value": image_alone},
        # In place of the image, a client sends the content of a file.
        "crop_form": {
            "summary": "A photo, levelled and cropped",
            "value": {"image": "<content of face.jpg>", "upright": True, "crop": "face", "background": "image"},
        },
        "landmarks_form": {"summary": "A photo", "value": {"image": "<content of face.jpg>"}},
        **orjson.loads((folder / "response_examples.json").read_bytes()),
        **_problem_examples(),
    }


def build_document(app: FastAPI, *, is_key_needed: bool) -> dict[str, Any]:
    """Build the OpenAPI document. Operations under ``/api/`` have a security requirement if they need an API key."""
    document = get_openapi(
        title=app.title,
        version=app.version,
        description=app.description,
        routes=app.routes,
        tags=app.openapi_tags,
        servers=app.servers,
    )
    document.setdefault("components", {}).update(
        schemas=_component_schemas(),
        headers=_HEADERS,
        examples=_load_examples(),
        securitySchemes={
            "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            "bearer": {"type": "http", "scheme": "bearer"},
        },
    )
    if is_key_needed:
        for path, operations in document["paths"].items():
            if path.startswith("/api/"):
                for operation in operations.values():
                    operation["security"] = [{"key": []}, {"bearer": []}]
    return document

"""The OpenAPI document, made from the structures that read requests and the table of problems."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import msgspec
import orjson
from fastapi.openapi.utils import get_openapi

from app.service.options import CropOptions
from app.web import schemas
from app.web.problems import MEDIA_TYPE, PROBLEMS

if TYPE_CHECKING:
    from fastapi import FastAPI

JSON = "application/json"
_REF = "#/components/schemas/{name}"
_ANSWERS = (schemas.CropAnswer, schemas.ProblemAnswer, schemas.HealthAnswer, schemas.VersionAnswer)


def _ref(structure: type[msgspec.Struct]) -> dict[str, str]:
    return {"$ref": _REF.format(name=structure.__name__)}


def _answer(description: str, structure: type[msgspec.Struct], media_type: str = JSON) -> dict[str, Any]:
    return {"description": description, "content": {media_type: {"schema": _ref(structure)}}}


def _problem_answers() -> dict[int | str, dict[str, Any]]:
    by_status: dict[int, list[str]] = {}
    for code, (status, _) in PROBLEMS.items():
        by_status.setdefault(status, []).append(code)
    by_status.pop(404)  # the router's own, for paths that are not in the document
    by_status[422].append("or a code of what is wrong with the photo, landmarks or map")
    return {
        status: _answer("; ".join(codes), schemas.ProblemAnswer, MEDIA_TYPE)
        for status, codes in sorted(by_status.items())
    }


@cache
def option_schemas() -> dict[str, dict[str, Any]]:
    """Return the schema of every option, by name."""
    components = msgspec.json.schema_components([CropOptions], ref_template=_REF)[1]
    properties: dict[str, dict[str, Any]] = components["CropOptions"]["properties"]
    return properties


def _option_parameters() -> list[dict[str, Any]]:
    # Without their defaults: an option that is not in the query is the body's to set, and pages made from the document
    # send every default along.
    return [
        {
            "name": name,
            "in": "query",
            "description": schema["description"],
            "schema": {key: value for key, value in schema.items() if key not in {"default", "description"}},
        }
        for name, schema in option_schemas().items()
    ]


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
        "required": ["image", "landmarks"],
        "additionalProperties": False,
    }


CROP: dict[str, Any] = {
    "summary": "Regions of a face, from a photo and its landmarks",
    "tags": ["regions"],
    "responses": {
        200: {
            "description": "The regions; or the overlay alone, where `Accept` prefers it.",
            "content": {JSON: {"schema": _ref(schemas.CropAnswer)}, "image/svg+xml": {"schema": {"type": "string"}}},
        },
        **_problem_answers(),
    },
    "openapi_extra": {
        "parameters": _option_parameters(),
        "requestBody": {
            "required": True,
            "content": {
                JSON: {"schema": _ref(schemas.CropBody)},
                "multipart/form-data": {"schema": _multipart_schema()},
            },
        },
    },
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
    _, components = msgspec.json.schema_components([schemas.CropBody, *_ANSWERS], ref_template=_REF)
    body = components["CropBody"]["properties"]
    body["image"] = {"type": "string", "contentEncoding": "base64", "description": schemas.IMAGE_TEXT}
    regions = {"type": "object", "additionalProperties": {"type": "array", "items": {"type": "integer"}}}
    sources = [{"type": "string", "contentEncoding": "base64"}, regions, {"type": "null"}]
    body["segmentation_map"] = {"anyOf": sources, "description": schemas.MAP_TEXT}
    parts = document.setdefault("components", {})
    parts.setdefault("schemas", {}).update(components)
    parts["securitySchemes"] = {
        "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        "bearer": {"type": "http", "scheme": "bearer"},
    }
    operation = document["paths"]["/api/v1/frontal/crop"]["post"]
    operation["requestBody"]["content"][JSON]["examples"] = load_examples()
    operation["security"] = [{}, {"key": []}, {"bearer": []}]
    return document


def load_examples() -> dict[str, Any]:
    """Read the worked examples: a small photo of a face with its landmarks, once for each form of the map."""
    examples: dict[str, Any] = orjson.loads((files("app.web") / "static" / "examples.json").read_bytes())
    return examples

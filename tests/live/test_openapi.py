"""The running service conforms to its OpenAPI document for every request that the document allows."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any, TypeVar

import httpx
import msgspec
import pytest
import schemathesis
from hypothesis import HealthCheck, assume, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from app.observability.health import HealthResponse
from app.web.schemas import CropResponse, ProblemDocument, TaskResponse, VersionResponse

if TYPE_CHECKING:
    from collections.abc import Callable

    from schemathesis import Case
    from schemathesis.schemas import BaseSchema

    from tests.conftest import Sample
    from tests.live.conftest import RunningService

T = TypeVar("T")

pytestmark = pytest.mark.live

CROP = "/api/v1/frontal/crop"
SUBMIT = f"{CROP}/submit"
LANDMARKS = "/api/v1/frontal/landmarks"
STATUS = f"{CROP}/status/{{task_id}}"
NO_TASK = "0" * 32
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
TASK_CHECKS = CHECKS[1:]  # a full queue is a valid response, too
TASK_OPERATIONS = [
    ("POST", SUBMIT),
    ("GET", STATUS),
    ("DELETE", STATUS),
    ("DELETE", f"{CROP}/{{task_id}}"),
]
OPERATIONS = [
    ("POST", CROP),
    ("POST", LANDMARKS),
    ("GET", "/health"),
    ("GET", "/health/live"),
    ("GET", "/health/ready"),
    ("GET", "/metrics"),
    ("GET", "/version"),
]

BOUNDED = settings(suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module", autouse=True)
def _queue(service: RunningService, wait_until: Callable[..., Any]) -> None:
    path = f"{service.api}{CROP}/status/{NO_TASK}"
    wait_until(lambda: httpx.get(path).status_code == 404, limit_s=30, what="the queue")


@pytest.fixture(scope="module")
def schema(service: RunningService) -> BaseSchema:
    loaded: BaseSchema = schemathesis.openapi.from_url(f"{service.api}/openapi.json")
    return loaded


@pytest.fixture(scope="module")
def examples(service: RunningService) -> dict[str, Any]:
    document = httpx.get(f"{service.api}/openapi.json").json()
    listed = document["paths"][CROP]["post"]["requestBody"]["content"]["application/json"]["examples"]
    found: dict[str, Any] = document["components"]["examples"]
    return {name: found[name] for name in listed}


def test_every_operation_of_the_document_is_tested(schema: BaseSchema) -> None:
    operations = [result.ok() for result in schema.get_all_operations()]
    assert sorted((operation.method.upper(), operation.path) for operation in operations) == sorted(
        OPERATIONS + TASK_OPERATIONS
    )


@pytest.mark.parametrize("path", [CROP, SUBMIT, LANDMARKS])
@pytest.mark.parametrize("mode", list(GenerationMode))
def test_crop_conforms(schema: BaseSchema, mode: GenerationMode, path: str) -> None:
    @settings(BOUNDED, max_examples=150 if path == CROP else 50)
    @given(schema[path]["POST"].as_strategy(generation_mode=mode))
    def check(case: Case) -> None:
        case.call_and_validate(checks=CHECKS)

    check()


@pytest.mark.parametrize(("path", "success"), [(CROP, 200), (SUBMIT, 202)])
def test_crop_conforms_for_a_good_photo(schema: BaseSchema, sample: Sample, path: str, success: int) -> None:
    statuses = set()
    good = sample.fields()

    @settings(BOUNDED, max_examples=150 if path == CROP else 50)
    @given(schema[path]["POST"].as_strategy(generation_mode=GenerationMode.POSITIVE))
    def check(case: Case) -> None:
        assume(case.media_type == "application/json")
        case.body = {**case.body, **good, "landmark_units": "pixels"}
        case.query.pop("landmark_units", None)
        statuses.add(case.call_and_validate(checks=CHECKS).status_code)

    check()
    assert success in statuses


@pytest.mark.parametrize(("method", "path"), OPERATIONS[2:])
def test_operation_conforms(schema: BaseSchema, method: str, path: str) -> None:
    @settings(BOUNDED, max_examples=10)
    @given(schema[path][method].as_strategy())
    def check(case: Case) -> None:
        assert case.call_and_validate(checks=CHECKS).status_code == 200

    check()


@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize(("method", "path"), TASK_OPERATIONS[1:])
def test_operation_on_a_task_conforms(schema: BaseSchema, method: str, path: str, mode: GenerationMode) -> None:
    @settings(BOUNDED, max_examples=50)
    @given(schema[path][method].as_strategy(generation_mode=mode))
    def check(case: Case) -> None:
        assert case.call_and_validate(checks=TASK_CHECKS).status_code in {400, 404, 405, 406, 422}

    check()


def test_every_example_becomes_a_task(service: RunningService, examples: dict[str, Any]) -> None:
    for name, example in examples.items():
        result = httpx.post(service.api + CROP, json=example["value"]).json()
        taken = httpx.post(service.api + SUBMIT, json=example["value"])
        task = decode(httpx.get(f"{service.api}{taken.headers['location']}?wait=60", timeout=90), TaskResponse)
        assert decode(taken, TaskResponse).task_id == task.task_id
        assert msgspec.to_builtins(task.result) | {"processing_time_ms": 0} == result | {"processing_time_ms": 0}, name


def test_every_example_is_answered(service: RunningService, examples: dict[str, Any]) -> None:
    assert examples, "the document has no worked example"
    for name, example in examples.items():
        answer = httpx.post(service.api + CROP, json=example["value"])
        assert answer.status_code == 200, f"{name}: {answer.text[:500]}"
        result = decode(answer, CropResponse)
        assert result.regions_detected == len(result.regions) > 0, name
        assert not result.omitted, name
        overlay = httpx.post(service.api + CROP, json=example["value"], headers={"accept": "image/svg+xml"})
        assert overlay.headers["content-type"] == "image/svg+xml"
        assert overlay.content == base64.b64decode(result.svg)


def test_other_answers_are_what_the_document_says(service: RunningService) -> None:
    assert decode(httpx.get(f"{service.api}/version"), VersionResponse).version
    assert decode(httpx.get(f"{service.api}/health"), HealthResponse).live
    assert decode(httpx.post(service.api + CROP, json={}), ProblemDocument).code == "field_missing"
    assert decode(httpx.get(f"{service.api}/none"), ProblemDocument).code == "not_found"
    assert decode(httpx.get(f"{service.api}{CROP}/status/{NO_TASK}"), ProblemDocument).code == "task_unknown"


def decode(answer: httpx.Response, structure: type[T]) -> T:
    """Decode a response strictly: every member is documented and has its type, and none is missing."""
    decoded = msgspec.json.decode(answer.content, type=structure)
    assert msgspec.to_builtins(decoded) == answer.json()
    return decoded

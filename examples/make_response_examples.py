"""Generate the response examples of /docs: real results for the image of the request examples.

It needs the face-detection models. Example:
python examples/make_response_examples.py app/web/static/response_examples.json
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

import msgspec
import orjson
import pybase64
from make_docs_examples import run

from app import __version__
from app.observability.health import HealthResponse, WorkerHealth
from app.service.crop import CropInput, CropService, ImageLimits
from app.service.landmarks import LandmarksInput, find_landmarks
from app.service.options import CropOptions, LandmarkOptions
from app.service.serialization import result_to_json
from app.tasks.records import Record, TaskError, TaskStatus
from app.web.json_body import parse_landmarks
from app.web.results import task_to_json

REGIONS = {"nose_tip": [1, 44, 4, 274]}  # few points, so that the examples are short
TASK_ID = "0123456789abcdef0123456789abcdef"
SUBMITTED_AT = 1_767_225_600.0
METRICS = """# HELP app_build_info Constant 1, with the versions as labels.
# TYPE app_build_info gauge
app_build_info{python="3.13.7",version="%s"} 1.0
"""


def make_results() -> tuple[Any, Any]:
    """Return the result of a crop request and of a landmarks request."""
    requests = json.loads((files("app.web") / "static" / "examples.json").read_text())
    request = requests["catalogue"]["value"]
    image = pybase64.b64decode(request["image"])
    service = CropService(ImageLimits())
    cropped = service.process(
        CropInput(
            image=image,
            points=parse_landmarks(orjson.dumps(request["landmarks"])).points,
            segmentation_map=REGIONS,
            options=CropOptions(),
        )
    )
    landmarks = find_landmarks(service, LandmarksInput(image=image, options=LandmarkOptions()))
    return (
        orjson.loads(result_to_json(cropped)) | {"processing_time_ms": 1.25},
        orjson.loads(landmarks) | {"processing_time_ms": 8.5},
    )


def make_tasks(result: Any) -> dict[str, Any]:
    """Return a task in each state."""
    pending = Record(task_id=TASK_ID, submitted_at=SUBMITTED_AT)
    started = pending.replace(status=TaskStatus.STARTED, started_at=SUBMITTED_AT + 0.012, attempts=1, progress=0.5)
    ended = started.replace(completed_at=SUBMITTED_AT + 0.02)
    error = TaskError("no_face", "image: expected a face, found none; send landmarks, or an image with a face")
    records = {
        "task_pending": ("A task that waits in the queue", pending),
        "task_started": ("A task that is processed", started),
        "task_success": (
            "A task that succeeded",
            ended.replace(
                status=TaskStatus.SUCCESS,
                progress=1.0,
                processing_time_ms=1.25,
                result=msgspec.Raw(orjson.dumps(result)),
            ),
        ),
        "task_failure": ("A task that failed", ended.replace(status=TaskStatus.FAILURE, error=error)),
        "task_cancelled": (
            "A cancelled task",
            pending.replace(status=TaskStatus.CANCELLED, completed_at=SUBMITTED_AT + 0.02),
        ),
    }
    return {name: (summary, json.loads(task_to_json(record))) for name, (summary, record) in records.items()}


def make_examples() -> dict[str, Any]:
    """Return the examples by name, as OpenAPI example objects."""
    crop, landmarks = make_results()
    worker = WorkerHealth("worker-0", 12, "ready", 0.4)
    draining = msgspec.structs.replace(worker, state="draining")
    examples = {
        "crop_result": ("A custom region", crop),
        "crop_results": ("All faces of an image with one face", [crop]),
        "landmarks_result": ("The landmarks of a face", landmarks),
        **make_tasks(crop),
        "health_ready": ("A ready instance", msgspec.to_builtins(HealthResponse(True, True, False, [worker], []))),
        "health_draining": (
            "An instance that is stopping",
            msgspec.to_builtins(HealthResponse(True, False, True, [draining], [])),
        ),
        "version": ("The versions", {"version": __version__, "python": "3.13.7"}),
        "metrics": ("The first lines", METRICS % __version__),
    }
    return {name: {"summary": summary, "value": value} for name, (summary, value) in examples.items()}


if __name__ == "__main__":
    run(__doc__, make_examples)

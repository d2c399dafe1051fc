"""Call every operation of a running service through a client that openapi-python-client generated."""

from __future__ import annotations

import base64
import io
import json
import sys
from http import HTTPStatus
from pathlib import Path

import httpx
from generated import AuthenticatedClient, Client
from generated.api.operations import get_health, get_liveness, get_metrics, get_readiness, get_version
from generated.api.regions import crop, find_landmarks
from generated.api.tasks import cancel_task, cancel_task_by_short_path, get_task, submit_crop
from generated.models import (
    AllFaces,
    Background,
    CropForm,
    CropRequest,
    CropResult,
    Health,
    LandmarksForm,
    LandmarksResult,
    Point,
    Problem,
    Task,
    TaskStatus,
    Version,
)
from generated.types import File


def main(url: str, photo: Path, landmarks: Path, key: str = "") -> None:
    """Call every operation, and check the types and the main values of the results."""
    limit = httpx.Timeout(120)
    # If the instance has keys, the operations of the API accept no other class.
    client = AuthenticatedClient(base_url=url, token=key or "unused", timeout=limit)
    content = photo.read_bytes()
    image = base64.b64encode(content).decode()
    text = landmarks.read_text(encoding="utf-8")
    points: list[list[float] | Point] = [Point(x=point["x"], y=point["y"]) for point in json.loads(text)]

    # Options in the body are used, although the client sends the defaults of the query.
    body = CropRequest(image=image, landmarks=points, upright=True, background=Background.IMAGE)
    result = crop.sync(client=client, body=body)
    assert isinstance(result, CropResult)
    assert len(result.regions) == result.regions_detected > 0
    assert abs(result.face.roll_deg) < 0.1
    assert b"<image" in base64.b64decode(result.svg)

    form = CropForm(image=File(io.BytesIO(content), "face.png", "image/png"), landmarks=text, upright=True)
    from_form = crop.sync(client=client, body=form)
    assert isinstance(from_form, CropResult)
    assert from_form.mask_contours == result.mask_contours

    from_file = crop.sync(client=client, body=File(io.BytesIO(content)), upright=True)
    assert isinstance(from_file, CropResult)
    assert from_file.detection is not None
    assert abs(from_file.face.roll_deg) < 0.1

    found = find_landmarks.sync(client=client, body=LandmarksForm(image=File(io.BytesIO(content), "face.png")))
    assert isinstance(found, LandmarksResult)
    assert len(found.landmarks) == 478
    every = find_landmarks.sync(client=client, body=File(io.BytesIO(content)), face=AllFaces.ALL)
    assert isinstance(every, list)
    assert len(every) == 1

    submitted = submit_crop.sync_detailed(client=client, body=body, idempotency_key="python")
    assert submitted.status_code == HTTPStatus.ACCEPTED
    assert isinstance(submitted.parsed, Task)
    task_id = submitted.parsed.task_id
    task = get_task.sync(task_id, client=client, wait=30)
    assert isinstance(task, Task)
    assert task.status is TaskStatus.SUCCESS
    assert isinstance(task.result, CropResult)
    assert task.result.mask_contours == result.mask_contours
    for cancel in (cancel_task, cancel_task_by_short_path):
        problem = cancel.sync(task_id, client=client)
        assert isinstance(problem, Problem)
        assert problem.code == "task_ended"

    refused = crop.sync_detailed(client=client, body=CropRequest(image=""))
    assert refused.status_code == HTTPStatus.UNPROCESSABLE_ENTITY
    assert isinstance(refused.parsed, Problem)
    assert refused.parsed.code == "image_empty"

    open_client = Client(base_url=url, timeout=limit)
    for health in (get_health, get_liveness, get_readiness):
        status = health.sync(client=open_client)
        assert isinstance(status, Health)
        assert status.live
    assert "app_build_info" in str(get_metrics.sync(client=open_client))
    version = get_version.sync(client=open_client)
    assert isinstance(version, Version)
    assert version.version


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:])

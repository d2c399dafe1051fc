"""Options of requests over HTTP: their results are the same for synchronous requests and for tasks."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import cv2
import httpx
import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import Sample
    from tests.live.conftest import RunningService

pytestmark = pytest.mark.live

CROP = "/api/v1/frontal/crop"


@pytest.fixture(scope="module")
def answering(run_service: Callable[..., Any]) -> Iterator[RunningService]:
    """A service with its own queue and a task worker."""
    with run_service(WORKERS=1, ENABLE_TASKS="true", TASK_WORKERS=1) as running:
        yield running


@pytest.fixture
def post(answering: RunningService, sample: Sample) -> Callable[..., httpx.Response]:
    """Send a form to a route: the sample's photo, without landmarks unless they are given, and options."""

    def send(
        path: str = CROP, query: str = "", headers: dict[str, str] | None = None, **fields: bytes | None
    ) -> httpx.Response:
        form = sample.form(**{"image": sample.photo, "landmarks": None, **fields})
        sent = {"content-type": sample.multipart, **(headers or {})}
        return httpx.post(answering.api + path + query, content=form, headers=sent, timeout=30)

    return send


@pytest.fixture
def run_task(answering: RunningService, post: Callable[..., httpx.Response]) -> Callable[..., httpx.Response]:
    """Submit a task, and return its status when it has ended, with these headers and this query."""

    def run(query: str = "", headers: dict[str, str] | None = None, **fields: bytes | None) -> httpx.Response:
        task_id = post(CROP + "/submit", **fields).raise_for_status().json()["task_id"]
        url = f"{answering.api}{CROP}/status/{task_id}?wait=30{query}"
        return httpx.get(url, headers=headers, timeout=60)

    return run


def turn(sample: Sample, orientation: int) -> bytes:
    """Store the photo so that viewers show it upright by its EXIF orientation, 6 or 7."""
    pixels = cv2.imdecode(np.frombuffer(sample.photo, np.uint8), cv2.IMREAD_COLOR)
    pixels = cv2.rotate(pixels, cv2.ROTATE_90_COUNTERCLOCKWISE)
    if orientation == 7:
        pixels = cv2.flip(pixels, 1)
    tiff = b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    png = sample.encode(".png", pixels)
    return png[:33] + sample.png_chunk(b"eXIf", tiff) + png[33:]


def is_close(first: dict[str, Any], second: dict[str, Any], tolerance_px: float) -> bool:
    pairs = [[[point["x"], point["y"]] for point in result["landmarks"]] for result in (first, second)]
    return float(np.abs(np.subtract(*pairs)).max()) < tolerance_px


@pytest.mark.usefixtures("face_models")
@pytest.mark.parametrize("orientation", [6, 7])
def test_results_as_displayed(
    post: Callable[..., httpx.Response], run_task: Callable[..., httpx.Response], sample: Sample, orientation: int
) -> None:
    options = {"image": turn(sample, orientation), "orientation": b"displayed"}
    upright = post().json()
    displayed, task = post(**options), run_task(**options).json()["result"]
    assert "x-warnings" not in displayed.headers
    landmarks = [post(CROP.replace("crop", "landmarks"), **fields).json() for fields in ({}, options)]
    for result, expected in ((displayed.json(), upright), (task, upright), landmarks[::-1]):
        assert is_close(result, expected, 3)
        assert result["image"]["exif_orientation"] == orientation
    assert {**task, "processing_time_ms": 0} == {**displayed.json(), "processing_time_ms": 0}
    stored = post(image=options["image"])
    assert stored.headers["x-warnings"] == "exif_orientation"
    assert not is_close(stored.json(), upright, 50)
    assert post(orientation=b"upright").json()["code"] == "field_invalid"

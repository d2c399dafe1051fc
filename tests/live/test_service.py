"""The service as a whole: one valid request in each format, and its access line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Sample
    from tests.live.conftest import RunningService

pytestmark = pytest.mark.live

CROP = "/api/v1/frontal/crop"


def test_json_and_multipart_give_the_same_result(service: RunningService, sample: Sample) -> None:
    answers = [
        httpx.post(service.api + CROP, content=sample.json(), headers={"content-type": "application/json"}),
        httpx.post(service.api + CROP, content=sample.form(), headers={"content-type": sample.multipart}),
    ]
    assert [answer.status_code for answer in answers] == [200, 200]
    json, form = ({**answer.json(), "processing_time_ms": 0} for answer in answers)
    assert json == form
    assert json["regions_detected"] == 15


@pytest.mark.usefixtures("face_models")
def test_the_photo_alone_is_enough(service: RunningService, sample: Sample) -> None:
    steps = ("detect", "mesh", "iris", "warp", "encode")
    counted = [("image_processing_duration_seconds_count", frozenset({("operation", step)})) for step in steps]
    counted.append(("faces_detected_total", frozenset({("result", "one")})))
    counted.append(("images_processed_total", frozenset({("format", "png")})))
    before = service.scrape()
    options = {"upright": b"true", "crop": b"face", "background": b"image"}
    form = sample.form(image=sample.photo, landmarks=None, **options)
    answer = httpx.post(service.api + CROP, content=form, headers={"content-type": sample.multipart}).json()
    assert (answer["regions_detected"], len(answer["landmarks"])) == (15, 478)
    assert abs(answer["face"]["roll_deg"]) <= 0.5
    after = service.scrape()
    assert {key: after[key] - before.get(key, 0) for key in counted} == dict.fromkeys(counted, 1)


def test_without_models_the_start_says_so(run_service: Callable[..., Any], sample: Sample, tmp_path: Path) -> None:
    with run_service(WORKERS=1, ENABLE_TASKS="false", MODELS_DIR=str(tmp_path)) as service:
        assert service.wait_for_lines(lambda line: "MODELS_DIR" in line.get("message", ""))
        form = sample.form(landmarks=None)
        answer = httpx.post(service.api + CROP, content=form, headers={"content-type": sample.multipart})
        assert (answer.status_code, answer.json()["code"]) == (422, "detection_unavailable")


def test_a_request_leaves_one_access_line_with_its_ids(service: RunningService) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    headers = {"x-request-id": "line-17", "traceparent": f"00-{trace}-b7ad6b7169203331-01"}
    answer = httpx.get(f"{service.api}/version", headers=headers)
    lines = service.wait_for_lines(lambda line: line.get("request_id") == "line-17")
    assert answer.headers["x-request-id"] == "line-17"
    assert [(line["method"], line["path"], line["status"], line["trace_id"]) for line in lines] == [
        ("GET", "/version", 200, trace)
    ]

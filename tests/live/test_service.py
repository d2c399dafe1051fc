"""The service as a whole: one good request in each form, and the line that it leaves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest

if TYPE_CHECKING:
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


def test_a_request_leaves_one_access_line_with_its_ids(service: RunningService) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    headers = {"x-request-id": "line-17", "traceparent": f"00-{trace}-b7ad6b7169203331-01"}
    answer = httpx.get(f"{service.api}/version", headers=headers)
    lines = service.wait_for_lines(lambda line: line.get("request_id") == "line-17")
    assert answer.headers["x-request-id"] == "line-17"
    assert [(line["method"], line["path"], line["status"], line["trace_id"]) for line in lines] == [
        ("GET", "/version", 200, trace)
    ]

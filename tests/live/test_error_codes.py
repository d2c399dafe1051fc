"""Every error code of docs/errors.md: response, access line and metric carry the same one.

Each table row causes one code over HTTP. Codes that need a state of the service (full, unavailable, stopping) have a
service of their own. ``internal_error`` needs a bug, so `tests/web/test_middleware.py` tests it. ``landmarks_shape``
cannot occur over HTTP, because a body that is accepted has rows of two or three numbers. It is an error of programs
that call `app.face` (`tests/face/test_landmarks.py`).
"""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import httpx
import orjson
import pytest

from app.face.errors import PUBLIC_CODES
from app.web.error_handlers import REJECTIONS
from app.web.problems import PROBLEMS, TASK_ERRORS
from tests.live import test_hostile_images as images
from tests.live import test_hostile_requests as requests

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Sample

pytestmark = pytest.mark.live

KEY = "QXcanarykeyQX"
CROP = "/api/v1/frontal/crop"
SUBMIT = f"{CROP}/submit"
JSON = "application/json"
TYPE = "urn:facial-service:problem:"
HEAD = b"POST /api/v1/frontal/crop HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nX-API-Key: " + KEY.encode()
# Bytes on a connection, and the code of the only response.
CONNECTIONS = {
    "http_invalid": b"QX\x00\r\n\r\n",
    "head_too_large": b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 70_000 + b"\r\n\r\n",
    "method_unknown": b"BREW /version HTTP/1.1\r\nHost: a\r\n\r\n",
    "body_timeout": HEAD + b"\r\nContent-Length: 100\r\n\r\n{",
}
IN_OTHER_STATES = {
    "detection_unavailable",
    "head_timeout",
    "queue_full",
    "queue_unavailable",
    "rate_limited",
    "saturated",
    "shutting_down",
    "task_too_large",
}
NOT_OVER_HTTP = {"internal_error", "landmarks_shape"}
# The first two are tested with their traces in test_tracing.py; the last has no attempt: test_tasks_recovery.py.
OF_TASKS = {"task_gave_up", "result_too_large", "task_lost"}


def rows(sample: Sample) -> dict[str, dict[str, Any]]:
    """Return one request per code."""
    found: dict[str, dict[str, Any]] = {}
    for _, build, code in requests.REQUESTS:
        found.setdefault(code, build(sample))
    for _, build, code in requests.BODIES:
        found.setdefault(code, {"content": build(sample), "headers": {"content-type": JSON}})
    for _, build, code in requests.FORMS:
        found.setdefault(code, {"content": build(sample), "headers": {"content-type": sample.multipart}})
    for _, build, code in images.PHOTOS:
        found.setdefault(code, {"content": sample.json(image=build(sample)), "headers": {"content-type": JSON}})
    for _, build, code in images.MAPS:
        form = sample.form(segmentation_map=build(sample))
        found.setdefault(code, {"content": form, "headers": {"content-type": sample.multipart}})
    blank = sample.png_file(64, 64, images.black(64, 64))
    found["no_face"] = {"content": blank, "headers": {"content-type": "image/png"}}
    found["face_index"] = {"content": sample.photo, "headers": {"content-type": "image/png"}, "path": f"{CROP}?face=9"}
    found["unauthorized"] = {"content": b"{}", "headers": {"content-type": JSON, "x-api-key": "wrong"}}
    return {code: row for code, row in found.items() if code not in CONNECTIONS}


def send(api: str, row: dict[str, Any], code: str) -> httpx.Response:
    given = {"method": "POST", "path": CROP, **row}
    headers = {"x-api-key": KEY, "x-request-id": f"id-{code}", **given["headers"]}
    return httpx.request(given["method"], api + given["path"], content=given["content"], headers=headers, timeout=60)


def send_raw(api: str, data: bytes) -> dict[str, Any]:
    """Send bytes on a connection, and return the problem document of the response."""
    url = httpx.URL(api)
    with socket.create_connection((url.host, url.port or 80), timeout=60) as connection:
        connection.sendall(data)
        received = b""
        while part := connection.recv(65_536):
            received += part
    problem: dict[str, Any] = orjson.loads(received.partition(b"\r\n\r\n")[2])
    return problem


def coded_lines(service: Any) -> list[dict[str, Any]]:
    """Return the lines of requests and connections that ended with an error."""
    return [line for line in service.log_lines() if "code" in line and ("status" in line or "client" in line)]


def require_agreement(service: Any, problems: list[dict[str, Any]], wait_until: Callable[..., Any]) -> None:
    """Check that each problem document has its line, and that lines and counters agree one to one."""
    wait_until(lambda: len(coded_lines(service)) >= len(problems), limit_s=30, what="the access lines")
    lines = coded_lines(service)
    by_id = {line["request_id"]: line for line in lines}
    for problem in problems:
        line = by_id[problem["request_id"]]
        expected = problem["code"], problem["status"], TYPE + problem["code"]
        assert (line["code"], line["status"], line["type"]) == expected
        assert line["bytes_out"] > 0
        assert line["upload_ms"] >= 0
    assert not [line for line in service.log_lines() if line.get("status", 0) >= 400 and "code" not in line]
    logged = Counter(line["code"] for line in lines)
    assert logged == Counter(problem["code"] for problem in problems)
    wait_until(lambda: counted(service).total() >= logged.total(), limit_s=30, what="the counters")
    # A reason of rejections has another name than its code only for bodies that are too large.
    assert counted(service) == Counter({REJECTIONS.get(code, code): number for code, number in logged.items()})


def counted(service: Any) -> Counter[str]:
    found: Counter[str] = Counter()
    for (name, labels), value in service.scrape().items():
        if value and name in {"errors_total", "api_rejections_total"}:
            found[dict(labels).get("type") or dict(labels)["reason"]] += int(value)
    return found


def test_every_code_is_in_response_line_and_metric(
    run_service: Any, sample: Sample, wait_until: Callable[..., Any]
) -> None:
    table = rows(sample)
    ended = {"idempotency_conflict", "task_ended"}
    assert set(table) | set(CONNECTIONS) | ended | IN_OTHER_STATES | NOT_OVER_HTTP == set(PROBLEMS) | set(PUBLIC_CODES)
    assert set(TASK_ERRORS) == OF_TASKS
    with run_service(
        WORKERS=1, TASK_WORKERS=1, ENABLE_TASKS="true", API_KEYS=f"shop:{KEY}", BODY_TIMEOUT_S=1
    ) as service:
        service.wait_tasks()
        problems: list[dict[str, Any]] = []
        late = threading.Thread(target=lambda: problems.append(send_raw(service.api, b"GET / HTTP/1.1\r\nHost: a\r\n")))
        late.start()  # it takes HEAD_TIMEOUT_S
        for code, row in table.items():
            response = send(service.api, row, code)
            assert (code, response.json().get("code")) == (code, code), response.text[:300]
            assert response.json()["request_id"] == response.headers["x-request-id"] == f"id-{code}"
            problems.append(response.json())
        for code, data in CONNECTIONS.items():
            problems.append(send_raw(service.api, data))
            assert problems[-1]["code"] == code
        problems += end_task(service, sample)
        late.join()
        assert problems[-1]["code"] == "head_timeout"
        require_agreement(service, problems, wait_until)
        authorized = [line for line in coded_lines(service) if line.get("api_key")]
        assert {line["api_key"] for line in authorized} == {"shop"}
        assert len({line["api_key_hash"] for line in authorized}) == 1
        refused = [line for line in service.log_lines() if line["message"].startswith("💥 Image decoding error: ")]
        assert {line["code"] for line in refused} >= {"image_corrupt", "image_encoding", "image_truncated"}
        assert KEY not in service.log_text()


def end_task(service: Any, sample: Sample) -> list[dict[str, Any]]:
    """Submit a task, reuse its key for another request, and cancel it when it has ended."""
    headers = {"x-api-key": KEY, "content-type": JSON, "idempotency-key": "one"}
    submitted = httpx.post(service.api + SUBMIT, content=sample.json(), headers=headers, timeout=60)
    assert submitted.status_code == 202, submitted.text
    other = httpx.post(service.api + SUBMIT, content=sample.json(stroke_width=3), headers=headers, timeout=60)
    status = f"{service.api}{submitted.headers['location']}"
    done = httpx.get(f"{status}?wait=20", headers=headers, timeout=60).json()
    assert done["status"] == "SUCCESS"
    ended = httpx.delete(status, headers=headers, timeout=60)
    assert (other.json()["code"], ended.json()["code"]) == ("idempotency_conflict", "task_ended")
    return [other.json(), ended.json()]


def test_refused_while_busy_unavailable_or_limited(
    run_service: Any, sample: Sample, wait_until: Callable[..., Any], tmp_path: Path
) -> None:
    body = {"content": sample.json(), "headers": {"content-type": JSON}}
    with run_service(
        WORKERS=1,
        NATS_URL="nats://127.0.0.1:1",
        MAX_CONCURRENCY=1,
        FAULT_WORK_S=2,
        GRACEFUL_TIMEOUT_S=1,
        MODELS_DIR=tmp_path,
        RATE_LIMIT="6/minute",
    ) as service:
        problems = [send(service.api, {"content": sample.png, "headers": {"content-type": "image/png"}}, "a").json()]
        problems.append(send(service.api, {**body, "path": SUBMIT}, "b").json())
        busy = threading.Thread(target=send, args=(service.api, body, "busy"))
        busy.start()
        in_progress = ("api_requests_in_progress", frozenset({("method", "POST"), ("endpoint", CROP)}))
        wait_until(lambda: service.scrape().get(in_progress), limit_s=20, what="a request in progress")
        problems.append(send(service.api, body, "c").json())
        busy.join()
        while problems[-1]["code"] != "rate_limited":
            response = send(service.api, {**body, "content": b"{"}, f"limit-{len(problems)}")
            problems.append(response.json())
        codes = {problem["code"] for problem in problems}
        assert codes >= {"detection_unavailable", "queue_unavailable", "saturated", "rate_limited"}
        require_agreement(service, problems, wait_until)


def test_request_that_is_stopped_has_its_code_and_its_id(
    run_service: Any, sample: Sample, wait_until: Callable[..., Any]
) -> None:
    body = {"content": sample.json(), "headers": {"content-type": JSON}}
    with run_service(WORKERS=1, FAULT_WORK_S=20, GRACEFUL_TIMEOUT_S=1) as service:
        found: list[httpx.Response] = []
        stopped = threading.Thread(target=lambda: found.append(send(service.api, body, "stopped")))
        stopped.start()
        in_progress = ("api_requests_in_progress", frozenset({("method", "POST"), ("endpoint", CROP)}))
        wait_until(lambda: service.scrape().get(in_progress), limit_s=20, what="a request in progress")
        service.stop(signal.SIGTERM)
        stopped.join()
        assert found[0].json()["code"] == "shutting_down"
        (line,) = coded_lines(service)
        assert (line["code"], line["status"], line["request_id"]) == ("shutting_down", 503, "id-stopped")
        stopping = [line for line in service.log_lines() if line["message"].startswith("Stopping: work in progress")]
        assert len(stopping) == 1


def test_body_that_becomes_invalid_has_one_code_and_one_id(run_service: Any, wait_until: Callable[..., Any]) -> None:
    """The server responds while the application reads the body; the line, the metric and the response agree."""
    with run_service(WORKERS=1) as service:
        head = HEAD + b"\r\nX-Request-ID: id-late\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n"
        url = httpx.URL(service.api)
        with socket.create_connection((url.host, url.port or 80), timeout=60) as connection:
            connection.sendall(head)
            in_progress = ("api_requests_in_progress", frozenset({("method", "POST"), ("endpoint", CROP)}))
            wait_until(lambda: service.scrape().get(in_progress), limit_s=20, what="a request in progress")
            connection.sendall(b"abcdeQX no chunk")
            received = b""
            while part := connection.recv(65_536):
                received += part
        problem = orjson.loads(received.partition(b"\r\n\r\n")[2])
        assert (problem["code"], problem["request_id"]) == ("http_invalid", "id-late")
        require_agreement(service, [problem], wait_until)
        requests_counted = {
            dict(labels)["status"]
            for (name, labels), value in service.scrape().items()
            if name == "api_requests_total" and value and ("method", "POST") in labels
        }
        assert requests_counted == {"400"}


def test_queue_refuses_tasks_that_are_too_many_or_too_large(
    run_service: Any, sample: Sample, wait_until: Callable[..., Any]
) -> None:
    with run_service(
        WORKERS=1,
        TASK_WORKERS=1,
        ENABLE_TASKS="true",
        FAULT_WORK_S=5,
        TASK_QUEUE_MAX_MESSAGES=5,
        TASK_QUEUE_MAX_BYTES=8 << 20,
    ) as service:
        service.wait_tasks()
        large = sample.png[:33] + sample.png_chunk(b"teSt", bytes(9 << 20)) + sample.png[33:]
        row = {"content": large, "headers": {"content-type": "image/png"}, "path": SUBMIT}
        problems = [send(service.api, row, "large").json()]
        body = {"content": sample.json(), "headers": {"content-type": JSON}, "path": SUBMIT}
        deadline = time.monotonic() + 60
        while problems[-1]["code"] != "queue_full" and time.monotonic() < deadline:
            response = send(service.api, body, f"full-{len(problems)}")
            if response.status_code != 202:
                problems.append(response.json())
        assert [problem["code"] for problem in problems] == ["task_too_large", "queue_full"]
        require_agreement(service, problems, wait_until)

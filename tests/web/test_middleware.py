"""Middleware: request ids, access log, metrics, unhandled exceptions and shutdown."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from app.observability.rich_logging import LogOptions, configure_logging
from app.web.middleware import MAX_LOGGED_PATH, RequestContext, ShutdownGuard, record_unparsed_request

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    import httpx
    from fastapi import FastAPI

    from tests.conftest import Sample

    Call = Callable[..., httpx.Response]
    MakeApp = Callable[..., FastAPI]
    Lines = Callable[[], list[dict[str, Any]]]
    Scrape = Callable[[], dict[tuple[str, ...], float]]

TRACE = "0af7651916cd43dd8448eb211c80319c"
CANARY = "QXcanaryQX"


@pytest.fixture
def log_lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lines]:
    """Log as JSON, and return a function that reads the lines."""
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    configure_logging(LogOptions(format="json"))
    yield lambda: [json.loads(line) for line in written.getvalue().splitlines()]
    root = logging.getLogger()
    for handler in list(root.handlers):
        if getattr(handler, "is_ours", False):
            root.removeHandler(handler)


@pytest.mark.parametrize("given", ["order-17", "a" * 128, "A.b_c:d/e+f=g-h"])
def test_valid_request_id_is_used(make_app: MakeApp, call: Call, given: str) -> None:
    response = call(make_app(), "GET", "/none", headers={"x-request-id": given})
    assert response.headers.get_list("x-request-id") == [given]
    assert response.json()["request_id"] == given


@pytest.mark.parametrize("given", [None, "", "two words", 'quote"', "a" * 129, "é".encode(), "line\tbreak"])
def test_request_id_is_generated(make_app: MakeApp, call: Call, given: Any) -> None:
    app = make_app()
    headers = {} if given is None else {"x-request-id": given}
    responses = [call(app, "GET", "/none", headers=headers) for _ in range(2)]
    made = [response.headers["x-request-id"] for response in responses]
    assert all(re.fullmatch(r"[0-9a-f]{16}", one) for one in made)
    assert made[0] != made[1]
    assert [response.json()["request_id"] for response in responses] == made


@pytest.mark.parametrize(
    ("traceparent", "trace"),
    [
        (f"00-{TRACE}-b7ad6b7169203331-01", TRACE),
        (f"00-{'0' * 32}-b7ad6b7169203331-01", None),
        (f"00-{TRACE.upper()}-b7ad6b7169203331-01", None),
        ("nonsense", None),
        (None, None),
    ],
)
def test_trace_id_is_in_the_access_log(
    make_app: MakeApp, call: Call, log_lines: Lines, traceparent: str | None, trace: str | None
) -> None:
    call(make_app(), "GET", "/version", headers={} if traceparent is None else {"traceparent": traceparent})
    (line,) = log_lines()
    assert line.get("trace_id") == trace


def test_access_log_describes_request_and_response(make_app: MakeApp, call: Call, log_lines: Lines) -> None:
    call(make_app(), "GET", f"/version?{CANARY}=1", headers={"x-request-id": "id-1", "user-agent": CANARY})
    (line,) = log_lines()
    assert line.pop("duration_ms") >= 0
    assert line.pop("time")
    assert re.fullmatch(r"GET /version 200 \d+\.\dms 127\.0\.0\.1", line.pop("message"))
    assert line.pop("bytes_out") > 0
    assert line == {
        "level": "INFO",
        "logger": "facial.api",
        "method": "GET",
        "path": "/version",
        "status": 200,
        "client": "127.0.0.1",
        "bytes_in": 0,
        "upload_ms": 0.0,
        "request_id": "id-1",
    }


def test_access_log_has_code_sizes_and_upload_time(
    make_app: MakeApp, call: Call, sample: Sample, log_lines: Lines
) -> None:
    async def stream() -> Any:
        yield sample.json(landmarks=[])[:100]
        await asyncio.sleep(0.2)
        yield sample.json(landmarks=[])[100:]

    response = call(make_app(), content=stream(), headers={"content-type": "application/json"})
    refused, line = log_lines()
    assert line["code"] == response.json()["code"] == "landmarks_count"
    assert line["type"] == response.json()["type"]
    assert line["message"].endswith(" 127.0.0.1 landmarks_count")
    assert (line["bytes_in"], line["bytes_out"]) == (len(sample.json(landmarks=[])), len(response.content))
    assert 200 <= line["upload_ms"] <= line["duration_ms"]
    assert (refused["logger"], refused["code"]) == ("facial.images", "landmarks_count")
    assert refused["message"] == f"💥 Input error: {response.json()['detail']} [landmarks_count]"
    assert refused["request_id"] == line["request_id"] == response.headers["x-request-id"]


def test_access_log_tells_keys_of_one_name_apart(make_app: MakeApp, call: Call, log_lines: Lines) -> None:
    app = make_app(api_keys="shop:old-key,shop:new-key")
    for key in ("old-key", "new-key", "wrong"):
        call(app, "POST", "/api/v1/frontal/crop", headers={"x-api-key": key})
    old, new, wrong = log_lines()
    assert old["api_key"] == new["api_key"] == "shop"
    assert old["api_key_hash"] != new["api_key_hash"]
    assert "api_key" not in wrong
    assert (wrong["code"], "old-key" in str(old)) == ("unauthorized", False)


@pytest.mark.parametrize(
    ("status", "code"), [(499, "client_disconnected"), (503, "not_ready"), (418, "http_error"), (304, None)]
)
def test_every_error_status_has_a_code_that_is_counted(
    scrape: Scrape, log_lines: Lines, status: int, code: str | None
) -> None:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": status, "headers": []})

    async def send(_message: Any) -> None: ...

    scope = {"type": "http", "method": "GET", "raw_path": b"/", "headers": []}
    asyncio.run(RequestContext(app, is_access_logged=True)(scope, None, send))  # type: ignore[arg-type]
    (line,) = log_lines()
    assert line.get("code") == code
    counted = {key: value for key, value in scrape().items() if key[0] == "errors_total" and value}
    assert counted == ({} if code is None else {("errors_total", "api", code): 1})


@pytest.mark.parametrize(
    ("path", "logged"),
    [
        ("/a%0Ab%1B%5B31mc", "/a%0Ab%1B%5B31mc"),
        ("/%C3%A9", "/%C3%A9"),
        ("/" + "x" * 5000, "/" + "x" * (MAX_LOGGED_PATH - 1)),
    ],
)
def test_path_is_logged_undecoded_and_truncated(
    make_app: MakeApp, call: Call, log_lines: Lines, path: str, logged: str
) -> None:
    call(make_app(), "GET", path)
    (line,) = log_lines()
    assert (line["path"], line["status"]) == (logged, 404)
    assert line["message"].startswith(f"GET {logged} 404 ")


def test_access_log_can_be_disabled(make_app: MakeApp, call: Call, log_lines: Lines) -> None:
    assert call(make_app(log_access=False), "GET", "/version").status_code == 200
    assert log_lines() == []


def break_service(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError(CANARY)

    monkeypatch.setattr(type(app.state.web.crop), "process", fail)


def test_unhandled_exception_is_a_500_without_its_cause(
    make_app: MakeApp, call: Call, sample: Sample, log_lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_app()
    break_service(app, monkeypatch)
    headers = {"content-type": "application/json", "x-request-id": "id-1"}
    response = call(app, content=sample.json(), headers=headers)
    assert response.status_code == 500
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["x-request-id"] == "id-1"
    assert response.json() == {
        "type": "urn:facial-service:problem:internal_error",
        "title": "The service failed to process the request",
        "status": 500,
        "code": "internal_error",
        "detail": "see the service log for this request id",
        "request_id": "id-1",
    }
    error, access = log_lines()
    assert (error["level"], error["message"], error["request_id"]) == ("ERROR", "Unhandled error", "id-1")
    assert error["exc_type"] == "ZeroDivisionError"
    assert error["exc_info"].startswith("Traceback")
    assert error["exc_info"].endswith(f"ZeroDivisionError: {CANARY}")
    assert (access["status"], access["code"], access["request_id"]) == (500, "internal_error", "id-1")


def test_unhandled_exception_is_counted_once(
    scrape: Scrape, make_app: MakeApp, call: Call, sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_app()
    break_service(app, monkeypatch)
    call(app, content=sample.json(), headers={"content-type": "application/json"})
    counted = scrape()
    assert counted["errors_total", "api", "internal_error"] == 1
    assert {key: value for key, value in counted.items() if key[0] == "api_requests_total"} == {
        ("api_requests_total", "/api/v1/frontal/crop", "POST", "500"): 1
    }
    assert counted["api_requests_in_progress", "/api/v1/frontal/crop", "POST"] == 0


def test_error_after_the_response_has_started_is_counted_and_logged_once(scrape: Scrape, log_lines: Lines) -> None:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ZeroDivisionError

    async def send(_message: Any) -> None: ...

    scope = {"type": "http", "method": "GET", "raw_path": b"/", "headers": []}
    with pytest.raises(ZeroDivisionError):
        asyncio.run(RequestContext(app, is_access_logged=False)(scope, None, send))  # type: ignore[arg-type]
    assert [line["message"] for line in log_lines()] == ["Unhandled error"]
    assert scrape()["errors_total", "api", "internal_error"] == 1


def test_requests_are_counted_under_bounded_labels(scrape: Scrape, make_app: MakeApp, call: Call) -> None:
    app = make_app()
    for method, path in (
        ("GET", "/version"),
        ("GET", "/version"),
        ("GET", f"/{CANARY}"),
        ("BREW", "/version"),
        (CANARY, f"/{CANARY}"),
        ("GET", "/api/v1/frontal/crop"),
    ):
        call(app, method, path)
    counted = scrape()
    assert {key[1:]: value for key, value in counted.items() if key[0] == "api_requests_total"} == {
        ("/version", "GET", "200"): 2,
        ("unmatched", "GET", "404"): 1,
        ("/version", "OTHER", "405"): 1,
        ("unmatched", "OTHER", "404"): 1,
        ("/api/v1/frontal/crop", "GET", "405"): 1,
    }
    assert CANARY not in str(counted)


def test_sizes_of_bodies_are_recorded_with_and_without_content_length(
    scrape: Scrape, make_app: MakeApp, call: Call, sample: Sample
) -> None:
    async def stream() -> Any:
        yield sample.json()[:1000]
        yield sample.json()[1000:]

    app, headers = make_app(), {"content-type": "application/json"}
    sizes = [len(call(app, content=content, headers=headers).content) for content in (sample.json(), stream())]
    counted = scrape()
    labels = "/api/v1/frontal/crop", "POST"
    assert counted["api_request_size_bytes_sum", *labels] == 2 * len(sample.json())
    assert counted["api_response_size_bytes_sum", *labels] == sum(sizes)
    assert counted["api_request_duration_seconds_count", *labels] == 2
    assert counted["landmarks_processed_total",] == 2 * 478


def test_a_slow_upload_is_not_a_slow_service(scrape: Scrape, make_app: MakeApp, call: Call, sample: Sample) -> None:
    """The caller's network takes far longer than the service, and only its own metric shows it."""

    async def stream() -> Any:
        yield sample.json()[:1000]
        await asyncio.sleep(1)
        yield sample.json()[1000:]

    call(make_app(), content=stream(), headers={"content-type": "application/json"})
    counted = scrape()
    labels = "/api/v1/frontal/crop", "POST"
    upload_s, duration_s = (counted[f"api_request_{part}_seconds_sum", *labels] for part in ("upload", "duration"))
    assert upload_s >= 1
    assert 0 < duration_s < upload_s


def test_histograms_observe_every_counted_request(
    scrape: Scrape, make_app: MakeApp, call: Call, sample: Sample
) -> None:
    app = make_app()
    call(app, content=sample.json(), headers={"content-type": "application/json"})
    call(app, "GET", "/version")
    call(app, "GET", "/nowhere")
    record_unparsed_request("127.0.0.1", "http_invalid", 400, 300)
    counted = scrape()
    requests: Counter[tuple[str, ...]] = Counter()
    for key, value in counted.items():
        if key[0] == "api_requests_total":
            requests[key[1:3]] += int(value)
    assert requests.total() == 4
    for name in ("api_request_duration_seconds", "api_request_upload_seconds", "api_request_size_bytes"):
        assert {key[1:]: value for key, value in counted.items() if key[0] == f"{name}_count"} == requests


SCOPE = {"type": "http", "method": "POST", "path": "/", "headers": []}
START = {"type": "http.response.start", "status": 200, "headers": []}


async def receive_body() -> Any:
    return {"type": "http.request"}


def cancel_request(app: Callable[..., Awaitable[None]], *, is_ending: bool) -> list[dict[str, Any]]:
    """Start a request, stop the process if `is_ending`, cancel the request, and return the sent messages."""
    sent: list[dict[str, Any]] = []
    shutdown = asyncio.Event()
    guard = ShutdownGuard(app, shutdown=shutdown, retry_after_s=7)

    async def send(message: Any) -> None:
        sent.append(message)

    async def main() -> None:
        request = asyncio.ensure_future(guard(SCOPE, receive_body, send))
        await asyncio.sleep(0)
        if is_ending:
            shutdown.set()
        request.cancel()
        await request

    asyncio.run(main())
    return sent


async def wait_forever(_scope: Any, _receive: Any, _send: Any) -> None:
    await asyncio.Event().wait()


async def wait_after_start(_scope: Any, _receive: Any, send: Any) -> None:
    await send(START)
    await asyncio.Event().wait()


def test_cancelled_request_gets_a_problem() -> None:
    start, body = cancel_request(wait_forever, is_ending=True)
    headers = dict(start["headers"])
    assert start["status"] == 503
    assert headers[b"retry-after"] == b"7"
    assert headers[b"connection"] == b"close"
    assert json.loads(body["body"])["code"] == "shutting_down"


def test_started_response_is_not_followed_by_another() -> None:
    with pytest.raises(asyncio.CancelledError):
        cancel_request(wait_after_start, is_ending=True)


def test_other_cancellations_are_errors() -> None:
    with pytest.raises(RuntimeError, match="not stopping"):
        cancel_request(wait_forever, is_ending=False)


def test_late_request_is_not_started() -> None:
    shutdown, sent = asyncio.Event(), []
    shutdown.set()

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(ShutdownGuard(wait_forever, shutdown=shutdown, retry_after_s=1)(SCOPE, receive_body, send))
    assert [message.get("status") for message in sent] == [503, None]

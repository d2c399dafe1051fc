"""Traces in a real OpenTelemetry collector: their tree, ids, times and codes, compared with the client's own."""

from __future__ import annotations

import shutil
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import orjson
import pytest

from tests.live.test_hostile_images import DECODED, MAPS, PHOTOS
from tests.live.test_hostile_requests import BODIES, FORMS, REQUESTS, request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import psutil

pytestmark = pytest.mark.live

ROOT = Path(__file__).parents[2]
MIB = 1024 * 1024
CROP = "/api/v1/frontal/crop"
JSON = {"Content-Type": "application/json"}
PROCESS = "process tasks.facial_processing"
PUBLISH = "publish tasks.facial_processing"
KINDS = {1: "INTERNAL", 2: "SERVER", 3: "CLIENT", 4: "PRODUCER", 5: "CONSUMER"}
ERROR = 2
SOON = {"OTEL_BSP_SCHEDULE_DELAY": 100}
LIMIT_S = 120
CLOCK_S = 0.05  # the client's and the service's readings of one clock


@dataclass(frozen=True)
class Span:
    trace_id: str
    span_id: str
    parent_id: str
    name: str
    kind: str
    start_s: float
    end_s: float
    is_error: bool
    attributes: dict[str, Any]
    links: list[str]
    service: str
    instance: str

    @property
    def code(self) -> str | None:
        return self.attributes.get("error.type")


def attributes(pairs: list[dict[str, Any]]) -> dict[str, Any]:
    found = {}
    for pair in pairs:
        ((kind, value),) = pair["value"].items()
        found[pair["key"]] = int(value) if kind == "intValue" else value
    return found


@dataclass(frozen=True)
class Collector:
    """A collector that writes spans to a file, one OTLP request in JSON a line."""

    url: str
    file: Path

    def read(self) -> list[Span]:
        found = []
        for line in self.file.read_bytes().splitlines(keepends=True) if self.file.exists() else ():
            if not line.endswith(b"\n"):
                continue
            for resource in orjson.loads(line)["resourceSpans"]:
                origin = attributes(resource["resource"]["attributes"])
                for scope in resource["scopeSpans"]:
                    found += [read_span(span, origin) for span in scope["spans"]]
        return found

    def trace(self, trace_id: str) -> list[Span]:
        return sorted((span for span in self.read() if span.trace_id == trace_id), key=lambda span: span.start_s)


def read_span(span: dict[str, Any], origin: dict[str, Any]) -> Span:
    return Span(
        trace_id=span["traceId"],
        span_id=span["spanId"],
        parent_id=span.get("parentSpanId", ""),
        name=span["name"],
        kind=KINDS[span["kind"]],
        start_s=int(span["startTimeUnixNano"]) / 1e9,
        end_s=int(span["endTimeUnixNano"]) / 1e9,
        is_error=span.get("status", {}).get("code", 0) == ERROR,
        attributes=attributes(span.get("attributes", [])),
        links=[link["spanId"] for link in span.get("links", [])],
        service=origin["service.name"],
        instance=origin["service.instance.id"],
    )


@contextmanager
def run_collector(folder: Path, wait_until: Callable[..., Any]) -> Iterator[Collector]:
    program = shutil.which("test-collector")
    if program is None:
        pytest.skip("test-collector is not on PATH; run `make tools`")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    file = folder / "traces.json"
    config = {
        "receivers": {"otlp": {"protocols": {"http": {"endpoint": f"127.0.0.1:{port}"}}}},
        "exporters": {"debug": {}, "file": {"path": str(file), "flush_interval": "100ms"}},
        "service": {"pipelines": {"traces": {"receivers": ["otlp"], "exporters": ["debug", "file"]}}},
    }
    (folder / "collector.json").write_bytes(orjson.dumps(config))
    with (folder / "collector.log").open("wb") as log:
        process = subprocess.Popen([program, "--config", folder / "collector.json"], stdout=log, stderr=log)
    try:
        wait_until(lambda: is_open(port), limit_s=LIMIT_S, what="the collector")
        yield Collector(f"http://127.0.0.1:{port}", file)
    finally:
        process.terminate()
        process.wait(30)


def is_open(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
        return True
    return False


@pytest.fixture(scope="module")
def collector(tmp_path_factory: pytest.TempPathFactory, wait_until: Callable[..., Any]) -> Iterator[Collector]:
    with run_collector(tmp_path_factory.mktemp("collector"), wait_until) as running:
        yield running


@pytest.fixture(scope="module")
def traced(run_service: Any, collector: Collector) -> Iterator[Any]:
    settings = {"WORKERS": 1, "TASK_WORKERS": 1, "ENABLE_TASKS": "true"}
    with run_service(**settings, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, **SOON) as service:
        service.wait_tasks()
        yield service


def new_parent() -> tuple[str, str, str]:
    """Return the ids of a trace that the client begins, and its ``traceparent``."""
    trace_id, span_id = time.time_ns().to_bytes(16, "big").hex(), time.monotonic_ns().to_bytes(8, "big").hex()
    return trace_id, span_id, f"00-{trace_id}-{span_id}-01"


@dataclass(frozen=True)
class Call:
    """A request with a trace of the client's own, and its times by the client's clock."""

    response: httpx.Response
    trace_id: str
    span_id: str
    start_s: float
    end_s: float


def call(service: Any, method: str, path: str, **request: Any) -> Call:
    trace_id, span_id, traceparent = new_parent()
    headers = {"traceparent": traceparent, **request.pop("headers", {})}
    start_s = time.time()
    response = httpx.request(method, f"{service.api}{path}", headers=headers, timeout=LIMIT_S, **request)
    return Call(response, trace_id, span_id, start_s, time.time())


def wait_for(collector: Collector, wait_until: Callable[..., Any], trace_id: str, *names: str) -> list[Span]:
    """Wait until a trace contains spans of these names, and return all its spans."""

    def find() -> list[Span]:
        spans = collector.trace(trace_id)
        return spans if set(names) <= {span.name for span in spans} else []

    found: list[Span] = wait_until(find, limit_s=LIMIT_S, what=f"spans {names} of trace {trace_id}")
    return found


def named(spans: list[Span], name: str) -> Span:
    (found,) = (span for span in spans if span.name == name)
    return found


def require_tree(spans: list[Span], root_parent: str) -> None:
    """Check that all spans have a parent in the trace, and do not end before they start."""
    ids = {span.span_id for span in spans}
    assert len(ids) == len(spans)
    assert all(span.parent_id in ids | {root_parent} for span in spans), spans
    assert all(span.end_s >= span.start_s for span in spans)


def test_synchronous_request(traced: Any, collector: Collector, sample: Any, wait_until: Callable[..., Any]) -> None:
    made = call(traced, "POST", CROP, content=sample.json(image=sample.photo, landmarks=None), headers=JSON)
    assert made.response.status_code == 200, made.response.text
    spans = wait_for(collector, wait_until, made.trace_id, f"POST {CROP}")
    require_tree(spans, made.span_id)
    request = named(spans, f"POST {CROP}")
    assert (request.kind, request.parent_id, request.is_error) == ("SERVER", made.span_id, False)
    assert request.attributes == {
        "http.request.method": "POST",
        "http.route": CROP,
        "url.path": CROP,
        "url.scheme": "http",
        "network.protocol.version": "1.1",
        "http.request.body.size": len(made.response.request.content),
        "http.response.status_code": 200,
    }
    assert made.response.headers["traceparent"] == f"00-{made.trace_id}-{request.span_id}-01"
    assert request.service == "facial-service"
    assert request.instance.endswith("/worker-0")
    steps = {span.name for span in spans if span.parent_id == request.span_id}
    assert {"receive body", "parse", "sniff", "decode", "detect", "mesh", "contours", "svg", "document"} <= steps
    # The client measured more than the request, and the request more than its steps.
    assert made.start_s - CLOCK_S <= request.start_s
    assert max(span.end_s for span in spans if span is not request) <= made.end_s + CLOCK_S
    assert all(request.start_s <= span.start_s <= span.end_s <= request.end_s for span in spans)
    line = traced.wait_for_lines(lambda line: line.get("trace_id") == made.trace_id and "status" in line)[0]
    assert line["span_id"] == request.span_id
    # The access line and the span measure the same.
    assert line["duration_ms"] <= 1000 * (request.end_s - request.start_s) + 1


def end_of(service: Any, task_id: str, wait_until: Callable[..., Any]) -> dict[str, Any]:
    def ended() -> dict[str, Any]:
        found: dict[str, Any] = httpx.get(f"{service.api}{CROP}/status/{task_id}?wait=10", timeout=LIMIT_S).json()
        return found if found["status"] not in {"PENDING", "STARTED"} else {}

    found: dict[str, Any] = wait_until(ended, limit_s=LIMIT_S, what=f"the end of {task_id}")
    return found


def submit(service: Any, body: bytes) -> Call:
    made = call(service, "POST", f"{CROP}/submit", content=body, headers=JSON)
    assert made.response.status_code == 202, made.response.text
    return made


def test_task(traced: Any, collector: Collector, sample: Any, wait_until: Callable[..., Any]) -> None:
    made = submit(traced, sample.json(image=sample.photo, landmarks=None))
    task = end_of(traced, made.response.json()["task_id"], wait_until)
    assert task["status"] == "SUCCESS"
    spans = wait_for(collector, wait_until, made.trace_id, f"POST {CROP}/submit", PROCESS)
    require_tree(spans, made.span_id)
    request, published = named(spans, f"POST {CROP}/submit"), named(spans, PUBLISH)
    waited, attempt = named(spans, "queue wait"), named(spans, PROCESS)
    assert published.parent_id == request.span_id
    assert waited.parent_id == attempt.parent_id == published.span_id
    assert (published.kind, attempt.kind) == ("PRODUCER", "CONSUMER")
    assert published.attributes == {
        "messaging.system": "nats",
        "messaging.destination.name": "tasks.facial_processing",
        "messaging.operation.name": "publish",
        "messaging.operation.type": "send",
        "messaging.message.id": task["task_id"],
    }
    assert attempt.attributes["messaging.operation.type"] == "process"
    assert attempt.attributes["messaging.message.id"] == task["task_id"]
    assert attempt.attributes["messaging.nats.message.delivery_count"] == 1
    assert (attempt.is_error, attempt.links) == (False, [])
    assert request.instance.endswith("/worker-0")
    assert attempt.instance.endswith("/task-0")
    inside = {span.name for span in spans if span.parent_id == attempt.span_id}
    assert {"wait for a work slot", "decode", "detect", "contours", "svg", "document", "store record"} <= inside
    # The times of the task's record are those of the spans, and the client saw its whole life.
    assert made.start_s - CLOCK_S <= waited.start_s <= waited.end_s <= attempt.end_s <= time.time() + CLOCK_S
    assert published.start_s <= published.end_s
    assert abs(epoch(task["submitted_at"]) - waited.start_s) < CLOCK_S
    assert attempt.start_s - CLOCK_S <= epoch(task["started_at"]) <= epoch(task["completed_at"]) <= attempt.end_s
    for event in ("started", "succeeded"):
        (line,) = traced.wait_for_lines(
            lambda line, event=event: line.get("event") == event and line.get("task_id") == task["task_id"]
        )
        assert (line["trace_id"], line["span_id"]) == (made.trace_id, attempt.span_id)


def epoch(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def test_failed_task_has_the_code(
    traced: Any, collector: Collector, sample: Any, wait_until: Callable[..., Any]
) -> None:
    blank = sample.encode(".png", sample.pixels * 0)
    made = submit(traced, sample.json(image=blank, landmarks=None))
    task = end_of(traced, made.response.json()["task_id"], wait_until)
    spans = wait_for(collector, wait_until, made.trace_id, PROCESS)
    attempt = named(spans, PROCESS)
    assert (attempt.is_error, attempt.code) == (True, task["error"]["code"])
    assert attempt.code == "no_face"


@contextmanager
def queue_of(
    run_nats: Any, run_service: Any, run_worker: Any, *, max_payload: int = 8 << 20, **settings: Any
) -> Iterator[tuple[Any, Any]]:
    """Run an API and a task worker in instances of their own."""
    with run_nats(max_payload=max_payload) as nats:
        given = {"NATS_URL": nats.url, "TASK_WORKERS": 1, "TASK_ACK_WAIT_S": 2, "TASK_MAX_DELIVERIES": 2, **settings}
        with run_service(WORKERS=1, **given) as service, run_worker(**given) as worker:
            yield service, worker


def test_retry_after_a_killed_worker(
    run_nats: Any, run_service: Any, run_worker: Any, collector: Collector, sample: Any, wait_until: Callable[..., Any]
) -> None:
    settings = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "FAULT_WORK_S": 3, **SOON}
    with queue_of(run_nats, run_service, run_worker, **settings) as (service, worker):
        made = submit(service, sample.json())
        task_id = made.response.json()["task_id"]
        # The wait in the queue has been exported, so the attempt is in progress.
        wait_for(collector, wait_until, made.trace_id, "queue wait", "store record")
        worker.wait_for_lines(lambda line: line.get("event") == "started" and line.get("task_id") == task_id)
        (process,) = worker.task_workers()
        killed_at = time.time()
        process.send_signal(signal.SIGKILL)
        task = end_of(service, task_id, wait_until)
        assert (task["status"], task["attempts"]) == ("SUCCESS", 2)
        spans = wait_for(collector, wait_until, made.trace_id, f"POST {CROP}/submit", PROCESS)
    published, attempt = named(spans, PUBLISH), named(spans, PROCESS)
    # The span of the killed attempt is lost with its process. Its children and the link identify it.
    lost = {span.parent_id for span in spans} - {span.span_id for span in spans} - {made.span_id}
    assert len(lost) == 1
    assert attempt.links == [published.span_id, *lost]
    assert attempt.parent_id == published.span_id
    assert attempt.attributes["messaging.nats.message.delivery_count"] == 2
    assert not attempt.is_error
    assert attempt.start_s >= killed_at - CLOCK_S
    assert named(spans, "queue wait").end_s <= killed_at + CLOCK_S


def require_task_code(worker: Any, task_id: str, code: str, wait_until: Callable[..., Any]) -> None:
    """Check that one line of the task and one count of the metric have the code of its error."""
    lines = worker.wait_for_lines(lambda line: line.get("task_id") == task_id and line.get("event") == "failed")
    assert [line["code"] for line in lines] == [code]
    series = "errors_total", frozenset({("type", code), ("component", "tasks")})
    wait_until(lambda: worker.scrape().get(series) == 1, limit_s=LIMIT_S, what=f"the count of {code}")


def test_result_that_is_too_large_for_the_queue(
    run_nats: Any, run_service: Any, run_worker: Any, collector: Collector, sample: Any, wait_until: Callable[..., Any]
) -> None:
    settings = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, **SOON}
    with queue_of(run_nats, run_service, run_worker, max_payload=36 << 10, **settings) as (service, worker):
        form = sample.form(segmentation_map=sample.labels, simplify=b"0", show_landmarks=b"true")
        headers = {"content-type": sample.multipart}
        made = call(service, "POST", f"{CROP}/submit", content=form, headers=headers)
        assert made.response.status_code == 202, made.response.text
        task = end_of(service, made.response.json()["task_id"], wait_until)
        assert task["error"]["code"] == "result_too_large"
        spans = wait_for(collector, wait_until, made.trace_id, f"POST {CROP}/submit", PROCESS)
        require_task_code(worker, task["task_id"], "result_too_large", wait_until)
    attempt = named(spans, PROCESS)
    assert (attempt.is_error, attempt.code) == (True, "result_too_large")


def test_poison_task(
    run_nats: Any, run_service: Any, run_worker: Any, collector: Collector, sample: Any, wait_until: Callable[..., Any]
) -> None:
    """The task kills each worker that processes it; the last delivery moves it to the dead letters."""
    settings = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "FAULT_POISON_REGION": "poison", **SOON}
    with queue_of(run_nats, run_service, run_worker, **settings) as (service, worker):
        made = submit(service, sample.json(segmentation_map={"poison": [61, 0, 291, 17]}))
        task = end_of(service, made.response.json()["task_id"], wait_until)
        assert task["error"]["code"] == "task_gave_up"
        spans = wait_for(collector, wait_until, made.trace_id, f"POST {CROP}/submit", PROCESS)
        require_task_code(worker, task["task_id"], "task_gave_up", wait_until)
    attempt = named(spans, PROCESS)  # those before died with their processes
    assert (attempt.is_error, attempt.code) == (True, "task_gave_up")
    assert attempt.attributes["messaging.nats.message.delivery_count"] == 3
    assert attempt.links[0] == named(spans, PUBLISH).span_id
    assert len(attempt.links) == 2  # the last attempt that was started is the second link
    (stored,) = (span for span in spans if span.parent_id == attempt.span_id and span.name == "store record")
    assert stored.attributes["facial.task.status"] == "FAILURE"


def test_the_caller_decides_about_sampling(
    traced: Any, collector: Collector, sample: Any, wait_until: Callable[..., Any]
) -> None:
    trace_id, _, traceparent = new_parent()
    unsampled = httpx.post(
        f"{traced.api}{CROP}/submit",
        content=sample.json(),
        headers={**JSON, "traceparent": f"{traceparent[:-2]}00"},
        timeout=LIMIT_S,
    )
    assert unsampled.headers["traceparent"].startswith(f"00-{trace_id}-")
    assert unsampled.headers["traceparent"].endswith("-00")
    end_of(traced, unsampled.json()["task_id"], wait_until)
    later = submit(traced, sample.json())
    end_of(traced, later.response.json()["task_id"], wait_until)
    wait_for(collector, wait_until, later.trace_id, f"POST {CROP}/submit", PROCESS)
    # Both processes have exported a later trace, and nothing of this one; but its id is in their logs.
    assert collector.trace(trace_id) == []
    for event in ("started", "succeeded"):
        assert traced.wait_for_lines(
            lambda line, event=event: line.get("event") == event and line.get("trace_id") == trace_id
        )


def test_ratio_of_sampling(run_service: Any, collector: Collector, wait_until: Callable[..., Any]) -> None:
    sampler = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.25"}
    settings = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_SERVICE_NAME": "ratio", **SOON, **sampler}
    count = 400
    with run_service(WORKERS=1, **settings) as service, httpx.Client(base_url=service.api, timeout=LIMIT_S) as client:
        flags = [int(client.get("/version").headers["traceparent"].rpartition("-")[2], 16) for _ in range(count)]
        sampled = sum(flag & 1 for flag in flags)  # another flag marks random trace ids
        assert 0.15 * count < sampled < 0.35 * count
        # A caller with a sampled trace is not subject to the ratio.
        assert call(service, "GET", "/version").response.headers["traceparent"].endswith("-01")

        def exported() -> list[Span]:
            return [span for span in collector.read() if span.service == "ratio"]

        wait_until(lambda: len(exported()) == sampled + 1, limit_s=LIMIT_S, what="the sampled requests")


def test_shutdown_exports_the_last_spans(
    run_service: Any, collector: Collector, wait_until: Callable[..., Any]
) -> None:
    """The interval between exports is longer than the test."""
    settings = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": 3_600_000}
    with run_service(WORKERS=1, **settings) as service:
        made = call(service, "GET", "/version")
        assert collector.trace(made.trace_id) == []
        assert service.stop() == 0
    (request,) = wait_for(collector, wait_until, made.trace_id, "GET /version")
    assert request.parent_id == made.span_id


def in_form(field: str, build: Any, path: str = "") -> Any:
    return lambda s: request(s.form(**{field: build(s)}), s.multipart, path=path)


TABLES = [
    *((code, lambda s, build=build: request(build(s))) for _, build, code in BODIES),
    *((code, lambda s, build=build: request(build(s), s.multipart)) for _, build, code in FORMS),
    *((code, build) for _, build, code in REQUESTS),
    *((code, in_form("image", build)) for _, build, code in PHOTOS),
    *((code, in_form("segmentation_map", build)) for _, build, code in MAPS),
    *((code, in_form("image", build, "?verify=pixels")) for _, build, code in DECODED),
]
CASES: dict[str, Any] = dict(reversed(TABLES))


@pytest.mark.parametrize("code", sorted(CASES))
def test_error_code_is_in_the_trace(
    traced: Any, collector: Collector, sample: Any, wait_until: Callable[..., Any], code: str
) -> None:
    sent = CASES[code](sample)
    body = iter(sent["content"]) if isinstance(sent["content"], list) else sent["content"]
    response = httpx.request(
        sent["method"], f"{traced.api}{sent['path']}", content=body, headers=sent["headers"], timeout=LIMIT_S
    )
    assert response.json()["code"] == code
    require_code(collector, wait_until, response.json(), code)


def require_code(collector: Collector, wait_until: Callable[..., Any], document: dict[str, Any], code: str) -> None:
    """Check that the request span of a problem document has its code and status, and that no text is in the trace."""

    def find() -> list[Span]:
        return [span for span in collector.trace(document["trace_id"]) if span.kind == "SERVER"]

    (span,) = wait_until(find, limit_s=LIMIT_S, what=f"the request span of {code}")
    assert span.code == code
    assert span.attributes["http.response.status_code"] == document["status"]
    assert span.is_error == (document["status"] >= 500)
    steps = [other for other in collector.trace(document["trace_id"]) if other.is_error and other is not span]
    assert {other.code for other in steps if other.kind != "SERVER"} <= {code}


def test_other_error_codes_are_in_the_trace(
    run_service: Any, collector: Collector, sample: Any, wait_until: Callable[..., Any]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings = {
            "API_KEYS": "k1",
            "BODY_TIMEOUT_S": 1,
            "RATE_LIMIT": "2/minute",
            "NATS_URL": f"nats://127.0.0.1:{silent.getsockname()[1]}",
            "NATS_TIMEOUT_S": 1,
        }
        with run_service(WORKERS=1, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, **settings, **SOON) as service:
            key = {**JSON, "X-API-Key": "k1"}
            answers = [
                httpx.post(f"{service.api}{CROP}", content=b"{}", headers=JSON, timeout=LIMIT_S),
                httpx.post(f"{service.api}{CROP}/submit", content=sample.json(), headers=key, timeout=LIMIT_S),
                stall(service.api, key),
                httpx.post(f"{service.api}{CROP}", content=sample.json(), headers=key, timeout=LIMIT_S),
            ]
            documents = [answer.json() for answer in answers]
            codes = [document["code"] for document in documents]
            assert codes == ["unauthorized", "queue_unavailable", "body_timeout", "rate_limited"]
            for document in documents:
                require_code(collector, wait_until, document, document["code"])


def stall(api: str, headers: dict[str, str]) -> httpx.Response:
    """Send a body that never ends."""

    def body() -> Iterator[bytes]:
        yield b"{"
        time.sleep(3)

    return httpx.post(f"{api}{CROP}", content=body(), headers=headers, timeout=LIMIT_S)


def test_no_text_of_a_caller_is_in_a_span(
    traced: Any, collector: Collector, sample: Any, wait_until: Callable[..., Any]
) -> None:
    canary = "QXcanaryQX"
    headers = {"User-Agent": canary, "X-API-Key": canary, "X-Request-ID": canary, "Idempotency-Key": canary}
    form = sample.parts(
        b'Content-Disposition: form-data; name="image"; filename="' + canary.encode() + b'.jpg"\r\n\r\n' + sample.jpeg,
        sample.part("landmarks", sample.landmarks),
    )
    made = [
        call(traced, "GET", f"/{canary}?{canary}={canary}", headers=headers),
        call(traced, "POST", f"{CROP}/submit", content=form, headers={**headers, "Content-Type": sample.multipart}),
        call(traced, "GET", f"{CROP}/status/{canary}", headers=headers),
    ]
    assert [each.response.status_code for each in made] == [404, 202, 404]
    for each in made:
        wait_for(collector, wait_until, each.trace_id, *(["GET"] if each is made[0] else []))
    wait_for(collector, wait_until, made[1].trace_id, PROCESS)
    assert canary.encode() not in collector.file.read_bytes()


def test_without_the_variables_nothing_of_the_sdk_is_loaded(run_service: Any, sample: Any) -> None:
    """A worker maps no file of the SDK's compiled dependencies, and the trace of a caller is still logged."""
    code = (
        "import sys; from app.settings import load_settings; from app.main import create_app; "
        "from app.supervisor import api_server, task_server; create_app(load_settings()); "
        "print([m for m in sys.modules if m.startswith(('opentelemetry.sdk', 'opentelemetry.exporter', 'requests'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, env={})
    assert done.stdout == "[]\n"
    with run_service(WORKERS=1, DATA_DIR="", ENABLE_TASKS="false") as service:
        made = call(service, "POST", CROP, content=sample.json(), headers=JSON)
        assert made.response.status_code == 200
        assert "traceparent" not in made.response.headers
        (line,) = service.wait_for_lines(lambda line: line.get("trace_id") == made.trace_id)
        assert "span_id" not in line
        assert {thread_name(service, worker) for worker in service.workers()} == {0}


def thread_name(_service: Any, worker: psutil.Process) -> int:
    """Return the number of exporter threads of a process."""
    names = [Path(f"/proc/{worker.pid}/task/{thread.id}/comm").read_text() for thread in worker.threads()]
    return sum(name.startswith("OtelBatch") for name in names)


@contextmanager
def hanging_collector() -> Iterator[str]:
    """Accept connections and never respond."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        held: list[socket.socket] = []

        def accept() -> None:
            with suppress(OSError):
                while True:
                    held.append(listener.accept()[0])

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        for each in held:
            each.close()


@pytest.mark.parametrize("kind", ["absent", "hanging"])
def test_a_collector_that_fails_delays_no_request(
    run_service: Any, collector: Collector, sample: Any, wait_until: Callable[..., Any], kind: str
) -> None:
    """Two services, one with a good collector, get the same requests in turn; the medians of latency are compared."""
    began = time.monotonic()
    with hanging_collector() as hanging:
        url = hanging if kind == "hanging" else "http://127.0.0.1:9"
        limits = {"OTEL_BSP_MAX_QUEUE_SIZE": 64, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": 32, **SOON}
        working = run_service(WORKERS=1, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, **limits)
        with working as good, run_service(WORKERS=1, OTEL_EXPORTER_OTLP_ENDPOINT=url, **limits) as on:
            durations: dict[str, list[float]] = {good.api: [], on.api: []}
            body = sample.json(image=sample.photo)
            with httpx.Client(timeout=LIMIT_S) as client:
                for _ in range(80):
                    for api, measured in durations.items():
                        start = time.perf_counter()
                        assert client.post(f"{api}{CROP}", content=body, headers=JSON).status_code == 200
                        measured.append(time.perf_counter() - start)
            (worker,) = on.workers()
            before = worker.memory_info().rss
            with httpx.Client(base_url=on.api, timeout=LIMIT_S) as client:
                for _ in range(3000):
                    client.get("/version")
            # 3,000 requests without a bound would be 10 MB of spans.
            assert worker.memory_info().rss - before < 6 * MIB

            def dropped() -> float:
                return sum(value for (name, _), value in on.scrape().items() if name == "trace_spans_dropped_total")

            assert wait_until(dropped, limit_s=LIMIT_S, what="dropped spans") > 0

            def reports() -> list[dict[str, Any]]:
                return [line for line in on.log_lines() if "Traces" in str(line.get("message"))]

            # The exporter reports a collector that hangs only after its own time limit.
            lines = wait_until(reports, limit_s=LIMIT_S, what="a line about the collector")
            assert all("raw" not in line for line in on.log_lines())
            assert len(lines) <= 2 + (time.monotonic() - began) / 60  # one a minute
            start = time.monotonic()
            assert on.stop() == 0
            assert time.monotonic() - start < 25  # of the 30 s for requests in flight
    medians = [statistics.median(measured) for measured in durations.values()]
    assert medians[1] < 1.5 * medians[0], medians  # a collector that delays responses costs seconds

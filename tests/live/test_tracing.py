"""Traces in a real OpenTelemetry collector: their tree, ids, times and codes, compared with the client's own."""

from __future__ import annotations

import shutil
import signal
import socket
import statistics
import subprocess
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import orjson
import psutil
import pytest

from app.web.problems import PROBLEMS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.live

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


@dataclass
class Collector:
    """A collector that writes spans to a file, one OTLP request in JSON a line."""

    url: str
    file: Path
    spans: list[Span] = field(default_factory=list)

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
    program = shutil.which("otelcol")
    if program is None:
        pytest.skip("otelcol is not on PATH; run `make tools`")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    file = folder / "traces.json"
    config = {
        "receivers": {"otlp": {"protocols": {"http": {"endpoint": f"127.0.0.1:{port}"}}}},
        "exporters": {"debug": {}, "file": {"path": str(file), "flush_interval": "100ms"}},
        "service": {
            "pipelines": {"traces": {"receivers": ["otlp"], "exporters": ["debug", "file"]}},
            "telemetry": {"metrics": {"level": "none"}},
        },
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
    settings = {"WORKERS": 1, "TASK_WORKERS": 1, "ENABLE_TASKS": "true", "FAULT_POISON_REGION": "poison"}
    limits = {"TASK_ACK_WAIT_S": 2, "TASK_MAX_DELIVERIES": 2, "RATE_LIMIT": "1000/s"}
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


def wait_for(
    collector: Collector, wait_until: Callable[..., Any], trace_id: str, *names: str
) -> list[Span]:
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


def test_synchronous_request(
    traced: Any, collector: Collector, sample: Any, wait_until: Callable[..., Any]
) -> None:
    made = call(traced, "POST", CROP, content=sample.json(landmarks=None), headers=JSON)
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
    assert made.start_s - CLOCK_S <= request.start_s <= request.end_s <= made.end_s + CLOCK_S
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
    made = submit(traced, sample.json(landmarks=None))
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
    from datetime import datetime  # noqa: PLC0415

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

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack, nullcontext
from typing import TYPE_CHECKING, Any

import pytest

from app.observability import tracing

if TYPE_CHECKING:
    from collections.abc import Mapping

URL = "http://127.0.0.1:4318"
ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": URL}

SWITCHES = [
    ({}, False),
    (ENDPOINT, True),
    ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{URL}/v1/traces"}, True),
    ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),  # Compose passes on variables that are not set as empty ones
    ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
    ({"OTEL_TRACES_EXPORTER": "none"}, False),
    (ENDPOINT | {"OTEL_TRACES_EXPORTER": "none"}, False),
    (ENDPOINT | {"OTEL_TRACES_EXPORTER": ""}, True),
    (ENDPOINT | {"OTEL_SDK_DISABLED": "true"}, False),
    (ENDPOINT | {"OTEL_SDK_DISABLED": "TRUE"}, False),
    (ENDPOINT | {"OTEL_SDK_DISABLED": "false"}, True),
]


@pytest.mark.parametrize(("environment", "is_on"), SWITCHES)
def test_standard_variables_switch_traces_on(environment: Mapping[str, str], *, is_on: bool) -> None:
    assert tracing.is_requested(environment) is is_on


PROBLEMS = [
    (ENDPOINT, None),
    (ENDPOINT | {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, None),
    (
        ENDPOINT | {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
        "OTEL_EXPORTER_OTLP_PROTOCOL: expected http/protobuf, got another value",
    ),
    (ENDPOINT | {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"}, None),
    ({"OTEL_TRACES_EXPORTER": "console"}, "OTEL_TRACES_EXPORTER: expected otlp or none, got another value"),
]


@pytest.mark.parametrize(("environment", "problem"), PROBLEMS)
def test_unsupported_values_have_a_reason(environment: Mapping[str, str], problem: str | None) -> None:
    assert tracing.find_problem(environment) == problem


def run_python(code: str, **environment: str) -> str:
    """Run code in a new process, because a process has one tracer; return its output."""
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_a_missing_extra_is_one_warning() -> None:
    """The service starts without traces, because they are no reason not to serve."""
    code = """
import logging, os, sys
logging.basicConfig(format="%(levelname)s %(message)s")
for name in ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"):
    sys.modules[name] = None  # as if it were not installed
from app.observability import tracing
import importlib.util
tracing._is_installed = lambda name: sys.modules.get(name) is not None
tracing.prepare(os.environ)
tracing.start("worker-0", "1", print)
print(tracing.is_prepared(), tracing.is_enabled())
"""
    lines = run_python(code, **ENDPOINT).splitlines()
    assert lines[0] == "False False"
    assert [line for line in lines if line.startswith("WARNING")] == lines[1:]
    assert len(lines) == 2
    assert "facial-service[otel]" in lines[1]


def test_nothing_is_imported_and_nothing_happens_while_traces_are_off() -> None:
    code = """
import sys
from app.observability import recording, tracing
tracing.prepare({})
tracing.start("worker-0", "1", print)
with tracing.span("svg"), recording.image_step("svg"), tracing.attempt({}, "id", 2), tracing.publication("id"):
    tracing.set_error("code")
print(tracing.inject(), [name for name in sys.modules if name.startswith("opentelemetry")])
"""
    assert run_python(code) == "{} []\n"


def test_spans_that_are_off_share_one_object() -> None:
    assert tracing.span("decode") is tracing.span("svg", "CLIENT", {"status": "STARTED"})
    assert isinstance(tracing.span("decode"), nullcontext)
    assert tracing.begin_request("GET", [], {}) is None

    def work() -> int:
        return 1

    assert tracing.end_wait("wait", work) is work
    timer: Any = ExitStack()
    assert tracing.span_around("decode", timer) is timer


def test_run_ids_are_random_while_traces_are_off() -> None:
    first, second = tracing.make_run_id(), tracing.make_run_id()
    assert len(first) == len(second) == 32
    assert first != second


def test_a_full_queue_drops_new_spans_and_counts_them() -> None:
    """The exporter hangs, so that the queue and the batch in flight stay full: memory and time are bounded."""
    code = """
import os, threading, time, collections
from app.observability import tracing
import opentelemetry.exporter.otlp.proto.http.trace_exporter as exporter
release, exporting = threading.Event(), threading.Event()
exported = []
def export(self, spans):
    exporting.set()
    release.wait(60)
    exported.extend(spans)
    return exporter.SpanExportResult.SUCCESS
exporter.OTLPSpanExporter.export = export
dropped = collections.Counter()
tracing.prepare(os.environ)
tracing.start("worker-0", "1", lambda reason, count: dropped.update({reason: count}))
def request():
    tracing.end_request(tracing.begin_request("GET", [], {}), "GET", "/", 200, code=None, body_bytes=0)
for _ in range(8):
    request()
exporting.wait(60)
for _ in range(100):
    request()
before = dict(dropped)
release.set()
tracing.stop(60)
print(before, len(exported), dict(dropped))
"""
    limits = {"OTEL_BSP_MAX_QUEUE_SIZE": "16", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "8"}
    assert run_python(code, **ENDPOINT, **limits) == "{'queue_full': 92} 16 {'queue_full': 92}\n"


def test_a_failed_export_is_counted_and_logged_once() -> None:
    code = """
import collections, logging, os
logging.basicConfig(format="%(levelname)s %(name)s")
from app.observability import tracing
import opentelemetry.exporter.otlp.proto.http.trace_exporter as exporter
def export(self, spans):
    logging.getLogger("opentelemetry.exporter").error("failed")
    return exporter.SpanExportResult.FAILURE
exporter.OTLPSpanExporter.export = export
dropped = collections.Counter()
tracing.prepare(os.environ)
tracing.start("worker-0", "1", lambda reason, count: dropped.update({reason: count}))
for _ in range(10):
    tracing.end_request(tracing.begin_request("GET", [], {}), "GET", "/", 200, code=None, body_bytes=0)
tracing.stop(60)
print(dict(dropped))
"""
    output = run_python(code, **ENDPOINT, OTEL_BSP_MAX_EXPORT_BATCH_SIZE="2")
    assert output == "{'export_failed': 10}\nWARNING facial.server\n"


def test_a_stop_ends_within_its_limit_if_the_collector_hangs() -> None:
    code = """
import os, threading
from app.observability import tracing
import opentelemetry.exporter.otlp.proto.http.trace_exporter as exporter
exporter.OTLPSpanExporter.export = lambda self, spans: threading.Event().wait()
tracing.prepare(os.environ)
tracing.start("worker-0", "1", print)
tracing.end_request(tracing.begin_request("GET", [], {}), "GET", "/", 200, code=None, body_bytes=0)
tracing.stop(0.1)
print("stopped", flush=True)
os._exit(0)
"""
    assert run_python(code, **ENDPOINT) == "stopped\n"

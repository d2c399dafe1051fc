"""The table of all metrics, and the objects created from it.

Tests compare the documentation, the dashboards and the rules with `METRICS`. Until `install` is called, there are no
objects, and the functions of `recording` do nothing. With ``ENABLE_METRICS=false`` it is never called.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily

from app.observability.value_store import Series, series_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Kind = Literal["counter", "gauge", "histogram"]

HTTP_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"})
OTHER_METHOD = "OTHER"
UNMATCHED_ENDPOINT = "unmatched"

_METHOD = "HTTP method; `OTHER` if it is not a standard one"
_TYPE = {"type": ("facial_processing",)}
_ENDPOINT = "route template; `unmatched` if no route matches"

_STEPS = "parse sniff decode detect mesh iris warp encode segmentation contours svg document"


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One row of the table."""

    name: str
    kind: Kind
    help: str  # a noun phrase with the unit
    # Each with all its values, or a description of them.
    labels: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    buckets: str | None = None  # setting that contains the bounds of a histogram
    # How a recorded gauge is merged across processes; None if a collector reads the value at scrape time.
    mode: Literal["livesum", "livemax", "mostrecent"] | None = None

    @property
    def is_collected(self) -> bool:
        """Whether a collector reads the value at scrape time instead of it being recorded."""
        return self.kind == "gauge" and self.mode is None


METRICS: tuple[MetricSpec, ...] = (
    MetricSpec(
        "api_requests_total",
        "counter",
        "Completed HTTP requests, by status code.",
        {"method": _METHOD, "endpoint": _ENDPOINT, "status": "status code"},
    ),
    MetricSpec(
        "api_request_duration_seconds",
        "histogram",
        "HTTP request duration, from the complete request body to the start of the response, in seconds.",
        {"method": _METHOD, "endpoint": _ENDPOINT},
        buckets="request_duration_buckets",
    ),
    MetricSpec(
        "api_request_upload_seconds",
        "histogram",
        "Time to receive an HTTP request body, from the request head to the last byte of the body, in seconds.",
        {"method": _METHOD, "endpoint": _ENDPOINT},
        buckets="request_duration_buckets",
    ),
    MetricSpec(
        "api_request_size_bytes",
        "histogram",
        "Size of HTTP request bodies, in bytes.",
        {"method": _METHOD, "endpoint": _ENDPOINT},
        buckets="request_size_buckets",
    ),
    MetricSpec(
        "api_response_size_bytes",
        "histogram",
        "Size of HTTP response bodies, in bytes.",
        {"method": _METHOD, "endpoint": _ENDPOINT},
        buckets="response_size_buckets",
    ),
    MetricSpec(
        "api_requests_in_progress",
        "gauge",
        "HTTP requests in progress.",
        {"method": _METHOD, "endpoint": _ENDPOINT},
        mode="livesum",
    ),
    MetricSpec(
        "api_rejections_total",
        "counter",
        "Requests rejected before processing, by reason; not included in errors_total.",
        {
            "reason": (
                "saturated",
                "too_large",
                "unauthorized",
                "body_timeout",
                "queue_full",
                "queue_unavailable",
                "rate_limited",
            )
        },
    ),
    MetricSpec("task_submissions_total", "counter", "Tasks accepted.", _TYPE),
    MetricSpec(
        "task_completions_total",
        "counter",
        "Tasks that reached a final state, by state.",
        {**_TYPE, "status": ("SUCCESS", "FAILURE", "CANCELLED")},
    ),
    MetricSpec(
        "task_processing_duration_seconds",
        "histogram",
        "Duration of one attempt of a task, in seconds.",
        _TYPE,
        buckets="task_duration_buckets",
    ),
    MetricSpec(
        "task_wait_seconds",
        "histogram",
        "Time from the submission of a task to the start of its first attempt, in seconds.",
        _TYPE,
        buckets="task_wait_buckets",
    ),
    MetricSpec("task_redeliveries_total", "counter", "Task redeliveries.", _TYPE),
    MetricSpec("task_dead_total", "counter", "Tasks moved to the dead-letter stream.", _TYPE),
    MetricSpec(
        "task_repairs_total",
        "counter",
        "Inconsistencies of records, stream and consumers that were repaired, by reason.",
        {
            "reason": (
                "task_lost",
                "record_restored",
                "record_expired",
                "record_unreadable",
                "message_removed",
                "consumer_recreated",
            )
        },
    ),
    MetricSpec("task_queue_size", "gauge", "Tasks waiting for a worker.", _TYPE),
    MetricSpec("active_tasks_count", "gauge", "Tasks delivered to a worker and not yet acknowledged.", _TYPE),
    MetricSpec(
        "task_oldest_age_seconds", "gauge", "Age of the oldest unfinished task, in seconds; 0 if there is none.", _TYPE
    ),
    MetricSpec("task_dead_kept", "gauge", "Tasks in the dead-letter stream."),
    MetricSpec(
        "task_queue_used_ratio",
        "gauge",
        "Usage of TASK_QUEUE_MAX_MESSAGES or TASK_QUEUE_MAX_BYTES, whichever is higher, 0 to 1; at 1, submissions get "
        "503.",
    ),
    MetricSpec("result_store_used_ratio", "gauge", "Usage of RESULT_MAX_BYTES, 0 to 1; at 1, submissions get 503."),
    MetricSpec("queue_up", "gauge", "Whether the NATS server responds, 0 or 1."),
    MetricSpec(
        "queue_writable",
        "gauge",
        "Whether the queue can store tasks: 0 if it does not respond, its disk is full or a write has failed. Absent "
        "for an external server that responds, unless NATS_MONITOR_URL is set.",
    ),
    MetricSpec("queue_storage_bytes", "gauge", "Storage used by the queue, in bytes."),
    MetricSpec(
        "queue_storage_limit_bytes",
        "gauge",
        "Storage limit of the queue, in bytes; absent if the server does not report it.",
    ),
    MetricSpec(
        "queue_memory_bytes",
        "gauge",
        "Resident memory of the NATS server, in bytes; absent for an external server without NATS_MONITOR_URL.",
    ),
    MetricSpec(
        "queue_connections",
        "gauge",
        "Clients connected to the NATS server; absent for an external server without NATS_MONITOR_URL.",
    ),
    MetricSpec(
        "queue_cluster_has_leader",
        "gauge",
        "Whether the NATS cluster has a leader, 0 or 1; absent without a cluster or NATS_MONITOR_URL.",
    ),
    MetricSpec(
        "cache_lookups_total",
        "counter",
        "Result-cache lookups, by outcome.",
        {"result": ("hit", "miss", "unavailable")},
    ),
    MetricSpec(
        "image_processing_duration_seconds",
        "histogram",
        "Duration of one step of image processing, in seconds.",
        {"operation": tuple(_STEPS.split())},
        buckets="image_duration_buckets",
    ),
    MetricSpec(
        "images_processed_total",
        "counter",
        "Images processed successfully, by format.",
        {"format": ("png", "jpeg", "webp", "avif", "heic")},
    ),
    MetricSpec("landmarks_processed_total", "counter", "Landmarks in results."),
    MetricSpec(
        "faces_detected_total",
        "counter",
        "Images scanned for faces, by outcome.",
        {"result": ("one", "several", "none")},
    ),
    MetricSpec(
        "regions_generated_total",
        "counter",
        "Regions in results, by type.",
        {"type": "name of a default region; `custom` for a region that the caller named"},
    ),
    MetricSpec(
        "errors_total",
        "counter",
        "Client and server errors, by code; excludes the rejections in api_rejections_total.",
        {
            "type": "error code, as in the response and the access log; see docs/errors.md",
            "component": "`api`, `images`, `tasks`",
        },
    ),
    MetricSpec(
        "trace_spans_dropped_total",
        "counter",
        "Spans of traces that were not exported, by reason: the queue of the process was full, or the export failed.",
        {"reason": ("queue_full", "export_failed")},
    ),
    MetricSpec(
        "memory_usage_bytes",
        "gauge",
        "Resident memory of a process, in bytes.",
        {"process": "`master`, `exporter`, `worker-0`, `task-master`, `task-0`, `nats-server`, …"},
    ),
    MetricSpec(
        "cpu_usage_percent",
        "gauge",
        "Recent CPU usage of a process, in percent of one core.",
        {"process": "`master`, `exporter`, `worker-0`, `task-master`, `task-0`, `nats-server`, …"},
    ),
    MetricSpec("memory_limit_bytes", "gauge", "Memory limit of the container, in bytes; absent without a limit."),
    MetricSpec(
        "process_start_time_seconds",
        "gauge",
        "Start time of a process, in seconds since the epoch.",
        {"process": "`master`, `exporter`, `worker-0`, `task-master`, `task-0`, `nats-server`, …"},
    ),
    MetricSpec("service_ready", "gauge", "Whether the instance is ready, as `/health/ready` reports it, 0 or 1."),
    MetricSpec(
        "app_build_info",
        "gauge",
        "Constant 1, with the versions as labels.",
        {"version": "version of the service", "python": "version of Python"},
    ),
    MetricSpec(
        "app_worker_exits_total",
        "counter",
        "Worker process exits, by reason: stopped, killed (usually out of memory), heartbeat timeout or crash.",
        {"reason": ("stopped", "killed", "timeout", "crashed")},
    ),
    MetricSpec(
        "app_child_exits_total",
        "counter",
        "Unexpected exits of child processes that are not workers; the master restarts them.",
        {"process": ("exporter", "nats-server", "task-master")},
    ),
    MetricSpec(
        "file_descriptors_exhausted",
        "gauge",
        "Whether a process has no free file descriptors and cannot accept connections, 0 or 1.",
        {"process": "`worker-0`, `worker-1`, …"},
    ),
    MetricSpec("multiprocess_files", "gauge", "Metric files of all processes."),
    MetricSpec("multiprocess_bytes", "gauge", "Size of the metric files, in bytes."),
    MetricSpec("multiprocess_unreadable_files", "gauge", "Metric files with invalid content."),
    MetricSpec("multiprocess_failing_processes", "gauge", "Processes that cannot write their metrics.", {}),
)

_SPECS = {spec.name: spec for spec in METRICS}
_objects: dict[str, Counter | Gauge | Histogram] = {}  # empty while metrics are disabled
_added: list[MetricSpec] = []


def _make(
    spec: MetricSpec, buckets: Mapping[str, Sequence[float]], registry: CollectorRegistry
) -> Counter | Gauge | Histogram:
    labels = tuple(spec.labels)
    if spec.mode is not None:
        return Gauge(spec.name, spec.help, labels, registry=registry, multiprocess_mode=spec.mode)
    if spec.buckets is not None:
        return Histogram(spec.name, spec.help, labels, registry=registry, buckets=buckets[spec.buckets])
    return Counter(spec.name, spec.help, labels, registry=registry)


def gauge_family(name: str, value: float | None = None) -> GaugeMetricFamily:
    """Return a family for a collector, with the name, help and labels from the table.

    It is empty, or contains the value of a metric without labels.
    """
    spec = _SPECS[name]
    return GaugeMetricFamily(spec.name, spec.help, value, labels=tuple(spec.labels) or None)


def install(buckets: Mapping[str, Sequence[float]]) -> None:
    """Create the metrics and start recording; `multiprocess.use_directory` must be called before.

    The bounds of the histograms are keyed by the name of their setting.
    """
    global _objects  # noqa: PLW0603 - a process has one set of metrics
    registry = CollectorRegistry(auto_describe=False)  # never scraped, because a scrape reads the files
    recorded = [spec for spec in (*METRICS, *_added) if not spec.is_collected]
    _objects = {spec.name: _make(spec, buckets, registry) for spec in recorded}
    series.cache_clear()
    # A series must start at 0, because rate() cannot see the first increment of a series that starts at 1.
    for spec in recorded:
        values = [known for known in spec.labels.values() if isinstance(known, tuple)]
        if len(values) == len(spec.labels):
            for combination in itertools.product(*values):
                child(spec.name, *combination)


def add(spec: MetricSpec) -> None:
    """Add a counter, or a gauge with a mode, for code that is not part of this package.

    Call it when a module is imported, because the master creates all metrics before it forks the workers.

    Raises:
        ValueError: the name exists already, or the metric is of another kind.
    """
    if spec.name in _SPECS:
        raise ValueError(f"{spec.name}: expected the name of a new metric, got one that exists")
    if spec.kind == "histogram" or spec.is_collected:
        raise ValueError(f"{spec.name}: expected a counter or a gauge with a mode, got another kind")
    _SPECS[spec.name] = spec
    _added.append(spec)


def is_enabled() -> bool:
    """Return whether metrics are recorded."""
    return bool(_objects)


def child(name: str, *labels: str) -> Any:
    """Return the object for one set of label values, in the order of the table; check `is_enabled` first."""
    metric = _objects[name]
    return metric.labels(*labels) if labels else metric


@functools.cache  # prometheus_client keeps all of them, too
def series(name: str, labels: tuple[str, ...]) -> Series:
    """Return the stored values of `child`, which `multiprocess.record` changes."""
    return series_of(child(name, *labels))


def method_label(method: str) -> str:
    """Return a standard HTTP method or ``OTHER``, so that callers cannot create series."""
    return method if method in HTTP_METHODS else OTHER_METHOD

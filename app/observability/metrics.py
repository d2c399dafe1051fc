"""Every metric of the service: one table, and the objects made from it.

The README's table, the dashboards and the rules are held to `METRICS` by tests. There are no objects, and the helpers
of `recording` do nothing, until `install` has run; with ``ENABLE_METRICS=false`` it never does.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Kind = Literal["counter", "gauge", "histogram"]

HTTP_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"})
OTHER_METHOD = "OTHER"
UNMATCHED_ENDPOINT = "unmatched"

_METHOD = "request method; `OTHER` outside the standard ones"
_TYPE = {"type": ("facial_processing",)}
_ENDPOINT = "route template; `unmatched` where no route matches"

_STEPS = "parse sniff decode detect mesh iris warp encode segmentation contours svg document"  # the answer is the last


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One row of the table.

    Attributes:
        name: as Prometheus sees it.
        kind: counter, gauge or histogram.
        help: what it means, in a sentence.
        labels: label name to the values it can take: all of them, or in words where they are too many.
        buckets: the setting that holds a histogram's bounds.
        mode: how a gauge of several processes becomes one; every recorded gauge has one.
        is_collected: read when scraped, by a collector of its own, instead of being recorded.
    """

    name: str
    kind: Kind
    help: str
    labels: Mapping[str, str | tuple[str, ...]]
    buckets: str | None = None
    mode: Literal["livesum", "livemax", "mostrecent"] | None = None
    is_collected: bool = False


METRICS: tuple[MetricSpec, ...] = (
    MetricSpec(
        "api_requests_total",
        "counter",
        "Requests answered.",
        {"method": _METHOD, "endpoint": _ENDPOINT, "status": "status code"},
    ),
    MetricSpec(
        "api_request_duration_seconds",
        "histogram",
        "Time from a request's head to the last byte of its answer.",
        {"method": _METHOD, "endpoint": _ENDPOINT},
        buckets="request_duration_buckets",
    ),
    MetricSpec(
        "api_request_size_bytes",
        "histogram",
        "Size of request bodies.",
        {"method": _METHOD, "endpoint": _ENDPOINT},
        buckets="request_size_buckets",
    ),
    MetricSpec(
        "api_response_size_bytes",
        "histogram",
        "Size of answers' bodies.",
        {"method": _METHOD, "endpoint": _ENDPOINT},
        buckets="response_size_buckets",
    ),
    MetricSpec(
        "api_requests_in_progress",
        "gauge",
        "Requests being worked on now.",
        {"method": _METHOD, "endpoint": _ENDPOINT},
        mode="livesum",
    ),
    MetricSpec(
        "api_rejections_total",
        "counter",
        "Requests refused before any work, by reason; they are not in errors_total.",
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
    MetricSpec("task_submissions_total", "counter", "Tasks taken.", _TYPE),
    MetricSpec(
        "task_completions_total",
        "counter",
        "Tasks that came to an end.",
        {**_TYPE, "status": ("SUCCESS", "FAILURE", "CANCELLED")},
    ),
    MetricSpec(
        "task_processing_duration_seconds",
        "histogram",
        "Time of the work on a task, each attempt for itself.",
        _TYPE,
        buckets="task_duration_buckets",
    ),
    MetricSpec(
        "task_wait_seconds",
        "histogram",
        "Time from a task's submission to the first work on it.",
        _TYPE,
        buckets="task_wait_buckets",
    ),
    MetricSpec("task_redeliveries_total", "counter", "Deliveries of a task after its first.", _TYPE),
    MetricSpec("task_dead_total", "counter", "Tasks that were given up on and kept aside.", _TYPE),
    MetricSpec(
        "task_repairs_total",
        "counter",
        "Differences between records, stream and consumer that the reconciler repaired.",
        {"reason": ("task_lost", "record_restored", "record_expired", "message_removed", "consumer_recreated")},
    ),
    MetricSpec("task_queue_size", "gauge", "Tasks that wait for a worker.", _TYPE, is_collected=True),
    MetricSpec(
        "active_tasks_count", "gauge", "Tasks that a worker holds and has not confirmed.", _TYPE, is_collected=True
    ),
    MetricSpec(
        "task_oldest_age_seconds",
        "gauge",
        "Age of the oldest task that is not done; 0 where there is none.",
        _TYPE,
        is_collected=True,
    ),
    MetricSpec("task_dead_kept", "gauge", "Tasks that are kept aside now.", {}, is_collected=True),
    MetricSpec("queue_up", "gauge", "Whether the queue answers.", {}, is_collected=True),
    MetricSpec(
        "queue_writable",
        "gauge",
        "Whether the queue can store tasks: 0 if it does not respond, its disk is full or a write has failed. Absent "
        "for a server of your own that responds, unless NATS_MONITOR_URL is set.",
        {},
        is_collected=True,
    ),
    MetricSpec("queue_storage_bytes", "gauge", "Storage that the queue uses.", {}, is_collected=True),
    MetricSpec(
        "queue_storage_limit_bytes",
        "gauge",
        "Storage that the queue may use; absent where its server does not tell.",
        {},
        is_collected=True,
    ),
    MetricSpec(
        "queue_memory_bytes",
        "gauge",
        "Memory of the queue's server; this and the next two are absent if NATS_MONITOR_URL is unknown.",
        {},
        is_collected=True,
    ),
    MetricSpec("queue_connections", "gauge", "Clients connected to the queue's server.", {}, is_collected=True),
    MetricSpec(
        "queue_cluster_has_leader",
        "gauge",
        "Whether the cluster of queue servers has a leader; absent for a server alone.",
        {},
        is_collected=True,
    ),
    MetricSpec(
        "cache_lookups_total",
        "counter",
        "Looks for a result that is there already.",
        {"result": ("hit", "miss", "unavailable")},
    ),
    MetricSpec(
        "image_processing_duration_seconds",
        "histogram",
        "Time of one step of the work on an image.",
        {"operation": tuple(_STEPS.split())},
        buckets="image_duration_buckets",
    ),
    MetricSpec("images_processed_total", "counter", "Photos with a result.", {"format": ("png", "jpeg", "webp")}),
    MetricSpec("landmarks_processed_total", "counter", "Landmarks that went into a result.", {}),
    MetricSpec("faces_detected_total", "counter", "Photos looked for faces.", {"result": ("one", "several", "none")}),
    MetricSpec(
        "regions_generated_total",
        "counter",
        "Regions found.",
        {"type": "region name of the catalogue or of the default labels; `custom` for names the caller gave"},
    ),
    MetricSpec(
        "errors_total",
        "counter",
        "Errors of callers and of the service, by code, except the refusals in api_rejections_total.",
        {"type": "error code, as in the response, or `response_timeout`", "component": "`api`, `images`, `tasks`"},
    ),
    MetricSpec(
        "memory_usage_bytes",
        "gauge",
        "Resident memory.",
        {"process": "`master`, `exporter`, `worker-0`, `task-master`, `task-0`, `nats-server`, …"},
        is_collected=True,
    ),
    MetricSpec(
        "cpu_usage_percent",
        "gauge",
        "CPU time of late, of one core.",
        {"process": "`master`, `exporter`, `worker-0`, `task-master`, `task-0`, `nats-server`, …"},
        is_collected=True,
    ),
    MetricSpec(
        "app_build_info",
        "gauge",
        "Always 1.",
        {"version": "of the service", "python": "version of Python"},
        is_collected=True,
    ),
    MetricSpec(
        "app_worker_exits_total",
        "counter",
        "Worker processes that ended: told to, by SIGKILL (mostly for want of memory), for silence, or by a fault.",
        {"reason": ("stopped", "killed", "timeout", "crashed")},
    ),
    MetricSpec(
        "file_descriptors_exhausted",
        "gauge",
        "Whether a process cannot open more files, and so accepts no connections.",
        {"process": "`worker-0`, `worker-1`, …"},
        is_collected=True,
    ),
    MetricSpec("multiprocess_files", "gauge", "Files that hold the worker processes' values.", {}, is_collected=True),
    MetricSpec("multiprocess_bytes", "gauge", "Bytes that these files take.", {}, is_collected=True),
    MetricSpec("multiprocess_unreadable_files", "gauge", "Metric files without valid content.", {}, is_collected=True),
    MetricSpec(
        "multiprocess_failing_processes", "gauge", "Processes that cannot write their metrics.", {}, is_collected=True
    ),
)

_SPECS = {spec.name: spec for spec in METRICS}
_metrics: Metrics | None = None


class Metrics:
    """The recorded metrics of the table as objects of the client library, with the hot ones' children kept.

    Args:
        buckets: setting name to histogram bounds.
    """

    def __init__(self, buckets: Mapping[str, Sequence[float]]) -> None:
        registry = CollectorRegistry(auto_describe=False)  # never scraped: the files are
        self._objects = {spec.name: _make(spec, buckets, registry) for spec in METRICS if not spec.is_collected}
        self.child = functools.lru_cache(maxsize=4096)(self._child)
        # A series that starts at 0 lets rate() see its first step; one that starts at 1 hides it.
        for spec in METRICS:
            values = [known for known in spec.labels.values() if isinstance(known, tuple)]
            if not spec.is_collected and len(values) == len(spec.labels):
                for combination in itertools.product(*values):
                    self.child(spec.name, *combination)

    def _child(self, name: str, *labels: str) -> Any:
        metric = self._objects[name]
        return metric.labels(*labels) if labels else metric


def _make(
    spec: MetricSpec, buckets: Mapping[str, Sequence[float]], registry: CollectorRegistry
) -> Counter | Gauge | Histogram:
    labels = tuple(spec.labels)
    if spec.kind == "counter":
        return Counter(spec.name, spec.help, labels, registry=registry)
    if spec.kind == "gauge":
        if spec.mode is None:
            raise ValueError(f"{spec.name}: a gauge of several processes needs a mode")
        return Gauge(spec.name, spec.help, labels, registry=registry, multiprocess_mode=spec.mode)
    if spec.buckets is None:
        raise ValueError(f"{spec.name}: a histogram needs the setting that holds its bounds")
    return Histogram(spec.name, spec.help, labels, registry=registry, buckets=buckets[spec.buckets])


def gauge_family(name: str) -> GaugeMetricFamily:
    """Begin what a collector yields for a metric that is read when scraped: name, help and labels of the table."""
    spec = _SPECS[name]
    return GaugeMetricFamily(spec.name, spec.help, labels=list(spec.labels))


def install(buckets: Mapping[str, Sequence[float]]) -> None:
    """Make the metrics and start recording; the folder for their files is set before (`multiprocess.use_directory`)."""
    global _metrics  # noqa: PLW0603 - one set a process is the point
    _metrics = Metrics(buckets)


def uninstall() -> None:
    """Stop recording."""
    global _metrics  # noqa: PLW0603
    _metrics = None


def is_enabled() -> bool:
    """Tell whether anything is recorded."""
    return _metrics is not None


def child(name: str, *labels: str) -> Any:
    """Return the object for one set of label values, in the table's order.

    Raises:
        RuntimeError: metrics are off; callers on a hot path look at `is_enabled` first.
    """
    if _metrics is None:
        raise RuntimeError("metrics are off")
    return _metrics.child(name, *labels)


def method_label(method: str) -> str:
    """Bound what a caller can put into a label: a standard method, or ``OTHER``."""
    return method if method in HTTP_METHODS else OTHER_METHOD

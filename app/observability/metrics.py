"""Every metric of the service: one table, the objects made from it, and the helpers that record.

The README's table, the dashboards and the rules are held to `METRICS` by tests. Nothing is recorded, and no helper
does more than one comparison, until `install` has run; with ``ENABLE_METRICS=false`` it never does.
"""

from __future__ import annotations

import functools
import inspect
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, cast

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

P = ParamSpec("P")
R = TypeVar("R")

Kind = Literal["counter", "gauge", "histogram"]

HTTP_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"})
OTHER_METHOD = "OTHER"
UNMATCHED_ENDPOINT = "unmatched"

_METHOD = "request method; `OTHER` outside the standard ones"
_ENDPOINT = "route template; `unmatched` where no route matches"


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One row of the table.

    Attributes:
        name: as Prometheus sees it.
        kind: counter, gauge or histogram.
        help: what it means, in a sentence.
        labels: label name to the values it can take, in words.
        buckets: the setting that holds a histogram's bounds.
        mode: how a gauge of several processes becomes one; every recorded gauge has one.
        is_collected: read when scraped, by a collector of its own, instead of being recorded.
    """

    name: str
    kind: Kind
    help: str
    labels: Mapping[str, str]
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
        "Requests turned away before any work.",
        {"reason": "`saturated`, `too_large`, `unauthorized`, `body_timeout`"},
    ),
    MetricSpec(
        "image_processing_duration_seconds",
        "histogram",
        "Time of one step of the work on an image.",
        {"operation": "`parse`, `sniff`, `verify`, `decode`, `segmentation`, `contours`, `svg`, `encode`"},
        buckets="image_duration_buckets",
    ),
    MetricSpec("landmarks_processed_total", "counter", "Landmarks that went into a result.", {}),
    MetricSpec(
        "regions_generated_total",
        "counter",
        "Regions found.",
        {"type": "region name of the catalogue or of the default labels; `custom` for names the caller gave"},
    ),
    MetricSpec(
        "errors_total",
        "counter",
        "Errors, of the caller and of the service.",
        {"type": "error code, as in the answer", "component": "`api`, `images`"},
    ),
    MetricSpec(
        "memory_usage_bytes",
        "gauge",
        "Resident memory.",
        {"process": "`master`, `exporter`, `worker-0`, …"},
        is_collected=True,
    ),
    MetricSpec(
        "cpu_usage_percent",
        "gauge",
        "CPU time since the scrape before, of one core.",
        {"process": "`master`, `exporter`, `worker-0`, …"},
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
        "Worker processes that ended.",
        {"reason": "`stopped` (told to), `killed` (SIGKILL: out of memory), `timeout`, `crashed`"},
    ),
    MetricSpec("multiprocess_files", "gauge", "Files that hold the worker processes' values.", {}, is_collected=True),
    MetricSpec("multiprocess_bytes", "gauge", "Bytes that these files take.", {}, is_collected=True),
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


def record_landmarks_processed(count: int) -> None:
    """Count landmarks that went into a result."""
    if _metrics is not None:
        _metrics.child("landmarks_processed_total").inc(count)


def record_region_generated(region_type: str, count: int = 1) -> None:
    """Count regions of one type, which is a name of ours or ``custom``, never the caller's."""
    if _metrics is not None:
        _metrics.child("regions_generated_total", region_type).inc(count)


def record_error(error_type: str, component: str) -> None:
    """Count one error by its public code."""
    if _metrics is not None:
        _metrics.child("errors_total", error_type, component).inc()


def record_rejection(reason: str) -> None:
    """Count one request that was turned away before any work."""
    if _metrics is not None:
        _metrics.child("api_rejections_total", reason).inc()


def record_worker_exit(reason: str) -> None:
    """Count one worker process that ended; called by the master."""
    if _metrics is not None:
        _metrics.child("app_worker_exits_total", reason).inc()


@contextmanager
def image_step(operation: str) -> Iterator[None]:
    """Time one step of the work on an image; a step that fails is timed too."""
    if _metrics is None:
        yield
        return
    start = time.perf_counter()
    try:
        yield
    finally:
        _metrics.child("image_processing_duration_seconds", operation).observe(time.perf_counter() - start)


def track_image_processing(operation: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Time every call of a function, sync or async, as one step of the work on an image.

    Example:
        >>> @track_image_processing("decode")
        ... def decode(data: bytes) -> int:
        ...     return len(data)
        >>> decode(b"abc")
        3
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def timed_async(*args: P.args, **kwargs: P.kwargs) -> Any:
                with image_step(operation):
                    return await function(*args, **kwargs)

            return cast("Callable[P, R]", timed_async)

        @functools.wraps(function)
        def timed(*args: P.args, **kwargs: P.kwargs) -> R:
            with image_step(operation):
                return function(*args, **kwargs)

        return timed

    return decorate

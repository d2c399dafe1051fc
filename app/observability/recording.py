"""Functions that record metrics, one for each kind of event.

Within `deferred`, they write nothing until the block ends. The web layer wraps each request in it, so that the metrics
of a request are written after its response. If the process is killed before that, nothing is counted, so a counter is
never above the number of responses that clients have received.
"""

from __future__ import annotations

import functools
import inspect
import time
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar, cast

from app.observability import metrics, multiprocess, tracing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from app.observability.value_store import Series

    Entry = tuple[Series, float]  # with the amount to add or to observe

P = ParamSpec("P")
R = TypeVar("R")

_STEPS = "image_processing_duration_seconds"
_WORK = "task_processing_duration_seconds"
_WAIT = "task_wait_seconds"

_deferred: ContextVar[list[Entry] | None] = ContextVar("deferred", default=None)


class _Deferral:
    """Block at whose end the metrics recorded inside it are written; cheaper than a generator."""

    __slots__ = ("_entries", "_token")

    def __enter__(self) -> None:
        self._entries: list[Entry] = []
        self._token = _deferred.set(self._entries)

    def __exit__(self, *_: object) -> None:
        _deferred.reset(self._token)
        if self._entries:
            multiprocess.record(self._entries)


def deferred() -> AbstractContextManager[None]:
    """Write the metrics that are recorded inside the block, on any thread, when the block ends."""
    return _Deferral()


def record(name: str, labels: tuple[str, ...] = (), amount: float = 1) -> None:
    """Add to a counter or a gauge, or observe a value of a histogram; the labels are in the order of the table.

    The functions below do this for the metrics of the service. Call it directly for metrics of other code.

    Example:
        >>> record("cache_lookups_total", ("hit",))
    """
    if metrics.is_enabled():
        _add([(metrics.series(name, labels), amount)])


def _add(added: list[Entry]) -> None:
    entries = _deferred.get()
    if entries is None:
        multiprocess.record(added)
    else:
        entries += added


def record_image_processed(image_format: str) -> None:
    """Count an image with a result, by its format: ``png``, ``jpeg``, ``webp``, ``avif`` or ``heic``."""
    record("images_processed_total", (image_format,))


def record_landmarks_processed(count: int) -> None:
    """Count the landmarks of a result."""
    record("landmarks_processed_total", (), count)


def record_faces_detected(result: str) -> None:
    """Count an image scanned for faces, by outcome: ``one``, ``several`` or ``none``."""
    record("faces_detected_total", (result,))


def record_region_generated(region_type: str, count: int = 1) -> None:
    """Count regions of one type: a name of this service or ``custom``, never a name from the caller."""
    record("regions_generated_total", (region_type,), count)


def record_regions_generated(region_types: Iterable[str]) -> None:
    """Count the regions of a result, by their types."""
    if metrics.is_enabled():
        counted = Counter(region_types).items()
        _add([(metrics.series("regions_generated_total", (kind,)), count) for kind, count in counted])


def record_error(error_type: str, component: str) -> None:
    """Count an error by its public code."""
    record("errors_total", (error_type, component))


def record_request_started(method: str, endpoint: str) -> None:
    """Count a request in progress, at once and also inside `deferred`."""
    if metrics.is_enabled():
        multiprocess.record([(metrics.series("api_requests_in_progress", (method, endpoint)), 1)])


def record_request_ended(method: str, endpoint: str) -> None:
    """Stop counting a request in progress."""
    record("api_requests_in_progress", (method, endpoint), -1)


def record_response(
    method: str,
    endpoint: str,
    status: str,
    *,
    duration_s: float = 0.0,
    upload_s: float = 0.0,
    request_bytes: int = 0,
    response_bytes: int = 0,
) -> None:
    """Record the count, durations and sizes of a request; without a valid request, there are none."""
    if metrics.is_enabled():
        labels = (method, endpoint)
        series = metrics.series
        _add(
            [
                (series("api_requests_total", (method, endpoint, status)), 1),
                (series("api_request_duration_seconds", labels), duration_s),
                (series("api_request_upload_seconds", labels), upload_s),
                (series("api_request_size_bytes", labels), request_bytes),
                (series("api_response_size_bytes", labels), response_bytes),
            ]
        )


def record_rejection(reason: str) -> None:
    """Count a request that was rejected before processing."""
    record("api_rejections_total", (reason,))


def record_worker_exit(reason: str) -> None:
    """Count a worker process that ended; called by the master."""
    record("app_worker_exits_total", (reason,))


def record_child_exit(process: str) -> None:
    """Count an unexpected exit of a child process that is not a worker; called by the master."""
    record("app_child_exits_total", (process,))


def record_task_submitted(task_type: str) -> None:
    """Count a task that was accepted."""
    record("task_submissions_total", (task_type,))


def record_task_wait(task_type: str, seconds: float) -> None:
    """Record the time from the submission of a task to the start of its first attempt."""
    record(_WAIT, (task_type,), max(0.0, seconds))


def record_task_completed(task_type: str, status: str) -> None:
    """Count a task that reached a final state; called by the process that writes the state to the record."""
    record("task_completions_total", (task_type, status))


def record_task_redelivered(task_type: str) -> None:
    """Count a repeated delivery of a task."""
    record("task_redeliveries_total", (task_type,))


def record_task_dead_lettered(task_type: str) -> None:
    """Count a task that was dead-lettered."""
    record("task_dead_total", (task_type,))


def record_task_repair(reason: str) -> None:
    """Count a repair of records, stream or consumers."""
    record("task_repairs_total", (reason,))


def record_spans_dropped(reason: str, count: int) -> None:
    """Count spans that were not exported, by reason: ``queue_full`` or ``export_failed``."""
    record("trace_spans_dropped_total", (reason,), count)


def record_cache_lookup(result: str) -> None:
    """Count a result-cache lookup, by outcome: ``hit``, ``miss`` or ``unavailable``."""
    record("cache_lookups_total", (result,))


class _Timer:
    """Block whose duration is observed, also if it fails; cheaper than a generator."""

    __slots__ = ("_label", "_name", "_start_s")

    def __init__(self, name: str, label: str) -> None:
        self._name, self._label = name, label

    def __enter__(self) -> None:
        self._start_s = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        record(self._name, (self._label,), time.perf_counter() - self._start_s)


_NOTHING: Final[AbstractContextManager[None]] = nullcontext()


def image_step(operation: str) -> AbstractContextManager[None]:
    """Time one step of image processing, including a step that fails, and record it as a span."""
    timer = _Timer(_STEPS, operation) if metrics.is_enabled() else _NOTHING
    return tracing.span_around(operation, timer) if tracing.is_recording() else timer


def _attempt(task_type: str) -> AbstractContextManager[None]:
    return _Timer(_WORK, task_type) if metrics.is_enabled() else _NOTHING


def track_image_processing(operation: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Time every call of a sync or async function as one step of image processing.

    Example:
        >>> @track_image_processing("decode")
        ... def decode(data: bytes) -> int:
        ...     return len(data)
        >>> decode(b"abc")
        3
    """
    return _track(image_step, operation)


def track_task_metrics(task_type: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Time every call of a sync or async function as an attempt of a task, including one that fails.

    The process that stores the record counts the outcome (`record_task_completed`), because an attempt can succeed but
    be too late.

    Example:
        >>> @track_task_metrics("facial_processing")
        ... def work(data: bytes) -> int:
        ...     return len(data)
        >>> work(b"abc")
        3
    """
    return _track(_attempt, task_type)


def _track(
    block: Callable[[str], AbstractContextManager[None]], label: str
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def timed_async(*args: P.args, **kwargs: P.kwargs) -> Any:
                with block(label):
                    return await function(*args, **kwargs)

            return cast("Callable[P, R]", timed_async)

        @functools.wraps(function)
        def timed(*args: P.args, **kwargs: P.kwargs) -> R:
            with block(label):
                return function(*args, **kwargs)

        return timed

    return decorate

"""The helpers that record: one a fact, called where the fact comes about.

Within `deferred`, what is recorded is kept until the block ends. The web layer wraps each request in it, so that
everything a request leaves in the metrics is there once its answer is out, or, if the process is killed before, not at
all: the counters never tell of more work than callers have seen.
"""

from __future__ import annotations

import functools
import inspect
import time
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from app.observability import metrics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

P = ParamSpec("P")
R = TypeVar("R")

_STEPS = "image_processing_duration_seconds"
_WORK = "task_processing_duration_seconds"
_WAIT = "task_wait_seconds"
_OBSERVED = {_STEPS, _WORK, _WAIT}

_held: ContextVar[list[tuple[str, tuple[str, ...], float]] | None] = ContextVar("deferred", default=None)


@contextmanager
def deferred() -> Iterator[None]:
    """Keep what is recorded inside the block, on whichever thread, until the block ends."""
    entries: list[tuple[str, tuple[str, ...], float]] = []
    token = _held.set(entries)
    try:
        yield
    finally:
        _held.reset(token)
        if entries:
            _write(entries)


def _record(name: str, labels: tuple[str, ...], amount: float = 1) -> None:
    if not metrics.is_enabled():
        return
    held = _held.get()
    if held is None:
        _write([(name, labels, amount)])
    else:
        held.append((name, labels, amount))


def _write(entries: list[tuple[str, tuple[str, ...], float]]) -> None:
    child = metrics.child
    for name, labels, amount in entries:
        if name in _OBSERVED:
            child(name, *labels).observe(amount)
        else:
            child(name, *labels).inc(amount)


def record_image_processed(image_format: str) -> None:
    """Count a photo that became a result by its file's format: ``png``, ``jpeg`` or ``webp``."""
    _record("images_processed_total", (image_format,))


def record_landmarks_processed(count: int) -> None:
    """Count landmarks that went into a result."""
    _record("landmarks_processed_total", (), count)


def record_faces_detected(result: str) -> None:
    """Count one look for faces by what it found: ``one``, ``several`` or ``none``."""
    _record("faces_detected_total", (result,))


def record_region_generated(region_type: str, count: int = 1) -> None:
    """Count regions of one type, which is a name of ours or ``custom``, never the caller's."""
    _record("regions_generated_total", (region_type,), count)


def record_error(error_type: str, component: str) -> None:
    """Count one error by its public code."""
    _record("errors_total", (error_type, component))


def record_answer(method: str, endpoint: str, status: int) -> None:
    """Count one answer to what never became a request, and so passes no middleware."""
    _record("api_requests_total", (method, endpoint, str(status)))


def record_rejection(reason: str) -> None:
    """Count one request that was turned away before any work."""
    _record("api_rejections_total", (reason,))


def record_worker_exit(reason: str) -> None:
    """Count one worker process that ended; called by the master."""
    _record("app_worker_exits_total", (reason,))


def record_task_submitted(task_type: str) -> None:
    """Count one task that was taken."""
    _record("task_submissions_total", (task_type,))


def record_task_wait(task_type: str, seconds: float) -> None:
    """Note how long a task waited for the first work on it."""
    _record(_WAIT, (task_type,), max(0.0, seconds))


def record_task_completed(task_type: str, status: str) -> None:
    """Count one task that came to an end, by whoever wrote that end into its record."""
    _record("task_completions_total", (task_type, status))


def record_task_redelivered(task_type: str) -> None:
    """Count one delivery of a task that had been delivered before."""
    _record("task_redeliveries_total", (task_type,))


def record_task_dead(task_type: str) -> None:
    """Count one task that was given up on and kept aside."""
    _record("task_dead_total", (task_type,))


def record_task_repair(reason: str) -> None:
    """Count one repair by the reconciler."""
    _record("task_repairs_total", (reason,))


def record_cache_lookup(result: str) -> None:
    """Count one look for a result that is there already: ``hit``, ``miss`` or ``unavailable``."""
    _record("cache_lookups_total", (result,))


@contextmanager
def _timed(name: str, label: str) -> Iterator[None]:
    if not metrics.is_enabled():
        yield
        return
    start = time.perf_counter()
    try:
        yield
    finally:
        _record(name, (label,), time.perf_counter() - start)


def image_step(operation: str) -> AbstractContextManager[None]:
    """Time one step of the work on an image; a step that fails is timed too."""
    return _timed(_STEPS, operation)


def track_image_processing(operation: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Time every call of a function, sync or async, as one step of the work on an image.

    Example:
        >>> @track_image_processing("decode")
        ... def decode(data: bytes) -> int:
        ...     return len(data)
        >>> decode(b"abc")
        3
    """
    return _track(_STEPS, operation)


def track_task_metrics(task_type: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Time every call of a function, sync or async, as work on a task; work that fails is timed too.

    How a task ended is for whoever stores its record to count (`record_task_completed`): work can succeed and come too
    late.

    Example:
        >>> @track_task_metrics("facial_processing")
        ... def work(data: bytes) -> int:
        ...     return len(data)
        >>> work(b"abc")
        3
    """
    return _track(_WORK, task_type)


def _track(name: str, label: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def timed_async(*args: P.args, **kwargs: P.kwargs) -> Any:
                with _timed(name, label):
                    return await function(*args, **kwargs)

            return cast("Callable[P, R]", timed_async)

        @functools.wraps(function)
        def timed(*args: P.args, **kwargs: P.kwargs) -> R:
            with _timed(name, label):
                return function(*args, **kwargs)

        return timed

    return decorate

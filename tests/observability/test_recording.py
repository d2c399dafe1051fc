"""Functions and decorators that record metrics."""

from __future__ import annotations

import asyncio
import threading
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

import pytest

from app.observability import metrics, recording
from app.observability.metrics import METRICS

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS = "image_processing_duration_seconds_count"
TASK = "facial_processing"


@recording.track_image_processing("decode")
def work(value: int) -> int:
    if value < 0:
        raise ValueError("negative")
    return value + 1


@recording.track_image_processing("decode")
async def work_async(value: int) -> int:
    await asyncio.sleep(0)
    return work.__wrapped__(value)  # type: ignore[attr-defined,no-any-return]


@recording.track_task_metrics(TASK)
def do_task(value: int) -> int:
    """Do it."""
    return work.__wrapped__(value)  # type: ignore[attr-defined,no-any-return]


@recording.track_task_metrics(TASK)
async def do_task_async(value: int) -> int:
    await asyncio.sleep(0)
    return work.__wrapped__(value)  # type: ignore[attr-defined,no-any-return]


def test_decorator_times_sync_and_async_functions(scrape: Callable[[], dict[Any, float]]) -> None:
    assert work(1) == 2
    assert asyncio.run(work_async(1)) == 2
    with pytest.raises(ValueError, match="negative"):
        work(-1)
    with pytest.raises(ValueError, match="negative"):
        asyncio.run(work_async(-1))
    assert scrape()[STEPS, "decode"] == 4
    assert (work.__name__, work_async.__name__) == ("work", "work_async")


def test_nothing_is_recorded_while_metrics_are_disabled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_objects", {})
    recording.record_landmarks_processed(478)
    recording.record_region_generated("nose")
    recording.record_error("image_corrupt", "images")
    recording.record_rejection("saturated")
    recording.record_worker_exit("killed")
    recording.record_task_submitted(TASK)
    recording.record_task_wait(TASK, 1)
    recording.record_task_completed(TASK, "SUCCESS")
    recording.record_task_redelivered(TASK)
    recording.record_task_dead_lettered(TASK)
    recording.record_cache_lookup("hit")
    assert work(1) == 2
    assert do_task(1) == 2


def test_functions_count(scrape: Callable[[], dict[Any, float]]) -> None:
    recording.record_landmarks_processed(478)
    recording.record_region_generated("nose")
    recording.record_region_generated("nose", 2)
    recording.record_error("image_corrupt", "images")
    recording.record_rejection("saturated")
    recording.record_worker_exit("killed")
    counted = scrape()
    assert counted["landmarks_processed_total",] == 478
    assert counted["regions_generated_total", "nose"] == 3
    assert counted["errors_total", "images", "image_corrupt"] == 1
    assert counted["api_rejections_total", "saturated"] == 1
    assert counted["app_worker_exits_total", "killed"] == 1


def test_deferred_metrics_of_all_threads_are_written_at_the_end(scrape: Callable[[], dict[Any, float]]) -> None:
    with recording.deferred():
        recording.record_landmarks_processed(1)
        context = copy_context()
        thread = threading.Thread(target=context.run, args=(recording.record_landmarks_processed, 10))
        thread.start()
        thread.join()
        with recording.image_step("svg"):
            pass
        during = scrape()
    after = scrape()
    assert (during["landmarks_processed_total",], during[STEPS, "svg"]) == (0, 0)
    assert (after["landmarks_processed_total",], after[STEPS, "svg"]) == (11, 1)


def test_closed_labels_start_at_zero(scrape: Callable[[], dict[Any, float]]) -> None:
    counted = scrape()
    assert {counted["api_rejections_total", reason] for reason in ("saturated", "too_large")} == {0}
    assert counted[STEPS, "encode"] == 0


def test_every_row_is_complete() -> None:
    assert all((spec.kind == "histogram") == (spec.buckets is not None) for spec in METRICS)
    assert all(spec.kind == "gauge" for spec in METRICS if spec.mode)


@pytest.mark.parametrize(("method", "label"), [("GET", "GET"), ("PATCH", "PATCH"), ("BREW", "OTHER"), ("get", "OTHER")])
def test_method_label_is_bounded(method: str, label: str) -> None:
    assert metrics.method_label(method) == label


def test_attempts_are_timed_in_sync_and_async_functions(scrape: Callable[[], dict[Any, float]]) -> None:
    assert (do_task(1), asyncio.run(do_task_async(1))) == (2, 2)
    with pytest.raises(ValueError, match="negative"):
        do_task(-1)
    with pytest.raises(ValueError, match="negative"):
        asyncio.run(do_task_async(-1))
    counted = scrape()
    assert counted["task_processing_duration_seconds_count", TASK] == 4
    assert counted[STEPS, "decode"] == 0, "an attempt is not a step of image processing"
    assert (do_task.__name__, do_task.__doc__, do_task_async.__name__) == ("do_task", "Do it.", "do_task_async")
    # The process that stores the outcome counts it.
    assert all(counted["task_completions_total", status, TASK] == 0 for status in ("SUCCESS", "FAILURE", "CANCELLED"))


def test_outcomes_of_tasks_are_counted(scrape: Callable[[], dict[Any, float]]) -> None:
    for _ in range(3):
        recording.record_task_submitted(TASK)
    recording.record_task_wait(TASK, 0.5)
    recording.record_task_wait(TASK, -0.5)  # clocks of two machines may differ
    for status in ("SUCCESS", "FAILURE", "FAILURE", "CANCELLED"):
        recording.record_task_completed(TASK, status)
    recording.record_task_redelivered(TASK)
    recording.record_task_dead_lettered(TASK)
    for result in ("hit", "miss", "miss", "unavailable"):
        recording.record_cache_lookup(result)
    counted = scrape()
    assert counted["task_submissions_total", TASK] == 3
    assert (counted["task_wait_seconds_count", TASK], counted["task_wait_seconds_sum", TASK]) == (2, 0.5)
    completed = [counted["task_completions_total", status, TASK] for status in ("SUCCESS", "FAILURE", "CANCELLED")]
    assert completed == [1, 2, 1]
    assert (counted["task_redeliveries_total", TASK], counted["task_dead_total", TASK]) == (1, 1)
    assert [counted["cache_lookups_total", result] for result in ("hit", "miss", "unavailable")] == [1, 2, 1]


def test_metrics_of_an_attempt_are_deferred(scrape: Callable[[], dict[Any, float]]) -> None:
    with recording.deferred():
        do_task(1)
        recording.record_task_wait(TASK, 1)
        during = scrape()
    after = scrape()
    for name in ("task_processing_duration_seconds_count", "task_wait_seconds_count"):
        assert (during[name, TASK], after[name, TASK]) == (0, 1)

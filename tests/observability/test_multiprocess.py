"""Slots, and scrapes of files that are created and removed meanwhile."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import pytest

from app.observability import metrics, multiprocess, recording

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.mark.parametrize(
    ("name", "expectation"),
    [
        ("worker-0", nullcontext()),
        ("master", nullcontext()),
        ("worker_0", pytest.raises(ValueError, match="neither")),
        ("../x", pytest.raises(ValueError, match="neither")),
    ],
)
def test_identity(monkeypatch: pytest.MonkeyPatch, name: str, expectation: Any) -> None:
    monkeypatch.setattr(multiprocess, "_identity", "before")
    with expectation:
        multiprocess.set_identity(name)
        assert multiprocess.get_identity() == name


def test_successor_continues_counters_and_live_gauges_are_removed(
    scrape: Callable[[], dict[Any, float]], tmp_path: Path
) -> None:
    gauge, read = ("api_requests_in_progress", "POST", "/x"), ("api_requests_in_progress", "/x", "POST")
    recording.record_landmarks_processed(478)
    metrics.child(*gauge).inc()
    multiprocess.set_identity("worker-1")
    recording.record_landmarks_processed(478)
    metrics.child(*gauge).inc()
    assert scrape()["landmarks_processed_total",] == 956
    assert scrape()[read] == 2
    multiprocess.forget_slot("worker-0", tmp_path / "values")
    assert scrape()[read] == 1
    multiprocess.set_identity("worker-0")
    recording.record_landmarks_processed(478)
    assert scrape()["landmarks_processed_total",] == 1434


def test_scrape_skips_an_empty_file(scrape: Callable[[], dict[Any, float]], tmp_path: Path) -> None:
    (tmp_path / "values" / "counter_worker-9.db").touch()
    recording.record_landmarks_processed(478)
    counted = scrape()
    assert counted["landmarks_processed_total",] == 478
    assert counted["multiprocess_files",] == len(list((tmp_path / "values").glob("*.db")))
    assert counted["multiprocess_bytes",] == sum(file.stat().st_size for file in (tmp_path / "values").iterdir())


def test_only_metric_files_are_removed_from_the_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(multiprocess.DIRECTORY_VARIABLE, "")
    monkeypatch.setattr("prometheus_client.values.ValueClass", None)
    (tmp_path / "counter_worker-0.db").write_bytes(b"old")
    (tmp_path / "mine.db").write_text("not ours")
    assert multiprocess.use_directory(tmp_path) == tmp_path
    assert [file.name for file in tmp_path.iterdir()] == ["mine.db"]

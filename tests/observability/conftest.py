"""Metrics in a folder of their own, for one test."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import values

from app.main import install_metrics
from app.observability import metrics, multiprocess
from app.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def scrape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], dict[Any, float]]]:
    """Install metrics, and give a function that reads them as a scrape does: name and values, in the labels' order."""
    monkeypatch.setattr(values, "ValueClass", values.ValueClass)
    monkeypatch.setattr(multiprocess, "_identity", "worker-0")
    monkeypatch.setenv(multiprocess.DIRECTORY_VARIABLE, "")
    folder = tmp_path / "values"
    install_metrics(Settings(prometheus_multiproc_dir=folder))

    def read() -> dict[Any, float]:
        registry = multiprocess.scrape_registry(folder)
        return {
            (sample.name, *[value for _, value in sorted(sample.labels.items())]): sample.value
            for family in registry.collect()
            for sample in family.samples
        }

    yield read
    metrics.uninstall()

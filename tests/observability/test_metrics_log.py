"""Lines with the changes of the main counters."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from prometheus_client.core import CounterMetricFamily

from app.observability.metrics import METRICS
from app.observability.metrics_log import MAIN_COUNTERS, MetricsLog
from app.observability.rich_logging import console_lines

if TYPE_CHECKING:
    import pytest


class Counters:
    """A collector with values that a test changes."""

    def __init__(self) -> None:
        self.values = {"SUCCESS": 40.0, "FAILURE": 1.0}

    def collect(self) -> Any:
        family = CounterMetricFamily("task_completions", "help", labels=["status", "type"])
        for status, value in self.values.items():
            family.add_metric([status, "facial_processing"], value)
        yield family


def test_only_changes_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "facial.server")
    counters = Counters()
    log = MetricsLog(counters, 30)  # type: ignore[arg-type]
    log.log_changes()
    assert caplog.records == []
    counters.values["SUCCESS"] = 42
    log.log_changes()
    log.log_changes()
    (record,) = caplog.records
    assert record.getMessage() == "📊 1 counter changed in 30 s"
    assert record.metrics == [  # type: ignore[attr-defined]
        {
            "name": "task_completions_total",
            "value": 42.0,
            "change": 2.0,
            "labels": {"type": "facial_processing", "status": "SUCCESS"},
        }
    ]
    assert console_lines(record) == ["📊 Metric task_completions_total = 42 (+2) type=facial_processing status=SUCCESS"]


def test_the_last_changes_are_logged_on_stop(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "facial.server")
    counters = Counters()
    log = MetricsLog(counters, 3600)  # type: ignore[arg-type]
    log.start()
    counters.values["FAILURE"] = 2
    log.stop()
    assert [record.metrics[0]["change"] for record in caplog.records] == [1.0]  # type: ignore[attr-defined]


def test_main_counters_exist() -> None:
    assert set(MAIN_COUNTERS) <= {spec.name for spec in METRICS if spec.kind == "counter"}

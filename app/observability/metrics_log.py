"""Periodic log lines with the changes of the main counters, for places without Prometheus.

The exporter process writes them, because it reads the values of all processes. So there is one line for an instance,
and not one per worker process.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final

from app.observability.log_text import count_of
from app.observability.metrics import METRICS
from app.observability.rich_logging import format_number, get_logger

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

    Series = tuple[str, tuple[tuple[str, str], ...]]

log = get_logger("server")

MAIN_COUNTERS: Final = (
    "api_requests_total",
    "api_rejections_total",
    "errors_total",
    "images_processed_total",
    "task_submissions_total",
    "task_completions_total",
    "task_redeliveries_total",
    "task_dead_total",
    "app_worker_exits_total",
)
_ORDER: Final = {spec.name: tuple(spec.labels) for spec in METRICS}


class MetricsLog:
    """The main counters of an instance, and their values at the time of the last line."""

    def __init__(self, collector: Collector, interval_s: float) -> None:
        self._collector = collector
        self._interval_s = interval_s
        self._last = self._read()
        self._is_stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics-log", daemon=True)

    def start(self) -> None:
        """Log changes in a thread from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread, then log what has changed since the last line."""
        self._is_stopping.set()
        self._thread.join()
        self.log_changes()

    def log_changes(self) -> None:
        """Log the counters that have changed since the last line; nothing if none has.

        On a terminal, each has its own line. In JSON, all are in one line.
        """
        current = self._read()
        # If files of a process were lost, a counter can be lower than before.
        rows: list[dict[str, Any]] = [
            {"name": name, "value": value, "change": value - before, "labels": dict(labels)}
            for (name, labels), value in current.items()
            if value > (before := self._last.get((name, labels), 0.0))
        ]
        self._last = current
        if rows:
            extra = {"event": "metrics", "interval_s": self._interval_s, "metrics": rows}
            interval = format_number(self._interval_s)
            log.info("📊 %s changed in %s s", count_of(len(rows), "counter"), interval, extra=extra)

    def _run(self) -> None:
        while not self._is_stopping.wait(self._interval_s):
            try:
                self.log_changes()
            except Exception:
                log.exception("Cannot log the changes of the metrics")

    def _read(self) -> dict[Series, float]:
        values: dict[Series, float] = {}
        families = {f"{family.name}_total": family for family in self._collector.collect() if family.type == "counter"}
        for name in MAIN_COUNTERS:
            for sample in families[name].samples if name in families else ():
                if sample.name == name:
                    labels = tuple((label, sample.labels[label]) for label in _ORDER[name])
                    values[name, labels] = sample.value
        return values

"""Fake services whose counters the tests set, and instances that have scraped them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import strategies as st

from app.cli.monitor.instance import Buckets, Samples, Scrape, TrackedInstance
from app.observability.health import HealthResponse, WorkerHealth

if TYPE_CHECKING:
    from collections.abc import Callable

CROP = ("POST", "/api/v1/frontal/crop")
BOUNDS = (0.01, 0.1, 1.0, math.inf)
REQUESTS = "api_requests_total"
DURATION = "api_request_duration_seconds"

# Difference between the clock of the scrapes and the time since the epoch.
EPOCH_S = 1_700_000_000.0

# Label values: any text, and text that a terminal or a markup language would interpret.
hostile = st.text() | st.sampled_from(["[bold red]x[/]", "\x1b[31mred", "a\nb", '"\\', "\u202egnp.exe", "[/]", "漢字"])


class Service:
    """A fake service.

    Attributes:
        now: the current time.
        samples: metrics that a scrape returns.
        workers: process IDs by worker name.
        ready: whether the health report contains `ready`.
        draining: whether the health report contains `draining`.
        beat_s: age of the workers' last heartbeat.
    """

    def __init__(self, name: str = "one:9000", window_s: float = 10.0) -> None:
        self.now = 100.0
        self.samples = Samples()
        self.workers = {"worker-0": 10, "worker-1": 11}
        self.ready = True
        self.draining = False
        self.beat_s = 0.1
        self.instance = TrackedInstance(name, window_s)

    def count(self, name: str, labels: tuple[str, ...], number: float) -> None:
        """Increase a counter."""
        series = self.samples.counters.setdefault(name, {})
        series[labels] = series.get(labels, 0.0) + number

    def respond(self, number: int, *, status: str = "200", seconds: float = 0.05) -> None:
        """Count responses, each after the same time."""
        self.count(REQUESTS, (*CROP, status), number)
        histograms = self.samples.histograms.setdefault(DURATION, {})
        old = histograms.get(CROP, Buckets(BOUNDS, (0.0,) * len(BOUNDS)))
        grown = (count + number * (seconds <= bound) for bound, count in zip(BOUNDS, old.counts, strict=True))
        histograms[CROP] = Buckets(BOUNDS, tuple(grown))

    def gauge(self, name: str, value: float, *labels: str) -> None:
        """Set a gauge."""
        self.samples.gauges.setdefault(name, {})[labels] = value

    def restart(self) -> None:
        """Drop all counters, like a restarted process."""
        self.samples = Samples(gauges=self.samples.gauges)

    def start(self, at: float, process: str = "master") -> None:
        """Set the start time of a process, on the clock of the scrapes."""
        self.gauge("process_start_time_seconds", EPOCH_S + at, process)

    def scrape(self, after_s: float = 2.0) -> None:
        """Advance the clock, then scrape the service."""
        self.now += after_s
        samples = Samples(
            {name: dict(series) for name, series in self.samples.counters.items()},
            {name: dict(series) for name, series in self.samples.gauges.items()},
            {name: dict(series) for name, series in self.samples.histograms.items()},
        )
        workers = [WorkerHealth(name, pid, "ready", self.beat_s) for name, pid in self.workers.items()]
        health = HealthResponse(True, self.ready, self.draining, workers, [])
        self.instance.record_scrape(Scrape(self.now, 0.01, health, samples, EPOCH_S + self.now))

    def fail(self, after_s: float = 2.0) -> None:
        """Advance the clock, then fail a scrape."""
        self.now += after_s
        self.instance.record_failure(self.now, "connection refused")


@pytest.fixture
def make_service() -> Callable[..., Service]:
    """Return the class, for tests with several services."""
    return Service


@pytest.fixture
def service() -> Any:
    """Return a service that has not been scraped yet."""
    return Service()

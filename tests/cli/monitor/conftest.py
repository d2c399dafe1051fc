"""Expositions and scrapes made of a few numbers, and instances that have been fed them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import strategies as st

from app.cli.monitor.health import Health, Worker
from app.cli.monitor.instance import Instance, Scrape
from app.cli.monitor.samples import Buckets, Samples

if TYPE_CHECKING:
    from collections.abc import Callable

CROP = ("POST", "/api/v1/frontal/crop")
BOUNDS = (0.01, 0.1, 1.0, math.inf)
REQUESTS = "api_requests_total"
DURATION = "api_request_duration_seconds"

# What may come as a label's value: anything, and what a terminal or a markup language would make something of.
hostile = st.text() | st.sampled_from(["[bold red]x[/]", "\x1b[31mred", "a\nb", '"\\', "\u202egnp.exe", "[/]", "漢字"])


class Service:
    """A service whose counters are kept here.

    Attributes:
        now: seconds of the clock.
        samples: what it says when it is scraped.
        workers: names to process ids.
        ready: what it says of itself.
    """

    def __init__(self, name: str = "one:9000", window_s: float = 10.0) -> None:
        self.now = 100.0
        self.samples = Samples()
        self.workers = {"worker-0": 10, "worker-1": 11}
        self.ready = True
        self.draining = False
        self.beat_s = 0.1
        self.instance = Instance(name, window_s)

    def count(self, name: str, labels: tuple[str, ...], number: float) -> None:
        """Count up."""
        series = self.samples.counters.setdefault(name, {})
        series[labels] = series.get(labels, 0.0) + number

    def answer(self, number: int, *, status: str = "200", seconds: float = 0.05) -> None:
        """Answer requests, each in the same time."""
        self.count(REQUESTS, (*CROP, status), number)
        histograms = self.samples.histograms.setdefault(DURATION, {})
        old = histograms.get(CROP, Buckets(BOUNDS, (0.0,) * len(BOUNDS)))
        grown = (count + number * (seconds <= bound) for bound, count in zip(BOUNDS, old.counts, strict=True))
        histograms[CROP] = Buckets(BOUNDS, tuple(grown))

    def gauge(self, name: str, value: float, *labels: str) -> None:
        """Set a gauge."""
        self.samples.gauges.setdefault(name, {})[labels] = value

    def restart(self) -> None:
        """Begin anew: all counters are gone."""
        self.samples = Samples(gauges=self.samples.gauges)

    def scrape(self, after_s: float = 2.0) -> None:
        """Let time pass, and be scraped."""
        self.now += after_s
        kept = Samples(
            {name: dict(series) for name, series in self.samples.counters.items()},
            {name: dict(series) for name, series in self.samples.gauges.items()},
            {name: dict(series) for name, series in self.samples.histograms.items()},
        )
        workers = tuple(Worker(name, pid, "ready", self.beat_s) for name, pid in self.workers.items())
        health = Health(live=True, ready=self.ready, draining=self.draining, workers=workers)
        self.instance.take(Scrape(self.now, 0.01, health, kept))

    def miss(self, after_s: float = 2.0) -> None:
        """Let time pass, and not answer."""
        self.now += after_s
        self.instance.miss(self.now, "connection refused")


@pytest.fixture
def make_service() -> Callable[..., Service]:
    """Give the class."""
    return Service


@pytest.fixture
def service() -> Any:
    """Give a service that nobody has asked anything yet."""
    return Service()

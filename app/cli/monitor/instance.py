"""One instance: its metric samples, their increases between scrapes, and its health, processes and outages."""

from __future__ import annotations

import bisect
import math
import re
from collections import deque
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Final

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from app.observability.health import HealthResponse
from app.observability.metrics import METRICS, Kind

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client.samples import Sample

Labels = tuple[str, ...]
"""Label values of a series, in the order in which ``METRICS`` declares the labels."""

_SPECS: Final = {spec.name: spec for spec in METRICS}
_HISTOGRAMS: Final = {f"{spec.name}_bucket": spec.name for spec in METRICS if spec.kind == "histogram"}


class ResponseError(ValueError):
    """A response that does not come from facial-service."""


@dataclass(frozen=True, slots=True)
class Buckets:
    """Cumulative buckets of a histogram."""

    bounds: tuple[float, ...]  # upper bounds in ascending order; the last one is ``+Inf``
    # Observations up to each bound, never decreasing; the last one is the number of all observations.
    counts: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Samples:
    """Metrics of one scrape, or the increase of counters and histograms between two scrapes.

    Each attribute maps metric names to series, and series are keyed by their label values.
    """

    counters: dict[str, dict[Labels, float]] = field(default_factory=dict)
    gauges: dict[str, dict[Labels, float]] = field(default_factory=dict)
    histograms: dict[str, dict[Labels, Buckets]] = field(default_factory=dict)


def require_metric(name: str, kind: Kind, *labels: str) -> str:
    """Return the name of a metric if ``METRICS`` declares it with these labels, in the order of their values.

    Raises:
        ValueError: the metric is missing, or has another kind or other labels.

    Example:
        >>> require_metric("api_rejections_total", "counter", "cause")
        Traceback (most recent call last):
        ValueError: api_rejections_total: expected counter ('cause',), got counter ('reason',)
    """
    spec = _SPECS.get(name)
    if spec is None:
        raise ValueError(f"{name}: expected a metric of the service, got an unknown name")
    if (spec.kind, tuple(spec.labels)) != (kind, labels):
        raise ValueError(f"{name}: expected {kind} {labels}, got {spec.kind} {tuple(spec.labels)}")
    return name


def parse_metrics(text: str) -> Samples:
    """Parse the service's metrics from the Prometheus text format.

    Metrics that the service does not declare are ignored, as are values that are not finite. A label that is missing
    has an empty value, as in Prometheus. Series that differ only in undeclared labels are summed.

    Raises:
        ResponseError: the text is malformed, or contains no metric of the service.
    """
    samples = Samples()
    buckets: dict[str, dict[Labels, dict[float, float]]] = {}
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if math.isfinite(sample.value):
                    _add_sample(sample, samples, buckets)
    except (ValueError, KeyError, IndexError, AttributeError, TypeError) as error:  # the parser has no error class
        raise ResponseError("/metrics: expected the Prometheus text format, got something else") from error
    for name, by_labels in buckets.items():
        samples.histograms[name] = {labels: _make_buckets(by_bound) for labels, by_bound in by_labels.items()}
    if not (samples.counters or samples.gauges or samples.histograms):
        raise ResponseError("/metrics: expected metrics of facial-service, got none")
    return samples


def _add_sample(sample: Sample, samples: Samples, buckets: dict[str, dict[Labels, dict[float, float]]]) -> None:
    spec = _SPECS.get(_HISTOGRAMS.get(sample.name, sample.name))
    if spec is None:
        return
    labels = tuple(sample.labels.get(label, "") for label in spec.labels)
    if spec.kind != "histogram":
        series = (samples.counters if spec.kind == "counter" else samples.gauges).setdefault(spec.name, {})
        series[labels] = series.get(labels, 0.0) + sample.value
    elif sample.name != spec.name and not math.isnan(bound := float(sample.labels["le"])):
        by_bound = buckets.setdefault(spec.name, {}).setdefault(labels, {})
        by_bound[bound] = by_bound.get(bound, 0.0) + sample.value


def _make_buckets(by_bound: dict[float, float]) -> Buckets:
    bounds = tuple(sorted(by_bound))
    return Buckets(bounds, _non_decreasing(by_bound[bound] for bound in bounds))


def _non_decreasing(counts: Iterable[float]) -> tuple[float, ...]:
    """Raise each count to the highest count before it.

    A scrape reads a histogram while the service writes it, so a bucket can be one observation ahead of the next.
    """
    return tuple(accumulate((max(0.0, count) for count in counts), max))


@dataclass(frozen=True, slots=True)
class Increase:
    """Increase of an instance's counters and histograms between two scrapes."""

    seconds: float  # time between the scrapes
    samples: Samples  # the series that increased, and by how much
    is_reset: bool = False  # whether the counters started at 0 again between the scrapes


def compute_increase(before: Samples, after: Samples, seconds: float) -> Increase:
    """Compute the increase between two scrapes of one instance.

    A series that is new has increased from 0. If any counter decreased or disappeared, all counters started at 0 again,
    including those that already exceed their old value.

    Raises:
        ValueError: the time is not positive.
    """
    if not seconds > 0:
        raise ValueError(f"seconds: expected more than 0 s between two scrapes, got {seconds}")
    is_reset = _are_reset(before, after)
    start = Samples() if is_reset else before
    result = Samples()
    for name, series in after.counters.items():
        old = start.counters.get(name, {})
        changes = {labels: value - old.get(labels, 0.0) for labels, value in series.items()}
        result.counters[name] = {labels: change for labels, change in changes.items() if change > 0}
    for name, histograms in after.histograms.items():
        earlier = start.histograms.get(name, {})
        differences = {labels: _subtract(new, earlier.get(labels)) for labels, new in histograms.items()}
        result.histograms[name] = {labels: new for labels, new in differences.items() if new.counts[-1] > 0}
    return Increase(seconds, result, is_reset)


def _are_reset(before: Samples, after: Samples) -> bool:
    return any(
        after.counters.get(name, {}).get(labels, -math.inf) < value
        for name, series in before.counters.items()
        for labels, value in series.items()
    ) or any(
        _is_reset(old, after.histograms.get(name, {}).get(labels))
        for name, histograms in before.histograms.items()
        for labels, old in histograms.items()
    )


def _is_reset(old: Buckets, new: Buckets | None) -> bool:
    if new is None or new.bounds != old.bounds:
        return True
    return any(later < earlier for earlier, later in zip(old.counts, new.counts, strict=True))


def _subtract(new: Buckets, old: Buckets | None) -> Buckets:
    if old is None:
        return new
    differences = (later - earlier for later, earlier in zip(new.counts, old.counts, strict=True))
    return Buckets(new.bounds, _non_decreasing(differences))


def sum_series(parts: Iterable[dict[Labels, float]]) -> dict[Labels, float]:
    """Sum the series of one metric over several instances or intervals."""
    total: dict[Labels, float] = {}
    for part in parts:
        for labels, value in part.items():
            total[labels] = total.get(labels, 0.0) + value
    return total


def merge_buckets(parts: Iterable[Buckets]) -> Buckets | None:
    """Sum histograms; None if there are none. If their bounds differ, keep the bounds that all of them have."""
    histograms = [part for part in parts if part.bounds]
    if not histograms:
        return None
    shared = set(histograms[0].bounds).intersection(*(part.bounds for part in histograms[1:]))
    counts = dict.fromkeys(sorted(shared), 0.0)
    for part in histograms:
        for bound, count in zip(part.bounds, part.counts, strict=True):
            if bound in counts:
                counts[bound] += count
    return Buckets(tuple(counts), tuple(counts.values()))


def quantile(q: float, buckets: Buckets | None) -> float | None:
    """Estimate a quantile (0 to 1) by linear interpolation within its bucket, like Prometheus's ``histogram_quantile``.

    If it is above the highest finite bound, return that. Return None without observations or a ``+Inf`` bucket.

    Example:
        >>> quantile(0.5, Buckets((0.1, 0.2, math.inf), (10, 30, 30)))
        0.125
        >>> quantile(0.99, Buckets((0.1, 0.2, math.inf), (0, 0, 5)))
        0.2
    """
    if buckets is None or len(buckets.bounds) <= 1 or buckets.bounds[-1] != math.inf or not buckets.counts[-1] > 0:
        return None
    rank = q * buckets.counts[-1]
    index = bisect.bisect_left(buckets.counts[:-1], rank)
    if index == len(buckets.bounds) - 1:
        return buckets.bounds[-2]
    if index == 0 and buckets.bounds[0] <= 0:
        return buckets.bounds[0]
    lower, below = (buckets.bounds[index - 1], buckets.counts[index - 1]) if index else (0.0, 0.0)
    inside = buckets.counts[index] - below
    return lower + (buckets.bounds[index] - lower) * ((rank - below) / inside) if inside > 0 else lower


class Window:
    """Sliding window over the latest increases of one instance; it keeps the latest one even if that is longer."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._increases: deque[Increase] = deque()
        self.seconds = 0.0  # that the increases in the window cover

    def add(self, increase: Increase) -> None:
        """Add the latest increase, and drop those that have left the window."""
        self._increases.append(increase)
        self.seconds += increase.seconds
        # Half an interval of tolerance, because scrapes are never exactly one interval apart.
        while len(self._increases) > 1 and self.seconds - increase.seconds / 2 >= self._limit_s:
            self.seconds -= self._increases.popleft().seconds

    def clear(self) -> None:
        """Drop all increases."""
        self._increases.clear()
        self.seconds = 0.0

    def counter(self, name: str) -> dict[Labels, float]:
        """Return the increase of a counter, by series."""
        return sum_series(increase.samples.counters.get(name, {}) for increase in self._increases)

    def histogram(self, name: str) -> list[tuple[Labels, Buckets]]:
        """Return the observations of a histogram: one item per series and interval."""
        return [item for increase in self._increases for item in increase.samples.histograms.get(name, {}).items()]


MEMORY: Final = require_metric("memory_usage_bytes", "gauge", "process")
EXITS: Final = require_metric("app_worker_exits_total", "counter", "reason")
STARTED: Final = require_metric("process_start_time_seconds", "gauge", "process")

RECENT_S: Final = 60.0  # how long a process that is gone or new, an exit, or a restart is shown
_WORKER = re.compile(r"(worker|task)-\d+")
_MASTER: Final = ("master",)  # the first process of an instance
_SAME_START_S: Final = 0.005  # start times have a resolution of 0.01 s
_CLOCK_SKEW_S: Final = 5.0  # between the clocks of the instance and of the monitor


_DECODER = msgspec.json.Decoder(HealthResponse)


def parse_health(body: bytes) -> HealthResponse:
    """Parse the body of ``/health``.

    Raises:
        ResponseError: the body is not a health report.

    Example:
        >>> parse_health(b'{"live":true,"ready":true,"draining":false,"workers":[],"task_workers":[]}').ready
        True
    """
    try:
        return _DECODER.decode(body)
    except (msgspec.MsgspecError, ValueError) as error:
        raise ResponseError("/health: expected the health report of facial-service, got something else") from error


@dataclass(frozen=True, slots=True)
class Scrape:
    """One successful scrape of an instance."""

    # When the requests were sent, on a monotonic clock. The service reads its counters at the start of a scrape.
    at: float
    took_s: float  # time until both responses were complete
    health: HealthResponse
    samples: Samples | None  # the metrics; None if the instance serves none
    time_s: float  # when the requests were sent, in seconds since the epoch


@dataclass(frozen=True, slots=True)
class TrackedProcess:
    """A process of an instance."""

    name: str  # value of the label ``process``
    pid: int  # process ID; 0 for processes that the health report does not list (masters, exporter, nats-server)
    state: str  # state in the health report; ``up`` if only metrics list the process, ``gone`` if it has disappeared
    last_beat_s: float | None = None  # age of the last heartbeat; None for processes without one
    changed_at: float | None = None  # when the process was replaced or disappeared; None if neither was observed
    started_s: float | None = None  # start time, in seconds since the epoch; None if unknown

    def is_same(self, other: TrackedProcess) -> bool:
        """Return whether another scrape shows the same process; in containers, process IDs repeat."""
        return self.pid == other.pid and _is_same_start(self.started_s, other.started_s)


def _is_same_start(one: float | None, other: float | None) -> bool:
    """Return whether two start times are those of one process, or may be, because one is unknown."""
    return one is None or other is None or abs(one - other) <= _SAME_START_S


def process_kind(name: str) -> str:
    """Return what a process is for, from its name: ``api``, ``tasks`` or ``other``.

    Example:
        >>> process_kind("worker-0"), process_kind("task-12"), process_kind("task-master")
        ('api', 'tasks', 'other')
    """
    match = _WORKER.fullmatch(name)
    return {"worker": "api", "task": "tasks"}[match[1]] if match else "other"


def _start_of_master(scrape: Scrape) -> float | None:
    """Return the start time of the instance, in seconds since the epoch; None if the metric is missing."""
    starts = {} if scrape.samples is None else scrape.samples.gauges.get(STARTED, {})
    return starts.get(_MASTER)


class TrackedInstance:
    """An instance and its state over successive scrapes."""

    def __init__(self, name: str, window_s: float) -> None:
        self.name = name
        self.window = Window(window_s)  # empty after an outage, until two scrapes have succeeded
        self.latest: Scrape | None = None  # last successful scrape; kept during an outage
        self.last_increase: Increase | None = None  # since the previous scrape; None if that scrape failed
        self.seen: dict[str, dict[Labels, float]] = {}  # increases since the monitor started, outages excluded
        self.increased_at: dict[tuple[str, Labels], float] = {}  # when a counter was last observed to increase
        self.unreachable_since: float | None = None  # None if the last scrape succeeded
        self.reason = ""  # why the last scrape failed; empty if it succeeded
        self.restarted_at: float | None = None  # when a restart was last observed
        self.swapped_at: float | None = None  # when another instance was last observed to respond at this address
        self.processes: dict[str, TrackedProcess] = {}  # by name

    @property
    def is_unreachable(self) -> bool:
        """Whether the last scrape failed."""
        return self.unreachable_since is not None

    @property
    def samples(self) -> Samples:
        """Metrics of the last successful scrape; empty if there are none."""
        latest = self.latest.samples if self.latest is not None else None
        return latest if latest is not None else Samples()

    @property
    def exits(self) -> dict[str, float]:
        """When an exit of a worker process of this instance was last observed, by reason."""
        since = -math.inf if self.swapped_at is None else self.swapped_at
        return {labels[0]: at for (name, labels), at in self.increased_at.items() if name == EXITS and at > since}

    def record_failure(self, at: float, reason: str) -> None:
        """Record a failed scrape, and start the window again.

        The next response may come from another process, or from another pod behind the same port. Its counters are
        unrelated to the ones known so far.
        """
        if self.unreachable_since is None:
            self.unreachable_since = at
        self.reason = reason
        self.last_increase = None
        self.window.clear()

    def record_scrape(self, scrape: Scrape) -> None:
        """Record a successful scrape."""
        before, self.latest = self.latest, scrape
        was_unreachable, self.unreachable_since, self.reason = self.is_unreachable, None, ""
        self.last_increase = None
        has_restarted, is_other = self._compare_starts(before, scrape)
        if has_restarted:
            self.restarted_at, self.processes = scrape.at, {}
        if is_other:
            self.swapped_at = scrape.at
            self.window.clear()
        if was_unreachable or is_other:
            self.processes = {}
        elif before is not None and before.samples is not None and scrape.samples is not None:
            start = Samples() if has_restarted else before.samples
            increase = compute_increase(start, scrape.samples, scrape.at - before.at)
            self._record_increase(replace(increase, is_reset=has_restarted or increase.is_reset), scrape)
        self._update_processes(scrape)

    @staticmethod
    def _compare_starts(before: Scrape | None, scrape: Scrape) -> tuple[bool, bool]:
        """Return whether the service has restarted, and whether another instance responds at this address.

        The counters of a service that has restarted since the previous scrape began at 0. Those of another instance are
        unrelated to the previous ones, even if all of them are higher.
        """
        started_s = _start_of_master(scrape)
        if before is None or started_s is None or _is_same_start(_start_of_master(before), started_s):
            return False, False
        is_new = scrape.time_s - started_s <= scrape.at - before.at + _CLOCK_SKEW_S
        return is_new, not is_new

    def _record_increase(self, increase: Increase, scrape: Scrape) -> None:
        self.last_increase = increase
        self.window.add(increase)
        for name, series in increase.samples.counters.items():
            self.seen[name] = sum_series([self.seen.get(name, {}), series])
            self.increased_at |= {(name, labels): scrape.at for labels in series}
        if increase.is_reset and _start_of_master(scrape) is None:
            self.restarted_at, self.processes = scrape.at, {}

    def _update_processes(self, scrape: Scrape) -> None:
        starts = {} if scrape.samples is None else scrape.samples.gauges.get(STARTED, {})
        workers = (*scrape.health.workers, *scrape.health.task_workers)
        now = {each.name: TrackedProcess(each.name, each.pid, each.state, each.last_beat_s) for each in workers}
        if scrape.samples is not None:
            names = [name for (name,) in scrape.samples.gauges.get(MEMORY, {})]
            now |= {name: TrackedProcess(name, 0, "up") for name in names if process_kind(name) == "other"}
        now = {name: replace(process, started_s=starts.get((name,))) for name, process in now.items()}
        for name, old in self.processes.items():
            new = now.get(name)
            if new is None:
                gone_at = old.changed_at if old.state == "gone" and old.changed_at is not None else scrape.at
                if scrape.at - gone_at < RECENT_S:
                    now[name] = TrackedProcess(name, old.pid, "gone", changed_at=gone_at)
            elif not new.is_same(old) or old.state == "gone":
                now[name] = replace(new, changed_at=scrape.at)
            elif old.changed_at is not None and scrape.at - old.changed_at < RECENT_S:
                now[name] = replace(new, changed_at=old.changed_at)
        self.processes = now

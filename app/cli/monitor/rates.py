"""Differences between scrapes of one instance, and what follows from them. Nothing here knows a clock or a network."""

from __future__ import annotations

import bisect
import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.cli.monitor.samples import Buckets, Labels, Samples

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class Increase:
    """By how much an instance's counters grew.

    Attributes:
        seconds: from the one scrape to the other.
        grown: the series that grew, and by how much.
        is_restart: whether the instance was started anew in between.
    """

    seconds: float
    grown: Samples
    is_restart: bool = False


def increase(before: Samples, after: Samples, seconds: float) -> Increase:
    """Take the difference of two scrapes of one instance.

    A counter begins at 0 with its process: what was not there before has grown from 0, and so has one that fell. An
    instance has all of its counters in one place, so that one that fell, or is gone, tells that all began anew, also
    those that have overtaken their old value.

    Args:
        before: the earlier scrape.
        after: the later one.
        seconds: between them, more than 0.

    Raises:
        ValueError: the time is not more than 0.
    """
    if not seconds > 0:
        raise ValueError(f"expected more than 0 s between two scrapes, got {seconds}")
    is_restart = _is_restart(before, after)
    start = Samples() if is_restart else before
    grown = Samples()
    for name, series in after.counters.items():
        old = start.counters.get(name, {})
        changed = {labels: value - old.get(labels, 0.0) for labels, value in series.items()}
        grown.counters[name] = {labels: value for labels, value in changed.items() if value > 0}
    for name, histograms in after.histograms.items():
        earlier = start.histograms.get(name, {})
        differences = {labels: _subtract(new, earlier.get(labels)) for labels, new in histograms.items()}
        grown.histograms[name] = {labels: found for labels, found in differences.items() if found.counts[-1] > 0}
    return Increase(seconds, grown, is_restart)


def _is_restart(before: Samples, after: Samples) -> bool:
    for name, series in before.counters.items():
        now = after.counters.get(name, {})
        if any(now.get(labels, -math.inf) < value for labels, value in series.items()):
            return True
    for name, histograms in before.histograms.items():
        current = after.histograms.get(name, {})
        if any(_is_other(old, current.get(labels)) for labels, old in histograms.items()):
            return True
    return False


def _is_other(old: Buckets, new: Buckets | None) -> bool:
    if new is None or new.bounds != old.bounds:
        return True
    return any(later < earlier for earlier, later in zip(old.counts, new.counts, strict=True))


def _subtract(new: Buckets, old: Buckets | None) -> Buckets:
    """Take one scrape's buckets from a later one's; both never fall from bound to bound, and so shall the difference.

    A scrape reads a histogram while it is written to, so that one bucket may be an observation ahead of the next.
    """
    if old is None:
        return new
    counts, highest = [], 0.0
    for later, earlier in zip(new.counts, old.counts, strict=True):
        highest = max(highest, later - earlier)
        counts.append(highest)
    return Buckets(new.bounds, tuple(counts))


def add_counters(parts: Iterable[dict[Labels, float]]) -> dict[Labels, float]:
    """Add up what several instances, or several intervals, have of one metric."""
    total: dict[Labels, float] = {}
    for part in parts:
        for labels, value in part.items():
            total[labels] = total.get(labels, 0.0) + value
    return total


def merge_buckets(parts: Iterable[Buckets]) -> Buckets | None:
    """Add up histograms; of those with different bounds, at the bounds that all have. None where there are none."""
    given = [part for part in parts if part.bounds]
    if not given:
        return None
    shared = set(given[0].bounds).intersection(*(part.bounds for part in given[1:]))
    counts = dict.fromkeys(sorted(shared), 0.0)
    for part in given:
        for bound, count in zip(part.bounds, part.counts, strict=True):
            if bound in counts:
                counts[bound] += count
    return Buckets(tuple(counts), tuple(counts.values()))


def quantile(q: float, buckets: Buckets | None) -> float | None:
    """Estimate a quantile as Prometheus's ``histogram_quantile`` does: linearly within its bucket.

    Args:
        q: 0 to 1.
        buckets: cumulative; the lowest begins at 0.

    Returns:
        The estimate. The highest finite bound where the quantile lies beyond it. None where nothing was observed, or
        there is no bucket without bound.

    Example:
        >>> quantile(0.5, Buckets((0.1, 0.2, math.inf), (10, 30, 30)))
        0.125
        >>> quantile(0.99, Buckets((0.1, 0.2, math.inf), (0, 0, 5)))
        0.2
    """
    if buckets is None or len(buckets.bounds) <= 1 or buckets.bounds[-1] != math.inf or not buckets.counts[-1] > 0:
        return None
    rank = q * buckets.counts[-1]
    at = bisect.bisect_left(buckets.counts[:-1], rank)
    if at == len(buckets.bounds) - 1:
        return buckets.bounds[-2]
    if at == 0 and buckets.bounds[0] <= 0:
        return buckets.bounds[0]
    low, below = (buckets.bounds[at - 1], buckets.counts[at - 1]) if at else (0.0, 0.0)
    inside = buckets.counts[at] - below
    return low + (buckets.bounds[at] - low) * ((rank - below) / inside) if inside > 0 else low


class Window:
    """The latest differences of one instance, as far back as figures are taken over.

    Args:
        seconds: how far back; at least one difference is kept, however long it is.
    """

    def __init__(self, seconds: float) -> None:
        self._limit_s = seconds
        self._parts: deque[Increase] = deque()
        self.seconds = 0.0

    def add(self, part: Increase) -> None:
        """Add the latest, and drop what is too old."""
        self._parts.append(part)
        self.seconds += part.seconds
        # Half an interval of slack: scrapes are never exactly as far apart as they were meant to be.
        while len(self._parts) > 1 and self.seconds - part.seconds / 2 >= self._limit_s:
            self.seconds -= self._parts.popleft().seconds

    def clear(self) -> None:
        """Forget all."""
        self._parts.clear()
        self.seconds = 0.0

    def counter(self, name: str) -> dict[Labels, float]:
        """Return by how much the series of a counter grew."""
        return add_counters(part.grown.counters.get(name, {}) for part in self._parts)

    def histogram(self, name: str) -> list[tuple[Labels, Buckets]]:
        """Return what was observed, by series and interval."""
        return [item for part in self._parts for item in part.grown.histograms.get(name, {}).items()]

"""What the charts are drawn from: one value a scrape."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from app.cli.monitor.moment import step_p95_s, step_rate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from app.cli.monitor.figures import Figures
    from app.cli.monitor.instance import Instance

LENGTH: Final = 600  # wider than terminals are


def _series() -> deque[float | None]:
    return deque(maxlen=LENGTH)


@dataclass(frozen=True, slots=True)
class History:
    """Values of the last scrapes, None where there was none.

    Attributes:
        rate: requests to the API per second, from scrape to scrape.
        p95_s: 95th percentile of requests for work, from scrape to scrape.
        waiting: tasks that no worker has.
        cpu_percent: of all processes.
    """

    rate: deque[float | None] = field(default_factory=_series)
    p95_s: deque[float | None] = field(default_factory=_series)
    waiting: deque[float | None] = field(default_factory=_series)
    cpu_percent: deque[float | None] = field(default_factory=_series)

    def add(self, figures: Figures, instances: Sequence[Instance]) -> None:
        """Add the values of a round."""
        self.rate.append(step_rate(instances))
        self.p95_s.append(step_p95_s(instances))
        self.waiting.append(figures.tasks.waiting)
        self.cpu_percent.append(figures.cpu_percent)

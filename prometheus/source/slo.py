"""Service level objectives, and the alerts on how fast their error budgets burn.

An alert compares the ratio of bad requests in a long and in a short window with a multiple of what the objective
allows: the long one says that it matters, the short one that it still goes on. The windows and factors are those of the
SRE workbook for a period of 30 days.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

from prometheus.source.model import API, BY, PERCENT, PLACE, WORK, Alert, Group, Recording, series

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prometheus.source.model import Severity

PERIOD_DAYS = 30
# So few bad requests in a long window are no news, whatever their share: one of ten at night is ten percent.
LEAST_BAD = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Burn:
    """One row of the table of windows.

    Attributes:
        long: window in which it has to matter.
        short: window in which it has to go on.
        factor: multiple of the rate that uses up the budget in exactly the period.
        hold: how long both have to be true.
        severity: of the alert.
    """

    long: str
    short: str
    factor: Decimal
    hold: str
    severity: Severity


BURNS = (
    Burn(long="1h", short="5m", factor=Decimal("14.4"), hold="2m", severity="critical"),
    Burn(long="6h", short="30m", factor=Decimal(6), hold="15m", severity="critical"),
    Burn(long="1d", short="2h", factor=Decimal(3), hold="1h", severity="warning"),
    Burn(long="3d", short="6h", factor=Decimal(1), hold="3h", severity="warning"),
)
WINDOWS = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")
_SAID = {"1h": "hour", "6h": "6 hours", "1d": "day", "3d": "3 days"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """One objective.

    Attributes:
        name: the label ``slo``.
        alert: name of its alert.
        target: share of requests that have to be good.
        total: metric part of the recording of all requests.
        bad: metric part of the recording of the bad ones.
        total_rate: PromQL for all requests a second.
        bad_rate: PromQL for the bad ones a second; may use the recording of all.
        bad_count: window to PromQL for how many bad ones there were in it.
        summary: of the alert.
        asked: which requests these are, for the description.
        failing: what the bad ones did.
    """

    name: str
    alert: str
    target: Decimal
    total: str
    bad: str
    total_rate: str
    bad_rate: str
    bad_count: Callable[[str], str]
    summary: str
    asked: str
    failing: str

    @property
    def budget(self) -> Decimal:
        """Share of requests that may be bad."""
        return 1 - self.target

    @property
    def ratio(self) -> str:
        """Name of the recorded ratio, less its window."""
        return f"namespace_job:{self.bad}_per_{self.total}:ratio_rate"


# A boundary of the default REQUEST_DURATION_BUCKETS; who sets others has to keep it. A request without decoding takes
# some 5 ms of work, the largest photo with all its pixels decoded about half a second, and a body has to be sent.
LATENCY_S = "1.0"

_REQUESTS = series("api_requests_total", API)
_FAILURES = series("api_requests_total", API, 'status=~"5.."')
_TIMED = series("api_request_duration_seconds_count", WORK)
_FAST = series("api_request_duration_seconds_bucket", WORK, f'le="{LATENCY_S}"')

OBJECTIVES = (
    Objective(
        name="availability",
        alert="FacialServiceErrorBudgetBurn",
        target=Decimal("0.999"),
        total="api_requests",
        bad="api_request_failures",
        total_rate=f"sum {BY} (rate({_REQUESTS}[5m]))",
        # There is no series of failures before the first one.
        bad_rate=f"sum {BY} (rate({_FAILURES}[5m]))\n  or\n0 * namespace_job:api_requests:rate5m",
        bad_count=lambda window: f"sum {BY} (increase({_FAILURES}[{window}]))",
        summary="The API fails too many requests for its availability objective.",
        asked="the API's requests",
        failing="were answered with a 5xx status",
    ),
    Objective(
        name="latency",
        alert="FacialServiceLatencyBudgetBurn",
        target=Decimal("0.99"),
        total="api_timed_requests",
        bad="api_slow_requests",
        total_rate=f"sum {BY} (rate({_TIMED}[5m]))",
        bad_rate=f"namespace_job:api_timed_requests:rate5m\n  -\nsum {BY} (rate({_FAST}[5m]))",
        bad_count=lambda window: (
            f"sum {BY} (increase({_TIMED}[{window}]))\n  -\nsum {BY} (increase({_FAST}[{window}]))"
        ),
        summary="The API answers too many requests too slowly for its latency objective.",
        asked="the requests for work",
        failing=f"took longer than {Decimal(LATENCY_S).normalize()} s",
    ),
)


def _record(slo: Objective) -> Iterator[Recording]:
    yield Recording(name=f"namespace_job:{slo.total}:rate5m", expr=slo.total_rate)
    yield Recording(name=f"namespace_job:{slo.bad}:rate5m", expr=slo.bad_rate)
    for window in WINDOWS:
        yield _record_ratio(slo, window)


def _record_ratio(slo: Objective, window: str) -> Recording:
    """Record a ratio from sums.

    Long windows are sums of the recorded rates: exact but for their edges, and two series to read a namespace instead
    of all that its pods have had in three days.
    """
    bad, total = f"namespace_job:{slo.bad}:rate5m", f"namespace_job:{slo.total}:rate5m"
    if window != "5m":
        bad, total = f"sum_over_time({bad}[{window}])", f"sum_over_time({total}[{window}])"
    return Recording(name=slo.ratio + window, expr=f"{bad}\n  /\n({total} > 0)")


def _alert(slo: Objective, burn: Burn) -> Alert:
    limit = f"{burn.factor} * {slo.budget}"
    return Alert(
        name=slo.alert,
        expr=(
            f"{slo.ratio}{burn.long} > {limit}\n"
            f"  and\n{slo.ratio}{burn.short} > {limit}\n"
            f"  and\n({_indent(slo.bad_count(burn.long))}) >= {LEAST_BAD}"
        ),
        hold=burn.hold,
        severity=burn.severity,
        labels={"slo": slo.name, "long": burn.long, "short": burn.short},
        summary=slo.summary,
        description=(
            f"{PERCENT} of {slo.asked}{PLACE} {slo.failing} in the last {_SAID[burn.long]}, and it goes on. The "
            f"objective allows {slo.budget:%} over {PERIOD_DAYS} days, a budget that would be gone within "
            f"{round(PERIOD_DAYS / burn.factor)} days."
        ),
        dashboard="facial-service-overview",
    )


def _indent(text: str) -> str:
    return "\n  " + text.replace("\n", "\n  ") + "\n" if "\n" in text else text


GROUPS = (
    Group(name="facial-service-slo.rules", rules=tuple(rule for slo in OBJECTIVES for rule in _record(slo))),
    Group(
        name="facial-service-slo-period.rules",
        interval="2m",
        rules=tuple(_record_ratio(slo, f"{PERIOD_DAYS}d") for slo in OBJECTIVES),
    ),
    Group(name="facial-service-slo", rules=tuple(_alert(slo, burn) for slo in OBJECTIVES for burn in BURNS)),
)

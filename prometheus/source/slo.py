"""Service level objectives, and alerts on the burn rates of their error budgets.

An alert compares the ratio of bad requests in a long and in a short window with a multiple of the error budget. The
long window shows that the problem is significant, the short window that it continues. Windows and factors are those of
the SRE workbook for a period of 30 days.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

from prometheus.source.model import API, BY, LOCATION, PERCENT, WORK, Alert, Group, Recording, series

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prometheus.source.model import Severity

PERIOD_DAYS = 30
# Minimum number of bad requests in the long window. Without it, one failure among ten requests at night would fire.
MIN_BAD_REQUESTS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class BurnRate:
    """A burn rate to alert on.

    Attributes:
        long: long window.
        short: short window.
        factor: burn rate, relative to the rate that consumes the budget in exactly the period.
        hold: the `for` duration of the alert.
        severity: severity of the alert.
    """

    long: str
    short: str
    factor: Decimal
    hold: str
    severity: Severity


BURN_RATES = (
    BurnRate(long="1h", short="5m", factor=Decimal("14.4"), hold="2m", severity="critical"),
    BurnRate(long="6h", short="30m", factor=Decimal(6), hold="15m", severity="critical"),
    BurnRate(long="1d", short="2h", factor=Decimal(3), hold="1h", severity="warning"),
    BurnRate(long="3d", short="6h", factor=Decimal(1), hold="3h", severity="warning"),
)
WINDOWS = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")
_WINDOW_TEXTS = {"1h": "hour", "6h": "6 hours", "1d": "day", "3d": "3 days"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """A service level objective.

    Attributes:
        name: value of the label ``slo``.
        alert: name of its alert.
        target: required ratio of good requests.
        total: metric part of the recording rule name for all requests.
        bad: metric part of the recording rule name for bad requests.
        total_rate: PromQL for all requests per second.
        bad_rate: PromQL for bad requests per second; may use the recording rule for all requests.
        bad_count: function from a window to PromQL for the number of bad requests in it.
        summary: summary of the alert.
        requests: noun phrase for the requests, for the description.
        failure: verb phrase for the failure, for the description.
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
    requests: str
    failure: str

    @property
    def budget(self) -> Decimal:
        """Allowed ratio of bad requests."""
        return 1 - self.target

    @property
    def ratio(self) -> str:
        """Name of the recorded ratio, without its window."""
        return f"namespace_job:{self.bad}_per_{self.total}:ratio_rate"


# A bucket boundary of the default REQUEST_DURATION_BUCKETS; custom buckets must include it. Processing takes about 5 ms
# without decoding, and half a second for the largest image with decoding. The time to receive the body comes on top.
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
        # The failure series does not exist before the first failure.
        bad_rate=f"sum {BY} (rate({_FAILURES}[5m]))\n  or\n0 * namespace_job:api_requests:rate5m",
        bad_count=lambda window: f"sum {BY} (increase({_FAILURES}[{window}]))",
        summary="The API returns too many errors for its availability objective.",
        requests="API requests",
        failure="failed with a 5xx status",
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
        summary="Too many API requests are too slow for the latency objective.",
        requests="processing requests",
        failure=f"took longer than {Decimal(LATENCY_S).normalize()} s",
    ),
)


def _recordings(slo: Objective) -> Iterator[Recording]:
    yield Recording(name=f"namespace_job:{slo.total}:rate5m", expr=slo.total_rate)
    yield Recording(name=f"namespace_job:{slo.bad}:rate5m", expr=slo.bad_rate)
    for window in WINDOWS:
        yield _ratio_recording(slo, window)


def _ratio_recording(slo: Objective, window: str) -> Recording:
    """Return the recording rule of a ratio.

    Long windows sum the recorded rates, which is exact except at the window edges. Each rule then reads two series per
    namespace, instead of all series that its pods had in three days.
    """
    bad, total = f"namespace_job:{slo.bad}:rate5m", f"namespace_job:{slo.total}:rate5m"
    if window != "5m":
        bad, total = f"sum_over_time({bad}[{window}])", f"sum_over_time({total}[{window}])"
    return Recording(name=slo.ratio + window, expr=f"{bad}\n  /\n({total} > 0)")


def _alert(slo: Objective, burn: BurnRate) -> Alert:
    limit = f"{burn.factor} * {slo.budget}"
    return Alert(
        name=slo.alert,
        expr=(
            f"{slo.ratio}{burn.long} > {limit}\n"
            f"  and\n{slo.ratio}{burn.short} > {limit}\n"
            f"  and\n({_indent(slo.bad_count(burn.long))}) >= {MIN_BAD_REQUESTS}"
        ),
        hold=burn.hold,
        severity=burn.severity,
        labels={"slo": slo.name, "long": burn.long, "short": burn.short},
        summary=slo.summary,
        description=(
            f"{PERCENT} of {slo.requests}{LOCATION} {slo.failure} in the last {_WINDOW_TEXTS[burn.long]}, and the "
            f"problem continues. The objective allows {slo.budget:%} over {PERIOD_DAYS} days. At a burn rate of "
            f"{burn.factor}, this budget is consumed within {round(PERIOD_DAYS / burn.factor)} days."
        ),
        dashboard="facial-service-overview",
    )


def _indent(text: str) -> str:
    return "\n  " + text.replace("\n", "\n  ") + "\n" if "\n" in text else text


GROUPS = (
    Group(name="facial-service-slo.rules", rules=tuple(rule for slo in OBJECTIVES for rule in _recordings(slo))),
    Group(
        name="facial-service-slo-period.rules",
        interval="2m",
        rules=tuple(_ratio_recording(slo, f"{PERIOD_DAYS}d") for slo in OBJECTIVES),
    ),
    Group(name="facial-service-slo", rules=tuple(_alert(slo, burn) for slo in OBJECTIVES for burn in BURN_RATES)),
)

"""Alerts on the burn rates of the error budgets of the objectives.

An alert compares the ratio of bad requests in a long and in a short window with a multiple of the error budget. The
long window shows that the problem is significant, the short window that it continues. Windows and factors are those of
the SRE workbook, for a period of 30 days unless the objectives have another one.

Only processing requests (POST) count. Status requests would hide an outage, because clients send many of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from prometheus.source.model import BY, LOCATION, PERCENT, Alert, Group, Recording, level, series

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus.source.model import Severity
    from prometheus.source.objectives import Texts

# Minimum number of bad requests in the long window. Without it, one failure among ten requests at night would fire.
MIN_BAD_REQUESTS: Final = 10
# For a page about slow requests, so that a single caller with slow requests does not cause it.
MIN_SLOW_REQUESTS_PER_MINUTE: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class BurnRate:
    """A burn rate to alert on.

    Attributes:
        long: long window.
        short: short window.
        hold: the `for` duration of the alert.
        severity: severity of the alert.
    """

    long: str
    short: str
    hold: str
    severity: Severity

    def factor(self, texts: Texts) -> str:
        """Return the burn rate, relative to the rate that consumes the budget in exactly the period."""
        return str(getattr(texts, f"factor_{self.long}"))


BURN_RATES = (
    BurnRate(long="1h", short="5m", hold="2m", severity="critical"),
    BurnRate(long="6h", short="30m", hold="15m", severity="critical"),
    BurnRate(long="1d", short="2h", hold="1h", severity="warning"),
    BurnRate(long="3d", short="6h", hold="3h", severity="warning"),
)
WINDOWS = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")
_WINDOW_TEXTS = {"1h": "hour", "6h": "6 hours", "1d": "day", "3d": "3 days"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """A service level objective.

    Attributes:
        name: value of the label ``slo``.
        alert: name of its alert.
        target: required ratio of good requests, as text.
        target_percent: the same in percent.
        budget: allowed ratio of bad requests, as text.
        budget_percent: the same in percent.
        total: metric part of the recording rule name for all requests.
        bad: metric part of the recording rule name for bad requests.
        requests: selector of all requests.
        bad_rate: PromQL for bad requests per second; may use the recording rule for all requests.
        page_floor: minimum number of bad requests per minute of the long window, for a page; 0 for none.
        summary: summary of the alert.
        failure: verb phrase for the failure, for the description.
    """

    name: str
    alert: str
    target: str
    target_percent: str
    budget: str
    budget_percent: str
    total: str
    bad: str
    requests: str
    bad_rate: str
    page_floor: int
    summary: str
    failure: str

    @property
    def ratio(self) -> str:
        """Name of the recorded ratio, without its window."""
        return f"{level()}:{self.bad}_per_{self.total}:ratio_rate"

    @property
    def total_rate(self) -> str:
        """Name of the recorded rate of all requests."""
        return f"{level()}:{self.total}:rate5m"


# A recorded rate, which exists after the API has received a processing request.
REQUESTS_RATE = f"{level()}:api_requests:rate5m"
_TIMED_RATE = f"{level()}:api_timed_requests:rate5m"


def objectives(texts: Texts) -> tuple[Objective, Objective]:
    """Return the objectives on availability and latency."""
    work = f'method="POST", endpoint=~"{texts.routes}"'
    timed = series("api_request_duration_seconds_count", work)
    fast = series("api_request_duration_seconds_bucket", work, f'le="{texts.latency_bucket}"')
    availability = Objective(
        name="availability",
        alert="FacialServiceErrorBudgetBurn",
        target=texts.availability_objective,
        target_percent=texts.availability_objective_percent,
        budget=texts.availability_budget,
        budget_percent=texts.availability_budget_percent,
        total="api_requests",
        bad="api_request_failures",
        requests=series("api_requests_total", work),
        bad_rate=_failure_rate(work, texts.shedding_factor),
        page_floor=0,
        summary="The API returns too many errors for its availability objective.",
        failure="failed with a 5xx status",
    )
    latency = Objective(
        name="latency",
        alert="FacialServiceLatencyBudgetBurn",
        target=texts.latency_objective,
        target_percent=texts.latency_objective_percent,
        budget=texts.latency_budget,
        budget_percent=texts.latency_budget_percent,
        total="api_timed_requests",
        bad="api_slow_requests",
        requests=timed,
        bad_rate=f"{series(_TIMED_RATE)}\n  -\nsum {BY} (rate({fast}[5m]))",
        page_floor=MIN_SLOW_REQUESTS_PER_MINUTE,
        summary="Too many API requests are too slow for the latency objective.",
        failure=f"took longer than {texts.latency_seconds} s",
    )
    return availability, latency


def _failure_rate(work: str, shedding_factor: str) -> str:
    """Return the rate of failures, without those 503s that are deliberate rejections because of load.

    A series does not exist before the first failure.
    """
    none = f"or\n0 * {series(REQUESTS_RATE)}"
    errors = series("api_requests_total", work, 'status=~"5.."', 'status!="503"')
    unavailable = series("api_requests_total", work, 'status="503"')
    shed = series("api_rejections_total", 'reason=~"saturated|queue_full"')
    return (
        f"(\n  sum {BY} (rate({errors}[5m]))\n    {_indent(none, 2)}\n)\n"
        f"  +\n"
        f"clamp_min(\n"
        f"  (\n    sum {BY} (rate({unavailable}[5m]))\n      {_indent(none, 4)}\n  )\n"
        f"    - {shedding_factor} *\n"
        f"  (\n    sum {BY} (rate({shed}[5m]))\n      {_indent(none, 4)}\n  ),\n"
        f"  0\n)"
    )


def _indent(text: str, spaces: int) -> str:
    return text.replace("\n", "\n" + " " * spaces)


def _recordings(slo: Objective) -> Iterator[Recording]:
    yield Recording(name=slo.total_rate, expr=f"sum {BY} (rate({slo.requests}[5m]))")
    yield Recording(name=f"{level()}:{slo.bad}:rate5m", expr=slo.bad_rate)
    for window in WINDOWS:
        yield _ratio_recording(slo, window)


def _ratio_recording(slo: Objective, window: str) -> Recording:
    """Return the recording rule of a ratio.

    Long windows sum the recorded rates, which is exact except at the window edges. Each rule then reads two series per
    release, instead of all series that its pods had in three days.
    """
    bad, total = series(f"{level()}:{slo.bad}:rate5m"), series(slo.total_rate)
    if window != "5m":
        bad, total = f"sum_over_time({bad}[{window}])", f"sum_over_time({total}[{window}])"
    return Recording(name=slo.ratio + window, expr=f"{bad}\n  /\n({total} > 0)")


def _alert(slo: Objective, burn: BurnRate, texts: Texts) -> Alert:
    factor = burn.factor(texts)
    limit = f"{factor} * {slo.budget}"
    long, short = series(slo.ratio + burn.long), series(slo.ratio + burn.short)
    page = ""
    if burn.severity == "critical" and slo.page_floor:
        page = f"\n  and\n60 * {long} * sum {BY} (rate({slo.requests}[{burn.long}])) >= {slo.page_floor}"
    return Alert(
        name=slo.alert,
        expr=(
            f"{long} > {limit}\n  and\n{short} > {limit}\n"
            f"  and\n{long} * sum {BY} (increase({slo.requests}[{burn.long}])) >= {MIN_BAD_REQUESTS}{page}"
        ),
        hold=burn.hold,
        severity=burn.severity,
        labels={"slo": slo.name, "long": burn.long, "short": burn.short},
        summary=slo.summary,
        description=(
            f"{PERCENT} of processing requests{LOCATION} {slo.failure} in the last {_WINDOW_TEXTS[burn.long]}, and the "
            f"problem continues. The objective allows {slo.budget_percent} over {texts.window_days} days. The burn "
            f"rate is more than {factor}."
        ),
        dashboard="facial-service-overview",
    )


def groups(texts: Texts) -> tuple[Group, ...]:
    """Return the groups for objectives."""
    slos = objectives(texts)
    return (
        Group(name="facial-service-slo.rules", rules=tuple(rule for slo in slos for rule in _recordings(slo))),
        Group(
            name="facial-service-slo-period.rules",
            interval="2m",
            rules=tuple(_ratio_recording(slo, f"{texts.window_days}d") for slo in slos),
        ),
        Group(
            name="facial-service-slo",
            rules=tuple(_alert(slo, burn, texts) for slo in slos for burn in BURN_RATES),
        ),
    )

"""Service level objectives, which operators can change, and the texts that rules and dashboards contain for them.

The committed files contain the texts of the default objectives. The files of the Helm chart contain a token, such as
``@AVAILABILITY_BUDGET@``, in place of each text, and the chart computes the same texts from its values.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from app.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Mapping

# Part of the error budget that the long window of each alert may consume, and its hours.
BUDGET_PARTS: Final = {"1h": ("0.02", 1), "6h": ("0.05", 6), "1d": ("0.1", 24), "3d": ("0.1", 72)}

VALUES: Final = {
    "availability": {"objective"},
    "latency": {"objective", "threshold"},
    "routes": None,
    "countShedding": None,
    "windowDays": None,
    "taskDeadlineSeconds": None,
}


class ObjectivesError(ValueError):
    """Raised if an objective is impossible; the message names the value, what is expected and what was given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Objectives:
    """Objectives of a release.

    Attributes:
        availability: required ratio of processing requests without a 5xx status.
        latency: required ratio of processing requests that are fast enough.
        latency_threshold_s: longest duration of a fast request, in seconds; a boundary of REQUEST_DURATION_BUCKETS.
        routes: regular expression of the routes that count.
        count_shedding: whether requests that are rejected because of load count as failed.
        window_days: days over which the objectives apply.
        task_deadline_s: age of a task at which its deadline is missed, in seconds; None if there is no deadline.
    """

    availability: Decimal = Decimal("0.999")
    latency: Decimal = Decimal("0.99")
    latency_threshold_s: Decimal = Decimal(1)
    routes: str = "/api/.+"
    count_shedding: bool = False
    window_days: int = 30
    task_deadline_s: Decimal | None = None

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Objectives:
        """Read the section ``slo`` of the values of the Helm chart.

        Args:
            values: values of the chart; all sections except ``slo`` and ``settings`` are ignored.

        Raises:
            ObjectivesError: an objective is impossible or has an unknown name.
        """
        given = values.get("slo") or {}
        _check_names(given)
        found = {
            "availability": (given.get("availability") or {}).get("objective"),
            "latency": (given.get("latency") or {}).get("objective"),
            "latency_threshold_s": (given.get("latency") or {}).get("threshold"),
            "routes": given.get("routes"),
            "count_shedding": given.get("countShedding"),
            "window_days": given.get("windowDays"),
            "task_deadline_s": given.get("taskDeadlineSeconds"),
        }
        numbers = {"availability", "latency", "latency_threshold_s", "task_deadline_s"}
        typed: dict[str, Any] = {
            name: Decimal(str(value)) if name in numbers else value
            for name, value in found.items()
            if value is not None
        }
        objectives = cls(**typed)
        objectives.check(_buckets(values))
        return objectives

    def check(self, buckets: tuple[float, ...]) -> None:
        """Check that the objectives are possible.

        Args:
            buckets: boundaries of REQUEST_DURATION_BUCKETS, in seconds.

        Raises:
            ObjectivesError: an objective is impossible.
        """
        if not 7 <= self.window_days <= 90:  # noqa: PLR2004 - the bounds of the chart's schema
            raise ObjectivesError(f"slo.windowDays: expected 7 to 90, got {self.window_days}")
        fastest = max(Decimal(factor) for factor in factors(self.window_days).values())
        for name, target in (("availability", self.availability), ("latency", self.latency)):
            if not (0 < target < 1 and fastest * (1 - target) < 1):
                raise ObjectivesError(
                    f"slo.{name}.objective: expected less than 1 and more than {_text(round(1 - 1 / fastest, 4))}, "
                    f"because the alert at a burn rate of {_text(fastest)} could not fire, got {_text(target)}"
                )
        if float(self.latency_threshold_s) not in buckets:
            expected = ", ".join(f"{bound:g}" for bound in buckets)
            raise ObjectivesError(
                f"slo.latency.threshold: expected a boundary of REQUEST_DURATION_BUCKETS ({expected}), "
                f"got {_text(self.latency_threshold_s)}"
            )


def _check_names(given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        below = VALUES.get(name, set())
        unknown = {name} if name not in VALUES else set(value) - below if below and value else set()
        if unknown:
            raise ObjectivesError(f"slo: expected {', '.join(VALUES)}, got {', '.join(sorted(unknown))}")


def _buckets(values: Mapping[str, Any]) -> tuple[float, ...]:
    settings = dict(values.get("settings") or {}) | dict((values.get("api") or {}).get("settings") or {})
    given = settings.get("REQUEST_DURATION_BUCKETS")
    if given is None:
        default: tuple[float, ...] = Settings.model_fields["request_duration_buckets"].default
        return default
    return tuple(float(bound) for bound in (given.split(",") if isinstance(given, str) else given))


def factors(window_days: int) -> dict[str, str]:
    """Return the burn rate of each alert, by its long window, as text.

    It is at least 1: at a lower rate, the budget lasts for longer than the period, and the objective is met.
    """
    return {
        window: _text(max(Decimal(1), round(Decimal(part) * window_days * 24 / hours, 4)))
        for window, (part, hours) in BUDGET_PARTS.items()
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """Texts for `Objectives` in rules and dashboards; numbers without a unit are in PromQL's format."""

    availability_objective: str
    availability_objective_percent: str
    availability_budget: str
    availability_budget_percent: str
    latency_objective: str
    latency_objective_percent: str
    latency_budget: str
    latency_budget_percent: str
    latency_bucket: str  # as in the label `le`
    latency_seconds: str
    routes: str
    shedding_factor: str  # 1 to subtract rejections because of load from failures, else 0
    window_days: str
    factor_1h: str
    factor_6h: str
    factor_1d: str
    factor_3d: str
    fast_burn_ratio: str  # ratio of failures at the highest burn rate
    task_deadline_s: str

    @classmethod
    def of(cls, objectives: Objectives) -> Texts:
        """Return the texts of objectives."""
        burn = factors(objectives.window_days)
        budgets = {"availability": 1 - objectives.availability, "latency": 1 - objectives.latency}
        deadline = objectives.task_deadline_s
        return cls(
            availability_objective=_text(objectives.availability),
            availability_objective_percent=_percent(objectives.availability),
            availability_budget=_text(budgets["availability"]),
            availability_budget_percent=_percent(budgets["availability"]),
            latency_objective=_text(objectives.latency),
            latency_objective_percent=_percent(objectives.latency),
            latency_budget=_text(budgets["latency"]),
            latency_budget_percent=_percent(budgets["latency"]),
            latency_bucket=str(float(objectives.latency_threshold_s)),
            latency_seconds=_text(objectives.latency_threshold_s),
            routes=objectives.routes,
            shedding_factor="0" if objectives.count_shedding else "1",
            window_days=str(objectives.window_days),
            factor_1h=burn["1h"],
            factor_6h=burn["6h"],
            factor_1d=burn["1d"],
            factor_3d=burn["3d"],
            fast_burn_ratio=_text(Decimal(burn["1h"]) * budgets["availability"]),
            task_deadline_s="+Inf" if deadline is None else _text(deadline),
        )

    @classmethod
    def tokens(cls) -> Texts:
        """Return tokens in place of the texts, for the chart."""
        return cls(**{field.name: f"@{field.name.upper()}@" for field in fields(cls)})


def _text(number: Decimal) -> str:
    return format(number.normalize(), "f")


def _percent(ratio: Decimal) -> str:
    return f"{_text(100 * ratio)}%"


DEFAULT: Final = Texts.of(Objectives())

"""The first dashboard: is it well?"""

from __future__ import annotations

from typing import Final

from grafana.builder import limits
from grafana.builder.colours import BLUE, GREEN, ORANGE, PURPLE, RED
from grafana.builder.layout import Page, folded, headline, row, section
from grafana.builder.limits import Step, fires
from grafana.builder.panels import Query, Scale, graph, heat, listing, number
from grafana.builder.queries import (
    buckets,
    chosen,
    combine,
    placed,
    quantile,
    rate,
    recorded,
    series,
    share,
    shared,
)
from prometheus.source import api, slo
from prometheus.source.model import WORK

RESOURCES: Final = "facial-service-resources"
TASKS: Final = "facial-service-tasks"
DURATION: Final = "api_request_duration_seconds"
REQUESTS: Final = chosen(api.REQUESTS)
FAILURES: Final = series("api_requests_total", 'endpoint=~"/api/.+"', 'status=~"5.."')
STATUS_COLOURS: Final = {"^2": GREEN, "^3": BLUE, "^4": ORANGE, "^5": RED}
# A recorded rate, which is there as soon as the rules are loaded and the API has been asked for anything.
ANY_RATE: Final = f"namespace_job:{slo.OBJECTIVES[0].total}:rate5m"
NO_RULES: Final = "no rules, or no traffic yet"


def _firing(severity: str) -> str:
    found = (
        f'ALERTS{{alertname=~"FacialService.+", alertstate="firing", severity="{severity}", namespace=~"$namespace"}}'
    )
    return f"count({found}) or 0 * count({recorded(ANY_RATE)})"


def _bad(objective: slo.Objective, window: str) -> str:
    return combine("max", recorded(objective.ratio + window))


def _left(objective: slo.Objective) -> str:
    return f"1 - {_bad(objective, f'{slo.PERIOD_DAYS}d')} / {objective.budget}"


def _burn(objective: slo.Objective, window: str) -> str:
    return f"{_bad(objective, window)} / {objective.budget}"


AVAILABILITY, LATENCY = slo.OBJECTIVES
BURNS: Final = limits.burns(AVAILABILITY)
LEFT: Final = Scale("percentunit", (Step(0, ORANGE), Step(limits.BUDGET_LOW, GREEN)), base=RED, most=1, decimals=1)
FAST: Final = slo.BURNS[0]

WELL: Final = headline(
    number(
        "Alerts firing",
        "Alerts of this service that fire now. Good: none; each has a runbook behind it.",
        Scale("none"),
        Query(expr=_firing("critical"), legend="critical", steps=(Step(1, RED),)),
        Query(expr=_firing("warning"), legend="warning", steps=(Step(1, ORANGE),)),
        none=NO_RULES,
    ),
    number(
        "Instances",
        "Targets that answer Prometheus, and those that do not. Good: none is down.",
        Scale("none"),
        Query(expr=f"sum({series('up')})", legend="up", steps=()),
        Query(expr=f"count({series('up')} == 0) or vector(0)", legend="down", steps=(Step(1, RED),)),
        link=RESOURCES,
        none="no target",
    ),
    number(
        "Availability, 30 days",
        f"Share of the API's requests that were not answered with a 5xx status. Objective: {AVAILABILITY.target:%}.",
        Scale("percentunit", (Step(float(AVAILABILITY.target), GREEN),), base=RED, decimals=3),
        Query(expr=f"1 - {_bad(AVAILABILITY, '30d')}"),
        none=NO_RULES,
    ),
    number(
        "Error budget left, 30 days",
        f"What is left of the requests that may fail ({AVAILABILITY.budget:%}) and of those that may take longer than "
        f"{float(slo.LATENCY_S):g} s ({LATENCY.budget:%}). Good: green; below zero the objective is missed.",
        LEFT,
        Query(expr=_left(AVAILABILITY), legend="availability"),
        Query(expr=_left(LATENCY), legend="latency"),
        none=NO_RULES,
    ),
    number(
        "Budget burn, last hour",
        "How many times faster than sustainable the error budgets are used up. Good: below 1.",
        Scale("suffix:×", BURNS, decimals=1),
        Query(expr=_burn(AVAILABILITY, "1h"), legend="availability"),
        Query(expr=_burn(LATENCY, "1h"), legend="latency"),
        none=NO_RULES,
    ),
    number(
        "Requests",
        "Requests to the API a second, probes and scrapes not counted.",
        Scale("reqps", base=BLUE),
        Query(expr=rate(REQUESTS)),
    ),
    number(
        "Work, 95th percentile",
        "95th percentile of requests for work (POST), the sending of their bodies included; questions after a task are "
        "left out, for they wait as long as the caller wishes. The alert looks at each route for itself.",
        Scale("s", (fires("FacialServiceLatencyHigh"),)),
        Query(expr=quantile(0.95, DURATION, WORK)),
        none="no traffic",
    ),
    number(
        "Oldest task",
        "Age of the oldest task that is not done: the one figure that tells whether tasks are done in time. "
        "Good: seconds.",
        Scale("s", (fires("FacialServiceOldestTaskTooOld"),)),
        Query(expr=combine("max", series("task_oldest_age_seconds"))),
        link=TASKS,
        none="no queue",
    ),
)

RED_BY_ROUTE: Final = row(
    graph(
        "Requests by route",
        "Requests to the API a second, by route.",
        Scale("reqps"),
        Query(expr=rate(REQUESTS, "endpoint"), legend="{{endpoint}}"),
    ),
    graph(
        "Errors by route",
        "Share of requests that were answered with a 5xx status, by route. "
        f"At the line, the error budget of {slo.PERIOD_DAYS} days burns {FAST.factor:g} times too fast.",
        Scale("percentunit", (Step(float(FAST.factor * AVAILABILITY.budget), RED),)),
        Query(expr=share(rate(FAILURES, "endpoint"), rate(REQUESTS, "endpoint")), legend="{{endpoint}}"),
    ),
    graph(
        "Duration by route (95th percentile)",
        "Time that 95 of 100 requests stay below, by route. Questions after a task that ask to wait count with "
        "their wait.",
        Scale("s", (fires("FacialServiceLatencyHigh"),)),
        Query(
            expr=quantile(0.95, DURATION, 'endpoint=~"/api/.+"', by="endpoint"),
            legend="{{endpoint}}",
        ),
    ),
)

BUDGET_AND_LOAD: Final = row(
    graph(
        "Budget burn",
        "How many times faster than sustainable the error budgets are used up, over an hour and over six. The alerts "
        "look at two windows for each line.",
        Scale("suffix:×", BURNS),
        Query(expr=_burn(AVAILABILITY, "1h"), legend="availability, 1 h", colour=RED),
        Query(expr=_burn(AVAILABILITY, "6h"), legend="availability, 6 h", colour=ORANGE),
        Query(expr=_burn(LATENCY, "1h"), legend="latency, 1 h", colour=PURPLE),
        Query(expr=_burn(LATENCY, "6h"), legend="latency, 6 h", colour=BLUE),
    ),
    graph(
        "Answers by status",
        "Answers to requests to the API a second, by status code. 4xx is the caller's, 5xx the service's.",
        Scale("reqps"),
        Query(expr=rate(REQUESTS, "status"), legend="{{status}}"),
        colours=STATUS_COLOURS,
        is_stacked=True,
    ),
    graph(
        "Tasks",
        "Tasks that wait, and tasks that a worker has. Good: few wait, and not for long.",
        Scale("short", (fires("FacialServiceQueueBacklogGrowing"),)),
        Query(expr=shared("task_queue_size"), legend="waiting", colour=ORANGE),
        Query(expr=shared("active_tasks_count"), legend="in work", colour=BLUE),
    ),
)

OBJECTIVES: Final = folded(
    "Objectives",
    row(
        graph(
            "Error budget left over time",
            "What is left of each error budget. A line that falls reaches zero when the objective is missed.",
            Scale("percentunit", most=1),
            Query(expr=_left(AVAILABILITY), legend="availability"),
            Query(expr=_left(LATENCY), legend="latency"),
        ),
        *(
            graph(
                f"Burn of the {objective.name} budget by window",
                "The windows of the alerts: long ones tell that it matters, short ones that it goes on.",
                Scale("suffix:×", limits.burns(objective)),
                *(Query(expr=_burn(objective, window), legend=window) for window in slo.WINDOWS),
            )
            for objective in slo.OBJECTIVES
        ),
    ),
)

DETAIL: Final = folded(
    "Requests in detail",
    row(
        heat(
            "Duration of work",
            "Requests for work (POST) by how long they took. Good: a dark band at the bottom.",
            "s",
            Query(expr=buckets(DURATION, WORK)),
        ),
        graph(
            "Duration of work: quantiles",
            "Time that half, 95 and 99 of 100 requests for work (POST) stay below.",
            Scale("s"),
            *(Query(expr=quantile(q, DURATION, WORK), legend=f"{q:.0%}") for q in (0.5, 0.95, 0.99)),
        ),
    ),
    row(
        graph(
            "In progress by route",
            "Requests that are worked on or wait for it. Each worker process takes MAX_CONCURRENCY of them.",
            Scale("short"),
            Query(expr=combine("sum", series("api_requests_in_progress"), "endpoint"), legend="{{endpoint}}"),
            is_stacked=True,
        ),
        graph(
            "Turned away because it is busy",
            "Share of requests for work (POST) that were answered with 503 saturated. Good: none.",
            Scale("percentunit", (fires("FacialServiceSaturated"),)),
            Query(expr=share(rate(chosen(api.REJECTED)), rate(chosen(api.ASKED))), legend="saturated"),
        ),
        graph(
            "Turned away by reason",
            "Requests a second that were turned away before any work.",
            Scale("reqps"),
            Query(expr=rate(series("api_rejections_total"), "reason"), legend="{{reason}}"),
        ),
    ),
    row(
        graph(
            "Errors by component and code",
            "Errors a second, of callers and of the service, by the code that stands in the answer.",
            Scale("ops"),
            Query(expr=rate(series("errors_total"), "component, type"), legend="{{component}}: {{type}}"),
            is_wide=True,
        ),
        graph(
            "Bodies by route (95th percentile)",
            "Size that 95 of 100 request bodies stay below, by route.",
            Scale("bytes"),
            Query(
                expr=quantile(0.95, "api_request_size_bytes", WORK, by="endpoint"),
                legend="{{endpoint}}",
            ),
        ),
    ),
)

RUNNING: Final = folded(
    "What runs",
    row(
        graph(
            "Instances by version",
            "Instances of each version: a rollout is a line that rises while another falls.",
            Scale("short"),
            Query(expr=combine("count", series("app_build_info"), "version"), legend="{{version}}"),
            is_stacked=True,
        ),
        listing(
            "Versions",
            "Every instance that answers, with its version.",
            Query(expr=combine("max", placed(series("app_build_info")), "namespace, role, place, version, python")),
            {
                "namespace": "Namespace",
                "role": "Role",
                "place": "Instance",
                "version": "Version",
                "python": "Python",
            },
        ),
    ),
)

PAGE: Final = Page(
    "facial-service-overview",
    "Overview",
    "Whether the service is well: alerts, objectives, and rate, errors and duration by route.",
    (section("", WELL, RED_BY_ROUTE, BUDGET_AND_LOAD), OBJECTIVES, DETAIL, RUNNING),
)

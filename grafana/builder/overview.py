"""Overview dashboard: health of the service."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from grafana.builder import thresholds
from grafana.builder.colours import BLUE, GREEN, ORANGE, PURPLE, RED
from grafana.builder.layout import DashboardSpec, PanelRow, Section, collapsed_section, panel_row, section, stat_row
from grafana.builder.panels import Query, Scale, heatmap_panel, stat_panel, table_panel, timeseries_panel
from grafana.builder.queries import (
    ALERT_SELECTOR,
    aggregate,
    buckets,
    quantile,
    queue_gauge,
    rate,
    ratio,
    recorded,
    series,
    with_place,
    with_selector,
)
from grafana.builder.thresholds import Threshold, alert_threshold
from prometheus.source import api, slo
from prometheus.source.model import WORK

if TYPE_CHECKING:
    from prometheus.source.objectives import Texts

RESOURCES: Final = "facial-service-resources"
TASKS: Final = "facial-service-tasks"
DURATION: Final = "api_request_duration_seconds"
REQUESTS: Final = with_selector(api.REQUESTS)
FAILURES: Final = series("api_requests_total", 'endpoint=~"/api/.+"', 'status=~"5.."')
UPLOAD: Final = "api_request_upload_seconds"
STATUS_COLOURS: Final = {"^2": GREEN, "^3": BLUE, "^4": ORANGE, "^5": RED}
NO_RECORDINGS: Final = "no rules or no traffic"


def _firing(severity: str) -> str:
    """Return the number of firing alerts: 0 if none fires, and nothing without the rules, of which one records `up`."""
    alerts = f'ALERTS{{alertname=~"FacialService.+", alertstate="firing", severity="{severity}", {ALERT_SELECTOR}}}'
    return f"count({alerts}) or 0 * count({recorded(api.TARGETS_UP)})"


def _bad_ratio(objective: slo.Objective, window: str) -> str:
    return aggregate("max", recorded(objective.ratio + window))


def _budget_left(objective: slo.Objective, texts: Texts) -> str:
    return f"1 - {_bad_ratio(objective, f'{texts.window_days}d')} / {objective.budget}"


def _burn_rate(objective: slo.Objective, window: str) -> str:
    return f"{_bad_ratio(objective, window)} / {objective.budget}"


BUDGET_LEFT: Final = Scale(
    "percentunit", (Threshold(0, ORANGE), Threshold(thresholds.LOW_BUDGET, GREEN)), base=RED, maximum=1, decimals=1
)


def _stats(texts: Texts) -> PanelRow:
    availability, latency = slo.objectives(texts)
    burn_rates = thresholds.burn_rate_thresholds(availability, texts)
    return stat_row(
        stat_panel(
            "Alerts firing",
            "Firing alerts of this service. Normal: none. Each alert links to its runbook.",
            Scale("none"),
            Query(expr=_firing("critical"), legend="critical", thresholds=(Threshold(1, RED),)),
            Query(expr=_firing("warning"), legend="warning", thresholds=(Threshold(1, ORANGE),)),
            no_value=NO_RECORDINGS,
        ),
        stat_panel(
            "Instances",
            "Number of targets that are up, ready and down. Normal: all are ready, and none is down.",
            Scale("none"),
            Query(expr=f"sum({series('up')})", legend="up", thresholds=()),
            Query(expr=f"count({series('up')} == 0) or vector(0)", legend="down", thresholds=(Threshold(1, RED),)),
            no_value="no targets",
        ),
        stat_panel(
            f"Success ({texts.window_days}d)",
            f"Ratio of API requests without a 5xx status. Objective: {availability.target_percent}.",
            Scale("percentunit", (Threshold(thresholds.number(availability.target), GREEN),), base=RED, decimals=3),
            Query(expr=f"1 - {_bad_ratio(availability, f'{texts.window_days}d')}"),
            no_value=NO_RECORDINGS,
        ),
        stat_panel(
            f"Budget ({texts.window_days}d)",
            f"Remaining budget of failed requests ({availability.budget_percent}) and of requests longer than "
            f"{texts.latency_seconds} s ({latency.budget_percent}). Below zero, the objective is missed.",
            BUDGET_LEFT,
            Query(expr=_budget_left(availability, texts), legend="availability"),
            Query(expr=_budget_left(latency, texts), legend="latency"),
            no_value=NO_RECORDINGS,
        ),
        stat_panel(
            "Burn rate (1h)",
            "Consumption of the error budgets, relative to the sustainable rate. Normal: below 1.",
            Scale("suffix:×", burn_rates, decimals=1),
            Query(expr=_burn_rate(availability, "1h"), legend="availability"),
            Query(expr=_burn_rate(latency, "1h"), legend="latency"),
            no_value=NO_RECORDINGS,
        ),
        stat_panel(
            "Requests",
            "API requests per second, without probes and scrapes.",
            Scale("reqps", base=BLUE),
            Query(expr=rate(REQUESTS)),
        ),
        stat_panel(
            "Duration (p95)",
            "95th percentile of the duration of processing requests (POST), without the time to receive the body. "
            "Task status requests are excluded. The alert evaluates each route separately.",
            Scale("s", (alert_threshold("FacialServiceLatencyHigh"),)),
            Query(expr=quantile(0.95, DURATION, WORK)),
            no_value="no traffic",
        ),
        stat_panel(
            "Oldest task",
            "Age of the oldest unfinished task, which shows whether tasks complete in time. Normal: seconds.",
            Scale("s", (alert_threshold("FacialServiceOldestTaskTooOld"),)),
            Query(expr=aggregate("max", series("task_oldest_age_seconds"))),
            no_value="no queue",
        ),
    )


def _requests_by_route(texts: Texts) -> PanelRow:
    return panel_row(
        timeseries_panel(
            "Requests by route",
            "API requests per second, by route.",
            Scale("reqps"),
            Query(expr=rate(REQUESTS, "endpoint"), legend="{{endpoint}}"),
        ),
        timeseries_panel(
            "Errors by route",
            "Ratio of requests with a 5xx status, by route. At the line, the burn rate of the error budget of "
            f"{texts.window_days} days is {texts.factor_1h}.",
            Scale("percentunit", (Threshold(thresholds.number(texts.fast_burn_ratio), RED),)),
            Query(expr=ratio(rate(FAILURES, "endpoint"), rate(REQUESTS, "endpoint")), legend="{{endpoint}}"),
        ),
        timeseries_panel(
            "Request duration by route (95th percentile)",
            "95th percentile of the request duration, by route. The duration of task status requests includes the wait "
            "that clients request.",
            Scale("s", (alert_threshold("FacialServiceLatencyHigh"),)),
            Query(
                expr=quantile(0.95, DURATION, 'endpoint=~"/api/.+"', by="endpoint"),
                legend="{{endpoint}}",
            ),
        ),
    )


def _budget_and_load(texts: Texts) -> PanelRow:
    availability, latency = slo.objectives(texts)
    burn_rates = thresholds.burn_rate_thresholds(availability, texts)
    return panel_row(
        timeseries_panel(
            "Burn rate",
            "Consumption of the error budgets over 1 and 6 hours, relative to the sustainable rate. Each alert "
            "compares two windows with its threshold.",
            Scale("suffix:×", burn_rates),
            Query(expr=_burn_rate(availability, "1h"), legend="availability, 1 h", colour=RED),
            Query(expr=_burn_rate(availability, "6h"), legend="availability, 6 h", colour=ORANGE),
            Query(expr=_burn_rate(latency, "1h"), legend="latency, 1 h", colour=PURPLE),
            Query(expr=_burn_rate(latency, "6h"), legend="latency, 6 h", colour=BLUE),
        ),
        timeseries_panel(
            "Responses by status",
            "API responses per second, by status code. 4xx are client errors, 5xx server errors.",
            Scale("reqps"),
            Query(expr=rate(REQUESTS, "status"), legend="{{status}}"),
            colours=STATUS_COLOURS,
            is_stacked=True,
        ),
        timeseries_panel(
            "Tasks",
            "Number of waiting and active tasks. Normal: few tasks wait, and only briefly.",
            Scale("short", (alert_threshold("FacialServiceQueueBacklogGrowing"),)),
            Query(expr=queue_gauge("task_queue_size"), legend="waiting", colour=ORANGE),
            Query(expr=queue_gauge("active_tasks_count"), legend="active", colour=BLUE),
        ),
    )


def _objectives(texts: Texts) -> Section:
    slos = availability, latency = slo.objectives(texts)
    return collapsed_section(
        "Objectives",
        panel_row(
            timeseries_panel(
                "Error budget left over time",
                "Remaining part of each error budget. At zero, the objective is missed.",
                Scale("percentunit", maximum=1),
                Query(expr=_budget_left(availability, texts), legend="availability"),
                Query(expr=_budget_left(latency, texts), legend="latency"),
            ),
            *(
                timeseries_panel(
                    f"Burn rate by window: {objective.name}",
                    "Windows of the alerts. Long windows show significance, short windows that the problem continues.",
                    Scale("suffix:×", thresholds.burn_rate_thresholds(objective, texts)),
                    *(Query(expr=_burn_rate(objective, window), legend=window) for window in slo.WINDOWS),
                )
                for objective in slos
            ),
        ),
    )


REQUEST_DETAILS: Final = collapsed_section(
    "Request details",
    panel_row(
        heatmap_panel(
            "Request duration",
            "Processing requests (POST) by duration. Normal: a dark band at the bottom.",
            "s",
            Query(expr=buckets(DURATION, WORK)),
        ),
        timeseries_panel(
            "Request duration: quantiles",
            "Quantiles of the duration of processing requests (POST).",
            Scale("s"),
            *(Query(expr=quantile(q, DURATION, WORK), legend=f"{q:.0%}") for q in (0.5, 0.95, 0.99)),
        ),
    ),
    panel_row(
        timeseries_panel(
            "Requests in progress by route",
            "Requests that are processed or wait for a slot. Each worker process accepts at most MAX_CONCURRENCY.",
            Scale("short"),
            Query(expr=aggregate("sum", series("api_requests_in_progress"), "endpoint"), legend="{{endpoint}}"),
            is_stacked=True,
        ),
        timeseries_panel(
            "Rejected because saturated",
            "Ratio of processing requests (POST) rejected with 503 saturated. Normal: none.",
            Scale("percentunit", (alert_threshold("FacialServiceSaturated"),)),
            Query(
                expr=ratio(rate(with_selector(api.SATURATED)), rate(with_selector(api.WORK_REQUESTS))),
                legend="saturated",
            ),
        ),
        timeseries_panel(
            "Rejections by reason",
            "Requests per second that were rejected before processing.",
            Scale("reqps"),
            Query(expr=rate(series("api_rejections_total"), "reason"), legend="{{reason}}"),
        ),
    ),
    panel_row(
        timeseries_panel(
            "Errors by component and code",
            "Client and server errors per second, by the error code of the response.",
            Scale("ops"),
            Query(expr=rate(series("errors_total"), "component, type"), legend="{{component}}: {{type}}"),
        ),
        timeseries_panel(
            "Upload time by route (95th percentile)",
            "95th percentile of the time to receive the request body, by route. It depends on the network of the "
            "clients, and does not count as request duration.",
            Scale("s"),
            Query(expr=quantile(0.95, UPLOAD, WORK, by="endpoint"), legend="{{endpoint}}"),
        ),
        timeseries_panel(
            "Request body size by route (95th percentile)",
            "95th percentile of the request body size, by route.",
            Scale("bytes"),
            Query(
                expr=quantile(0.95, "api_request_size_bytes", WORK, by="endpoint"),
                legend="{{endpoint}}",
            ),
        ),
    ),
)

VERSIONS: Final = collapsed_section(
    "Versions",
    panel_row(
        timeseries_panel(
            "Instances by version",
            "Number of instances by version. During a rollout, one version increases while another decreases.",
            Scale("short"),
            Query(expr=aggregate("count", series("app_build_info"), "version"), legend="{{version}}"),
            is_stacked=True,
        ),
        table_panel(
            "Version of each instance",
            "Reachable instances and their versions.",
            Query(
                expr=aggregate(
                    "max",
                    with_place(series("app_build_info")),
                    "cluster, namespace, release, role, place, version, python",
                )
            ),
            {
                "cluster": "Cluster",
                "namespace": "Namespace",
                "release": "Release",
                "role": "Role",
                "place": "Instance",
                "version": "Version",
                "python": "Python",
            },
            {"Namespace": 110, "Role": 90, "Version": 110, "Python": 100},
        ),
    ),
)


def dashboard(texts: Texts) -> DashboardSpec:
    """Return the dashboard for objectives."""
    return DashboardSpec(
        "facial-service-overview",
        "Overview",
        "Health of the service: alerts, objectives, and request rate, errors and duration by route.",
        (
            section("", _stats(texts), _requests_by_route(texts), _budget_and_load(texts)),
            _objectives(texts),
            REQUEST_DETAILS,
            VERSIONS,
        ),
    )

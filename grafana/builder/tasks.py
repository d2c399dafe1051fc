"""Tasks dashboard: completion and latency of tasks, and the state of the queue."""

from __future__ import annotations

from typing import Final

from grafana.builder.colours import BLUE, GREEN, GREY, ORANGE, PURPLE, RED
from grafana.builder.layout import DashboardSpec, collapsed_section, panel_row, section, stat_row
from grafana.builder.panels import Query, Scale, heatmap_panel, stat_panel, timeseries_panel
from grafana.builder.queries import (
    aggregate,
    buckets,
    increase,
    quantile,
    queue_gauge,
    rate,
    ratio,
    series,
    with_place,
    with_selector,
)
from grafana.builder.thresholds import Threshold, alert_threshold, count_threshold
from prometheus.source import api, tasks

WAIT_TIME: Final = "task_wait_seconds"
PROCESSING_TIME: Final = "task_processing_duration_seconds"
QUANTILES: Final = (0.5, 0.95, 0.99)
STATUS_COLOURS: Final = {"SUCCESS": GREEN, "FAILURE": RED, "CANCELLED": GREY}
REACHABILITY: Final = {"1": ("reachable", GREEN), "0": ("unreachable", RED)}

SUBMITTED: Final = rate(series("task_submissions_total"))
COMPLETIONS: Final = series("task_completions_total")
REDELIVERIES: Final = rate(with_selector(tasks.REDELIVERIES))
FAILURE_RATIO: Final = ratio(rate(with_selector(tasks.FAILED)), rate(with_selector(tasks.COMPLETED)))
# Every running process exports its memory usage, so these samples count processes.
WORKERS: Final = with_selector(tasks.WORKERS)
OLDEST: Final = aggregate("max", series("task_oldest_age_seconds"))
STORAGE_RATIO: Final = f"max({series('queue_storage_bytes')} / {series('queue_storage_limit_bytes')})"

STATS: Final = stat_row(
    stat_panel(
        "Queue",
        "Whether all instances can reach the queue. Normal: reachable.",
        Scale("none", base=RED),
        Query(expr=aggregate("min", series("queue_up"))),
        value_texts=REACHABILITY,
        no_value="unknown",
    ),
    stat_panel(
        "Waiting",
        "Number of tasks waiting for a worker. The alert fires only if it also increases.",
        Scale("short", (alert_threshold("FacialServiceQueueBacklogGrowing"),)),
        Query(expr=queue_gauge("task_queue_size")),
    ),
    stat_panel(
        "Active",
        "Number of tasks that workers have received but not acknowledged.",
        Scale("short", base=BLUE),
        Query(expr=queue_gauge("active_tasks_count")),
    ),
    stat_panel(
        "Oldest task",
        "Age of the oldest unfinished task. Normal: seconds.",
        Scale("s", (alert_threshold("FacialServiceOldestTaskTooOld"),)),
        Query(expr=OLDEST),
    ),
    stat_panel(
        "Workers",
        "Number of task processes. Normal: at least one, or none if KEDA has scaled to zero.",
        Scale("short", (Threshold(1, GREEN),), base=RED),
        Query(expr=f"count({WORKERS}) or vector(0)"),
    ),
    stat_panel(
        "Failure ratio",
        "Ratio of completed tasks that failed, because of client or server errors.",
        Scale("percentunit", (alert_threshold("FacialServiceTaskFailureRatioHigh"),), decimals=1),
        Query(expr=FAILURE_RATIO),
        no_value="no completions",
    ),
    stat_panel(
        "Dead letters",
        "Number of dead-lettered tasks, which an operator must retry or drop. Normal: none.",
        Scale("short", (count_threshold("FacialServiceDeadTasks"),)),
        Query(expr=queue_gauge("task_dead_kept")),
    ),
    stat_panel(
        "Storage used",
        "Storage usage of tasks, records and dead letters, relative to the limit of the NATS server.",
        Scale("percentunit", (alert_threshold("FacialServiceQueueStorageNearlyFull"),), decimals=1),
        Query(expr=STORAGE_RATIO),
        no_value="unknown limit",
    ),
)

THROUGHPUT: Final = panel_row(
    timeseries_panel(
        "Submissions and completions",
        "Submitted and completed tasks per second. Normal: both rates are equal.",
        Scale("ops"),
        Query(expr=SUBMITTED, legend="submitted", colour=BLUE),
        Query(expr=rate(COMPLETIONS, "status"), legend="{{status}}"),
        colours=STATUS_COLOURS,
    ),
    timeseries_panel(
        "Waiting and active tasks",
        "Number of waiting and active tasks. Normal: few wait. The alert fires only if waiting tasks also increase.",
        Scale("short", (alert_threshold("FacialServiceQueueBacklogGrowing"),)),
        Query(expr=queue_gauge("task_queue_size"), legend="waiting", colour=ORANGE),
        Query(expr=queue_gauge("active_tasks_count"), legend="active", colour=BLUE),
    ),
    timeseries_panel(
        "Age of the oldest task",
        "Age of the oldest unfinished task. Normal: about the processing time.",
        Scale("s", (alert_threshold("FacialServiceOldestTaskTooOld"),)),
        Query(expr=OLDEST, legend="oldest", colour=PURPLE),
    ),
)

LATENCY: Final = panel_row(
    timeseries_panel(
        "Wait time",
        "Quantiles of the time from submission to the start of the first attempt.",
        Scale("s"),
        *(Query(expr=quantile(q, WAIT_TIME), legend=f"{q:.0%}") for q in QUANTILES),
    ),
    timeseries_panel(
        "Processing time",
        "Quantiles of the processing time of each attempt.",
        Scale("s"),
        *(Query(expr=quantile(q, PROCESSING_TIME), legend=f"{q:.0%}") for q in QUANTILES),
    ),
    timeseries_panel(
        "Failure ratio over time",
        "Ratio of completed tasks that failed, because of client or server errors.",
        Scale("percentunit", (alert_threshold("FacialServiceTaskFailureRatioHigh"),)),
        Query(expr=FAILURE_RATIO, legend="failed", colour=RED),
    ),
)

PROBLEMS: Final = section(
    "Problems",
    panel_row(
        timeseries_panel(
            "Redelivery ratio",
            "Ratio of task deliveries that are redeliveries, because an earlier attempt did not complete.",
            Scale("percentunit", (alert_threshold("FacialServiceRedeliveries"),)),
            Query(
                expr=ratio(REDELIVERIES, f"({REDELIVERIES} + {rate(COMPLETIONS)})"),
                legend="redeliveries",
                colour=ORANGE,
            ),
        ),
        timeseries_panel(
            "Dead-lettered tasks",
            "Newly dead-lettered tasks, and the number of stored dead letters. Normal: none.",
            Scale("short", (count_threshold("FacialServiceDeadTasks"),)),
            Query(expr=increase(series("task_dead_total")), legend="new", colour=RED),
            Query(expr=queue_gauge("task_dead_kept"), legend="stored", colour=GREY),
        ),
        timeseries_panel(
            "Repairs",
            "Inconsistencies of records, stream and consumers that the reconciler repaired, by reason. Normal: none.",
            Scale("short"),
            Query(expr=increase(series("task_repairs_total"), "reason"), legend="{{reason}}"),
        ),
        timeseries_panel(
            "Rejected submissions",
            "Ratio of submissions rejected with 503, because the queue is full or unreachable. The alert covers only "
            "the full queue.",
            Scale("percentunit", (alert_threshold("FacialServiceQueueFull"),)),
            Query(expr=ratio(rate(with_selector(api.QUEUE_FULL)), rate(with_selector(api.SUBMISSIONS))), legend="full"),
            Query(
                expr=ratio(
                    rate(series("api_rejections_total", 'reason="queue_unavailable"')),
                    rate(with_selector(api.SUBMISSIONS)),
                ),
                legend="unavailable",
            ),
        ),
    ),
    panel_row(
        timeseries_panel(
            "Failures by code",
            "Errors per second of tasks and task routes, by error code.",
            Scale("ops"),
            Query(expr=rate(series("errors_total", 'component="tasks"'), "type"), legend="{{type}}"),
        ),
        timeseries_panel(
            "Queue limits used",
            "Usage of TASK_QUEUE_MAX_MESSAGES or TASK_QUEUE_MAX_BYTES, whichever is higher. At 100 %, submissions get "
            "503.",
            Scale("percentunit", (alert_threshold("FacialServiceQueueNearlyFull"),), maximum=1),
            Query(expr=aggregate("max", series("task_queue_used_ratio")), legend="used", colour=BLUE),
        ),
        timeseries_panel(
            "Result store used",
            "Usage of RESULT_MAX_BYTES by task records. At 100 %, submissions get 503 until results expire.",
            Scale("percentunit", (alert_threshold("FacialServiceResultStoreNearlyFull"),), maximum=1),
            Query(expr=aggregate("max", series("result_store_used_ratio")), legend="used", colour=BLUE),
        ),
        timeseries_panel(
            "Redeliveries",
            "Redeliveries per second, after a worker exited or stopped reporting progress. Normal: none.",
            Scale("ops"),
            Query(expr=REDELIVERIES, legend="redeliveries", colour=ORANGE),
        ),
    ),
)

WORKER_DETAILS: Final = collapsed_section(
    "Workers and durations",
    panel_row(
        timeseries_panel(
            "Workers by instance",
            "Number of task processes, by pod or instance.",
            Scale("short"),
            Query(expr=aggregate("count", with_place(WORKERS), "place"), legend="{{place}}"),
            is_stacked=True,
        ),
        timeseries_panel(
            "Worker utilization",
            "Ratio of time that workers spend on tasks. At 100 %, the next task waits.",
            Scale("percentunit"),
            Query(expr=f"{rate(series(f'{PROCESSING_TIME}_sum'))} / count({WORKERS})", legend="busy"),
        ),
        timeseries_panel(
            "Worker exits by reason",
            "Exits of processes in worker instances, by reason. If a target has API and workers, both count. Normal: "
            "only `stopped`.",
            Scale("short"),
            Query(expr=increase(series("app_worker_exits_total", 'role!="api"'), "reason"), legend="{{reason}}"),
        ),
    ),
    panel_row(
        heatmap_panel(
            "Wait time distribution",
            "Tasks by the time from submission to the first attempt. Normal: a dark band at the bottom.",
            "s",
            Query(expr=buckets(WAIT_TIME)),
        ),
        heatmap_panel(
            "Processing time distribution",
            "Attempts by their processing time.",
            "s",
            Query(expr=buckets(PROCESSING_TIME)),
        ),
    ),
)

QUEUE: Final = collapsed_section(
    "Queue and NATS server",
    panel_row(
        timeseries_panel(
            "Storage",
            "Storage usage of tasks, records and dead letters, and the limit of the NATS server.",
            Scale("bytes"),
            Query(expr=queue_gauge("queue_storage_bytes"), legend="used", colour=BLUE),
            Query(expr=queue_gauge("queue_storage_limit_bytes"), legend="limit", colour=RED, is_dashed=True),
        ),
        timeseries_panel(
            "Availability",
            "1 if the instance can reach the queue, if the queue is writable, and if the cluster has a leader.",
            Scale("bool_yes_no", maximum=1),
            Query(expr=aggregate("min", with_place(series("queue_up")), "place"), legend="{{place}}"),
            Query(expr=aggregate("min", series("queue_writable")), legend="writable", colour=RED),
            Query(expr=aggregate("min", series("queue_cluster_has_leader")), legend="leader", colour=GREY),
        ),
        timeseries_panel(
            "NATS server memory",
            "Memory usage of the NATS server, if its monitoring port is configured.",
            Scale("bytes"),
            Query(expr=queue_gauge("queue_memory_bytes"), legend="memory"),
        ),
        timeseries_panel(
            "NATS server connections",
            "Number of clients connected to the NATS server, if its monitoring port is configured.",
            Scale("short"),
            Query(expr=queue_gauge("queue_connections"), legend="connections"),
        ),
    ),
)

DASHBOARD: Final = DashboardSpec(
    "facial-service-tasks",
    "Tasks",
    "Tasks and their queue: throughput, latency, failures and workers.",
    (section("", STATS, THROUGHPUT, LATENCY), PROBLEMS, WORKER_DETAILS, QUEUE),
)

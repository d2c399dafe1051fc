"""The dashboard of tasks: is what was taken done, and done in time?"""

from __future__ import annotations

from typing import Final

from grafana.builder.colours import BLUE, GREEN, GREY, ORANGE, PURPLE, RED
from grafana.builder.layout import Page, folded, headline, row, section
from grafana.builder.limits import Step, counts, fires
from grafana.builder.panels import Query, Scale, graph, heat, number
from grafana.builder.queries import buckets, chosen, combine, increase, placed, quantile, rate, series, share, shared
from prometheus.source import api, tasks

WAIT: Final = "task_wait_seconds"
WORK: Final = "task_processing_duration_seconds"
QUANTILES: Final = (0.5, 0.95, 0.99)
STATUS_COLOURS: Final = {"SUCCESS": GREEN, "FAILURE": RED, "CANCELLED": GREY}
UP: Final = {"1": ("answers", GREEN), "0": ("no answer", RED)}

SUBMITTED: Final = rate(series("task_submissions_total"))
ENDED: Final = series("task_completions_total")
AGAIN: Final = rate(chosen(tasks.AGAIN))
FAILED_SHARE: Final = share(rate(chosen(tasks.FAILED)), rate(chosen(tasks.DONE)))
# Who is alive is known from its memory: every process that runs has a sample, and no other.
WORKERS: Final = chosen(tasks.WORKERS)
OLDEST: Final = combine("max", series("task_oldest_age_seconds"))
USED: Final = f"max({series('queue_storage_bytes')} / {series('queue_storage_limit_bytes')})"

WELL: Final = headline(
    number(
        "Queue",
        "Whether the queue answers every instance. Good: it does.",
        Scale("none", base=RED),
        Query(expr=combine("min", series("queue_up"))),
        words=UP,
        none="not told",
    ),
    number(
        "Waiting",
        "Tasks that wait for a worker. The alert wants them to grow besides.",
        Scale("short", (fires("FacialServiceQueueBacklogGrowing"),)),
        Query(expr=shared("task_queue_size")),
    ),
    number(
        "In work",
        "Tasks that a worker has and has not confirmed.",
        Scale("short", base=BLUE),
        Query(expr=shared("active_tasks_count")),
    ),
    number(
        "Oldest task",
        "Age of the oldest task that is not done. Good: seconds.",
        Scale("s", (fires("FacialServiceOldestTaskTooOld"),)),
        Query(expr=OLDEST),
    ),
    number(
        "Workers",
        "Processes that work on tasks. Good: at least one; KEDA may have none while nothing waits.",
        Scale("short", (Step(1, GREEN),), base=RED),
        Query(expr=f"count({WORKERS}) or vector(0)"),
        link="facial-service-resources",
    ),
    number(
        "Failed",
        "Share of the tasks that ended which failed, by the callers' fault or by the service's.",
        Scale("percentunit", (fires("FacialServiceTaskFailureRatioHigh"),), decimals=1),
        Query(expr=FAILED_SHARE),
        none="none ended",
    ),
    number(
        "Given up on",
        "Tasks that were given up on and are kept aside until somebody tries them again or drops them. Good: none.",
        Scale("short", (counts("FacialServiceDeadTasks"),)),
        Query(expr=shared("task_dead_kept")),
    ),
    number(
        "Storage used",
        "Share of what the queue's server may store that tasks and records take.",
        Scale("percentunit", (fires("FacialServiceQueueStorageNearlyFull"),), decimals=1),
        Query(expr=USED),
        none="no limit told",
    ),
)

FLOW: Final = row(
    graph(
        "Taken and ended",
        "Tasks a second that were submitted, and that came to an end, by that end. Good: the lines go together.",
        Scale("ops"),
        Query(expr=SUBMITTED, legend="submitted", colour=BLUE),
        Query(expr=rate(ENDED, "status"), legend="{{status}}"),
        colours=STATUS_COLOURS,
    ),
    graph(
        "Waiting and in work",
        "Tasks that wait for a worker, and tasks that one has. Good: few wait. The alert wants them to grow besides.",
        Scale("short", (fires("FacialServiceQueueBacklogGrowing"),)),
        Query(expr=shared("task_queue_size"), legend="waiting", colour=ORANGE),
        Query(expr=shared("active_tasks_count"), legend="in work", colour=BLUE),
    ),
    graph(
        "Age of the oldest task",
        "How long ago the oldest task that is not done was submitted. Good: no longer than work takes.",
        Scale("s", (fires("FacialServiceOldestTaskTooOld"),)),
        Query(expr=OLDEST, legend="oldest", colour=PURPLE),
    ),
)

PACE: Final = row(
    graph(
        "Wait for work",
        "Time from submission to the first work that half, 95 and 99 of 100 tasks stay below.",
        Scale("s"),
        *(Query(expr=quantile(q, WAIT), legend=f"{q:.0%}") for q in QUANTILES),
    ),
    graph(
        "Time of work",
        "Time of work on a task, each attempt for itself, that half, 95 and 99 of 100 stay below.",
        Scale("s"),
        *(Query(expr=quantile(q, WORK), legend=f"{q:.0%}") for q in QUANTILES),
    ),
    graph(
        "Share that failed",
        "Share of the tasks that ended which failed, by the callers' fault or by the service's.",
        Scale("percentunit", (fires("FacialServiceTaskFailureRatioHigh"),)),
        Query(expr=FAILED_SHARE, legend="failed", colour=RED),
    ),
)

TROUBLE: Final = section(
    "Trouble",
    row(
        graph(
            "Started over",
            "Share of deliveries that are not the task's first: work on it was begun before and came to no end.",
            Scale("percentunit", (fires("FacialServiceRedeliveries"),)),
            Query(expr=share(AGAIN, f"({AGAIN} + {rate(ENDED)})"), legend="started over", colour=ORANGE),
        ),
        graph(
            "Tasks given up on",
            "Tasks that were given up on, and how many of them are kept aside. Good: none.",
            Scale("short", (counts("FacialServiceDeadTasks"),)),
            Query(expr=increase(series("task_dead_total")), legend="given up on", colour=RED),
            Query(expr=shared("task_dead_kept"), legend="kept aside", colour=GREY),
        ),
        graph(
            "Repairs",
            "Differences between records, stream and consumer that the reconciler repaired, by reason. Good: none.",
            Scale("short"),
            Query(expr=increase(series("task_repairs_total"), "reason"), legend="{{reason}}"),
        ),
        graph(
            "Submissions refused",
            "Share of submissions that were answered with 503, because the queue is full or does not answer. The alert "
            "is on the full queue.",
            Scale("percentunit", (fires("FacialServiceQueueFull"),)),
            Query(expr=share(rate(chosen(api.REFUSED)), rate(chosen(api.SUBMITTED))), legend="full"),
            Query(
                expr=share(
                    rate(series("api_rejections_total", 'reason="queue_unavailable"')),
                    rate(chosen(api.SUBMITTED)),
                ),
                legend="unavailable",
            ),
        ),
    ),
    row(
        graph(
            "Failures by code",
            "Errors a second of tasks and of their routes, by the code that stands in the task or the answer.",
            Scale("ops"),
            Query(expr=rate(series("errors_total", 'component="tasks"'), "type"), legend="{{type}}"),
            is_wide=True,
        ),
        graph(
            "Redeliveries",
            "Deliveries a second of tasks that had been delivered before: their worker ended or fell silent. "
            "Good: none.",
            Scale("ops"),
            Query(expr=AGAIN, legend="again", colour=ORANGE),
        ),
    ),
)

WORKING: Final = folded(
    "Who works, and how long",
    row(
        graph(
            "Workers by instance",
            "Processes that work on tasks, by pod or instance.",
            Scale("short"),
            Query(expr=combine("count", placed(WORKERS), "place"), legend="{{place}}"),
            is_stacked=True,
        ),
        graph(
            "Busy",
            "Share of their time that workers work on tasks. At 100 % the next task waits.",
            Scale("percentunit"),
            Query(expr=f"{rate(series(f'{WORK}_sum'))} / count({WORKERS})", legend="busy"),
        ),
        graph(
            "Worker processes ended",
            "Processes of instances that work on tasks alone which ended, by reason; "
            "where one target has API and workers, those of both. Good: none but `stopped`.",
            Scale("short"),
            Query(expr=increase(series("app_worker_exits_total", 'role!="api"'), "reason"), legend="{{reason}}"),
        ),
    ),
    row(
        heat(
            "Wait for work, distribution",
            "Tasks by the time from submission to the first work. Good: a dark band at the bottom.",
            "s",
            Query(expr=buckets(WAIT)),
        ),
        heat(
            "Time of work, distribution",
            "Attempts by how long they took.",
            "s",
            Query(expr=buckets(WORK)),
        ),
    ),
)

QUEUE: Final = folded(
    "The queue and its server",
    row(
        graph(
            "Storage",
            "What tasks, their records and those that were given up on take, and what the queue's server may store.",
            Scale("bytes"),
            Query(expr=shared("queue_storage_bytes"), legend="used", colour=BLUE),
            Query(expr=shared("queue_storage_limit_bytes"), legend="limit", colour=RED, is_dashed=True),
        ),
        graph(
            "Answers",
            "1 while the queue answers an instance, while it can store tasks, and while a cluster has a leader.",
            Scale("bool_yes_no", most=1),
            Query(expr=combine("min", placed(series("queue_up")), "place"), legend="{{place}}"),
            Query(expr=combine("min", series("queue_writable")), legend="can store", colour=RED),
            Query(expr=combine("min", series("queue_cluster_has_leader")), legend="leader", colour=GREY),
        ),
        graph(
            "Memory of its server",
            "Memory of the queue's server, where its monitoring port is known.",
            Scale("bytes"),
            Query(expr=shared("queue_memory_bytes"), legend="memory"),
        ),
        graph(
            "Connections",
            "Clients that are connected to the queue's server, where its monitoring port is known.",
            Scale("short"),
            Query(expr=shared("queue_connections"), legend="connections"),
        ),
    ),
)

PAGE: Final = Page(
    "facial-service-tasks",
    "Tasks",
    "Tasks and their queue: how many come, how long they wait, how they end, and who works on them.",
    (section("", WELL, FLOW, PACE), TROUBLE, WORKING, QUEUE),
)

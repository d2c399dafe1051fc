"""Rules for tasks and their queue.

Every instance exports the state of the same queue, so the rules use the maximum over instances, never the sum.
"""

from __future__ import annotations

from textwrap import dedent

from prometheus.source.model import (
    BY,
    DURATION,
    INSTANCE,
    LOCATION,
    NUMBER,
    PERCENT,
    Alert,
    Group,
    Recording,
    series,
)

BY_TYPE = "by (namespace, job, type)"
SIZE = "namespace_job_type:task_queue_size:max"
OLDEST = "namespace_job_type:task_oldest_age_seconds:max"
STORAGE = "namespace_job:queue_storage_bytes_per_limit:ratio_max"

# A scrape waits less than a second for the queue, so a single failure is not yet an outage.
QUEUE_UP = f"max_over_time({series('queue_up')}[2m])"
# Task processes have this name both in API instances and in worker instances.
WORKERS = series("memory_usage_bytes", 'process=~"task-[0-9]+"')

FAILED = series("task_completions_total", 'status="FAILURE"')
COMPLETED = series("task_completions_total", 'status=~"SUCCESS|FAILURE"')
COMPLETIONS = series("task_completions_total")
REDELIVERIES = series("task_redeliveries_total")

RECORDINGS = (
    Recording(name=SIZE, expr=f"max {BY_TYPE} ({series('task_queue_size')})"),
    Recording(name=OLDEST, expr=f"max {BY_TYPE} ({series('task_oldest_age_seconds')})"),
    Recording(
        name=STORAGE,
        expr=dedent(f"""\
            max {BY} ({series("queue_storage_bytes")})
              /
            max {BY} ({series("queue_storage_limit_bytes")})"""),
    ),
)

QUEUE_ALERTS = (
    Alert(
        name="FacialServiceQueueUnreachable",
        expr=f"max {BY} ({QUEUE_UP}) == 0",
        hold="1m",
        severity="critical",
        summary="The queue is unreachable from all instances.",
        description=(
            f"No instance{LOCATION} can reach the queue. Task submissions and status requests fail with 503, and no "
            "tasks are processed. Synchronous requests are not affected."
        ),
        dashboard="facial-service-tasks",
    ),
    Alert(
        name="FacialServiceQueueUnreachableFromInstance",
        expr=dedent(f"""\
            {QUEUE_UP} == 0
              and on (namespace, job)
            max {BY} ({QUEUE_UP}) == 1"""),
        hold="5m",
        severity="warning",
        summary="The queue is unreachable from an instance, but not from others.",
        description=(
            f"{INSTANCE}{LOCATION} cannot reach the queue, but other instances can. If it is an API instance, it "
            "rejects submissions with 503 and stays ready. If it is a worker, it processes no tasks."
        ),
        dashboard="facial-service-tasks",
    ),
    Alert(
        name="FacialServiceQueueStorageNearlyFull",
        expr=f"{STORAGE} > 0.8",
        hold="15m",
        severity="warning",
        summary="The queue's storage is nearly full.",
        description=(
            f"Tasks, task records and dead letters use {PERCENT} of the queue's storage limit{LOCATION}. When the "
            "storage is full, the API rejects submissions and workers cannot store results."
        ),
        dashboard="facial-service-tasks",
    ),
    Alert(
        name="FacialServiceQueueBacklogGrowing",
        expr=f"{SIZE} > 100\n  and\nderiv({SIZE}[15m]) > 0",
        hold="15m",
        severity="warning",
        summary="Tasks arrive faster than workers process them.",
        description=f"Number of tasks waiting for a worker{LOCATION}: {NUMBER}, and increasing.",
        dashboard="facial-service-tasks",
    ),
    Alert(
        name="FacialServiceOldestTaskTooOld",
        # A task that exceeds TASK_TIMEOUT_S on every attempt is dead-lettered after six minutes, before the alert.
        expr=f"{OLDEST} > 300",
        hold="5m",
        severity="critical",
        summary="The oldest unfinished task is too old.",
        description=f"The oldest unfinished task{LOCATION} was submitted {DURATION} ago.",
        dashboard="facial-service-tasks",
    ),
)

TASK_ALERTS = (
    Alert(
        name="FacialServiceNoTaskWorkers",
        # Tasks of a worker that disappeared count as active until another worker receives them.
        expr=dedent(f"""\
            sum {BY} ({SIZE} + max {BY_TYPE} ({series("active_tasks_count")})) > 0
              unless
            group {BY} ({WORKERS})"""),
        hold="5m",
        severity="critical",
        summary="No workers are running, but tasks are waiting.",
        description=f"Number of unfinished tasks{LOCATION}: {NUMBER}. No task process is running.",
        dashboard="facial-service-tasks",
    ),
    Alert(
        name="FacialServiceTaskFailureRatioHigh",
        expr=dedent(f"""\
            sum {BY_TYPE} (rate({FAILED}[10m]))
              /
            sum {BY_TYPE} (rate({COMPLETED}[10m]))
              > 0.1
              and
            sum {BY_TYPE} (increase({FAILED}[10m])) >= 10"""),
        hold="10m",
        severity="warning",
        summary="Many tasks fail.",
        description=f"{PERCENT} of the completed tasks{LOCATION} failed. Both client and server errors count.",
        dashboard="facial-service-tasks",
    ),
    Alert(
        name="FacialServiceRedeliveries",
        expr=dedent(f"""\
            sum {BY_TYPE} (rate({REDELIVERIES}[15m]))
              /
            (
                sum {BY_TYPE} (rate({REDELIVERIES}[15m]))
              +
                sum {BY_TYPE} (rate({COMPLETIONS}[15m]))
            )
              > 0.1
              and
            sum {BY_TYPE} (increase({REDELIVERIES}[15m])) >= 20"""),
        hold="10m",
        severity="warning",
        summary="Many tasks are redelivered.",
        description=(
            f"{PERCENT} of the task deliveries{LOCATION} are redeliveries, because an earlier attempt started but did "
            "not complete."
        ),
        dashboard="facial-service-tasks",
    ),
    Alert(
        name="FacialServiceDeadTasks",
        # One is enough: invalid input does not cause dead letters; only TASK_MAX_DELIVERIES failed attempts do.
        expr=f"max {BY} ({series('task_dead_kept')}) > 0",
        hold="5m",
        severity="warning",
        summary="Dead-lettered tasks need attention.",
        description=f"Number of dead-lettered tasks{LOCATION}: {NUMBER}. Retry or drop them.",
        dashboard="facial-service-tasks",
    ),
)

GROUPS = (
    Group(name="facial-service-tasks.rules", rules=RECORDINGS),
    Group(name="facial-service-tasks", rules=QUEUE_ALERTS + TASK_ALERTS),
)

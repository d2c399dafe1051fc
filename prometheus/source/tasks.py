"""Rules for tasks and their queue.

Every instance exports the state of the same queue, so the rules use the maximum over instances, never the sum.
"""

from __future__ import annotations

from textwrap import dedent
from typing import TYPE_CHECKING

from prometheus.source.model import (
    BY,
    COUNT,
    DURATION,
    INSTANCE,
    LOCATION,
    NUMBER,
    ON,
    PERCENT,
    Alert,
    Group,
    Recording,
    by,
    level,
    series,
)

if TYPE_CHECKING:
    from prometheus.source.objectives import Texts

BY_TYPE = by("type")
SIZE = f"{level('type')}:task_queue_size:max"
OLDEST = f"{level('type')}:task_oldest_age_seconds:max"
STORAGE = f"{level()}:queue_storage_bytes_per_limit:ratio_max"

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


def _oldest_task_alert(deadline_s: str) -> Alert:
    """Return the alert on the oldest task.

    A backlog from which tasks are completed is not an outage: unless a deadline is given, it fires only if nothing
    completes. A task that exceeds TASK_TIMEOUT_S on every attempt is dead-lettered after six minutes, before the alert.
    """
    return Alert(
        name="FacialServiceOldestTaskTooOld",
        expr=dedent(f"""\
            (
                {series(OLDEST)} > 300
              unless
                sum {BY_TYPE} (increase({COMPLETED}[10m])) > 0
            )
              or
            {series(OLDEST)} > {deadline_s}"""),
        hold="5m",
        severity="critical",
        summary="Tasks are not completed in time.",
        description=(
            f"The oldest unfinished task{LOCATION} was submitted {DURATION} ago, and no task was completed in the last "
            "10 minutes, or the task has missed its deadline."
        ),
        dashboard="facial-service-tasks",
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
        name="FacialServiceQueueNotWritable",
        expr=dedent(f"""\
            max {BY} (max_over_time({series("queue_writable")}[2m])) == 0
              and
            max {BY} ({QUEUE_UP}) == 1"""),
        hold="2m",
        severity="critical",
        summary="The queue responds, but cannot store tasks.",
        description=(
            f"The queue{LOCATION} stores nothing, because its disk is full or a write has failed. Task submissions "
            "fail with 503. Synchronous requests are not affected."
        ),
        dashboard="facial-service-tasks",
    ),
    Alert(
        name="FacialServiceQueueUnreachableFromInstance",
        expr=dedent(f"""\
            {QUEUE_UP} == 0
              and {ON}
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
        expr=f"{series(STORAGE)} > 0.8",
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
        name="FacialServiceQueueNearlyFull",
        expr=f"max {BY} ({series('task_queue_used_ratio')}) > 0.8",
        hold="5m",
        severity="warning",
        summary="The queue is close to its limits.",
        description=(
            f"The queue{LOCATION} uses {PERCENT} of TASK_QUEUE_MAX_MESSAGES or TASK_QUEUE_MAX_BYTES. At the limit, the "
            "API rejects submissions with 503 queue_full."
        ),
        dashboard="facial-service-tasks",
    ),
    Alert(
        name="FacialServiceResultStoreNearlyFull",
        expr=f"max {BY} ({series('result_store_used_ratio')}) > 0.8",
        hold="5m",
        severity="warning",
        summary="The result store is close to its limit.",
        description=(
            f"Task records{LOCATION} use {PERCENT} of RESULT_MAX_BYTES. At the limit, the API rejects submissions with "
            "503 queue_full until results expire."
        ),
        dashboard="facial-service-tasks",
    ),
    Alert(
        name="FacialServiceQueueBacklogGrowing",
        expr=f"{series(SIZE)} > 100\n  and\nderiv({series(SIZE)}[15m]) > 0",
        hold="15m",
        severity="warning",
        summary="Tasks arrive faster than workers process them.",
        description=f"Number of tasks waiting for a worker{LOCATION}: {NUMBER}, and increasing.",
        dashboard="facial-service-tasks",
    ),
)

TASK_ALERTS = (
    Alert(
        name="FacialServiceNoTaskWorkers",
        # Tasks of a worker that disappeared count as active until another worker receives them.
        expr=dedent(f"""\
            sum {BY} ({series(SIZE)} + max {BY_TYPE} ({series("active_tasks_count")})) > 0
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
        name="FacialServiceTaskRepairs",
        # One lost task is enough. Other repairs are normal in small numbers, after the NATS server was killed.
        expr=dedent(f"""\
            sum {by("reason")} (increase({series("task_repairs_total", 'reason="task_lost"')}[1h])) > 0
              or
            sum {by("reason")} (increase({series("task_repairs_total", 'reason!="task_lost"')}[1h])) >= 20"""),
        hold="1m",
        severity="warning",
        summary="The reconciler repairs records and messages of tasks.",
        description=(
            f"In the last hour, the reconciler{LOCATION} made about {COUNT} repairs with the reason "
            "{{ $labels.reason }}. The records, the stream and the consumers differ more often than a restart explains."
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


def groups(texts: Texts) -> tuple[Group, ...]:
    """Return the groups for objectives."""
    alerts = (*QUEUE_ALERTS, _oldest_task_alert(texts.task_deadline_s), *TASK_ALERTS)
    return (
        Group(name="facial-service-tasks.rules", rules=RECORDINGS),
        Group(name="facial-service-tasks", rules=alerts),
    )

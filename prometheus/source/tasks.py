"""Rules for tasks and their queue.

Every instance tells what it reads of the one queue, so these figures are the largest of them, never their sum.
"""

from __future__ import annotations

from textwrap import dedent

from prometheus.source.model import (
    BY,
    DURATION,
    INSTANCE,
    NUMBER,
    PERCENT,
    PLACE,
    Alert,
    Group,
    Recording,
    series,
)

BY_TYPE = "by (namespace, job, type)"
SIZE = "namespace_job_type:task_queue_size:max"
OLDEST = "namespace_job_type:task_oldest_age_seconds:max"
STORAGE = "namespace_job:queue_storage_bytes_per_limit:ratio_max"

# A scrape waits for the queue's answer for less than a second: one that does not come is no outage yet.
REACHED = f"max_over_time({series('queue_up')}[2m])"
# A process that works on tasks is called so wherever it runs: beside an API, or in an instance of its own.
WORKERS = series("memory_usage_bytes", 'process=~"task-[0-9]+"')

FAILED = series("task_completions_total", 'status="FAILURE"')
DONE = series("task_completions_total", 'status=~"SUCCESS|FAILURE"')
ENDED = series("task_completions_total")
AGAIN = series("task_redeliveries_total")

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

QUEUE = (
    Alert(
        name="FacialServiceQueueUnreachable",
        expr=f"max {BY} ({REACHED}) == 0",
        hold="1m",
        severity="critical",
        summary="The queue answers no instance.",
        description=(
            f"No instance{PLACE} gets an answer from the queue: submissions and questions after tasks are answered "
            "with 503, and no task is worked on. The synchronous route goes on."
        ),
        dashboard="facial-service-tasks",
    ),
    Alert(
        name="FacialServiceQueueUnreachableFromInstance",
        expr=dedent(f"""\
            {REACHED} == 0
              and on (namespace, job)
            max {BY} ({REACHED}) == 1"""),
        hold="5m",
        severity="warning",
        summary="An instance is cut off from the queue, while others are not.",
        description=(
            f"{INSTANCE}{PLACE} gets no answer from the queue, others do. It answers submissions with "
            "503, or works on no tasks, and stays ready all the same."
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
            f"Tasks, records and tasks that were given up on take {PERCENT} of what the queue's server may "
            f"store{PLACE}. When it is full, no task is taken, and results cannot be kept."
        ),
        dashboard="facial-service-tasks",
    ),
    Alert(
        name="FacialServiceQueueBacklogGrowing",
        expr=f"{SIZE} > 100\n  and\nderiv({SIZE}[15m]) > 0",
        hold="15m",
        severity="warning",
        summary="Tasks come in faster than they are worked on.",
        description=f"Tasks that wait for a worker{PLACE}: {NUMBER}, and they become more.",
        dashboard="facial-service-tasks",
    ),
    Alert(
        name="FacialServiceOldestTaskTooOld",
        # One task that runs into TASK_TIMEOUT_S each time is given up on after six minutes: before `for` is over.
        expr=f"{OLDEST} > 300",
        hold="5m",
        severity="critical",
        summary="A task has not been done for far too long.",
        description=(
            f"The oldest task that is not done{PLACE} was submitted {DURATION} ago; whoever waits for it waits in vain "
            "so far."
        ),
        dashboard="facial-service-tasks",
    ),
)

TASKS = (
    Alert(
        name="FacialServiceNoTaskWorkers",
        # What a worker had when it went counts as held until another takes it.
        expr=dedent(f"""\
            sum {BY} ({SIZE} + max {BY_TYPE} ({series("active_tasks_count")})) > 0
              unless
            group {BY} ({WORKERS})"""),
        hold="5m",
        severity="critical",
        summary="There are tasks, and nobody works on them.",
        description=f"Tasks that are not done{PLACE}: {NUMBER}. There is no process that works on tasks.",
        dashboard="facial-service-tasks",
    ),
    Alert(
        name="FacialServiceTaskFailureRatioHigh",
        expr=dedent(f"""\
            sum {BY_TYPE} (rate({FAILED}[10m]))
              /
            sum {BY_TYPE} (rate({DONE}[10m]))
              > 0.1
              and
            sum {BY_TYPE} (increase({FAILED}[10m])) >= 10"""),
        hold="10m",
        severity="warning",
        summary="Many tasks fail.",
        description=f"{PERCENT} of the tasks that ended{PLACE} failed, by the callers' fault or by the service's.",
        dashboard="facial-service-tasks",
    ),
    Alert(
        name="FacialServiceRedeliveries",
        expr=dedent(f"""\
            sum {BY_TYPE} (rate({AGAIN}[15m]))
              /
            (
                sum {BY_TYPE} (rate({AGAIN}[15m]))
              +
                sum {BY_TYPE} (rate({ENDED}[15m]))
            )
              > 0.1
              and
            sum {BY_TYPE} (increase({AGAIN}[15m])) >= 20"""),
        hold="10m",
        severity="warning",
        summary="Many tasks have to be started over.",
        description=(
            f"{PERCENT} of the deliveries of tasks{PLACE} are not the task's first: work on it was begun before and "
            "came to no end."
        ),
        dashboard="facial-service-tasks",
    ),
    Alert(
        name="FacialServiceDeadTasks",
        # One is enough: no input does that, it takes TASK_MAX_DELIVERIES faults of the service on the same task.
        expr=f"max {BY} ({series('task_dead_kept')}) > 0",
        hold="5m",
        severity="warning",
        summary="Tasks were given up on and wait for somebody to look at them.",
        description=f"Tasks kept aside{PLACE}: {NUMBER}. They were given up on, and wait to be tried again or dropped.",
        dashboard="facial-service-tasks",
    ),
)

GROUPS = (
    Group(name="facial-service-tasks.rules", rules=RECORDINGS),
    Group(name="facial-service-tasks", rules=QUEUE + TASKS),
)

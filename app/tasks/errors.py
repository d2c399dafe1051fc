"""Errors of tasks and of the queue, each with its public code; `app.face.errors` has those of inputs."""

from typing import ClassVar


class QueueError(Exception):
    """Base class; ``str(error)`` is the detail that the caller receives."""

    code: ClassVar[str]

    def __init_subclass__(cls, code: str) -> None:
        cls.code = code


class QueueUnavailableError(QueueError, code="queue_unavailable"):
    """The NATS server is unreachable or does not respond in time."""


class QueueFullError(QueueError, code="queue_full"):
    """The limit of tasks, records or disk space is reached."""


class TaskTooLargeError(QueueError, code="task_too_large"):
    """The task exceeds the largest message that the NATS server accepts."""


class TaskUnknownError(QueueError, code="task_unknown"):
    """The task does not exist, or has expired."""


class TaskEndedError(QueueError, code="task_ended"):
    """The task has ended and cannot be cancelled."""


class IdempotencyConflictError(QueueError, code="idempotency_conflict"):
    """The Idempotency-Key was used for another request."""

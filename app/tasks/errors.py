"""Errors of tasks and of the queue; `app.face.errors` has those of inputs."""


class QueueError(Exception):
    """Base class; ``str(error)`` is the detail that the caller receives."""


class QueueUnavailableError(QueueError):
    """The NATS server is unreachable or does not respond in time."""


class QueueFullError(QueueError):
    """The limit of tasks, records or disk space is reached."""


class TaskTooLargeError(QueueError):
    """The task exceeds the largest message that the NATS server accepts."""


class TaskUnknownError(QueueError):
    """The task does not exist, or has expired."""


class TaskEndedError(QueueError):
    """The task has ended and cannot be cancelled."""


class IdempotencyConflictError(QueueError):
    """The Idempotency-Key was used for another request."""

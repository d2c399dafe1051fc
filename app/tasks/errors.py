"""What can be wrong with a task or with the queue; what is wrong with an input is told by `app.face.errors`.

::

    QueueError
    ├─ QueueUnavailableError     the queue's server is away, or does not answer in time
    ├─ QueueFullError            as many tasks or records as may be kept are there
    ├─ TaskTooLargeError         the task is larger than the queue's server takes
    ├─ TaskUnknownError          there is no such task, or no longer
    ├─ TaskEndedError            the task has ended and cannot be cancelled
    └─ IdempotencyConflictError  the key was used for another request
"""


class QueueError(Exception):
    """The base of the tree; ``str(error)`` is the sentence shown to the caller."""


class QueueUnavailableError(QueueError):
    """The queue's server is away, or does not answer in time."""


class QueueFullError(QueueError):
    """As many tasks or records as may be kept are there."""


class TaskTooLargeError(QueueError):
    """The task is larger than the queue's server takes."""


class TaskUnknownError(QueueError):
    """There is no such task, or no longer."""


class TaskEndedError(QueueError):
    """The task has ended and cannot be cancelled."""


class IdempotencyConflictError(QueueError):
    """The key was used for another request."""

"""The body of ``/health``: which processes there are and how they do."""

from __future__ import annotations

import msgspec


class Worker(msgspec.Struct, frozen=True):
    """A worker process as the service's board has it; ``last_beat_s`` is the time since its last sign of life."""

    name: str
    pid: int
    state: str
    last_beat_s: float


class Health(msgspec.Struct, frozen=True):
    """The report; an instance of ``facial-service worker`` has its task processes among ``workers``."""

    live: bool
    ready: bool
    draining: bool
    workers: tuple[Worker, ...]
    task_workers: tuple[Worker, ...] = ()


class HealthError(ValueError):
    """What was answered is not what the service answers."""


_DECODER = msgspec.json.Decoder(Health)


def parse_health(body: bytes) -> Health:
    """Read the body of ``/health``.

    Raises:
        HealthError: it is something else.

    Example:
        >>> parse_health(b'{"live":true,"ready":true,"draining":false,"workers":[]}').ready
        True
    """
    try:
        return _DECODER.decode(body)
    except (msgspec.MsgspecError, ValueError) as error:
        raise HealthError("expected the health of facial-service, got something else") from error

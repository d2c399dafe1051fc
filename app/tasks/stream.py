"""Subjects, streams and consumers of the queue.

- ``TASKS``: one message per task, removed when it is acknowledged. A full stream rejects messages and never drops one.
  Callers are spread over `LANES` lanes, each with its own consumer. Workers take tasks of each lane in turn, so a
  caller with a long backlog does not delay the others. The subject is ``tasks.<type>.<task id>`` in lane 0 and
  ``tasks.<type>.<lane>.<task id>`` in the other lanes.
- ``KV_TASK_RECORDS``: the key-value bucket of records. It keeps the latest message per task, with its own TTL. The
  server republishes the headers of each write under ``task-records.<task id>``. The record is left out, because results
  are large and many requests may wait for one.
- ``TASKS_DEAD``: dead letters, under ``tasks-dead.<type>.<task id>``. A full stream drops the oldest.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import TYPE_CHECKING, Any, Final

from nats.js import api
from nats.js.errors import APIError, BadRequestError, NotFoundError

from app.observability.recording import record_task_repair
from app.observability.rich_logging import get_logger
from app.tasks.embedded_server import ConsumerState

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.js import JetStreamContext

    from app.settings import Settings

log = get_logger("tasks")

TASK_TYPE: Final = "facial_processing"
STREAM: Final = "TASKS"
CONSUMER: Final = "workers"  # of lane 0; the names of the others end with the number of the lane
# More lanes cost an idle worker more requests, and a NATS cluster one Raft group each.
LANES: Final = 8
BUCKET: Final = "TASK_RECORDS"
RECORDS_STREAM: Final = f"KV_{BUCKET}"
DEAD_STREAM: Final = "TASKS_DEAD"
NOTICES: Final = "task-records.*"

# The server treats a submission that is repeated within this time as the same message, even if its record is missing.
DUPLICATE_WINDOW_S: Final = 120.0
_TASK_ID: Final = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
_NAME_IN_USE: Final = {10058, 10148}  # a stream or consumer of this name exists with another configuration
_NO_STORAGE: Final = 10047
_NO_CONSUMER: Final = 10012  # its state on the disk is damaged
_CONSUMER_REMEDY: Final = (
    f"its state on the server may be damaged; delete the consumer's folder in `streams/{STREAM}/obs` of the storage "
    "while the server is stopped"
)
_STORAGE_REMEDY: Final = (
    "the storage limit of the server or the account is below what its streams reserve; raise `max_file` of the server, "
    "or the limit of the account, above TASK_QUEUE_MAX_BYTES and TASK_DEAD_MAX_BYTES and the max_bytes of all other "
    "streams"
)


class StreamSetupError(Exception):
    """The server cannot hold the streams; the message explains how to change that."""


def is_task_id(text: str) -> bool:
    """Return whether a text may be a task id; other texts could contain a wildcard of a subject."""
    return _TASK_ID.fullmatch(text) is not None


def lane_of(caller_number: int) -> int:
    """Return the lane of a caller's tasks."""
    return caller_number % LANES


def task_subject(task_id: str, lane: int = 0) -> str:
    """Return the subject of a task's message."""
    return f"tasks.{TASK_TYPE}.{lane}.{task_id}" if lane else f"tasks.{TASK_TYPE}.{task_id}"


def any_lane_subject(task_id: str) -> str:
    """Return the subject that matches a task's message in every lane but 0."""
    return f"tasks.{TASK_TYPE}.*.{task_id}"


def parse_task_subject(subject: str) -> tuple[str, int]:
    """Return the task id and the lane of a message's subject."""
    parts = subject.split(".")
    return parts[-1], int(parts[2]) if len(parts) > 3 else 0  # noqa: PLR2004 - tokens of a subject without a lane


def consumer_name(lane: int) -> str:
    """Return the name of a lane's consumer."""
    return f"{CONSUMER}-{lane}" if lane else CONSUMER


def _lane_filter(lane: int) -> str:
    return f"tasks.*.{lane}.*" if lane else "tasks.*.*"


def dead_subject(task_id: str) -> str:
    """Return the subject of a task's dead letter."""
    return f"tasks-dead.{TASK_TYPE}.{task_id}"


def record_subject(key: str) -> str:
    """Return the subject of a key of the records bucket."""
    return f"$KV.{BUCKET}.{key}"


def stream_configs(settings: Settings) -> list[api.StreamConfig]:
    """Return the configurations of the streams."""
    shared: dict[str, Any] = {
        "storage": api.StorageType.FILE,
        "num_replicas": settings.nats_replicas,
        "duplicate_window": DUPLICATE_WINDOW_S,
        "allow_direct": True,
    }
    tasks = api.StreamConfig(
        name=STREAM,
        description="Tasks that wait or are in progress",
        # Only those that a consumer takes: any other message would stay forever.
        subjects=[_lane_filter(lane) for lane in range(LANES)],
        retention=api.RetentionPolicy.WORK_QUEUE,
        discard=api.DiscardPolicy.NEW,
        max_msgs=settings.task_queue_max_messages,
        max_bytes=settings.task_queue_max_bytes,
        **shared,
    )
    records = api.StreamConfig(
        name=RECORDS_STREAM,
        description="Task records",
        subjects=[f"$KV.{BUCKET}.>"],
        # RESULT_MAX_BYTES is enforced at submission instead, so that accepted tasks can store their results.
        discard=api.DiscardPolicy.NEW,
        max_msgs_per_subject=1,
        allow_rollup_hdrs=True,
        deny_delete=True,
        allow_msg_ttl=True,
        republish=api.RePublish(src=f"$KV.{BUCKET}.*", dest="task-records.{{wildcard(1)}}", headers_only=True),
        **shared,
    )
    dead = api.StreamConfig(
        name=DEAD_STREAM,
        description="Dead letters",
        subjects=["tasks-dead.>"],
        discard=api.DiscardPolicy.OLD,
        max_bytes=settings.task_dead_max_bytes,
        max_msgs_per_subject=1,
        **shared,
    )
    return [tasks, records, dead]


def consumer_config(settings: Settings, lane: int = 0) -> api.ConsumerConfig:
    """Return the configuration of a lane's consumer."""
    return api.ConsumerConfig(
        durable_name=consumer_name(lane),
        ack_policy=api.AckPolicy.EXPLICIT,
        ack_wait=settings.task_ack_wait_s,
        # The record of a task limits its attempts. The server would also count deliveries without an attempt, and then
        # stop delivering without a report.
        max_deliver=-1,
        max_ack_pending=-1,
        filter_subject=_lane_filter(lane),
    )


async def ensure_streams(client: Client, settings: Settings) -> None:
    """Create the streams and the consumers, or update existing ones to the settings.

    Raises:
        nats.errors.Error: the server does not respond, or rejects the configuration.
        StreamSetupError: the storage limit is too low for the settings.
    """
    manager = client.jetstream(timeout=settings.nats_timeout_s)
    configs = stream_configs(settings)
    found = await asyncio.gather(*(_find_stream(manager, str(config.name)) for config in configs))
    # Lower limits first: they free storage of the account for limits that are raised.
    for config, existing in sorted(zip(configs, found, strict=True), key=lambda pair: _growth(*pair)):
        await _ensure_stream(manager, config, existing)
    # Lane 0 first: a consumer of an earlier version takes the messages of all lanes until it is updated.
    await _ensure_consumer(manager, settings, 0)
    await asyncio.gather(*(_ensure_consumer(manager, settings, lane) for lane in range(1, LANES)))


async def require_streams(client: Client, settings: Settings) -> None:
    """Check that the streams and the consumers exist, without changing them.

    Raises:
        nats.errors.Error: one is missing, or the server does not respond.
    """
    manager = client.jetstream(timeout=settings.nats_timeout_s)
    for stream in (RECORDS_STREAM, DEAD_STREAM):
        await manager.stream_info(stream)
    await asyncio.gather(*(manager.consumer_info(STREAM, consumer_name(lane)) for lane in range(LANES)))


async def _find_stream(manager: JetStreamContext, name: str) -> api.StreamConfig | None:
    with contextlib.suppress(NotFoundError):
        return (await manager.stream_info(name)).config
    return None


def _growth(config: api.StreamConfig, existing: api.StreamConfig | None) -> int:
    """Return by how many bytes the limit of a stream grows."""
    before = 0 if existing is None else max(existing.max_bytes or 0, 0)
    return max(config.max_bytes or 0, 0) - before


async def _ensure_stream(
    manager: JetStreamContext, config: api.StreamConfig, existing: api.StreamConfig | None
) -> None:
    if existing is None:
        try:
            await manager.add_stream(config)
        except BadRequestError as error:  # another process has created it first, with other settings
            if error.err_code not in _NAME_IN_USE:
                raise
        except APIError as error:
            if error.err_code == _NO_STORAGE:
                raise StreamSetupError(f"stream {config.name} cannot be created: {_STORAGE_REMEDY}") from error
            raise
        else:
            return
    elif _is_as_wanted(config, existing):
        return
    try:
        # A limit below what is stored drops nothing from TASKS, which rejects new messages instead.
        await manager.update_stream(config)
    except APIError as error:  # the stream remains usable
        reason = _STORAGE_REMEDY if error.err_code == _NO_STORAGE else error.description
        log.warning("Stream %s keeps its old settings: %s", config.name, reason)
    else:
        log.info("Stream %s was updated to the settings", config.name)


async def _ensure_consumer(manager: JetStreamContext, settings: Settings, lane: int) -> None:
    config, name = consumer_config(settings, lane), consumer_name(lane)
    state = ConsumerState(settings, STREAM, name)
    try:
        await manager.add_consumer(STREAM, config)
    except APIError as error:
        if error.err_code != _NO_CONSUMER:
            raise
        if not state.discard():
            raise StreamSetupError(f"consumer {name} cannot be created: {_CONSUMER_REMEDY}") from error
        await manager.add_consumer(STREAM, config)
        record_task_repair("consumer_recreated")
        extra = {"event": "repaired", "reason": "consumer_recreated"}
        log.warning("🔧 Created the consumer %s again: its state on the disk was damaged", name, extra=extra)


def _is_as_wanted(config: api.StreamConfig, existing: api.StreamConfig) -> bool:
    wanted, found = config.as_dict(), existing.as_dict()
    return all(found.get(name) == value for name, value in wanted.items() if value is not None)

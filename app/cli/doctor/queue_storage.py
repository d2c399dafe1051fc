"""How full the queue is: the server's storage, and the bounds of tasks and records."""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.cli.doctor.findings import Finding, error, mebibytes, note, ok, warning
from app.cli.doctor.queue_access import INFO, Answers, stream_info
from app.tasks.monitor import MonitorFigures, read_monitor
from app.tasks.stream import DEAD_STREAM, RECORDS_STREAM, STREAM

if TYPE_CHECKING:
    from collections.abc import Iterator

    from app.settings import Settings

PART = "queue.storage"
NEARLY, FULL = 0.8, 0.95


def judge_storage(settings: Settings, answers: Answers) -> Iterator[Finding]:
    """Yield how full it is."""
    figures = read_monitor(settings.nats_monitor_url)
    yield from _judge_writes(figures)
    yield _judge_server(settings, answers, figures)
    tasks, records, dead = (
        answers.of(stream_info(name)).get("state", {}) for name in (STREAM, RECORDS_STREAM, DEAD_STREAM)
    )
    more = "more workers (chart: `worker.replicas`), or a higher bound; see FacialServiceQueueFull"
    ttl = "lower RESULT_TTL, or raise RESULT_MAX_BYTES; see FacialServiceQueueFull"
    for setting, used, bound, advice in (
        ("TASK_QUEUE_MAX_MESSAGES", tasks.get("messages", 0), settings.task_queue_max_messages, more),
        ("TASK_QUEUE_MAX_BYTES", tasks.get("bytes", 0), settings.task_queue_max_bytes, more),
        ("RESULT_MAX_BYTES", records.get("bytes", 0), settings.result_max_bytes, ttl),
    ):
        yield from _judge_share(setting, used, bound, advice)
    if dead.get("messages"):
        yield note(
            PART,
            DEAD_STREAM,
            f"{dead['messages']} tasks were given up on, {mebibytes(dead['bytes'])}",
            "`facial-service tasks dead list` says why; see FacialServiceDeadTasks",
        )


def _judge_writes(figures: MonitorFigures) -> Iterator[Finding]:
    if figures.storage_fault:
        yield error(
            PART,
            "writes",
            f"refused by the server since an error: {figures.storage_fault}",
            expected="streams that can be written",
            advice="make room on the server's disk, then restart the server; the embedded server restarts by itself",
        )
    limit, reserved = figures.storage_limit, figures.reserved
    if limit is not None and reserved is not None and reserved > limit:
        yield error(
            PART,
            "reserved",
            f"streams reserve {mebibytes(reserved)} of {mebibytes(limit)}: the server neither creates nor updates any",
            expected="a limit of at least what streams reserve",
            advice=f"raise `max_file` of the server to {reserved} or more (chart: `nats.persistence.size`), start the "
            "service, which lowers the bounds of its streams to the settings, then lower `max_file` again",
        )


def _judge_server(settings: Settings, answers: Answers, figures: MonitorFigures) -> Finding:
    account = answers.of(INFO)
    used, limit = account.get("storage", 0), account.get("limits", {}).get("max_storage", -1)
    if limit <= 0:
        # The embedded server has no limit but its disk.
        limit = used + figures.free if figures.free is not None else figures.storage_limit or 0
    place = "the server's storage"
    if not limit:
        advice = "set NATS_MONITOR_URL to the server's monitoring port (chart: `externalNats.monitorUrl`)"
        return note(PART, place, f"{mebibytes(used)} used; the limit is not told", advice)
    if used >= NEARLY * limit:
        judge = error if used >= FULL * limit else warning
        return judge(
            PART,
            place,
            f"{mebibytes(used)} of {mebibytes(limit)} used",
            expected=f"less than {NEARLY:.0%}",
            advice="raise the limit (chart: `nats.persistence.size`), lower RESULT_TTL, or "
            "`facial-service tasks dead drop`; see FacialServiceQueueStorageNearlyFull",
        )
    bounds = settings.task_queue_max_bytes + settings.result_max_bytes + settings.task_dead_max_bytes
    if bounds > limit:
        return warning(
            PART,
            place,
            f"{mebibytes(limit)} in all, less than tasks and records may take: {mebibytes(bounds)}",
            expected="twice TASK_QUEUE_MAX_BYTES, RESULT_MAX_BYTES and TASK_DEAD_MAX_BYTES together",
            advice="raise the limit (chart: `nats.persistence.size`; embedded: more disk for DATA_DIR), or lower these",
        )
    return ok(PART, place, f"{mebibytes(used)} of {mebibytes(limit)} used")


def _judge_share(setting: str, used: int, bound: int, advice: str) -> Iterator[Finding]:
    if used < NEARLY * bound:
        return
    amounts = f"{used} of {bound}" if "MESSAGES" in setting else f"{mebibytes(used)} of {mebibytes(bound)}"
    judge = error if used >= FULL * bound else warning
    yield judge(PART, setting, f"{amounts} taken; beyond it submissions get 503", expected="less", advice=advice)

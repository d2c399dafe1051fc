"""Finished work as callers read it: a task's record as a document, and what stands in a kept result."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
import pybase64

from app.web.problems import fault_title
from app.web.schemas import Warning as ResultWarning  # noqa: TC001 - msgspec reads the annotation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from app.tasks.records import Record, TaskFault


class _Kept(msgspec.Struct):
    """The part of a result document that an overlay and its headers are made of; the rest is passed over."""

    svg: str
    warnings: list[ResultWarning]


_KEPT = msgspec.json.Decoder(_Kept)


def read_result(document: bytes | msgspec.Raw) -> tuple[bytes, list[str]]:
    """Take the overlay and the codes of the warnings out of a result document of ours."""
    kept = _KEPT.decode(document)
    return pybase64.b64decode(kept.svg), [warning.code for warning in kept.warnings]


def overlay_headers(warnings: Sequence[str]) -> dict[str, str]:
    """Build the headers of an answer that can be an overlay, which has no other place for warnings."""
    return {"Vary": "Accept", **({"X-Warnings": ", ".join(warnings)} if warnings else {})}


def task_to_json(record: Record) -> bytes:
    """Write a task's document; the result goes into it as the text that it is kept as."""
    return msgspec.json.encode(
        {
            "task_id": record.task_id,
            "status": record.status,
            "progress": record.progress,
            "attempts": record.attempts,
            "result": record.result,
            "error": None if record.error is None else _error_document(record.error),
            "submitted_at": _time_text(record.submitted_at),
            "started_at": None if record.started_at is None else _time_text(record.started_at),
            "completed_at": None if record.completed_at is None else _time_text(record.completed_at),
            "processing_time_ms": record.processing_time_ms,
        }
    )


def _error_document(fault: TaskFault) -> dict[str, Any]:
    return {"code": fault.code, "title": fault_title(fault.code), "detail": fault.detail}


def _time_text(epoch_s: float) -> str:
    """Write a time after RFC 3339.

    Example:
        >>> _time_text(1e9)
        '2001-09-09T01:46:40.000Z'
    """
    return datetime.fromtimestamp(epoch_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

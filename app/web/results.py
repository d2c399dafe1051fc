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

    from app.tasks.records import Record, TaskError


class _Tail(msgspec.Struct):
    """The last fields of a result document."""

    warnings: list[ResultWarning]


_TAIL = msgspec.json.Decoder(_Tail)
_SVG = b'{"svg":"'
_WARNINGS = b',"warnings":'
_TAIL_BYTES = 4096  # there are two kinds of warnings, each a sentence long
_BLOCK_BYTES = 65_536


def read_result(document: bytes | msgspec.Raw) -> tuple[bytes, list[str]]:
    """Return the overlay and the codes of the warnings of a result document.

    `result_to_json` writes the overlay first and the warnings near the end. They are cut out, because parsing what is
    between them takes 50 ms for the largest result. A quote inside a string is escaped, so the names are of fields.
    """
    view = memoryview(document)
    if view[: len(_SVG)] != _SVG:
        raise ValueError("expected a result that begins with its overlay")
    svg = view[len(_SVG) : _find_quote(view, len(_SVG))]
    tail = bytes(view[-_TAIL_BYTES:])
    warnings = _TAIL.decode(b"{" + tail[tail.rindex(_WARNINGS) + 1 :]).warnings
    return pybase64.b64decode(svg, validate=True), [warning.code for warning in warnings]


def _find_quote(view: memoryview, start: int) -> int:
    """Return the position of the next quote; a view has no `find`, and blocks of it stay in the CPU's cache."""
    for position in range(start, len(view), _BLOCK_BYTES):
        found = bytes(view[position : position + _BLOCK_BYTES]).find(b'"')
        if found >= 0:
            return position + found
    raise ValueError("expected a quote, got none")


def overlay_headers(warnings: Sequence[str]) -> dict[str, str]:
    """Build the headers of an answer that can be an overlay, which has no other place for warnings."""
    return {"Vary": "Accept", **({"X-Warnings": ", ".join(warnings)} if warnings else {})}


def task_to_json(record: Record) -> bytes:
    """Return a task's document, with the result as it is stored."""
    before = {
        "task_id": record.task_id,
        "status": record.status,
        "progress": record.progress,
        "attempts": record.attempts,
    }
    after = msgspec.json.encode(
        {
            "error": None if record.error is None else _error_document(record.error),
            "submitted_at": _time_text(record.submitted_at),
            "started_at": None if record.started_at is None else _time_text(record.started_at),
            "completed_at": None if record.completed_at is None else _time_text(record.completed_at),
            "processing_time_ms": record.processing_time_ms,
        }
    )
    # One copy: the encoder's buffer would be moved again and again while a result of megabytes is written to it.
    return b"".join((msgspec.json.encode(before)[:-1], b',"result":', record.result, b",", after[1:]))


def _error_document(fault: TaskError) -> dict[str, Any]:
    return {"code": fault.code, "title": fault_title(fault.code), "detail": fault.detail}


def _time_text(epoch_s: float) -> str:
    """Write a time after RFC 3339.

    Example:
        >>> _time_text(1e9)
        '2001-09-09T01:46:40.000Z'
    """
    return datetime.fromtimestamp(epoch_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

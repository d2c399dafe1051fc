"""Documents of tasks, and the overlay and warnings of stored results."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec
import pybase64

from app.face.rendering.svg import combine_svgs
from app.service.png_export import json_to_mask, json_to_png
from app.web.problems import ProblemError, task_error_title
from app.web.request_parsing import MASK_OF_ALL_FACES
from app.web.schemas import Warning as ResultWarning  # noqa: TC001 - msgspec reads the annotation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from app.service.crop import ImageLimits
    from app.tasks.records import Record
    from app.web.content_negotiation import ResultFormat


class _Tail(msgspec.Struct):
    """The last members of a result document."""

    warnings: list[ResultWarning]


class _FaceResult(msgspec.Struct):
    """The members of a result for one of all faces that the combined overlay depends on."""

    svg: str
    transform: list[list[float]]
    warnings: list[ResultWarning]


_TAIL = msgspec.json.Decoder(_Tail)
_TAILS = msgspec.json.Decoder(list[_Tail])
_FACES = msgspec.json.Decoder(list[_FaceResult])
_SVG = b'{"svg":"'
_WARNINGS = b',"warnings":'
_TAIL_BYTES = 8192  # there are six warnings, each one or two sentences; that about colours has up to 4,000 bytes
_BLOCK_BYTES = 65_536


async def load_result(document: bytes | msgspec.Raw) -> tuple[bytes, list[str]]:
    """Return the overlay and the warning codes of a result document, or those of an array of results.

    An array is parsed, so it is read on a thread.
    """
    if _is_array(document):
        return await asyncio.to_thread(_read_faces, document)
    return read_result(document)


def _read_faces(document: bytes | msgspec.Raw) -> tuple[bytes, list[str]]:
    faces = _FACES.decode(document)
    is_same_frame = all(face.transform == faces[0].transform for face in faces)
    overlay = combine_svgs([pybase64.b64decode(face.svg) for face in faces], is_same_frame=is_same_frame)
    return overlay, _unique_codes(faces)


def _unique_codes(results: Sequence[_FaceResult | _Tail]) -> list[str]:
    return list(dict.fromkeys(warning.code for result in results for warning in result.warnings))


def read_result(document: bytes | msgspec.Raw) -> tuple[bytes, list[str]]:
    """Return the overlay and the warning codes of a result document for one face.

    `result_to_json` writes the overlay first and the warnings near the end. This function reads only these parts,
    because parsing the largest result takes 50 ms. Quotes inside strings are escaped, so an unescaped name is a member.
    """
    view = memoryview(document)
    if view[: len(_SVG)] != _SVG:
        raise ValueError("result: expected the overlay as its first member, got another")
    svg = view[len(_SVG) : _find_quote(view, len(_SVG))]
    return pybase64.b64decode(svg, validate=True), read_warnings(document)


def read_warnings(document: bytes | msgspec.Raw) -> list[str]:
    """Return the warning codes of a result document, or those of an array of results."""
    if _is_array(document):
        return _unique_codes(_TAILS.decode(document))
    tail = bytes(memoryview(document)[-_TAIL_BYTES:])
    warnings = _TAIL.decode(b"{" + tail[tail.rindex(_WARNINGS) + 1 :]).warnings
    return [warning.code for warning in warnings]


def _find_quote(view: memoryview, start: int) -> int:
    """Return the position of the next quote, in blocks that fit the CPU cache, because a view has no `find`."""
    for position in range(start, len(view), _BLOCK_BYTES):
        found = bytes(view[position : position + _BLOCK_BYTES]).find(b'"')
        if found >= 0:
            return position + found
    raise ValueError("result: expected a quote, got none")


def render_result(
    document: bytes | msgspec.Raw, result_format: ResultFormat, limits: ImageLimits
) -> tuple[bytes, list[str]]:
    """Return the overlay as PNG, or the label mask, and the warning codes of a result document, on a work thread.

    Raises:
        ProblemError: ``parameter_invalid`` if the document is an array of results, and the format is the mask.
        InputError: see `app.service.png_export`.
    """
    if result_format == "png":
        return json_to_png(document, limits, is_request=True), read_warnings(document)
    if _is_array(document):
        raise ProblemError("parameter_invalid", MASK_OF_ALL_FACES)
    return json_to_mask(document, limits), read_warnings(document)


def _is_array(document: bytes | msgspec.Raw) -> bool:
    return bytes(memoryview(document)[:1]) == b"["


def overlay_headers(warnings: Sequence[str]) -> dict[str, str]:
    """Return the headers of a response that may be an overlay, which cannot contain warnings itself."""
    return {"Vary": "Accept", **({"X-Warnings": ", ".join(warnings)} if warnings else {})}


def task_to_json(record: Record) -> bytes:
    """Return the document of a task, with its result as stored."""
    before = {
        "task_id": record.task_id,
        "status": record.status,
        "progress": record.progress,
        "attempts": record.attempts,
    }
    error = record.error
    after = msgspec.json.encode(
        {
            "error": error and {"code": error.code, "title": task_error_title(error.code), "detail": error.detail},
            "submitted_at": _time_text(record.submitted_at),
            "started_at": None if record.started_at is None else _time_text(record.started_at),
            "completed_at": None if record.completed_at is None else _time_text(record.completed_at),
            "processing_time_ms": record.processing_time_ms,
        }
    )
    # Joined, which copies once; the encoder would reallocate its buffer repeatedly for a result of megabytes.
    return b"".join((msgspec.json.encode(before)[:-1], b',"result":', record.result, b",", after[1:]))


def _time_text(epoch_s: float) -> str:
    """Format a time by RFC 3339.

    Example:
        >>> _time_text(1e9)
        '2001-09-09T01:46:40.000Z'
    """
    return datetime.fromtimestamp(epoch_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

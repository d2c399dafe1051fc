"""Taking in a crop request, the same whether it is worked on now or becomes a task."""

from __future__ import annotations

from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import msgspec

from app.observability.recording import image_step
from app.service.options import LANDMARK_OPTION_NAMES, OPTION_NAMES, CropOptions, LandmarkOptions
from app.web.body import declared_size, read_body, require_declared_size, unless_gone
from app.web.json_body import parse_json, parse_landmarks_json
from app.web.multipart_body import options_from_text, parse_landmarks_multipart, parse_multipart
from app.web.negotiate import JSON
from app.web.parameters import read_query
from app.web.problem_codes import ProblemError
from app.web.state import caller_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from fastapi import Request

    from app.service.crop import CheckedInput, CropInput, CropService
    from app.service.landmarks import LandmarksInput
    from app.web.state import WebState

T = TypeVar("T")
Struct = TypeVar("Struct", bound=msgspec.Struct)

MULTIPART = "multipart/form-data"
MAX_CONTENT_TYPE = 1024
# Checking a body takes 0.5 ms and 1.3 ms per MiB; handing it to a thread and back takes 0.3 ms.
INLINE_BYTES = 1024 * 1024
# Parsing a value takes 0.3 to 0.5 µs, so their number bounds the time on the event loop. They are counted by their
# commas, of which image data has one in 256 bytes. The landmarks of a face are up to 2,400 values.
INLINE_COMMAS = 3072
BYTES_PER_COMMA = 256


@dataclass(frozen=True, slots=True)
class Head:
    """What a request says before its body.

    Attributes:
        content_type: the header, of one of the two kinds that are read.
        options: those in the query, as texts; they win over the body's.
    """

    content_type: str
    options: dict[str, str]


def read_head(request: Request, state: WebState, options: Sequence[str] = OPTION_NAMES) -> Head:
    """Read everything that comes before the body, so that nothing is taken in that would be refused by it.

    Args:
        request: what to read.
        state: the parts behind the routes.
        options: names that the query may hold.

    Raises:
        ProblemError: ``unsupported_media_type``, ``body_too_large`` or ``parameter_invalid``.
    """
    content_type = _require_content_type(request)
    require_declared_size(request, state.body_limits.max_bytes)
    return Head(content_type, read_query(request, options))


@asynccontextmanager
async def work_on_body(
    request: Request, state: WebState, work: Callable[[bytes], T], *, is_place_kept: bool = True
) -> AsyncIterator[T]:
    """Read the body, and give what a work thread makes of it; its bytes are accounted for while the block runs.

    Args:
        request: whose body.
        state: the parts behind the routes.
        work: run on a thread. The body itself is let go after it.
        is_place_kept: whether the block has work for a thread too. One that only waits, for a queue that may hang,
            shall keep no other request from its work. The work before it is a check then, and of a small body it is
            over sooner than a thread would be found for it.

    Raises:
        ProblemError: ``body_too_large`` or ``body_timeout``; and what the work raises.
        SaturatedError: the process holds as much as it may.
        starlette.requests.ClientDisconnect: the caller went away.
    """
    admission = state.admission
    caller = caller_of(request).identity
    admission.require_slot(caller)
    client = caller or (request.client.host if request.client else "")
    with admission.buffer(declared_size(request), client) as buffer:
        body = await read_body(request, buffer, state.body_limits)
        if not is_place_kept and is_checked_quickly(body):
            with admission.enter(caller):
                done = work(body)
            del body
            yield done
            return
        with ExitStack() as place:
            slot = request.state.slot = place.enter_context(admission.enter(caller))
            made = slot.run(work, body)
            del body
            done = await unless_gone(request, made)
            if not is_place_kept:
                place.close()
            yield done


def is_checked_quickly(body: bytes) -> bool:
    """Return whether checking a body takes less than about 5 ms, so that it may run on the event loop."""
    return len(body) <= INLINE_BYTES and body.count(b",") <= INLINE_COMMAS + len(body) // BYTES_PER_COMMA


def read_input(head: Head, body: bytes) -> CropInput:
    """Read a body, and set the options of the query over its own.

    Raises:
        ProblemError: what is wrong with it.
    """
    with image_step("parse"):
        parse = parse_json(body) if media_type(head.content_type) == JSON else parse_multipart(body, head.content_type)
        return _override(parse, head.options) if head.options else parse


def read_landmarks_input(head: Head, body: bytes) -> LandmarksInput:
    """Read the body of a landmarks request, and set the options of the query over its own.

    Raises:
        ProblemError: what is wrong with it.
    """
    with image_step("parse"):
        is_json = media_type(head.content_type) == JSON
        request = parse_landmarks_json(body) if is_json else parse_landmarks_multipart(body, head.content_type)
        options = _laid_over(request.options, head.options, LandmarkOptions, LANDMARK_OPTION_NAMES)
        return replace(request, options=options)


def check_input(service: CropService, head: Head, body: bytes, *, is_digested: bool) -> tuple[CheckedInput, str | None]:
    """Read and check a body with all that needs no pixels.

    Returns:
        What was checked, and its digest where one is asked for.

    Raises:
        ProblemError: what is wrong with the body.
        InputError: what is wrong with the photo, landmarks or map.
    """
    read = read_input(head, body)
    # The options of a JSON body are the body: kept, they would keep all of its text.
    checked = service.check(replace(read, options=read.options.plain()))
    return checked, checked.digest() if is_digested else None


def media_type(content_type: str) -> str:
    """Return the type without its parameters, in lower case."""
    return content_type.partition(";")[0].strip().lower()


def _override(request: CropInput, query: dict[str, str]) -> CropInput:
    return replace(request, options=_laid_over(request.options, query, CropOptions, OPTION_NAMES))


def _laid_over(options: Struct, query: dict[str, str], kind: type[Struct], names: Sequence[str]) -> Struct:
    given = options_from_text(query, "query", kind)
    values = {name: getattr(options, name) for name in names}
    values |= {name: getattr(given, name) for name in query}
    return kind(**values)


def _require_content_type(request: Request) -> str:
    content_type = request.headers.get("content-type", "")
    if len(content_type) > MAX_CONTENT_TYPE:  # its parameters take a microsecond each
        raise ProblemError(
            "unsupported_media_type",
            f"Content-Type: expected at most {MAX_CONTENT_TYPE} characters, got {len(content_type)}",
        )
    if media_type(content_type) not in {JSON, MULTIPART}:
        raise ProblemError(
            "unsupported_media_type", f"expected {JSON} or {MULTIPART} as Content-Type, got another or none"
        )
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise ProblemError("unsupported_media_type", "expected no Content-Encoding; pictures are compressed already")
    return content_type

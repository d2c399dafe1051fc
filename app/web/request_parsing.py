"""Parse requests: query, headers and body, in the same way for results at once and for tasks."""

from __future__ import annotations

import re
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import msgspec

from app.codec.decoding_policy import DecodingForbiddenError, limit_decoding
from app.observability import tracing
from app.observability.recording import image_step
from app.service.crop import CropInput
from app.service.landmarks import LandmarksInput
from app.service.options import OPTION_NAMES, CropOptions, LandmarkOptions
from app.tasks.errors import TaskUnknownError
from app.web.body import cancel_on_disconnect, declared_size, read_body, require_declared_size
from app.web.content_negotiation import JSON
from app.web.json_body import parse_json, parse_landmarks_json
from app.web.multipart_body import options_from_text, parse_landmarks_multipart, parse_multipart
from app.web.problems import ProblemError
from app.web.schemas import TASK_ID_PATTERN
from app.web.state import caller_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from fastapi import Request

    from app.service.crop import CheckedInput, CropService
    from app.web.state import WebState

T = TypeVar("T")
Struct = TypeVar("Struct", bound=msgspec.Struct)

MULTIPART = "multipart/form-data"
# Bodies that are an image file. The format is detected from the content, as in the other forms.
IMAGE_TYPES = ("image/jpeg", "image/png", "image/webp", "image/avif", "image/heic", "image/heif", "image/jpg")
MAX_CONTENT_TYPE = 1024
MAX_PARAMETERS = 100
MAX_KEY = 255
MAX_WAIT_S = 60.0  # below the usual timeout of proxies
MASK_OF_ALL_FACES = "mask: expected the index of one face, got a result for all faces"

# Checking a body takes 0.5 to 1.3 ms per MiB; running it on a thread adds 0.3 ms.
INLINE_BYTES = 1024 * 1024
# Parsing a value takes 0.3 to 0.5 µs, so the number of values bounds the time on the event loop. Commas approximate it;
# image data contains one in 256 bytes. The landmarks of a face are up to 2,400 values.
INLINE_COMMAS = 3072
BYTES_PER_COMMA = 256

_TASK_ID = re.compile(TASK_ID_PATTERN.strip("^$"))
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_BARE_KEY = re.compile(r"[!#-~][!-~]*")
# A string of RFC 8941, which the Idempotency-Key draft requires; a key contains no spaces, which RFC 8941 would allow.
_QUOTED_KEY = re.compile(r'"((?:[!#-\[\]-~]|\\["\\])*)"')
_ESCAPE = re.compile(r'\\(["\\])')


@dataclass(frozen=True, slots=True)
class RequestHead:
    """The part of a request before its body."""

    content_type: str  # its media type is supported
    options: dict[str, str]  # in the query, as text; those that are not defaults take precedence over the body
    is_mask: bool = False  # the response is the label mask


def read_head(request: Request, state: WebState, options: Sequence[str] = OPTION_NAMES) -> RequestHead:
    """Validate everything except the body, so that invalid requests are rejected before their body is read.

    The query may contain the given options.

    Raises:
        ProblemError: ``unsupported_media_type``, ``body_too_large`` or ``parameter_invalid``.
    """
    content_type = _require_content_type(request)
    require_declared_size(request, state.body_limits.max_bytes)
    query = read_query(request, options)
    is_mask = _pop_mask(query)
    return RequestHead(content_type, query, is_mask)


@asynccontextmanager
async def process_body(
    request: Request, state: WebState, work: Callable[[bytes], T], *, keeps_slot: bool = True
) -> AsyncIterator[T]:
    """Read the body, run `work` on it, and yield the result; the body's memory stays accounted for in the block.

    `work` runs on a work thread, and the body is released after it. Without `keeps_slot`, the slot is released before
    the block, which then only waits for the queue, so that a slow queue delays no other request. In that case, `work`
    is a check. For a small body, it takes less time than a thread switch, so it runs on the event loop unless it needs
    to decode an image.

    Raises:
        ProblemError: ``body_too_large``, ``body_timeout``, or an error of `work`.
        SaturatedError: the worker is at capacity.
        starlette.requests.ClientDisconnect: the client disconnected.
    """
    admission = state.admission
    caller = caller_of(request).identity
    admission.require_slot(caller)
    client = caller or (request.client.host if request.client else "")
    with admission.bodies.open(declared_size(request), client) as buffer:
        with tracing.span("receive body"):
            body = await read_body(request, buffer, state.body_limits)
        if not keeps_slot and is_cheap_to_check(body):
            try:
                with admission.enter(caller), limit_decoding(0):
                    result = work(body)
            except DecodingForbiddenError:
                pass
            else:
                del body
                yield result
                return
        with ExitStack() as stack:
            slot = request.state.slot = stack.enter_context(admission.enter(caller))
            job = slot.run(work, body)
            del body
            result = await cancel_on_disconnect(request, job)
            if not keeps_slot:
                stack.close()
            yield result


def is_cheap_to_check(body: bytes) -> bool:
    """Return whether checking a body takes less than about 5 ms, so that it may run on the event loop."""
    return len(body) <= INLINE_BYTES and body.count(b",") <= INLINE_COMMAS + len(body) // BYTES_PER_COMMA


def parse_crop_input(head: RequestHead, body: bytes) -> CropInput:
    """Parse the body of a crop request, and override its options with those of the query.

    Raises:
        ProblemError: the body is invalid.
    """
    with image_step("parse"):
        request = _parse_body(head, body, parse_json, parse_multipart)
        if request is None:
            request = CropInput(image=body, points=None, segmentation_map=None, options=CropOptions())
        return replace(request, options=_override(request.options, head.options, CropOptions))


def parse_landmarks_input(head: RequestHead, body: bytes) -> LandmarksInput:
    """Parse the body of a landmarks request, and override its options with those of the query.

    Raises:
        ProblemError: the body is invalid.
    """
    with image_step("parse"):
        request = _parse_body(head, body, parse_landmarks_json, parse_landmarks_multipart)
        if request is None:
            request = LandmarksInput(image=body, options=LandmarkOptions())
        return replace(request, options=_override(request.options, head.options, LandmarkOptions))


def _parse_body(
    head: RequestHead, body: bytes, from_json: Callable[[bytes], T], from_multipart: Callable[[bytes, str], T]
) -> T | None:
    """Parse a body that is a document or a form; None if it is an image alone."""
    kind = media_type(head.content_type)
    if kind == JSON:
        return from_json(body)
    return from_multipart(body, head.content_type) if kind == MULTIPART else None


def check_input(
    service: CropService, head: RequestHead, body: bytes, *, is_digested: bool
) -> tuple[CheckedInput, str | None]:
    """Parse a body, and check everything that does not require decoding the image; return the digest if `is_digested`.

    Raises:
        ProblemError: the body is invalid.
        InputError: the image, landmarks or segmentation map are invalid.
    """
    checked = service.check(parse_crop_input(head, body))
    return checked, checked.digest() if is_digested else None


def media_type(content_type: str) -> str:
    """Return the media type of a Content-Type, in lower case and without parameters."""
    return content_type.partition(";")[0].strip().lower()


def read_query(request: Request, names: Sequence[str]) -> dict[str, str]:
    """Return the query parameters, each of which must have a known name and occur once.

    Raises:
        ProblemError: ``parameter_invalid``.
    """
    # Checked before parsing, which takes a microsecond per parameter.
    count = request.scope["query_string"].count(b"&") + 1
    if count > MAX_PARAMETERS:
        raise ProblemError("parameter_invalid", f"query: expected at most {MAX_PARAMETERS} parameters, got {count}")
    pairs = request.query_params.multi_items()
    found = dict(pairs)
    if unknown := found.keys() - set(names):
        expected = f"only {', '.join(names)}" if names else "no parameters"
        raise ProblemError("parameter_invalid", f"query: expected {expected}; got {len(unknown)} unknown")
    if len(found) != len(pairs):
        raise ProblemError("parameter_invalid", "query: expected each parameter once, got a duplicate")
    return found


def _pop_mask(query: dict[str, str]) -> bool:
    """Remove `mask` from the query; return whether it selects the label mask as the response."""
    text = query.pop("mask", None)
    if text not in {None, "labels"}:
        raise ProblemError("parameter_invalid", "mask: expected labels, got another value")
    return text is not None


def require_one_face(options: CropOptions) -> None:
    """Reject a mask of all faces, whose results may have different frames.

    Raises:
        ProblemError: ``parameter_invalid``.
    """
    if options.face == "all":
        raise ProblemError("parameter_invalid", MASK_OF_ALL_FACES)


def read_status_query(request: Request) -> tuple[float, bool]:
    """Return the maximum time to wait for a task, in seconds, 0 by default, and whether to return the label mask.

    Raises:
        ProblemError: ``parameter_invalid``.
    """
    query = read_query(request, ["wait", "mask"])
    is_mask = _pop_mask(query)
    text = query.get("wait", "0")
    # float() alone would also accept nan, infinity, underscores and surrounding spaces.
    wait_s = float(text) if _NUMBER.fullmatch(text) else -1.0
    if not 0 <= wait_s <= MAX_WAIT_S:
        raise ProblemError("parameter_invalid", f"wait: expected 0 to {MAX_WAIT_S:g} seconds, got another value")
    return wait_s, is_mask


def require_task_id(text: str) -> None:
    """Reject text that does not have the form of a task id, like the id of an unknown task.

    An id becomes part of NATS subjects, in which dots and stars are special characters.

    Raises:
        TaskUnknownError: the text is not a task id.
    """
    if not _TASK_ID.fullmatch(text):
        raise TaskUnknownError("task_id: expected 32 hexadecimal digits, got another value")


def read_idempotency_key(request: Request) -> str | None:
    """Return the ``Idempotency-Key`` header, bare or in double quotes; both forms are the same key.

    Raises:
        ProblemError: ``parameter_invalid``.
    """
    values = request.headers.getlist("idempotency-key")
    if not values:
        return None
    if len(values) > 1:
        raise ProblemError("parameter_invalid", f"Idempotency-Key: expected one header, got {len(values)}")
    (value,) = values
    if quoted := _QUOTED_KEY.fullmatch(value):
        key = _ESCAPE.sub(r"\1", quoted[1])
    else:
        key = value if _BARE_KEY.fullmatch(value) else ""
    if not 1 <= len(key) <= MAX_KEY:
        expected = f"1 to {MAX_KEY} visible ASCII characters, bare or in double quotes"
        raise ProblemError("parameter_invalid", f"Idempotency-Key: expected {expected}, got another value")
    return key


def _override(options: Struct, query: dict[str, str], kind: type[Struct]) -> Struct:
    """Return a copy without the other fields of a body, which would keep the text of the image alive.

    A default in the query does not override the body, because generated clients and /docs send every default.
    """
    values = {name: getattr(options, name) for name in kind.__struct_fields__}
    if query:
        given, defaults = options_from_text(query, "query", kind), kind()
        values |= {name: value for name in query if (value := getattr(given, name)) != getattr(defaults, name)}
    return kind(**values)


def _require_content_type(request: Request) -> str:
    content_type = request.headers.get("content-type", "")
    if len(content_type) > MAX_CONTENT_TYPE:  # parsing takes a microsecond per parameter
        detail = f"Content-Type: expected at most {MAX_CONTENT_TYPE} characters, got {len(content_type)}"
        raise ProblemError("unsupported_media_type", detail)
    if media_type(content_type) not in {JSON, MULTIPART, *IMAGE_TYPES}:
        detail = f"Content-Type: expected {JSON}, {MULTIPART} or the type of an image, got another or none"
        raise ProblemError("unsupported_media_type", detail)
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        detail = "Content-Encoding: expected none, because images are compressed already; got another"
        raise ProblemError("unsupported_media_type", detail)
    return content_type

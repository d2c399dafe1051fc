"""The crop routes: a photo and landmarks in, regions out."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request, Response
from starlette.requests import ClientDisconnect

from app.observability.recording import image_step
from app.service.admission import SaturatedError
from app.service.document import result_to_json, result_warnings
from app.service.options import OPTION_NAMES, CropOptions
from app.web import openapi
from app.web.auth import require_key
from app.web.body import read_body, require_declared_size, unless_gone
from app.web.json_body import parse_json
from app.web.multipart_body import options_from_text, parse_multipart
from app.web.negotiate import JSON, SVG, choose_form
from app.web.problems import CLIENT_CLOSED_REQUEST, ProblemError
from app.web.state import WebState, web_state

if TYPE_CHECKING:
    from app.service.crop import CropInput, CropService

MULTIPART = "multipart/form-data"

Answer = tuple[bytes, list[str]]
"""The document, and the codes of what the caller may not expect: an overlay has no other place for these."""

router = APIRouter(prefix="/api/v1/frontal")


@router.post("/crop", **openapi.CROP)
async def crop(request: Request) -> Response:
    """Find the regions of a face.

    The answer is a JSON document, or the overlay alone where ``Accept`` prefers ``image/svg+xml``.
    """
    state = web_state(request)
    require_key(request, state.api_keys)
    form = choose_form(request.headers.get("accept"))
    content_type = _require_content_type(request)
    require_declared_size(request, state.max_body_bytes)
    query = _query_options(request)
    try:
        answer = await _answer(request, state, content_type, query, form)
    except SaturatedError:
        raise _saturated(state) from None
    except ClientDisconnect:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    content, warnings = answer
    headers = {"Vary": "Accept", **({"X-Warnings": ", ".join(warnings)} if warnings else {})}
    return Response(content, media_type=form, headers=headers)


async def _answer(request: Request, state: WebState, content_type: str, query: dict[str, str], form: str) -> Answer:
    admission = state.admission
    admission.require_place()
    with admission.buffer() as buffer:
        body = await read_body(request, buffer, max_bytes=state.max_body_bytes, timeout_s=state.body_timeout_s)
        with admission.enter():
            return await unless_gone(request, admission.run(_process, state.crop, body, content_type, query, form))


def _process(service: CropService, body: bytes, content_type: str, query: dict[str, str], form: str) -> Answer:
    """Do all that takes CPU, on a work thread: read, check, find, write."""
    with image_step("parse"):
        request = _parse(body, content_type)
        if query:
            request = _override(request, query)
    result = service.process(request)
    with image_step("encode"):
        content = result.face.svg if form == SVG else result_to_json(result)
    return content, [warning["code"] for warning in result_warnings(result)]


def _parse(body: bytes, content_type: str) -> CropInput:
    return parse_json(body) if media_type(content_type) == JSON else parse_multipart(body, content_type)


def _override(request: CropInput, query: dict[str, str]) -> CropInput:
    given = options_from_text(query, "query")
    values = {name: getattr(request.options, name) for name in OPTION_NAMES}
    values |= {name: getattr(given, name) for name in query}
    return replace(request, options=CropOptions(**values))


def media_type(content_type: str) -> str:
    """Return the type without its parameters, in lower case."""
    return content_type.partition(";")[0].strip().lower()


def _require_content_type(request: Request) -> str:
    content_type = request.headers.get("content-type", "")
    if media_type(content_type) not in {JSON, MULTIPART}:
        raise ProblemError(
            "unsupported_media_type", f"expected {JSON} or {MULTIPART} as Content-Type, got another or none"
        )
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise ProblemError("unsupported_media_type", "expected no Content-Encoding; pictures are compressed already")
    return content_type


def _query_options(request: Request) -> dict[str, str]:
    pairs = request.query_params.multi_items()
    options = dict(pairs)
    if unknown := options.keys() - set(OPTION_NAMES):
        raise ProblemError(
            "parameter_invalid", f"expected only {', '.join(OPTION_NAMES)}; got {len(unknown)} of another name"
        )
    if len(options) != len(pairs):
        raise ProblemError("parameter_invalid", "expected each parameter once, got one twice")
    return options


def _saturated(state: WebState) -> ProblemError:
    return ProblemError(
        "saturated",
        "every place of this process is taken; come back after the time in Retry-After",
        # Come back to another process: this one keeps the connections that it has.
        headers={"Retry-After": str(state.retry_after_s), "Connection": "close"},
    )

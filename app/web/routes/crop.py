"""The crop route: a photo in, with or without landmarks; regions out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request, Response

from app.observability.recording import image_step
from app.service.serialization import result_to_json, result_warnings
from app.web import openapi
from app.web.auth import require_caller, scope_digest
from app.web.body import unless_gone
from app.web.intake import Head, check_input, read_head, read_input, work_on_body
from app.web.negotiate import SVG, choose_form
from app.web.results import overlay_headers, read_result
from app.web.state import WebState, caller_of, task_queue, web_state

if TYPE_CHECKING:
    from app.service.crop import CheckedInput, CropResult, CropService

router = APIRouter(prefix="/api/v1/frontal")


@dataclass(frozen=True, slots=True)
class Answer:
    """The content, and what stands in the headers beside it.

    Attributes:
        content: the document or the overlay.
        warnings: codes of what the caller may not expect.
        cache: ``hit`` or ``miss``; empty where nothing was looked up.
    """

    content: bytes
    warnings: list[str]
    cache: str = ""


@router.post("/crop", **openapi.CROP)
async def crop(request: Request) -> Response:
    """Find the regions of a face.

    The answer is a JSON document, or the overlay alone where ``Accept`` prefers ``image/svg+xml``.
    """
    state = web_state(request)
    require_caller(request, state.keys, state.limiter)
    form = choose_form(request.headers.get("accept"))
    head = read_head(request, state)
    answer = await (_recall if state.has_result_cache else _answer)(request, state, head, form)
    headers = overlay_headers(answer.warnings)
    if answer.cache:
        headers["X-Cache"] = answer.cache
    return Response(answer.content, media_type=form, headers=headers)


async def _answer(request: Request, state: WebState, head: Head, form: str) -> Answer:
    async with work_on_body(request, state, partial(_process, state.crop, head, form)) as answer:
        return answer


def _process(service: CropService, head: Head, form: str, body: bytes) -> Answer:
    """Do all that takes CPU, on a work thread: read, check, find, write."""
    return _write(service.process(read_input(head, body)), form)


async def _recall(request: Request, state: WebState, head: Head, form: str) -> Answer:
    """Answer from the result of an earlier task for the same, where there is one."""
    async with work_on_body(request, state, partial(check_input, state.crop, head, is_digested=True)) as checked:
        caller = caller_of(request)
        found = await task_queue(request).find_result(scope_digest(caller, checked[1]) or "")
        if found is None:
            return await unless_gone(request, request.state.slot.run(_finish, state.crop, checked[0], form))
    overlay, warnings = read_result(found)
    return Answer(overlay if form == SVG else found, warnings, "hit")


def _finish(service: CropService, checked: CheckedInput, form: str) -> Answer:
    return replace(_write(service.run(checked), form), cache="miss")


def _write(result: CropResult, form: str) -> Answer:
    with image_step("document"):
        content = result.face.svg if form == SVG else result_to_json(result)
    return Answer(content, [warning["code"] for warning in result_warnings(result)])

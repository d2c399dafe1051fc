"""Routes that process an image at once: the regions of a face, or its landmarks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request, Response

from app.observability.recording import image_step
from app.service.crop import CropResult
from app.service.landmarks import find_landmarks
from app.service.options import LANDMARK_OPTION_NAMES, OPTION_NAMES
from app.service.png_export import result_to_mask, result_to_png
from app.service.serialization import result_to_json, warning_codes
from app.web import openapi
from app.web.auth import require_caller, scope_digest
from app.web.body import cancel_on_disconnect
from app.web.content_negotiation import JSON, MEDIA_TYPES, negotiate_format, require_json
from app.web.request_parsing import (
    RequestHead,
    check_input,
    parse_crop_input,
    parse_landmarks_input,
    process_body,
    read_head,
    require_one_face,
)
from app.web.results import load_result, overlay_headers, render_result
from app.web.state import WebState, caller_of, task_queue, web_state

if TYPE_CHECKING:
    from app.service.crop import CheckedInput, CropResults, CropService, ImageLimits
    from app.web.content_negotiation import ResultFormat

router = APIRouter(prefix="/api/v1/frontal")


@dataclass(frozen=True, slots=True)
class CropContent:
    """Content of a response to a crop request."""

    content: bytes  # the JSON document, the overlay or the label mask
    warnings: list[str]  # codes
    cache: str = ""  # `hit` or `miss`; empty without a result cache


@router.post("/crop", **openapi.CROP)
async def crop(request: Request) -> Response:
    """Return the regions of a face, or of all faces with `face=all`.

    The response is a JSON document, or the overlay alone if `Accept` prefers `image/svg+xml` or `image/png`, or the
    label mask with `mask=labels`.
    """
    state = web_state(request)
    require_caller(request, state.keys, state.limiter)
    head = read_head(request, state, (*OPTION_NAMES, "mask"))
    result_format = negotiate_format(request.headers.get("accept"), is_mask=head.is_mask)
    crop_image = _crop_cached if state.has_result_cache else _crop
    result = await crop_image(request, state, head, result_format)
    headers = overlay_headers(result.warnings)
    if result.cache:
        headers["X-Cache"] = result.cache
    return Response(result.content, media_type=MEDIA_TYPES[result_format], headers=headers)


async def _crop(request: Request, state: WebState, head: RequestHead, result_format: ResultFormat) -> CropContent:
    async with process_body(request, state, partial(_process_crop, state.crop, head, result_format)) as result:
        return result


def _process_crop(service: CropService, head: RequestHead, result_format: ResultFormat, body: bytes) -> CropContent:
    """Parse and process a request, and serialize the result, on a work thread."""
    request = parse_crop_input(head, body)
    if head.is_mask:
        require_one_face(request.options)
    return _serialize(service.process(request), result_format, service.limits)


async def _crop_cached(
    request: Request, state: WebState, head: RequestHead, result_format: ResultFormat
) -> CropContent:
    """Return the result of an earlier task for the same request, or process the request."""
    async with process_body(request, state, partial(check_input, state.crop, head, is_digested=True)) as checked:
        if head.is_mask:
            require_one_face(checked[0].options)
        caller = caller_of(request)
        found = await task_queue(request).find_result(scope_digest(caller, checked[1]) or "")
        if found is None:
            job = request.state.slot.run(_process_checked, state.crop, checked[0], result_format)
            return await cancel_on_disconnect(request, job)
        if result_format in {"png", "mask"}:
            job = request.state.slot.run(render_result, found, result_format, state.crop.limits)
            image, warnings = await cancel_on_disconnect(request, job)
            return CropContent(image, warnings, "hit")
    overlay, warnings = await load_result(found)
    return CropContent(overlay if result_format == "svg" else found, warnings, "hit")


def _process_checked(service: CropService, checked: CheckedInput, result_format: ResultFormat) -> CropContent:
    return replace(_serialize(service.run(checked), result_format, service.limits), cache="miss")


def _serialize(result: CropResult | CropResults, result_format: ResultFormat, limits: ImageLimits) -> CropContent:
    with image_step("document"):
        if result_format == "mask" and isinstance(result, CropResult):
            content = result_to_mask(result, limits)
        elif result_format == "png":
            content = result_to_png(result, limits, is_request=True)
        else:
            content = result.svg if result_format == "svg" else result_to_json(result)
    return CropContent(content, warning_codes(result))


@router.post("/landmarks", **openapi.LANDMARKS)
async def landmarks(request: Request) -> Response:
    """Return the 478 landmarks of a face, in MediaPipe's order."""
    state = web_state(request)
    require_caller(request, state.keys, state.limiter)
    require_json(request.headers.get("accept"))
    head = read_head(request, state, LANDMARK_OPTION_NAMES)
    async with process_body(request, state, partial(_process_landmarks, state.crop, head)) as content:
        return Response(content, media_type=JSON)


def _process_landmarks(service: CropService, head: RequestHead, body: bytes) -> bytes:
    return find_landmarks(service, parse_landmarks_input(head, body))

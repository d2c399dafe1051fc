"""The landmarks route: a photo in, the landmarks of a face out."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter, Request, Response

from app.observability.recording import image_step
from app.service.landmarks import find_landmarks, landmarks_to_json
from app.service.options import LANDMARK_OPTION_NAMES
from app.web import openapi
from app.web.auth import require_caller
from app.web.intake import Head, read_head, read_landmarks_input, work_on_body
from app.web.negotiate import JSON, require_json
from app.web.state import WebState, web_state

router = APIRouter(prefix="/api/v1/frontal")


@router.post("/landmarks", **openapi.LANDMARKS)
async def landmarks(request: Request) -> Response:
    """Find the 478 landmarks of a face, in MediaPipe's order."""
    state = web_state(request)
    require_caller(request, state.keys, state.limiter)
    require_json(request.headers.get("accept"))
    head = read_head(request, state, LANDMARK_OPTION_NAMES)
    async with work_on_body(request, state, partial(_process, state, head)) as content:
        return Response(content, media_type=JSON)


def _process(state: WebState, head: Head, body: bytes) -> bytes:
    """Do all that takes CPU, on a work thread: read, check, find, write."""
    result = find_landmarks(state.crop, state.detectors, read_landmarks_input(head, body))
    with image_step("document"):
        return landmarks_to_json(result)

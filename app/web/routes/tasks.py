"""Task routes: submit a task, query its status and cancel it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request, Response

from app.tasks.records import TaskStatus
from app.web import openapi
from app.web.auth import require_caller, scope_digest
from app.web.body import cancel_on_disconnect, read_body
from app.web.content_negotiation import JSON, MEDIA_TYPES, negotiate_format, require_json
from app.web.error_handlers import NO_STORE
from app.web.request_parsing import (
    check_input,
    process_body,
    read_head,
    read_idempotency_key,
    read_query,
    read_status_query,
    require_task_id,
)
from app.web.results import load_result, overlay_headers, render_result, task_to_json
from app.web.state import WebState, task_queue, web_state

if TYPE_CHECKING:
    from app.tasks.records import Record
    from app.web.auth import Caller

PREFIX = "/api/v1/frontal/crop"
MAX_IGNORED_BYTES = 65_536  # of a body that the route does not use

router = APIRouter(prefix=PREFIX)


@router.post("/submit", **openapi.SUBMIT)
async def submit(request: Request) -> Response:
    """Submit a crop request as a task.

    Everything that does not require decoding the image is checked before the task is accepted. The response to a
    repeated request with the same `Idempotency-Key` is the task of the first one.
    """
    state = web_state(request)
    caller = require_caller(request, state.keys, state.limiter)
    require_json(request.headers.get("accept"))
    head = read_head(request, state)
    key = read_idempotency_key(request)
    is_digested = key is not None or state.has_result_cache
    check = partial(check_input, state.crop, head, is_digested=is_digested)
    async with process_body(request, state, check, keeps_slot=False) as (checked, digest):
        # Not cancelled if the client disconnects, because that could leave a task that was never counted.
        record = await task_queue(request).submit(
            checked,
            idempotency_key=key,
            caller_number=caller.number,
            owner=caller.owner,
            digest=scope_digest(caller, digest),
        )
    location = f"{state.prefix}{PREFIX}/status/{record.task_id}"
    return Response(task_to_json(record), 202, headers={"Location": location, **NO_STORE}, media_type=JSON)


@router.get("/status/{task_id}", **openapi.STATUS)
async def status(request: Request, task_id: openapi.TaskId) -> Response:
    """Return the status of a task, and its result or error. With `wait`, respond when it has ended or the time is over.

    The status code is 200 for a failed task, too: its `error` contains the reason. If the task has succeeded, the
    response is the overlay alone if `Accept` prefers `image/svg+xml` or `image/png`, or the label mask with
    `mask=labels`.
    """
    state = web_state(request)
    caller = require_caller(request, state.keys)
    wait_s, is_mask = read_status_query(request)
    result_format = negotiate_format(request.headers.get("accept"), is_mask=is_mask)
    require_task_id(task_id)
    if wait_s:
        record = await _wait(request, state, task_id, wait_s, caller)
    else:
        record = await task_queue(request).status(task_id, owner=caller.owner)
    if result_format != "json" and record.status is TaskStatus.SUCCESS:
        if result_format == "svg":
            image, warnings = await load_result(record.result)
        else:
            with state.admission.enter(caller.identity) as slot:
                image, warnings = await slot.run(render_result, record.result, result_format, state.crop.limits)
        headers = {**overlay_headers(warnings), **NO_STORE}
        return Response(image, headers=headers, media_type=MEDIA_TYPES[result_format])
    return Response(task_to_json(record), headers={**overlay_headers(()), **NO_STORE}, media_type=JSON)


async def _wait(request: Request, state: WebState, task_id: str, wait_s: float, caller: Caller) -> Record:
    # The disconnect can only be received after the whole body, if there is one.
    with state.admission.bodies.open(MAX_IGNORED_BYTES) as buffer:
        await read_body(request, buffer, replace(state.body_limits, max_bytes=MAX_IGNORED_BYTES))
    waiting = task_queue(request).status(
        task_id, owner=caller.owner, caller=caller.identity, wait_s=wait_s, is_stopping=state.is_stopping
    )
    return await cancel_on_disconnect(request, asyncio.ensure_future(waiting))


@router.delete("/status/{task_id}", **openapi.CANCEL)
@router.delete("/{task_id}", **openapi.CANCEL_SHORT)
async def cancel(request: Request, task_id: openapi.TaskId) -> Response:
    """Cancel a task that has not ended. Cancelling it again has no effect."""
    owner = require_caller(request, web_state(request).keys).owner
    require_json(request.headers.get("accept"))
    read_query(request, ())
    require_task_id(task_id)
    record = await task_queue(request).cancel(task_id, owner=owner)
    return Response(task_to_json(record), headers=NO_STORE, media_type=JSON)

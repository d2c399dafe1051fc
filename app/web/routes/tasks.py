"""The routes of tasks: work is taken now, done later, and asked after by its id."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request, Response

from app.tasks.records import TaskStatus
from app.web import openapi
from app.web.auth import require_caller, scope_digest
from app.web.body import read_body, unless_gone
from app.web.intake import check_input, read_head, work_on_body
from app.web.negotiate import JSON, SVG, choose_form, require_json
from app.web.parameters import read_idempotency_key, read_query, read_wait_s, require_task_id
from app.web.problems import NO_STORE
from app.web.results import overlay_headers, read_result, task_to_json
from app.web.state import WebState, task_queue, web_state

if TYPE_CHECKING:
    from app.tasks.records import Record
    from app.web.auth import Caller

PREFIX = "/api/v1/frontal/crop"
MAX_PASSED_OVER = 65_536  # bytes of a body that nobody asked for

router = APIRouter(prefix=PREFIX)


@router.post("/submit", **openapi.SUBMIT)
async def submit(request: Request) -> Response:
    """Take a request as a task, once everything about it is checked that needs no pixels.

    Where the same `Idempotency-Key` has come before with the same request, the answer is the task that it made then.
    """
    state = web_state(request)
    caller = require_caller(request, state.keys, state.limiter)
    require_json(request.headers.get("accept"))
    head = read_head(request, state)
    key = read_idempotency_key(request)
    is_digested = key is not None or state.has_result_cache
    check = partial(check_input, state.crop, head, is_digested=is_digested)
    async with work_on_body(request, state, check, is_place_kept=False) as (checked, digest):
        # Whether or not the caller still waits: given up halfway, a task might be there that nobody has counted.
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
    """Tell how far a task is; with `wait`, not before it has ended or the time is over.

    A task that failed is an answer like any other: its `error` says why. Where `Accept` prefers `image/svg+xml` and
    the task has succeeded, the answer is the overlay alone.
    """
    state = web_state(request)
    caller = require_caller(request, state.keys)
    form = choose_form(request.headers.get("accept"))
    wait_s = read_wait_s(request)
    require_task_id(task_id)
    if wait_s:
        record = await _wait(request, state, task_id, wait_s, caller)
    else:
        record = await task_queue(request).status(task_id, owner=caller.owner)
    if form == SVG and record.status is TaskStatus.SUCCESS:
        overlay, warnings = read_result(record.result)
        return Response(overlay, headers={**overlay_headers(warnings), **NO_STORE}, media_type=SVG)
    return Response(task_to_json(record), headers={**overlay_headers(()), **NO_STORE}, media_type=JSON)


async def _wait(request: Request, state: WebState, task_id: str, wait_s: float, caller: Caller) -> Record:
    # To hear of the end of the connection is to have read the body, should there be one.
    with state.admission.buffer(MAX_PASSED_OVER) as buffer:
        await read_body(request, buffer, replace(state.body_limits, max_bytes=MAX_PASSED_OVER))
    waiting = task_queue(request).status(
        task_id, owner=caller.owner, caller=caller.identity, wait_s=wait_s, is_stopping=state.is_stopping
    )
    return await unless_gone(request, asyncio.ensure_future(waiting))


@router.delete("/status/{task_id}", **openapi.CANCEL)
@router.delete("/{task_id}", **openapi.CANCEL)
async def cancel(request: Request, task_id: openapi.TaskId) -> Response:
    """Cancel a task that has not ended. To cancel it again changes nothing."""
    owner = require_caller(request, web_state(request).keys).owner
    require_json(request.headers.get("accept"))
    read_query(request, ())
    require_task_id(task_id)
    record = await task_queue(request).cancel(task_id, owner=owner)
    return Response(task_to_json(record), headers=NO_STORE, media_type=JSON)

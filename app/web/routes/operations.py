"""Paths for whoever operates the service: health, metrics, version."""

from __future__ import annotations

import platform

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

from app import __version__
from app.observability.health import probe
from app.web import openapi
from app.web.negotiate import JSON
from app.web.state import web_state

router = APIRouter(tags=["operations"])


@router.get("/health", summary="Health in full", **openapi.HEALTH)
@router.get("/health/live", summary="Whether the instance is alive", **openapi.HEALTH)
@router.get("/health/ready", summary="Whether the instance takes requests", **openapi.HEALTH)
async def health(request: Request) -> Response:
    """Answer 200 or 503 with what the instance knows of its worker processes."""
    scoreboard = web_state(request).scoreboard
    if scoreboard is None:
        raise HTTPException(404)
    status, body = probe(scoreboard, request.url.path)
    return Response(body, status.value, media_type=JSON)


@router.get("/metrics", summary="Metrics of all worker processes", **openapi.METRICS)
async def metrics(request: Request) -> Response:
    """Answer in Prometheus's text format, or in OpenMetrics where the scraper asks for it."""
    exposition = web_state(request).exposition
    if exposition is None:
        raise HTTPException(404)
    body, content_type = await exposition.encode(request.headers.get("accept", ""))
    return Response(body, headers={"Content-Type": content_type})


@router.get("/version", summary="Version of the service", **openapi.VERSION)
async def version() -> dict[str, str]:
    """Name the versions of the service and of its Python."""
    return {"version": __version__, "python": platform.python_version()}

"""Operational routes: health, metrics and version."""

from __future__ import annotations

import platform

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

from app import __version__
from app.observability.health import probe
from app.web import openapi
from app.web.content_negotiation import JSON
from app.web.state import web_state

router = APIRouter(tags=["operations"])


@router.get("/health", summary="Health of the instance", **openapi.HEALTH)
@router.get("/health/live", summary="Liveness of the instance", **openapi.LIVENESS)
@router.get("/health/ready", summary="Readiness of the instance", **openapi.READINESS)
async def health(request: Request) -> Response:
    """Return status 200 or 503, with the health of each worker process."""
    scoreboard = web_state(request).scoreboard
    if scoreboard is None:
        raise HTTPException(404)
    status, body = probe(scoreboard, request.url.path)
    return Response(body, status.value, media_type=JSON)


@router.get("/metrics", summary="Metrics of all worker processes", **openapi.METRICS)
async def metrics(request: Request) -> Response:
    """Return the metrics in Prometheus's text format, or in OpenMetrics if the scraper requests it."""
    exposition = web_state(request).exposition
    if exposition is None:
        raise HTTPException(404)
    body, content_type = await exposition.encode(request.headers.get("accept", ""))
    return Response(body, headers={"Content-Type": content_type})


@router.get("/version", summary="Version of the service", **openapi.VERSION)
async def version() -> dict[str, str]:
    """Return the versions of the service and of Python."""
    return {"version": __version__, "python": platform.python_version()}

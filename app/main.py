"""Composition root: creates the ASGI application from the settings."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import cv2
from fastapi import FastAPI, Request, Response
from fastapi.responses import RedirectResponse

from app import __version__
from app.observability import metrics, multiprocess, tracing
from app.observability.rich_logging import LogOptions
from app.service.admission import Admission
from app.service.crop import CropService, ImageLimits
from app.service.detector_pool import DetectorPool
from app.tasks.queue import TaskQueue
from app.web.auth import KeyRing
from app.web.body import BodyLimits
from app.web.error_handlers import HANDLERS
from app.web.middleware import PathPrefix, RequestContext, ShutdownGuard
from app.web.rate_limit import RateLimiter
from app.web.request_metrics import RequestMetrics
from app.web.request_trace import RequestTrace
from app.web.routes import docs, operations, page, regions, tasks
from app.web.state import Exposition, WebState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from prometheus_client import CollectorRegistry

    from app.observability.health import ScoreboardView
    from app.settings import Settings

DESCRIPTION = (
    "Segments a face image into labelled regions, returned as an SVG overlay and as contours. MediaPipe landmarks are "
    "optional."
)
MAX_BUFFERED_BODIES = 8  # bodies of the maximum size; further ones are not read yet and use no memory

# Worker processes provide the parallelism, and the threads of OpenCV do not survive a fork.
cv2.setNumThreads(0)


def create_app(
    settings: Settings, *, scoreboard: ScoreboardView | None = None, registry: CollectorRegistry | None = None
) -> FastAPI:
    """Create the application. Without a scoreboard or a registry, the health paths or ``/metrics`` do not exist."""
    state = _make_state(settings, scoreboard, registry)
    app = FastAPI(
        title="facial-service",
        version=__version__,
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        # Not FastAPI's `root_path`, which the server sets per request: the prefix is only used in links.
        servers=[{"url": state.prefix}] if state.prefix else None,
        redirect_slashes=False,
        lifespan=_make_lifespan(state),
        exception_handlers=HANDLERS,
        # Its spans would contain paths of callers; `app.observability.tracing` records them instead.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    app.state.web = state
    app.include_router(regions.router)
    if state.queue is not None:
        app.include_router(tasks.router)
    app.include_router(operations.router)
    if settings.enable_page:
        app.include_router(page.router)
    docs.add_docs(app, state, has_page=settings.enable_page)
    # The last one added is the outermost: the request context exists while all others run.
    app.add_middleware(ShutdownGuard, shutdown=state.shutdown, retry_after_s=state.retry_after_s)
    if metrics.is_enabled():
        app.add_middleware(RequestMetrics)
    app.add_middleware(RequestContext, is_access_logged=settings.log_access)
    if tracing.is_prepared():
        app.add_middleware(RequestTrace)
    # With a prefix such as /api, a path does not show whether a proxy has removed it already.
    if state.prefix and not any(getattr(route, "path", "").startswith(f"{state.prefix}/") for route in app.routes):
        app.add_route(state.prefix, _redirect_prefix, [*metrics.HTTP_METHODS], include_in_schema=False)
        app.add_middleware(PathPrefix, prefix=state.prefix)
    return app


async def _redirect_prefix(request: Request) -> Response:
    """Redirect a request for the prefix alone, because links of the page are relative."""
    return RedirectResponse(str(request.url.replace(scheme="", netloc="", path=f"{request.scope['path']}/")), 308)


def _make_lifespan(state: WebState) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        if state.queue is not None:
            await state.queue.start()
        yield
        if state.queue is not None:
            await state.queue.close()
        state.admission.close()

    return lifespan


def _make_state(settings: Settings, scoreboard: ScoreboardView | None, registry: CollectorRegistry | None) -> WebState:
    return WebState(
        crop=CropService(
            ImageLimits(max_image_pixels=settings.max_image_pixels, landmark_margin=settings.landmark_margin),
            DetectorPool(settings.models_dir),
            fault_work_s=settings.fault_work_s,
        ),
        admission=Admission(
            max_concurrency=settings.max_concurrency,
            threads=settings.work_threads,
            max_buffered_bytes=settings.max_body_bytes * min(max(settings.max_concurrency, 2), MAX_BUFFERED_BODIES),
            max_body_bytes=settings.max_body_bytes,
        ),
        scoreboard=scoreboard,
        exposition=None if registry is None or not settings.metrics_on_api_port else Exposition(registry),
        queue=TaskQueue(settings) if settings.enable_tasks else None,
        has_result_cache=settings.enable_tasks and settings.result_cache,
        keys=KeyRing([key.get_secret_value() for key in settings.api_keys], settings.api_keys_file),
        limiter=None if settings.rate_quota is None else RateLimiter(*settings.rate_quota),
        body_limits=BodyLimits(settings.max_body_bytes, settings.body_timeout_s, settings.body_min_rate),
        retry_after_s=settings.retry_after_s,
        prefix=settings.root_path.rstrip("/"),
    )


def install_metrics(settings: Settings) -> Path:
    """Create every recorded metric, in value files that the worker processes share, and return their directory."""
    directory = multiprocess.use_directory(settings.prometheus_multiproc_dir)
    names = {spec.buckets for spec in metrics.METRICS if spec.buckets is not None}
    metrics.install({name: getattr(settings, name) for name in names})
    return directory


def log_options(settings: Settings) -> LogOptions:
    """Return the log options from the settings."""
    return LogOptions(
        format=settings.log_format,
        level=settings.log_level,
        levels=settings.log_levels,
        theme=settings.log_theme,
        time_format=settings.log_time_format,
        file=settings.log_file,
        file_max_bytes=settings.log_file_max_bytes,
        file_backups=settings.log_file_backups,
    )

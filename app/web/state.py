"""What the routes need of the process they run in, made once by the composition root."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastapi import Request
    from prometheus_client import CollectorRegistry

    from app.observability.board import Board
    from app.service.admission import Admission
    from app.service.crop import CropService


@dataclass(frozen=True, slots=True, kw_only=True)
class WebState:
    """The parts behind the routes.

    Attributes:
        crop: the use case.
        admission: places and threads of this process.
        board: health of the instance.
        registry: what ``/metrics`` reads; None where metrics are off.
        api_keys: keys that are let in; empty lets everybody in.
        max_body_bytes: largest body.
        body_timeout_s: how long a body may take.
        retry_after_s: what a 503 asks for.
    """

    crop: CropService
    admission: Admission
    board: Board
    registry: CollectorRegistry | None
    api_keys: tuple[bytes, ...]
    max_body_bytes: int
    body_timeout_s: float
    retry_after_s: int


def web_state(request: Request) -> WebState:
    """Return the state that the application was made with."""
    state: WebState = request.app.state.web
    return state

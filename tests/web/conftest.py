"""The application in this process, without a server, and a way to call it."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from app.main import create_app
from app.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fastapi import FastAPI

CROP = "/api/v1/frontal/crop"


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def make_app() -> Iterator[Callable[..., FastAPI]]:
    """Give ``make_app(**settings)``; work threads are ended after the test."""
    with ExitStack() as stack:

        def make(**settings: Any) -> FastAPI:
            app = create_app(Settings(**settings))
            stack.callback(app.state.web.admission.close)
            return app

        yield make


@pytest.fixture
def call() -> Callable[..., httpx.Response]:
    """Give ``call(app, method="POST", path=..., **request)``, which is answered as a server would hear it."""

    def send(app: FastAPI, method: str = "POST", path: str = CROP, **request: Any) -> httpx.Response:
        async def run() -> httpx.Response:
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
                return await client.request(method, path, **request)

        return asyncio.run(run())

    return send

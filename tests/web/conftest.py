"""Fixtures: the application in this process without a server, and for tasks a NATS server and a worker."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sysconfig
import time
from contextlib import ExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import httpx
import msgspec
import pytest

from app.main import create_app
from app.settings import Settings
from app.supervisor.scoreboard import Scoreboard
from app.tasks.worker import work

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

    from fastapi import FastAPI

T = TypeVar("T")

CROP = "/api/v1/frontal/crop"
NO_TASK = "0" * 32
LIMIT_S = 30.0
POLL_S = 0.01


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def make_app() -> Iterator[Callable[..., FastAPI]]:
    """Return ``make_app(**settings)``, and stop its work threads after the test."""
    with ExitStack() as stack:

        def make(**settings: Any) -> FastAPI:
            scoreboard = Scoreboard(expected_workers=1, timeout_s=60)
            app = create_app(Settings(**settings), scoreboard=scoreboard)
            stack.callback(app.state.web.admission.close)
            return app

        yield make


def client_of(app: FastAPI) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://service")


@pytest.fixture
def call() -> Callable[..., httpx.Response]:
    """Return ``call(app, method="POST", path=..., **request)``, which returns the response."""

    def send(app: FastAPI, method: str = "POST", path: str = CROP, **request: Any) -> httpx.Response:
        async def run() -> httpx.Response:
            async with client_of(app) as client:
                return await client.request(method, path, **request)

        return asyncio.run(run())

    return send


class _Ports(msgspec.Struct):
    nats: list[str]


@pytest.fixture
def nats_url(tmp_path: Path) -> Iterator[str]:
    """Start a NATS server with an empty store on a free loopback port, and return its address."""
    program = shutil.which("nats-server", path=os.pathsep.join((sysconfig.get_path("scripts"), os.environ["PATH"])))
    assert program, "nats-server is missing; install the development requirements"
    address = ["-a", "127.0.0.1", "-p", "-1", "--ports_file_dir", str(tmp_path)]
    store = ["-js", "-sd", str(tmp_path / "store"), "-l", str(tmp_path / "log")]
    process = subprocess.Popen([program, *address, *store])
    try:
        yield _read_address(tmp_path, process)
    finally:
        process.terminate()
        process.wait()


def _read_address(folder: Path, process: subprocess.Popen[bytes]) -> str:
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline and process.poll() is None:
        for file in folder.glob(f"*{process.pid}.ports"):
            try:
                return msgspec.json.decode(file.read_bytes(), type=_Ports).nats[0]
            except msgspec.DecodeError:  # half written
                pass
        time.sleep(POLL_S)
    raise TimeoutError("nats-server did not start")


class Tasks:
    """An application and its queue, as seen by a caller.

    Attributes:
        app: the application.
        client: sends requests to it.
    """

    def __init__(self, app: FastAPI, settings: Settings, client: httpx.AsyncClient) -> None:
        self.app = app
        self.client = client
        self._settings = settings
        self._stop = asyncio.Event()
        self._workers: list[asyncio.Task[None]] = []

    async def start_worker(self) -> None:
        """Start a worker in this process."""
        ready = asyncio.Event()
        worker = work(self._settings, stop=self._stop, on_ready=ready.set, name="test")
        self._workers.append(asyncio.create_task(worker))
        await ready.wait()

    async def stop(self) -> None:
        """Stop the workers."""
        self._stop.set()
        await asyncio.gather(*self._workers)

    async def submit(self, content: bytes, *, path: str = CROP, **headers: str) -> httpx.Response:
        """Submit JSON; underscores in header names become hyphens."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.client.post(
            f"{path}/submit", content=content, headers={"content-type": "application/json", **named}
        )

    async def status(self, task_id: str, query: str = "", **headers: str) -> httpx.Response:
        """Query the status of a task."""
        return await self.client.get(f"{CROP}/status/{task_id}{query}", headers=headers)

    async def succeed(self, content: bytes) -> dict[str, Any]:
        """Submit, wait for success, and return the task's document."""
        task_id = (await self.submit(content)).json()["task_id"]
        task: dict[str, Any] = (await self.status(task_id, "?wait=60")).json()
        assert task["status"] == "SUCCESS"
        return task

    async def wait_up(self) -> None:
        """Wait until the queue is available."""
        key = next((key.get_secret_value().rpartition(":")[2] for key in self._settings.api_keys), "")
        await self.until(
            lambda: self.status(NO_TASK, **{"x-api-key": key}), lambda response: response.status_code == 404
        )

    @staticmethod
    async def until(
        ask: Callable[[], Awaitable[httpx.Response]], is_met: Callable[[httpx.Response], bool]
    ) -> httpx.Response:
        """Repeat a request until its response meets a condition, and return that response."""
        async with asyncio.timeout(LIMIT_S):
            while True:
                response = await ask()
                if is_met(response):
                    return response
                await asyncio.sleep(POLL_S)


@pytest.fixture
def with_tasks(make_app: Callable[..., FastAPI], nats_url: str) -> Callable[..., Any]:
    """Return ``with_tasks(scenario, **settings)``, which runs ``await scenario(tasks)`` with a real NATS server."""

    @asynccontextmanager
    async def run_tasks(settings: Settings) -> AsyncIterator[Tasks]:
        app = make_app(**settings.model_dump(exclude_unset=True))
        async with app.router.lifespan_context(app), client_of(app) as client:
            tasks = Tasks(app, settings, client)
            await tasks.wait_up()
            try:
                yield tasks
            finally:
                await tasks.stop()

    def run(scenario: Callable[[Tasks], Awaitable[T]], **settings: Any) -> T:
        async def main() -> T:
            async with run_tasks(Settings(nats_url=nats_url, **settings)) as tasks:
                return await scenario(tasks)

        return asyncio.run(main())

    return run

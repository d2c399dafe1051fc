"""Queues on a real nats-server on loopback: a shared server, and servers that a test may restart and configure."""

from __future__ import annotations

import asyncio
import inspect
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import httpx
import nats
import orjson
import pytest
from nats.js.errors import NotFoundError

from app.service.crop import CropInput, CropService, ImageLimits
from app.settings import Settings
from app.tasks import worker
from app.tasks.queue import TaskQueue
from app.tasks.stream import CONSUMER, DEAD_STREAM, RECORDS_STREAM, STREAM, consumer_name

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from nats.aio.msg import Msg
    from nats.js.api import ConsumerInfo

    from app.face.pipeline import OnStep
    from app.service.crop import CheckedInput, CropResult
    from app.tasks.connection import Connection
    from app.tasks.records import Record, Records, TaskStatus
    from tests.conftest import Sample

T = TypeVar("T")

LIMIT_S = 30.0
POLL_S = 0.02
STREAMS = (STREAM, RECORDS_STREAM, DEAD_STREAM)
# Below the ephemeral ports. In that range, a client that retries while the server is down would eventually connect to
# itself and occupy the server's port.
PORTS = range(20_000, 32_000)


def find_program() -> str:
    """Return the path of nats-server; the one in the folder of the interpreter has priority."""
    found = shutil.which("nats-server", path=str(Path(sys.executable).parent)) or shutil.which("nats-server")
    if found is None:
        pytest.skip("nats-server is neither in the folder of the interpreter nor on PATH")
    return found


def free_ports(count: int) -> list[int]:
    """Return different ports that are free."""
    found: list[int] = []
    start = os.getpid() * 7 % len(PORTS)
    for offset in range(len(PORTS)):
        port = PORTS[(start + offset) % len(PORTS)]
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise OSError("no free port")


class NatsServer:
    """A server that can be stopped and restarted at the same address, with or without its store.

    Attributes:
        url: for clients, without credentials.
        monitor_url: of its monitoring port.
    """

    def __init__(self, folder: Path, *, settings: dict[str, Any] | None = None, scheme: str = "nats") -> None:
        port, monitor_port = free_ports(2)
        self.folder = folder
        self.store = folder / "store"
        self.url = f"{scheme}://127.0.0.1:{port}"
        self.monitor_url = f"http://127.0.0.1:{monitor_port}"
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        # The server's configuration format is a superset of JSON.
        self._file = folder / "server.conf"
        self._file.write_bytes(
            orjson.dumps(
                {
                    "listen": f"127.0.0.1:{port}",
                    "http": f"127.0.0.1:{monitor_port}",
                    "jetstream": {"store_dir": str(self.store)},
                    "logfile": str(folder / "server.log"),
                    **(settings or {}),
                }
            )
        )

    def start(self) -> None:
        """Start the server, and wait until streams can be created.

        Raises:
            TimeoutError: the server is not ready in time.
        """
        self._process = subprocess.Popen([find_program(), "-c", str(self._file)], stderr=subprocess.DEVNULL)
        end = time.monotonic() + LIMIT_S
        while not self._is_ready():
            if time.monotonic() > end or self._process.poll() is not None:
                raise TimeoutError((self.folder / "server.log").read_text(encoding="utf-8"))
            time.sleep(POLL_S)

    def stop(self, *, is_killed: bool = False) -> None:
        """Stop the server with SIGTERM or SIGKILL, if it runs."""
        if self._process is not None:
            (self._process.kill if is_killed else self._process.terminate)()
            self._process.wait(LIMIT_S)
            self._process = None

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Suspend the server for the duration of the block; its connections stay open."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        # The signal takes effect when each thread is scheduled next; until then, one may still respond.
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WNOWAIT)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def lose_store(self) -> None:
        """Delete the store of the stopped server."""
        shutil.rmtree(self.store)

    def _is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.monitor_url}/healthz", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False


async def until(condition: Callable[[], bool | Awaitable[bool]], what: str, limit_s: float = LIMIT_S) -> None:
    """Call a condition until it is true.

    Raises:
        TimeoutError: the condition was not true within the limit.
    """
    end = time.monotonic() + limit_s
    while True:
        found = condition()
        if await found if inspect.isawaitable(found) else found:
            return
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {limit_s:g} s")
        await asyncio.sleep(POLL_S)


class Desk:
    """A connected queue with its internals.

    Attributes:
        queue: the queue as the web layer uses it.
        records: the records of the queue.
        connection: the connection of the queue.
        settings: the settings of all of them.
    """

    until = staticmethod(until)

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.queue = TaskQueue(settings)
        self.connection: Connection = self.queue._connection
        self.records: Records = self.queue._records

    async def count(self, stream: str = STREAM) -> int:
        """Return the number of messages of a stream."""
        return (await self.connection.client.jetstream().stream_info(stream)).state.messages

    async def fetch(self, count: int = 1, *, lane: int = 0) -> list[Msg]:
        """Fetch messages of a lane as a worker does."""
        source = await self.connection.client.jetstream().pull_subscribe_bind(consumer_name(lane), STREAM)
        try:
            return [(await source.fetch(1, timeout=LIMIT_S))[0] for _ in range(count)]
        finally:
            await source.unsubscribe()

    async def end_of_unknown(self, task_id: str) -> Record:
        """Wait for the end of a task that has no record yet."""

        async def is_known() -> bool:
            return await self.records.find(task_id) is not None

        await until(is_known, "a record")
        return await self.end_of(task_id)

    async def consumer(self) -> ConsumerInfo:
        """Return the state of the consumer of lane 0."""
        found: ConsumerInfo = await self.connection.client.jetstream().consumer_info(STREAM, CONSUMER)
        return found

    async def end_of(self, task_id: str) -> Record:
        """Wait for a task's end."""
        found: Record | None = None

        async def has_ended() -> bool:
            nonlocal found
            found = await self.queue.status(task_id, wait_s=1)
            return found.status.is_final

        await until(has_ended, f"the end of the task, which is {found}")
        assert found is not None
        return found

    async def drained(self) -> None:
        """Wait until all messages are acknowledged."""

        async def is_empty() -> bool:
            return await self.count() == 0

        await until(is_empty, "an empty queue")

    async def reach(self, task_id: str, status: TaskStatus) -> Record:
        """Wait until a task's record has a status."""

        async def is_there() -> bool:
            return (await self.queue.status(task_id)).status is status

        await until(is_there, f"status {status}")
        return await self.queue.status(task_id)


@asynccontextmanager
async def open_desk(settings: Settings) -> AsyncIterator[Desk]:
    """Open a desk, wait until it is connected, and close it at the end."""
    desk = Desk(settings)
    await desk.queue.start()
    try:
        await until(lambda: desk.connection.is_up, "a connection")
        yield desk
    finally:
        await desk.queue.close()


@asynccontextmanager
async def _open_worker(settings: Settings, name: str = "task-0") -> AsyncIterator[asyncio.Event]:
    """Run a worker in this loop for the duration of the block; yield the event that stops it."""
    stop, ready = asyncio.Event(), asyncio.Event()
    working = asyncio.create_task(worker.work(settings, stop=stop, on_ready=ready.set, name=name))
    waiting = asyncio.create_task(ready.wait())
    try:
        await asyncio.wait({working, waiting}, timeout=LIMIT_S, return_when=asyncio.FIRST_COMPLETED)
        assert ready.is_set()
        yield stop
    finally:
        waiting.cancel()
        stop.set()
        await working


async def _wipe(url: str) -> None:
    client = await nats.connect(url)
    manager = client.jetstream()
    for stream in STREAMS:
        try:
            # Purged first, because a stream that is created again at once may find files of the deleted one.
            await manager.purge_stream(stream)
            await manager.delete_stream(stream)
        except NotFoundError:
            continue
    await client.close()


@pytest.fixture(scope="session")
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """Return the server that all tests share."""
    server = NatsServer(tmp_path_factory.mktemp("nats"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def run_server(tmp_path: Path) -> Iterator[Callable[..., NatsServer]]:
    """Return ``run_server(settings=…, scheme=…)``, which starts a server that only this test uses."""
    servers: list[NatsServer] = []

    def run(**options: Any) -> NatsServer:
        server = NatsServer(tmp_path / f"nats-{len(servers)}", **options)
        servers.append(server)
        server.start()
        return server

    yield run
    for server in servers:
        server.stop(is_killed=True)


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def make_settings(nats_server: NatsServer) -> Iterator[Callable[..., Settings]]:
    """Return ``make_settings(**changes)``, by default for the shared server, whose streams are deleted at the end."""

    def make(**changes: Any) -> Settings:
        # As if each task took time, because the start of a light task is not stored.
        usual = {"nats_url": nats_server.url, "nats_timeout_s": 5, "fault_work_s": 1e-6}
        return Settings(**{**usual, **changes})

    yield make
    asyncio.run(_wipe(nats_server.url))


@pytest.fixture
def desk(make_settings: Callable[..., Settings]) -> Callable[..., AbstractAsyncContextManager[Desk]]:
    """Return ``desk(**changes)``, which opens a desk on the shared server or on ``nats_url``."""
    return lambda **changes: open_desk(make_settings(**changes))


@pytest.fixture
def at_work(make_settings: Callable[..., Settings]) -> Callable[..., AbstractAsyncContextManager[Desk]]:
    """Return ``at_work(workers=1, **changes)``, which opens a desk with workers in the same loop."""

    @asynccontextmanager
    async def open_both(workers: int = 1, **changes: Any) -> AsyncIterator[Desk]:
        settings = make_settings(**changes)
        async with AsyncExitStack() as stack:
            opened = await stack.enter_async_context(open_desk(settings))
            for number in range(workers):
                await stack.enter_async_context(_open_worker(settings, f"task-{number}"))
            yield opened

    return open_both


@pytest.fixture(scope="session")
def open_worker() -> Callable[[Settings], AbstractAsyncContextManager[asyncio.Event]]:
    """Return ``open_worker(settings)``, which runs a worker in the same loop and yields the event that stops it."""
    return _open_worker


@pytest.fixture(scope="session")
def crop_service() -> CropService:
    """Return the use case with its default limits."""
    return CropService(ImageLimits())


@pytest.fixture(scope="session")
def check(make_input: Callable[..., CropInput], crop_service: CropService) -> Callable[..., CheckedInput]:
    """Return ``check(…)``, which validates an input with the fields of ``make_input``."""
    return lambda **fields: crop_service.check(make_input(**fields))


@pytest.fixture(scope="session")
def bad_pixels(sample: Sample, check: Callable[..., CheckedInput]) -> CheckedInput:
    """Return a request that is valid except for its pixels, which it asks to verify."""
    return check(image=sample.png_file(512, 512, b"no zlib stream"), verify="pixels")


@pytest.fixture(scope="session")
def pad(sample: Sample) -> Callable[[int], bytes]:
    """Return ``pad(size)``, which returns an image of this size, most of it in a chunk that decoders ignore."""

    def make(size: int) -> bytes:
        png, overhead = sample.png, 12
        filling = sample.png_chunk(b"faCe", bytes(size - len(png) - overhead))
        end = png.rindex(b"IEND") - 4
        return png[:end] + filling + png[end:]

    return make


class Gate:
    """A gate that blocks work on tasks, or makes it fail, by the `simplify` option of the task.

    Attributes:
        begun: the options of the tasks that were started, in order.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun: list[float] = []
        self._opened: dict[float, threading.Event] = {}
        self._faults: dict[float, list[Exception]] = {}
        self._step: dict[float, str] = {}
        run = CropService.run

        def wait_and_run(service: CropService, checked: CheckedInput, on_step: OnStep) -> CropResult:
            name = checked.options.simplify
            self.begun.append(name)
            if faults := self._faults.get(name):
                raise faults.pop()
            if name in self._opened:
                with on_step(self._step[name]):
                    self._opened[name].wait(LIMIT_S)
            return run(service, checked, on_step)

        monkeypatch.setattr(CropService, "run", wait_and_run)

    def close(self, name: float, step: str = "decode") -> None:
        """Block tasks of this name in a step."""
        self._opened[name] = threading.Event()
        self._step[name] = step

    def open(self, name: float) -> None:
        """Unblock tasks of this name."""
        self._opened[name].set()

    def fail(self, name: float, times: int) -> None:
        """Make tasks of this name fail with an unexpected error, this many times."""
        self._faults[name] = [RuntimeError("unforeseen") for _ in range(times)]

    def end(self) -> None:
        """Unblock all tasks."""
        for event in self._opened.values():
            event.set()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """Return a gate that blocks work or makes it fail."""
    made = Gate(monkeypatch)
    yield made
    made.end()

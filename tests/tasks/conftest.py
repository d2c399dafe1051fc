"""Queues on a real nats-server on loopback: one for all tests, and others that a test may stop, restart and lock."""

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
# Below the ports that kernels take for outgoing connections: a client that tries again and again to reach a server that
# is away would at last be connected to itself, and keep the server from its port.
PORTS = range(20_000, 32_000)


def find_program() -> str:
    """Return where nats-server is, the one beside the interpreter first."""
    found = shutil.which("nats-server", path=str(Path(sys.executable).parent)) or shutil.which("nats-server")
    if found is None:
        pytest.skip("no nats-server beside the interpreter or on PATH")
    return found


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on, each another."""
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
    """A server that can be stopped and come back at the same address, with its store or without.

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
        # The server reads JSON as well as its own notation.
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
        """Start, and wait until streams can be made.

        Raises:
            TimeoutError: it is not ready in time.
        """
        self._process = subprocess.Popen([find_program(), "-c", str(self._file)], stderr=subprocess.DEVNULL)
        end = time.monotonic() + LIMIT_S
        while not self._is_ready():
            if time.monotonic() > end or self._process.poll() is not None:
                raise TimeoutError((self.folder / "server.log").read_text(encoding="utf-8"))
            time.sleep(POLL_S)

    def stop(self, *, is_killed: bool = False) -> None:
        """Stop, by SIGTERM or by SIGKILL; harmless where it does not run."""
        if self._process is not None:
            (self._process.kill if is_killed else self._process.terminate)()
            self._process.wait(LIMIT_S)
            self._process = None

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Let it keep its connections and answer nothing for the duration of the block."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        # The signal takes effect at each thread's next turn, and one may answer until then.
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WNOWAIT)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def lose_store(self) -> None:
        """Remove everything that it keeps, while it is stopped."""
        shutil.rmtree(self.store)

    def _is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.monitor_url}/healthz", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False


async def until(condition: Callable[[], bool | Awaitable[bool]], what: str, limit_s: float = LIMIT_S) -> None:
    """Call a condition until it is true.

    Raises:
        TimeoutError: it never was within the limit.
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
    """A queue with what is behind it, connected.

    Attributes:
        queue: as the web layer has it.
        records: those that the queue writes.
        connection: that of the queue.
        settings: what all of it was made with.
    """

    until = staticmethod(until)

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.queue = TaskQueue(settings)
        self.connection: Connection = self.queue._connection
        self.records: Records = self.queue._records

    async def count(self, stream: str = STREAM) -> int:
        """Return how many messages a stream holds."""
        return (await self.connection.client.jetstream().stream_info(stream)).state.messages

    async def fetch(self, count: int = 1, *, lane: int = 0) -> list[Msg]:
        """Take messages of a lane as a worker does."""
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
        """Return what the server knows of what it has given out."""
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
        """Wait until no task waits and none is unconfirmed."""

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
    """Let a worker work in this loop for the duration of the block; give what stops it."""
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
            # Made again at once, a stream may find files of the one that was deleted; emptied, there are none.
            await manager.purge_stream(stream)
            await manager.delete_stream(stream)
        except NotFoundError:
            continue
    await client.close()


@pytest.fixture(scope="session")
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """Give the server that tests share, one after the other."""
    server = NatsServer(tmp_path_factory.mktemp("nats"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def run_server(tmp_path: Path) -> Iterator[Callable[..., NatsServer]]:
    """Give ``run_server(settings=…, scheme=…)``: starts a server of the test's own, which may stop and restart it."""
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
    """Give ``make_settings(**changes)``, for the shared server unless said otherwise; its streams go at the end."""

    def make(**changes: Any) -> Settings:
        # As though each task took time: what is done in a blink leaves no trace of its beginning.
        usual = {"nats_url": nats_server.url, "nats_timeout_s": 5, "fault_work_s": 1e-6}
        return Settings(**{**usual, **changes})

    yield make
    asyncio.run(_wipe(nats_server.url))


@pytest.fixture
def desk(make_settings: Callable[..., Settings]) -> Callable[..., AbstractAsyncContextManager[Desk]]:
    """Give ``desk(**changes)``: a desk on the shared server, or on the one that ``nats_url`` names."""
    return lambda **changes: open_desk(make_settings(**changes))


@pytest.fixture
def at_work(make_settings: Callable[..., Settings]) -> Callable[..., AbstractAsyncContextManager[Desk]]:
    """Give ``at_work(workers=1, **changes)``: a desk with workers in the same loop."""

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
    """Give ``open_worker(settings)``: a worker in the same loop for the duration of the block, and what stops it."""
    return _open_worker


@pytest.fixture(scope="session")
def crop_service() -> CropService:
    """Give the use case with its default limits."""
    return CropService(ImageLimits())


@pytest.fixture(scope="session")
def check(make_input: Callable[..., CropInput], crop_service: CropService) -> Callable[..., CheckedInput]:
    """Give ``check(…)``: what ``make_input`` takes, checked."""
    return lambda **fields: crop_service.check(make_input(**fields))


@pytest.fixture(scope="session")
def bad_pixels(sample: Sample, check: Callable[..., CheckedInput]) -> CheckedInput:
    """Give a request that everything is right about but the pixels, which it asks to look at."""
    return check(image=sample.png_file(512, 512, b"no zlib stream"), verify="pixels")


@pytest.fixture(scope="session")
def pad(sample: Sample) -> Callable[[int], bytes]:
    """Give ``pad(size)``: a photo of so many bytes, most of them in a chunk that no decoder looks at."""

    def make(size: int) -> bytes:
        png, overhead = sample.png, 12
        filling = sample.png_chunk(b"faCe", bytes(size - len(png) - overhead))
        end = png.rindex(b"IEND") - 4
        return png[:end] + filling + png[end:]

    return make


class Gate:
    """Holds up the work on some tasks, by their `simplify` option, on the threads that do it.

    Attributes:
        begun: the options of the tasks that work was begun on, in order.
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
        """Hold up tasks of this name from now on, in a step."""
        self._opened[name] = threading.Event()
        self._step[name] = step

    def open(self, name: float) -> None:
        """Let tasks of this name go on."""
        self._opened[name].set()

    def fail(self, name: float, times: int) -> None:
        """Let the work on tasks of this name fail so many times, by what nobody has foreseen."""
        self._faults[name] = [RuntimeError("unforeseen") for _ in range(times)]

    def end(self) -> None:
        """Let everything go on."""
        for event in self._opened.values():
            event.set()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """Give what holds up work, or lets it fail: neither can be had of the real one on demand."""
    made = Gate(monkeypatch)
    yield made
    made.end()

"""The uvicorn worker of the API: it writes its state to the board and leaves logging to the service."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from gunicorn.arbiter import Arbiter
from uvicorn.server import Server
from uvicorn_worker import UvicornWorker

from app.observability import multiprocess
from app.observability.board import State
from app.observability.rich_logging import get_logger
from app.runtime.closing import accept_waiting, refuse_connections
from app.runtime.protocol import ServiceProtocol
from app.runtime.slots import SlotWorker
from app.web.middleware import SHUTDOWN_CODE, SHUTDOWN_DETAIL, shutdown_headers

if TYPE_CHECKING:
    import socket
    from types import FrameType

    from app.runtime.server import ApiApplication
    from app.web.state import WebState

log = get_logger("server")

NOTIFY_S = 1.0
EXHAUSTED_LOG_S = 10.0
QUICK_STOP_S = 1.0  # what requests in flight get if the stop must be quick
POLL_S = 0.02
LAST_CALL_S = 0.3  # how long after its own signal a worker learns that all of them stop
# After the time of the requests in flight, all within what the master adds to it: until each one has a response, until
# the responses are sent, and until the application has closed what it holds.
ANSWER_S, SEND_S, QUICK_SEND_S, CLOSE_S = 0.3, 1.5, 0.3, 0.2


class _Server(Server):
    """uvicorn's server with another way to stop, in which every request gets a response.

    Args:
        worker: the process that it serves in.
        web: state of the application.
        graceful_timeout_s: time of the requests in flight on stop.
    """

    def __init__(self, worker: ServiceWorker, web: WebState, graceful_timeout_s: float) -> None:
        super().__init__(worker.config)
        self._worker = worker
        self._web = web
        self._graceful_timeout_s = graceful_timeout_s
        self._deadline = math.inf
        self._is_quick = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Mark the worker as draining, then stop as usual."""
        if sig == signal.SIGINT:  # Ctrl-C reaches the whole foreground group; the master says when
            return
        self._worker.board.beat(self._worker.slot, State.DRAINING)
        super().handle_exit(sig, frame)

    def stop_at_once(self) -> None:
        """Stop within `QUICK_STOP_S`, whether or not a stop is under way already."""
        self._is_quick = True
        self._deadline = min(self._deadline, time.monotonic() + QUICK_STOP_S)
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve what has been sent, within the time that there is, and respond with 503 to the rest.

        Connections that wait to be accepted are accepted, and idle connections may send one more request. Work on a
        thread cannot be cancelled, so the response is sent without its result.
        """
        self._deadline = min(self._deadline, time.monotonic() + self._graceful_timeout_s)
        await self._stop_accepting(sockets or [])
        for connection in list(self.server_state.connections):
            connection.shutdown()
        if not await self._wait_idle():
            await self._refuse_unanswered()
            self._deadline = time.monotonic() + (QUICK_SEND_S if self._is_quick else SEND_S)
            await self._wait_idle()
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await self.lifespan.shutdown()

    async def _stop_accepting(self, sockets: list[socket.socket]) -> None:
        loop = asyncio.get_running_loop()
        if await self._is_last_call():  # otherwise the other workers accept what waits
            for listener in sockets:
                refuse_connections(listener)
                for waiting in accept_waiting(listener):
                    await loop.connect_accepted_socket(self._make_protocol, waiting)
        for server in self.servers:
            server.close()
        for listener in sockets:
            listener.close()

    async def _is_last_call(self) -> bool:
        """Return whether no other process will accept the connections that wait."""
        if self._worker.is_socket_shared:
            return False
        end = time.monotonic() + LAST_CALL_S
        # A supervisor may signal all processes at once, and this one may be faster than its master.
        while not self._worker.is_instance_stopping():
            if time.monotonic() > end:
                return False
            await asyncio.sleep(POLL_S)
        return True

    def _make_protocol(self) -> ServiceProtocol:
        return ServiceProtocol(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)

    async def _refuse_unanswered(self) -> None:
        in_flight = set(self.server_state.tasks)
        if in_flight:
            log.warning("Stopping: %d requests are not finished in time and get 503", len(in_flight))
        self._web.shutdown.end()
        # A task that has not run at all would be cancelled without a chance to respond.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        for task in in_flight:
            task.cancel()
        if in_flight:
            await asyncio.wait(in_flight, timeout=ANSWER_S)
        for connection in list(self.server_state.connections):
            if isinstance(connection, ServiceProtocol):
                headers = shutdown_headers(self._web.retry_after_s)
                connection.refuse_unanswered(headers, SHUTDOWN_CODE, SHUTDOWN_DETAIL)

    async def _wait_idle(self) -> bool:
        """Wait until nothing is in flight, or for the deadline, which a second signal may bring forward."""
        next_beat = 0.0
        while self.server_state.connections or self.server_state.tasks:
            now = time.monotonic()
            if now > self._deadline:
                return False
            if now > next_beat:
                next_beat = now + NOTIFY_S
                self._worker.beat_draining()
            await asyncio.sleep(POLL_S)
        return True


class ServiceWorker(SlotWorker, UvicornWorker):
    """One API process in one slot."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.config.timeout_notify = NOTIFY_S

    CONFIG_KWARGS: dict[str, Any] = {  # noqa: RUF012 - the base class declares it so
        "loop": "uvloop",
        "http": ServiceProtocol,
        "ws": "none",
        "access_log": False,
        "server_header": False,
    }

    app: ApiApplication
    server: _Server
    _is_exhausted = False
    _last_exhausted_log = -math.inf

    async def _serve(self) -> None:
        self.config.app = self.wsgi
        self.server = _Server(self, self.wsgi.state.web, self.app.settings.graceful_timeout_s)
        # The base class's handler for it sets what uvicorn never reads: a quick stop would wait for the slow one.
        asyncio.get_running_loop().add_signal_handler(signal.SIGQUIT, self._stop_at_once)
        await self.server.serve(sockets=self.sockets)
        if not self.server.started:
            sys.exit(Arbiter.WORKER_BOOT_ERROR)
        sys.stderr.flush()
        # A thread that still works would be waited for on every other way out.
        os._exit(0)

    def _stop_at_once(self) -> None:
        self.board.beat(self.slot, State.DRAINING)
        self.server.stop_at_once()

    def is_instance_stopping(self) -> bool:
        """Return whether all workers stop, and not this one alone."""
        return self.board.is_draining or self._is_orphan()

    def beat_draining(self) -> None:
        """Send a heartbeat while the requests in flight are finished; the base class sends none from then on."""
        self.notify()
        multiprocess.maintain()
        self.board.beat(self.slot, State.DRAINING, is_failing=multiprocess.is_failing())
        if self._is_orphan():
            self.server.stop_at_once()

    def _is_orphan(self) -> bool:
        return os.getppid() != self.board.master_pid

    async def callback_notify(self) -> None:
        """Show a sign of life, to gunicorn and to the board; the event loop calls it every second.

        A worker whose master is gone stops: nobody would replace it, measure it or tell it to.
        """
        await super().callback_notify()
        multiprocess.maintain()
        if self._is_orphan():
            self._stop_at_once()
        elif not self.server.should_exit:
            self.board.beat(self.slot, self._accept_state(), is_failing=multiprocess.is_failing())

    def _accept_state(self) -> State:
        """Return whether this process can accept connections; log when that changes, at a limited rate.

        The event loop reports nothing: it accepts and closes connections that it has no file descriptor for.
        """
        try:
            os.close(os.dup(self.sockets[0].fileno()))
        except OSError as error:
            now = time.monotonic()
            if now - self._last_exhausted_log >= EXHAUSTED_LOG_S:
                self._last_exhausted_log = now
                log.error("connections: cannot accept more (%s); raise the limit of open files", error.strerror)  # noqa: TRY400
            self._is_exhausted = True
            return State.EXHAUSTED
        if self._is_exhausted:
            self._is_exhausted = False
            log.info("connections: accepted again")
        return State.READY

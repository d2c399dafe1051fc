"""The uvicorn worker of the API: it writes its state to the board and leaves logging to the service."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

from gunicorn.arbiter import Arbiter
from uvicorn.server import Server
from uvicorn_worker import UvicornWorker

from app.observability.board import State
from app.runtime.protocol import ServiceProtocol
from app.runtime.slots import SlotWorker

if TYPE_CHECKING:
    from types import FrameType


NOTIFY_S = 1.0
QUICK_STOP_S = 1  # what requests in flight get where the stop is to be quick


class _Server(Server):
    """Tells the board when it stops accepting, before it waits for the requests in flight."""

    def __init__(self, worker: ServiceWorker) -> None:
        super().__init__(worker.config)
        self._worker = worker

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Mark the worker as draining, then stop as usual."""
        if sig == signal.SIGINT:  # Ctrl-C reaches the whole foreground group; the master says when
            return
        self._worker.board.beat(self._worker.slot, State.DRAINING)
        super().handle_exit(sig, frame)


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

    server: _Server

    async def _serve(self) -> None:
        self.config.app = self.wsgi
        self.server = _Server(self)
        # The base class's handler for it sets what uvicorn never reads: a quick stop would wait for the slow one.
        asyncio.get_running_loop().add_signal_handler(signal.SIGQUIT, self._stop_at_once)
        await self.server.serve(sockets=self.sockets)
        if not self.server.started:
            sys.exit(Arbiter.WORKER_BOOT_ERROR)

    def _stop_at_once(self) -> None:
        self.board.beat(self.slot, State.DRAINING)
        self.config.timeout_graceful_shutdown = QUICK_STOP_S
        self.server.should_exit = True

    async def callback_notify(self) -> None:
        """Show a sign of life, to gunicorn and to the board; the event loop calls it every second.

        A worker whose master is gone stops: nobody would replace it, measure it or tell it to.
        """
        await super().callback_notify()
        if os.getppid() != self.board.master_pid:
            self._stop_at_once()
        elif not self.server.should_exit:
            self.board.beat(self.slot, State.READY)

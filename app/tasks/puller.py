"""Asks the queue for tasks: one at a time, for each place that is free.

The client library has calls that wait for one batch after the other. Here requests are left with the server as places
become free and tasks are taken as they come, so that the next request goes out together with the last confirmation.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections import deque
from typing import TYPE_CHECKING, Final

import nats.errors

from app.observability.rich_logging import get_logger
from app.tasks.errors import QueueError
from app.tasks.stream import CONSUMER, STREAM

if TYPE_CHECKING:
    from collections.abc import Callable

    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription

    from app.tasks.connection import Connection

log = get_logger("tasks")

EXPIRES_S: Final = 10.0
# After this the server has answered a request or has forgotten it.
LOST_AFTER_S: Final = EXPIRES_S + 1.0
_NEXT: Final = f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{CONSUMER}"
_REQUEST: Final = json.dumps({"batch": 1, "expires": int(EXPIRES_S * 1e9)}).encode()
_EXPIRED: Final = {"404", "408"}


class Puller:
    """Keeps as many requests with the server as there are free places.

    Args:
        connection: to the queue.
        places: how many tasks may be held at once.
        on_message: called with each task's message; `done` is to be called when it is seen to its end.
    """

    def __init__(self, connection: Connection, places: int, on_message: Callable[[Msg], None]) -> None:
        self._connection = connection
        self._places = places
        self._on_message = on_message
        self._held = 0
        self._asked: deque[float] = deque()  # when each request that is out was made
        self._client: Client | None = None
        self._source: Subscription | None = None
        self._reconnects = 0
        self._is_stopped = False
        self._left: list[Msg] = []

    async def done(self) -> None:
        """Take back the place of a task, and ask for the next."""
        self._held -= 1
        await self.ask()

    async def ask(self) -> None:
        """See to it that the server has a request for each free place; called now and then too.

        A request is lost with the connection it was made on, and on its way to a server that dies.
        """
        if self._is_stopped or not self._connection.is_up:
            return
        try:
            client = self._connection.client
            await self._subscribe(client)
            if client.stats["reconnects"] != self._reconnects:
                self._reconnects = client.stats["reconnects"]
                self._asked.clear()
            while self._asked and time.monotonic() - self._asked[0] > LOST_AFTER_S:
                self._asked.popleft()
            while self._source is not None and self._held + len(self._asked) < self._places:
                self._asked.append(time.monotonic())
                await client.publish(_NEXT, _REQUEST, reply=self._source.subject)
        except (QueueError, nats.errors.Error, OSError) as error:
            log.debug("Nothing could be asked for: %s", type(error).__name__)

    async def stop(self) -> list[Msg]:
        """Ask no more; return the tasks that came too late to be begun."""
        self._is_stopped = True
        if self._source is not None and self._client is not None:
            with contextlib.suppress(nats.errors.Error, OSError, TimeoutError):
                # The server drops the requests of whoever listens no more; what it sent before is still taken.
                await self._source.drain()  # type: ignore[no-untyped-call]
        return self._left

    async def _subscribe(self, client: Client) -> None:
        if client is self._client:
            return
        self._source = await client.subscribe(client.new_inbox(), cb=self._take)
        self._client, self._reconnects = client, client.stats["reconnects"]
        self._asked.clear()

    async def _take(self, message: Msg) -> None:
        if self._asked:
            self._asked.popleft()
        status = (message.headers or {}).get("Status")
        if status is not None and not message.data:
            if status not in _EXPIRED:  # the consumer is gone, say: its server lost its store
                log.debug("The queue gives out nothing: %s", status)
                self._connection.prepare_again()
            await self.ask()
        elif self._is_stopped:
            self._left.append(message)
        else:
            self._held += 1
            self._on_message(message)

"""Pulls messages from the consumers of all lanes in turn, as long as there are free places.

nats-py pulls one batch after the other, from one consumer. Here requests are sent as places become free, so that the
next one leaves together with the last acknowledgement, and the lane of each is chosen: lanes that are known to hold
messages take turns. The other lanes are polled while a work thread is idle, and probed now and then while none is.
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
from app.tasks.stream import LANES, STREAM, consumer_name, parse_task_subject

if TYPE_CHECKING:
    from collections.abc import Callable

    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription

    from app.tasks.connection import Connection

log = get_logger("tasks")

# A poll that outlives its worker's idleness brings one message more than there are places: it must end soon.
POLL_S: Final = 1.0
PROBE_S: Final = 0.25
# The server has responded to a request after this time, or has lost it.
LOST_AFTER_S: Final = POLL_S + 1.0
_POLL: Final = json.dumps({"batch": 1, "expires": int(POLL_S * 1e9)}).encode()
_TAKE: Final = json.dumps({"batch": 1, "no_wait": True}).encode()
_EMPTY: Final = {"404", "408"}


class _Lane:
    """What is known of one lane.

    Attributes:
        number: the lane.
        has_more: whether the last response said that it holds messages.
        asked: when each request without a response was sent.
        probed_at: when the last request was sent.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.subject = f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{consumer_name(number)}"
        self.has_more = False
        self.asked: deque[float] = deque()
        self.probed_at = 0.0

    def forget_lost(self, now: float) -> None:
        """Drop requests that no response will come for."""
        while self.asked and now - self.asked[0] > LOST_AFTER_S:
            self.asked.popleft()


class PullConsumer:
    """Keeps requests with the server for free places.

    Args:
        connection: to the queue.
        threads: messages that are worked on at the same time.
        ahead: messages that are held beyond these, so that the next one is there when one ends.
        on_message: called with each message; `done` must be called when it is settled.
    """

    def __init__(self, connection: Connection, threads: int, ahead: int, on_message: Callable[[Msg], None]) -> None:
        self._connection = connection
        self._threads = threads
        self._places = threads + ahead
        self._on_message = on_message
        self._held = 0
        self._lanes = [_Lane(number) for number in range(LANES)]
        self._turn = deque(self._lanes)
        self._client: Client | None = None
        self._source: Subscription | None = None
        self._inbox = ""
        self._reconnects = 0
        self._is_stopped = False
        self._left: list[Msg] = []

    async def done(self) -> None:
        """Free the place of a message, and request the next."""
        self._held -= 1
        await self.ask()

    async def ask(self) -> None:
        """Request messages for free places; called regularly too.

        A request is lost with the connection it was sent on, and on its way to a server that dies.
        """
        if self._is_stopped or not self._connection.is_up:
            return
        try:
            client = self._connection.client
            await self._subscribe(client)
            if client.stats["reconnects"] != self._reconnects:
                self._reconnects = client.stats["reconnects"]
                self._forget_requests()
            now = time.monotonic()
            for lane in self._lanes:
                lane.forget_lost(now)
            await self._take_in_turn(client, now)
            await self._ask_others(client, now)
        except (QueueError, nats.errors.Error, OSError) as error:
            log.debug("No request could be sent: %s", type(error).__name__)

    async def stop(self) -> list[Msg]:
        """Send no more requests; return the messages that came too late to be worked on."""
        self._is_stopped = True
        if self._source is not None and self._client is not None:
            with contextlib.suppress(nats.errors.Error, OSError, TimeoutError):
                # The server drops the requests of a subscription that ended; what it sent before still arrives.
                await self._source.drain()  # type: ignore[no-untyped-call]
        return self._left

    @property
    def _free(self) -> int:
        """Places for which no message is held or on its way from a lane that has more."""
        return self._places - self._held - sum(len(lane.asked) for lane in self._lanes if lane.has_more)

    async def _take_in_turn(self, client: Client, now: float) -> None:
        """Request a message from each lane that has more, again and again until the places are taken."""
        while self._free > 0 and any(lane.has_more for lane in self._turn):
            lane = self._turn[0]
            self._turn.rotate(-1)
            if lane.has_more:
                await self._request(client, lane, _TAKE, now)

    async def _ask_others(self, client: Client, now: float) -> None:
        """Poll the other lanes if a thread is idle; probe them now and then while a backlog keeps all threads busy."""
        is_idle, has_backlog = self._held < self._threads, any(lane.has_more for lane in self._lanes)
        for lane in self._turn:
            if lane.has_more or lane.asked:
                continue
            if is_idle:
                await self._request(client, lane, _POLL, now)
            elif has_backlog and now - lane.probed_at > PROBE_S and self._held <= self._places:
                await self._request(client, lane, _TAKE, now)

    async def _request(self, client: Client, lane: _Lane, request: bytes, now: float) -> None:
        lane.asked.append(now)
        lane.probed_at = now
        await client.publish(lane.subject, request, reply=f"{self._inbox}.{lane.number}")

    async def _subscribe(self, client: Client) -> None:
        if client is self._client:
            return
        self._inbox = client.new_inbox()
        self._source = await client.subscribe(f"{self._inbox}.*", cb=self._take)
        self._client, self._reconnects = client, client.stats["reconnects"]
        self._forget_requests()

    def _forget_requests(self) -> None:
        for lane in self._lanes:
            lane.asked.clear()

    async def _take(self, message: Msg) -> None:
        status = (message.headers or {}).get("Status")
        if status is not None and not message.data:
            lane = self._lanes[int(message.subject.rpartition(".")[2])]
            lane.has_more = False
            if lane.asked:
                lane.asked.popleft()
            if status not in _EMPTY:  # the consumer is missing, for example: its server lost its store
                log.debug("The queue delivers nothing: %s", status)
                self._connection.recheck_streams()
            await self.ask()
            return
        lane = self._lanes[parse_task_subject(message.subject)[1]]
        if lane.asked:
            lane.asked.popleft()
        lane.has_more = message.metadata.num_pending > 0
        if self._is_stopped:
            self._left.append(message)
        else:
            self._held += 1
            self._on_message(message)
            await self.ask()

"""Pull messages from the consumers of all lanes in turn, while slots are free.

nats-py pulls one batch after the other, from one consumer. This module sends a pull request as soon as a slot becomes
free, so that the request is flushed together with the acknowledgement that freed the slot. It also selects the lane:
lanes that are known to hold messages take turns. The other lanes are polled while a work thread is idle, and probed
occasionally while all threads are busy.
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

# If the worker becomes busy during a poll, the poll may deliver a message that has no slot, so it must be short.
POLL_S: Final = 1.0
PROBE_S: Final = 0.25
# A request that has no response after this time is considered lost.
LOST_AFTER_S: Final = POLL_S + 1.0
_POLL: Final = json.dumps({"batch": 1, "expires": int(POLL_S * 1e9)}).encode()
_PULL: Final = json.dumps({"batch": 1, "no_wait": True}).encode()
_EMPTY: Final = {"404", "408"}


class _Lane:
    """State of one lane."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.subject = f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{consumer_name(number)}"
        self.has_more = False  # according to the last response
        self.requested: deque[float] = deque()  # times of the requests without a response
        self.requested_at = 0.0  # time of the last request

    def forget_lost(self, now: float) -> None:
        """Drop requests that are considered lost."""
        while self.requested and now - self.requested[0] > LOST_AFTER_S:
            self.requested.popleft()


class PullConsumer:
    """Consumer that keeps a pull request at the server for each free slot.

    There is a slot for each thread, and for each message that is fetched in advance so that the next task starts
    without a round trip. `on_message` is called with each message; call `release` when the message has been
    acknowledged or requeued.
    """

    def __init__(self, connection: Connection, threads: int, prefetch: int, on_message: Callable[[Msg], None]) -> None:
        self._connection = connection
        self._threads = threads
        self._slots = threads + prefetch
        self._on_message = on_message
        self._held = 0
        self._lanes = [_Lane(number) for number in range(LANES)]
        self._rotation = deque(self._lanes)
        self._client: Client | None = None
        self._subscription: Subscription | None = None
        self._inbox = ""
        self._reconnects = 0
        self._is_stopped = False
        self._late: list[Msg] = []

    async def release(self) -> None:
        """Free the slot of a message, and request the next."""
        self._held -= 1
        await self.request_messages()

    async def request_messages(self) -> None:
        """Request messages for free slots.

        Must also be called regularly, because a request is lost if its connection or the server fails.
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
            await self._request_round_robin(client, now)
            await self._poll_others(client, now)
        except (QueueError, nats.errors.Error, OSError) as error:
            log.debug("Pull request failed: %s; retrying", type(error).__name__)

    async def stop(self) -> list[Msg]:
        """Stop requesting messages; return those that arrived too late to be processed."""
        self._is_stopped = True
        if self._subscription is not None and self._client is not None:
            with contextlib.suppress(nats.errors.Error, OSError, TimeoutError):
                # The server drops the requests of a subscription that ends; messages already sent still arrive.
                await self._subscription.drain()  # type: ignore[no-untyped-call]
        return self._late

    @property
    def _free(self) -> int:
        """Slots without a message and without an open request to a lane that has more."""
        return self._slots - self._held - sum(len(lane.requested) for lane in self._lanes if lane.has_more)

    async def _request_round_robin(self, client: Client, now: float) -> None:
        """Request a message from each lane that has more, in turn, until all slots are used."""
        while self._free > 0 and any(lane.has_more for lane in self._rotation):
            lane = self._rotation[0]
            self._rotation.rotate(-1)
            if lane.has_more:
                await self._request(client, lane, _PULL, now)

    async def _poll_others(self, client: Client, now: float) -> None:
        """Poll the other lanes if a thread is idle; probe them occasionally while a backlog keeps all threads busy."""
        is_idle, has_backlog = self._held < self._threads, any(lane.has_more for lane in self._lanes)
        for lane in self._rotation:
            if lane.has_more or lane.requested:
                continue
            if is_idle:
                await self._request(client, lane, _POLL, now)
            elif has_backlog and now - lane.requested_at > PROBE_S and self._held <= self._slots:
                await self._request(client, lane, _PULL, now)

    async def _request(self, client: Client, lane: _Lane, request: bytes, now: float) -> None:
        lane.requested.append(now)
        lane.requested_at = now
        await client.publish(lane.subject, request, reply=f"{self._inbox}.{lane.number}")

    async def _subscribe(self, client: Client) -> None:
        if client is self._client:
            return
        self._inbox = client.new_inbox()
        self._subscription = await client.subscribe(f"{self._inbox}.*", cb=self._receive)
        self._client, self._reconnects = client, client.stats["reconnects"]
        self._forget_requests()

    def _forget_requests(self) -> None:
        for lane in self._lanes:
            lane.requested.clear()

    async def _receive(self, message: Msg) -> None:
        # Only a stored message can be acknowledged. One of another client may have the headers of a status.
        if not message.reply:
            status = (message.headers or {}).get("Status")
            lane = self._lanes[int(message.subject.rpartition(".")[2])]
            lane.has_more = False
            if lane.requested:
                lane.requested.popleft()
            if status not in _EMPTY:  # for example, the consumer is missing because the server has lost its store
                log.debug("Pull request rejected with status %s; checking the streams", status)
                self._connection.recheck_streams()
            await self.request_messages()
            return
        lane = self._lanes[parse_task_subject(message.subject)[1]]
        if lane.requested:
            lane.requested.popleft()
        lane.has_more = message.metadata.num_pending > 0
        if self._is_stopped:
            self._late.append(message)
        else:
            self._held += 1
            self._on_message(message)
            await self.request_messages()

"""One NATS connection of a process: made from the settings, kept for as long as the process lives.

The client library reconnects by itself as long as nothing but the network is at fault; here the rest is added. A first
connection is waited for in the background, a connection that the server refuses is tried again, and after each one the
streams are looked after, for the server may have come back without them.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from contextvars import Context
from typing import TYPE_CHECKING, Any

import msgspec
import nats.errors

from app.observability.rich_logging import get_logger
from app.tasks.errors import QueueFullError, QueueUnavailableError, TaskTooLargeError
from app.tasks.nats_client import StrictTlsClient, connect_options
from app.tasks.stream import ensure_streams, require_streams

if TYPE_CHECKING:
    from collections.abc import Callable

    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription

    from app.settings import Settings

log = get_logger("tasks")

RECONNECT_PAUSE_S = 0.5
# The library tries to connect for ever, and may hang in it, after a handshake that failed: then it is begun anew.
CONNECT_LIMIT_S = 10.0
HANG_UP_S = 1
# A server that vanished without a word (a node gone, a network split) is noticed after two of these.
PING_INTERVAL_S = 10
MIN_SERVER = (2, 11)  # the first with a time to live for each message

# A stream that stores nothing is tried again at this interval, by one request; others are refused at once.
STUCK_PAUSE_S = 2.0
STUCK_TIMEOUT_S = 1.0
NO_ANSWER = "the queue did not answer in time; come back after the time in Retry-After"

# https://github.com/nats-io/nats-server/blob/main/server/errors.json
_WRONG_REVISION = {10071, 10164}
_FULL = {10002, 10023, 10047, 10077}
_TOO_LARGE = {10054}


class RevisionConflictError(Exception):
    """Somebody else wrote in between."""


class _ResponseTimeoutError(Exception):
    """The server did not respond in time."""


class _ApiFault(msgspec.Struct):
    code: int = 0
    err_code: int = 0
    description: str = ""


class _Stored(msgspec.Struct):
    seq: int = 0
    error: _ApiFault | None = None


_STORED = msgspec.json.Decoder(_Stored)


class Connection:
    """The way to the queue's server.

    Args:
        settings: where the server is and how to be let in.
        name: told to the server, for whoever looks at its list of clients.
        manages_streams: whether the streams are kept in line with the settings. Who gives a command has
            settings of another shell perhaps, and shall change nothing.
    """

    def __init__(self, settings: Settings, name: str, *, manages_streams: bool = True) -> None:
        self._see_to_streams = ensure_streams if manages_streams else require_streams
        self._settings = settings
        self._name = name
        self._client: Client | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._is_prepared = False
        self._is_closing = False
        self._preparing: asyncio.Task[None] | None = None
        self._troubles: set[str] = set()
        # First tokens of subjects whose stream stores nothing although the server responds, and when to try again.
        self._stuck: dict[str, float] = {}

    @property
    def is_up(self) -> bool:
        """Whether the server is there and has the streams."""
        return self._client is not None and self._client.is_connected and self._is_prepared

    @property
    def client(self) -> Client:
        """The library's client, connected.

        Raises:
            QueueUnavailableError: there is no connection now.
        """
        if self._client is None or not self.is_up:
            raise QueueUnavailableError("the queue cannot be reached now; come back after the time in Retry-After")
        return self._client

    async def start(self) -> None:
        """Begin to connect, and go on until `close`."""
        # In no request's context: its lines would carry the id of whoever happened to be there.
        self._keeper = asyncio.create_task(self._keep(), context=Context())

    async def close(self) -> None:
        """Send what is to be sent, and hang up."""
        self._is_closing = True
        if self._client is not None:
            await _flush(self._client)
        for task in filter(None, (self._preparing, self._keeper)):
            # Once may not be enough: wait_for of Python 3.11 loses a cancellation that comes together with its result.
            while not task.done():
                task.cancel()
                await asyncio.wait({task}, timeout=HANG_UP_S / 2)

    async def wait_up(self, stop: Callable[[], bool]) -> bool:
        """Wait for a connection, or until ``stop`` says so; tell which it was."""
        while not self.is_up:
            if stop():
                return False
            await asyncio.sleep(0.05)
        return True

    async def store(self, subject: str, payload: bytes, headers: dict[str, str] | None = None) -> int:
        """Publish into a stream, and wait until it is stored.

        Returns:
            Its sequence number.

        Raises:
            QueueUnavailableError: no response, or the server cannot store.
            QueueFullError: the stream is full, or the server's storage.
            TaskTooLargeError: the message is larger than the server takes.
            RevisionConflictError: a header asked for another last revision.
        """
        target = subject.partition(".")[0]
        limit_s = STUCK_TIMEOUT_S if target in self._stuck else None
        generation = self._generation()
        try:
            answer = _STORED.decode((await self._exchange(subject, payload, headers, limit_s)).data)
        except _ResponseTimeoutError as error:
            if generation == self._generation():  # otherwise the server has been restarted meanwhile
                await self._note_not_stored(target, error)
            raise _unavailable() from None
        if self._stuck.pop(target, None) is not None:
            log.info("The queue stores messages of %s again", target)
        fault = answer.error
        if fault is None:
            self._note_success()
            return answer.seq
        if fault.err_code in _WRONG_REVISION:
            raise RevisionConflictError
        if fault.err_code in _FULL:
            raise QueueFullError("the queue is full; come back after the time in Retry-After")
        if fault.err_code in _TOO_LARGE:
            raise TaskTooLargeError("the queue does not take messages as large as this task")
        log.warning("The queue refused a message: %s (%d)", fault.description, fault.err_code)
        raise QueueUnavailableError("the queue cannot store anything now; come back after the time in Retry-After")

    async def request(
        self, subject: str, payload: bytes = b"", headers: dict[str, str] | None = None, timeout_s: float | None = None
    ) -> Msg:
        """Ask the server, within the time of the settings unless said otherwise.

        Raises:
            QueueUnavailableError: no answer.
            TaskTooLargeError: the message is larger than the server takes.
        """
        try:
            return await self._exchange(subject, payload, headers, timeout_s)
        except _ResponseTimeoutError as error:
            self._report(error.__cause__ or error)
            raise _unavailable() from None

    async def subscribe(self, subject: str) -> Subscription:
        """Receive what is published on a subject from now on.

        Raises:
            QueueUnavailableError: the connection was lost.
        """
        try:
            return await self.client.subscribe(subject)
        except (nats.errors.Error, OSError) as error:
            self._report(error)
            raise _unavailable() from None

    def require_storing(self) -> None:
        """Refuse at once what would wait for a stream that stores nothing; let one request in a while try.

        Raises:
            QueueUnavailableError: the server does not store now.
        """
        now = time.monotonic()
        for target, retry_at in self._stuck.items():
            if now < retry_at:
                raise QueueUnavailableError("the queue's storage cannot be written; come back later")
            self._stuck[target] = now + STUCK_PAUSE_S

    def _generation(self) -> tuple[int, int]:
        client = self._client
        return id(client), 0 if client is None else client.stats["reconnects"]

    async def _note_not_stored(self, target: str, error: _ResponseTimeoutError) -> None:
        """Find out whether the server hangs, or responds and only stores nothing, as after a full disk."""
        try:
            await self._exchange("$JS.API.INFO", timeout_s=STUCK_TIMEOUT_S)
        except (_ResponseTimeoutError, QueueUnavailableError, TaskTooLargeError):
            self._report(error.__cause__ or error)
            return
        if target not in self._stuck:
            log.error(
                "The queue does not store messages of %s although its server responds: see its log for a write error; "
                "it must be restarted once its disk has room (the embedded server restarts by itself)",
                target,
            )
        self._stuck[target] = time.monotonic() + STUCK_PAUSE_S

    async def _exchange(
        self, subject: str, payload: bytes = b"", headers: dict[str, str] | None = None, timeout_s: float | None = None
    ) -> Msg:
        limit_s = timeout_s or self._settings.nats_timeout_s
        client = self.client
        # The server counts headers too, and hangs up on whoever sends it more; the library looks at the rest alone.
        if len(payload) + _header_size(headers or {}) > client.max_payload:
            raise TaskTooLargeError("the queue does not take messages as large as this task")
        try:
            return await client.request(subject, payload, timeout=limit_s, headers=headers)
        except nats.errors.NoRespondersError:
            # The server is there and the stream is not (yet): just started, or its store is gone.
            self.recheck_streams()
            raise _unavailable() from None
        except TimeoutError as error:
            raise _ResponseTimeoutError from error
        except (nats.errors.Error, OSError) as error:
            self._report(error)
            raise _unavailable() from None

    def recheck_streams(self) -> None:
        """Look after the streams again: the server answers, but not as one that has them."""
        if self._is_prepared:
            self._is_prepared = False
            self._preparing = asyncio.create_task(self._prepare(), context=Context())

    async def _keep(self) -> None:
        while not self._is_closing:
            client, lost = StrictTlsClient(), asyncio.Event()
            try:
                async with asyncio.timeout(max(CONNECT_LIMIT_S, 2 * self._settings.nats_timeout_s)):
                    await client.connect(**self._options(lost))
                self._client = client
                await self._prepare()
                if not self._is_closing:
                    await lost.wait()
            except Exception as error:  # noqa: BLE001 - a seed that is none, say: whatever it is, the others go on
                self._report(error)
            finally:
                self._is_prepared = False
                await _hang_up(client)
            await asyncio.sleep(RECONNECT_PAUSE_S)

    async def _prepare(self) -> None:
        client = self._client
        while client is not None and not client.is_closed:
            try:
                _require_version(client)
                await self._see_to_streams(client, self._settings)
            except (nats.errors.Error, OSError, TimeoutError, ValueError) as error:
                self._report(error)
                await asyncio.sleep(RECONNECT_PAUSE_S)
            else:
                self._is_prepared = True
                self._stuck = dict.fromkeys(self._stuck, 0.0)  # the server may have restarted: try at once
                self._note_success()
                return

    def _options(self, lost: asyncio.Event) -> dict[str, Any]:
        async def note_error(error: Exception) -> None:
            self._report(error)

        async def note_loss() -> None:
            self._is_prepared = False

        async def note_return() -> None:
            await self._prepare()

        async def note_end() -> None:
            lost.set()

        return {
            "servers": self._settings.nats_servers,
            "name": self._name,
            "error_cb": note_error,
            "disconnected_cb": note_loss,
            "reconnected_cb": note_return,
            "closed_cb": note_end,
            "max_reconnect_attempts": -1,
            "reconnect_time_wait": RECONNECT_PAUSE_S,
            "connect_timeout": self._settings.nats_timeout_s,
            "ping_interval": PING_INTERVAL_S,
            **connect_options(self._settings),
        }

    def _note_success(self) -> None:
        if self._troubles:
            log.info("The queue is back")
            self._troubles.clear()

    def _report(self, error: BaseException) -> None:
        """Log each trouble once until all are over; the library tells of each attempt, at each server."""
        if isinstance(error, TimeoutError) and self._troubles:
            return  # what took so long was told
        trouble = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        if trouble not in self._troubles:
            log.warning("The queue cannot be reached: %s", trouble)
            self._troubles.add(trouble)


async def _hang_up(client: StrictTlsClient) -> None:
    try:
        with contextlib.suppress(Exception):  # what was never up cannot be hung up
            async with asyncio.timeout(HANG_UP_S):
                await client.close()
    finally:
        client.close_transport()


async def _flush(client: Client) -> None:
    with contextlib.suppress(nats.errors.Error, OSError, TimeoutError):
        if client.is_connected:
            await client.flush(timeout=HANG_UP_S)


def _require_version(client: Client) -> None:
    version = client.connected_server_version
    if client.is_connected and (version.major, version.minor) < MIN_SERVER:
        raise ValueError(f"expected nats-server {'.'.join(map(str, MIN_SERVER))} or later, got {version}")


def _header_size(headers: dict[str, str]) -> int:
    """Return the bytes that headers take on the wire, with the line before and the one after them."""
    return sum(len(f"{name}: {value}\r\n".encode()) for name, value in headers.items()) + len("NATS/1.0\r\n\r\n")


def _unavailable() -> QueueUnavailableError:
    return QueueUnavailableError(NO_ANSWER)

"""The NATS connection of a process, kept open for the life of the process.

nats-py reconnects after network errors. This module adds the rest. It makes the first connection in the background and
retries if the server refuses it. After each connect it restores the streams, because the server may have lost them.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from contextvars import Context
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import nats.errors

from app.observability.rich_logging import get_logger
from app.tasks.errors import QueueFullError, QueueUnavailableError, TaskTooLargeError
from app.tasks.nats_client import ServiceClient, connect_options
from app.tasks.stream import StreamSetupError, ensure_streams, require_streams

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription

    from app.settings import Settings

log = get_logger("tasks")

RECONNECT_PAUSE_S = 0.5
POLL_S = 0.05
CONNECT_TIMEOUT_S = 2.0  # of one server
# An outage that is shorter than this many timeouts delays requests; the servers of a cluster elect a new leader within
# 4 to 9 seconds.
OUTAGE_TIMEOUTS = 2
IN_PROCESS_ATTEMPTS, IN_PROCESS_PAUSE_S = 20, 0.25
# After a failed handshake, nats-py may retry forever or hang; the attempt is then abandoned and started again.
CONNECT_LIMIT_S = 10.0
CLOSE_LIMIT_S = 1
# A server that disappears without closing the connection (node failure, network partition) is detected after two pings.
PING_INTERVAL_S = 10
MIN_SERVER = (2, 11)  # the first version with a TTL per message
# The first and the last version that lose records at a restart. If a record and the revision that it replaced are in
# different blocks, they save the block of the replaced revision when they stop, and then do not find the record:
# https://github.com/nats-io/nats-server/pull/8254
DEFECTIVE_SERVERS = ((2, 12, 7), (2, 12, 9))

# A stream that stores nothing is retried by one request per interval; other requests fail at once.
STUCK_PAUSE_S = 2.0
STUCK_TIMEOUT_S = 1.0
UNAVAILABLE = "the queue is unavailable; retry after the time in Retry-After"
FULL = "the queue is full; retry after the time in Retry-After"
TOO_LARGE = "image: the task exceeds the message size that the queue accepts; send a smaller image"

# https://github.com/nats-io/nats-server/blob/main/server/errors.json
_WRONG_REVISION = {10071, 10164}
_FULL = {10002, 10023, 10047, 10077}
_TOO_LARGE = {10054}
_IN_PROCESS = 10158  # an earlier copy of the message is being stored
_EXPECTED_ERRORS = (nats.errors.Error, OSError, StreamSetupError)

T = TypeVar("T", bound=msgspec.Struct)


class RevisionConflictError(Exception):
    """Another writer has replaced the revision that a write names."""


class _ResponseTimeoutError(Exception):
    """The server did not respond in time."""


class ApiError(msgspec.Struct):
    """Error of a JetStream response."""

    code: int = 0
    err_code: int = 0
    description: str = ""


class _PublishResponse(msgspec.Struct):
    seq: int = 0
    error: ApiError | None = None


_PUBLISH_RESPONSE = msgspec.json.Decoder(_PublishResponse)


class Connection:
    """A connection to the NATS server, under a name in the server's list of connections.

    It creates the streams and updates them to the settings if `manages_streams`. Commands must not do that, because the
    settings of their shell may differ from those of the service.
    """

    def __init__(self, settings: Settings, name: str, *, manages_streams: bool = True) -> None:
        self._prepare_streams = ensure_streams if manages_streams else require_streams
        self._settings = settings
        self._name = name
        self._client: Client | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._preparing: asyncio.Task[None] | None = None
        self._is_prepared = False
        self._is_closing = False
        self._reported: set[str] = set()  # problems since the last success
        self._outage_began: float | None = None  # when the server stopped to respond
        # First tokens of subjects whose stream stores nothing although the server responds, and when to retry.
        self._stuck: dict[str, float] = {}

    @property
    def is_up(self) -> bool:
        """Whether the server is connected and has the streams."""
        return self._client is not None and self._client.is_connected and self._is_prepared

    @property
    def client(self) -> Client:
        """The connected nats-py client.

        Raises:
            QueueUnavailableError: the server is not connected.
        """
        if self._client is None or not self.is_up:
            raise QueueUnavailableError(UNAVAILABLE)
        return self._client

    @property
    def is_in_outage(self) -> bool:
        """Whether requests wait, because the server has stopped to respond a short time ago."""
        return self._outage_began is not None and time.monotonic() < self._outage_limit()

    async def start(self) -> None:
        """Start to connect, in the background, and stay connected until `close`."""
        self._outage_began = time.monotonic()
        # In an empty context, because log lines would otherwise carry the id of an unrelated request.
        self._connecting = asyncio.create_task(self._stay_connected(), context=Context())

    async def close(self) -> None:
        """Send pending messages and disconnect."""
        self._is_closing = True
        if self._client is not None:
            await _flush(self._client)
        for task in filter(None, (self._preparing, self._connecting)):
            # Repeated, because `wait_for` of Python 3.11 loses a cancellation that arrives together with its result.
            while not task.done():
                task.cancel()
                await asyncio.wait({task}, timeout=CLOSE_LIMIT_S / 2)

    async def wait_restored(self) -> None:
        """Wait until the connection is up, but not longer than for a response."""
        limit = time.monotonic() + self._settings.nats_timeout_s
        await self.wait_up(lambda: time.monotonic() > limit)

    async def wait_outage(self) -> None:
        """Wait until the connection is up or the outage is no longer short."""
        await self.wait_up(lambda: not self.is_in_outage)

    async def wait_up(self, stop: Callable[[], bool]) -> bool:
        """Wait until the connection is up, or until ``stop`` returns True; return whether it is up."""
        while not self.is_up:
            if stop():
                return False
            await asyncio.sleep(POLL_S)
        return True

    async def store(self, subject: str, payload: bytes, headers: dict[str, str] | None = None) -> int:
        """Publish a message to a stream, wait until it is stored, and return its sequence number.

        After `QueueUnavailableError`, the message may have been stored, or may be stored later.

        Raises:
            QueueUnavailableError: the server does not respond or cannot store the message.
            QueueFullError: the stream or the server's storage is full.
            TaskTooLargeError: the message is larger than the server accepts.
            RevisionConflictError: the last revision is not the one that a header names.
        """
        target = subject.partition(".")[0]
        limit_s = STUCK_TIMEOUT_S if target in self._stuck else None
        generation = self._generation()
        try:
            for _ in range(IN_PROCESS_ATTEMPTS):
                response = _PUBLISH_RESPONSE.decode((await self._exchange(subject, payload, headers, limit_s)).data)
                if response.error is None or response.error.err_code != _IN_PROCESS:
                    break
                await asyncio.sleep(IN_PROCESS_PAUSE_S)
        except _ResponseTimeoutError as error:
            if generation == self._generation():  # otherwise the server has restarted meanwhile
                await self._note_not_stored(target, error)
            raise _unavailable() from None
        if self._stuck.pop(target, None) is not None:
            log.info("The queue stores messages of %s again", target)
        if response.error is None:
            self._note_success()
            return response.seq
        raise _publish_error(response.error)

    async def request(
        self, subject: str, payload: bytes = b"", headers: dict[str, str] | None = None, timeout_s: float | None = None
    ) -> Msg:
        """Send a request and return the response; the default timeout is that of the settings.

        Raises:
            QueueUnavailableError: the server does not respond.
            TaskTooLargeError: the message is larger than the server accepts.
        """
        try:
            return await self._exchange(subject, payload, headers, timeout_s)
        except _ResponseTimeoutError as error:
            self._report(error.__cause__ or error)
            raise _unavailable() from None

    async def call_api(
        self, path: str, response_type: type[T], payload: bytes = b"", timeout_s: float | None = None
    ) -> T:
        """Call the JetStream API at a path below ``$JS.API.``, and decode the response.

        The response may have a field ``error``. The default timeout is that of the settings.

        Raises:
            QueueUnavailableError: the server does not respond or returns an error.
        """
        limit = time.monotonic() if timeout_s else self._outage_limit()
        while True:
            message = await self.request(f"$JS.API.{path}", payload, timeout_s=timeout_s)
            response = msgspec.json.decode(message.data, type=response_type)
            if getattr(response, "error", None) is None:
                return response
            self.recheck_streams()
            if time.monotonic() > limit:
                raise QueueUnavailableError("the queue's streams are missing and are being created; retry later")
            await asyncio.sleep(POLL_S)

    async def subscribe(self, subject: str, callback: Callable[[Msg], Awaitable[None]]) -> Subscription:
        """Call a function with each message that is published to a subject from now on.

        Raises:
            QueueUnavailableError: the connection is lost.
        """
        try:
            return await self.client.subscribe(subject, cb=callback)
        except (nats.errors.Error, OSError) as error:
            self._report(error)
            raise _unavailable() from None

    def require_storing(self) -> None:
        """Fail at once if a stream stores nothing, except for one request per interval, which retries.

        Raises:
            QueueUnavailableError: the server stores nothing now.
        """
        now = time.monotonic()
        for target, retry_at in self._stuck.items():
            if now < retry_at:
                raise QueueUnavailableError("the queue's storage is not writable; retry later")
            self._stuck[target] = now + STUCK_PAUSE_S

    def recheck_streams(self) -> None:
        """Check and restore the streams again, because the server responds as if they were missing."""
        if self._is_prepared:
            self._is_prepared = False
            self._preparing = asyncio.create_task(self._prepare(), context=Context())

    def _generation(self) -> tuple[int, int]:
        client = self._client
        return id(client), 0 if client is None else client.stats["reconnects"]

    async def _note_not_stored(self, target: str, error: _ResponseTimeoutError) -> None:
        """Find out whether the server hangs, or responds but stores nothing, as after a full disk."""
        try:
            await self._exchange("$JS.API.INFO", timeout_s=STUCK_TIMEOUT_S)
        except (_ResponseTimeoutError, QueueUnavailableError, TaskTooLargeError):
            self._report(error.__cause__ or error)
            return
        if target not in self._stuck:
            log.error(
                "The queue does not store messages of %s although its server responds; see the server's log for a "
                "write error, free disk space and restart the server (the embedded server restarts automatically)",
                target,
            )
        self._stuck[target] = time.monotonic() + STUCK_PAUSE_S

    def _outage_limit(self) -> float:
        """Return until when requests wait for the end of an outage that has begun, or would begin now."""
        began = time.monotonic() if self._outage_began is None else self._outage_began
        return began + OUTAGE_TIMEOUTS * self._settings.nats_timeout_s

    async def _exchange(
        self, subject: str, payload: bytes = b"", headers: dict[str, str] | None = None, timeout_s: float | None = None
    ) -> Msg:
        """Send a request and return the response; without a timeout, wait for the end of a short outage.

        A request may be sent repeatedly, and must have the same effect then.
        """
        limit = 0.0 if timeout_s else self._outage_limit()
        while True:
            sent_at = time.monotonic()
            try:
                response = await self._send(subject, payload, headers, timeout_s or self._settings.nats_timeout_s)
            except (QueueUnavailableError, _ResponseTimeoutError):
                self._note_outage(sent_at)
                if time.monotonic() > limit:
                    raise
                await asyncio.sleep(POLL_S)
                await self.wait_up(lambda: time.monotonic() > limit)
            else:
                self._outage_began = None
                return response

    def _note_outage(self, began: float) -> None:
        if self._outage_began is None:
            self._outage_began = began

    async def _send(self, subject: str, payload: bytes, headers: dict[str, str] | None, timeout_s: float) -> Msg:
        client = self.client
        # The limit includes headers, which nats-py does not check; the server disconnects clients that exceed it.
        if len(payload) + _header_size(headers or {}) > client.max_payload:
            raise TaskTooLargeError(TOO_LARGE)
        try:
            return await client.request(subject, payload, timeout=timeout_s, headers=headers)
        except nats.errors.NoRespondersError:
            # The stream is missing: the server has just started or has lost its store, or a cluster has no leader.
            self.recheck_streams()
            raise _unavailable() from None
        except TimeoutError as error:
            raise _ResponseTimeoutError from error
        except nats.errors.ConnectionReconnectingError:
            raise _unavailable() from None  # the disconnect has been reported
        except (nats.errors.Error, OSError) as error:
            self._report(error)
            raise _unavailable() from None

    async def _stay_connected(self) -> None:
        while not self._is_closing:
            client, lost = ServiceClient(), asyncio.Event()
            try:
                async with asyncio.timeout(max(CONNECT_LIMIT_S, 2 * self._settings.nats_timeout_s)):
                    await client.connect(**self._options(client, lost))
                self._client = client
                await self._prepare()
                if not self._is_closing:
                    await lost.wait()
            except Exception as error:  # noqa: BLE001 - reported; the process must keep trying to connect
                self._report(error)
            finally:
                self._is_prepared = False
                await _disconnect(client)
            await asyncio.sleep(RECONNECT_PAUSE_S)

    async def _prepare(self) -> None:
        client = self._client
        while client is not None and not client.is_closed:
            try:
                _require_version(client)
                await self._prepare_streams(client, self._settings)
            except Exception as error:  # noqa: BLE001 - reported; the process must keep trying
                self._report(error)
                await asyncio.sleep(RECONNECT_PAUSE_S)
            else:
                self._is_prepared = True
                self._outage_began = None
                self._stuck = dict.fromkeys(self._stuck, 0.0)  # the server may have restarted: retry at once
                self._note_success()
                return

    def _options(self, client: ServiceClient, lost: asyncio.Event) -> dict[str, Any]:
        async def on_error(error: Exception) -> None:
            self._report(error)

        async def on_disconnect() -> None:
            self._is_prepared = False
            self._note_outage(time.monotonic())
            client.fail_requests()

        async def on_reconnect() -> None:
            await self._prepare()

        async def on_close() -> None:
            client.fail_requests()
            lost.set()

        return {
            "servers": self._settings.nats_servers,
            "name": self._name,
            "error_cb": on_error,
            "disconnected_cb": on_disconnect,
            "reconnected_cb": on_reconnect,
            "closed_cb": on_close,
            "max_reconnect_attempts": -1,
            "reconnect_time_wait": RECONNECT_PAUSE_S,
            "connect_timeout": min(CONNECT_TIMEOUT_S, self._settings.nats_timeout_s),
            "ping_interval": PING_INTERVAL_S,
            **connect_options(self._settings),
        }

    def _note_success(self) -> None:
        if self._reported:
            log.info("The queue is available again")
            self._reported.clear()

    def _report(self, error: BaseException) -> None:
        """Log each problem once until the next success, because nats-py reports every attempt at every server."""
        if isinstance(error, TimeoutError) and self._reported:
            return  # the cause has been logged
        problem = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        if problem in self._reported:
            return
        self._reported.add(problem)
        # An invalid seed raises an error of nkeys, whose import would cost every process 1 MB.
        if isinstance(error, _EXPECTED_ERRORS) or type(error).__module__ == "nkeys":
            log.warning("The queue is unavailable: %s; retrying", problem)
        else:  # a bug; nats-py also reports exceptions of subscription callbacks here
            log.error("Internal error in the connection to the queue: %s", problem, exc_info=error)


async def _disconnect(client: ServiceClient) -> None:
    try:
        with contextlib.suppress(Exception):  # because a client that never connected may fail to close
            async with asyncio.timeout(CLOSE_LIMIT_S):
                await client.close()
    finally:
        client.close_transport()


async def _flush(client: Client) -> None:
    with contextlib.suppress(nats.errors.Error, OSError, TimeoutError):
        if client.is_connected:
            await client.flush(timeout=CLOSE_LIMIT_S)


def _publish_error(error: ApiError) -> Exception:
    if error.err_code in _WRONG_REVISION:
        return RevisionConflictError()
    if error.err_code in _FULL:
        return QueueFullError(FULL)
    if error.err_code in _TOO_LARGE:
        return TaskTooLargeError(TOO_LARGE)
    log.warning("The queue rejected a message: %s (%d)", error.description, error.err_code)
    return QueueUnavailableError("the queue cannot store the task now; retry after the time in Retry-After")


def expected_server() -> str:
    """Describe the versions of nats-server that are supported."""
    least, first, last = (".".join(map(str, version)) for version in (MIN_SERVER, *DEFECTIVE_SERVERS))
    return f"nats-server {least} or later, except {first} to {last}"


def is_supported_server(version: str) -> bool:
    """Return whether a version of nats-server, such as ``v2.12.0-RC.1``, is supported."""
    match = re.match(r"v?(\d+)\.(\d+)(?:\.(\d+))?", version)
    if match is None:
        return False
    first, last = DEFECTIVE_SERVERS
    number = tuple(int(part or 0) for part in match.groups())
    return number >= MIN_SERVER and not first <= number <= last


def _require_version(client: Client) -> None:
    version = client.connected_server_version
    if client.is_connected and not is_supported_server(f"{version.major}.{version.minor}.{version.patch}"):
        raise StreamSetupError(f"expected {expected_server()}, got {version}")


def _header_size(headers: dict[str, str]) -> int:
    """Return the size of the header block on the wire."""
    return sum(len(f"{name}: {value}\r\n".encode()) for name, value in headers.items()) + len("NATS/1.0\r\n\r\n")


def _unavailable() -> QueueUnavailableError:
    return QueueUnavailableError(UNAVAILABLE)

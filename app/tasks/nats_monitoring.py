"""Figures of a NATS server: its own, and those of its JetStream storage.

They come from its monitoring port (``http://``) or, from the embedded server, which has none, over a connection to its
system account (``nats://``).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import msgspec
import nats.errors

from app.tasks.nats_client import StrictTlsClient

ANSWER_S: Final = 0.3
CONNECT_S: Final = 0.3
SYSTEM_SCHEME: Final = "nats"
# https://github.com/nats-io/nats-server/blob/main/server/monitor.go
_BROKEN: Final = ("write error", "JetStream not enabled")


class NatsServerStats(msgspec.Struct, frozen=True, kw_only=True):
    """What was read; None is what the server does not report.

    Attributes:
        memory: bytes that the server's process takes.
        connections: clients that are connected to it.
        storage_limit: bytes that it may store.
        reserved: bytes of its storage that streams reserve with their bounds.
        has_leader: whether the cluster has a leader; None of a server that is in none.
        storage_fault: why a stream cannot be written; empty if all can. nats-server 2.11 does not report it.
        free: bytes free on the disk of the storage, if that is on this machine.
    """

    memory: int | None = None
    connections: int | None = None
    storage_limit: int | None = None
    reserved: int | None = None
    has_leader: bool | None = None
    storage_fault: str | None = None
    free: int | None = None


class _Server(msgspec.Struct):
    mem: int | None = None
    connections: int | None = None


class _Config(msgspec.Struct):
    max_storage: int = 0
    store_dir: str = ""


class _Cluster(msgspec.Struct):
    leader: str = ""


class _JetStream(msgspec.Struct):
    config: _Config = msgspec.field(default_factory=_Config)
    reserved_storage: int | None = None
    meta_cluster: _Cluster | None = None


class _Health(msgspec.Struct):
    status: str = ""
    error: str = ""


class _Response(msgspec.Struct):
    data: msgspec.Raw = msgspec.Raw(b"{}")


# Not through an HTTP_PROXY: the server is in this network.
_OPENER: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_SERVER: Final = msgspec.json.Decoder(_Server)
_JETSTREAM: Final = msgspec.json.Decoder(_JetStream)
_HEALTH: Final = msgspec.json.Decoder(_Health)
_RESPONSE: Final = msgspec.json.Decoder(_Response)


class ServerMonitor:
    """Reads the figures of one server.

    Args:
        url: ``http://nats:8222``, or ``nats://user:password@host:port`` of a user of the system account; empty if
            neither is known.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._client: StrictTlsClient | None = None
        self._lock = asyncio.Lock()

    async def read(self) -> NatsServerStats:
        """Read the figures; all are None if there is no response."""
        if not self._url:
            return NatsServerStats()
        try:
            is_system = urlsplit(self._url).scheme == SYSTEM_SCHEME
            pages = await self._ask() if is_system else await asyncio.to_thread(_get_pages, self._url)
            return _figures(*pages, is_local=is_system)
        except (nats.errors.Error, OSError, TimeoutError, ValueError):  # msgspec's errors are ValueErrors
            return NatsServerStats()

    async def close(self) -> None:
        """Close the connection, if there is one."""
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(CONNECT_S):
                    await client.close()
            client.close_transport()

    async def _ask(self) -> list[bytes]:
        async with self._lock:
            client = await self._connect()
        answers = await asyncio.gather(
            *(
                client.request(f"$SYS.REQ.SERVER.PING.{name}", payload, timeout=ANSWER_S)
                for name, payload in (("VARZ", b""), ("JSZ", b'{"config":true}'), ("HEALTHZ", b""))
            )
        )
        return [bytes(_RESPONSE.decode(answer.data).data) for answer in answers]

    async def _connect(self) -> StrictTlsClient:
        if self._client is not None and self._client.is_connected:
            return self._client
        await self.close()
        url, client = urlsplit(self._url), StrictTlsClient()
        self._client = client
        options: dict[str, Any] = {
            "servers": [f"nats://{url.hostname}:{url.port}"],
            "user": unquote(url.username or ""),
            "password": unquote(url.password or ""),
            "name": "facial-service monitoring",
            "allow_reconnect": False,
            "max_reconnect_attempts": 1,
            "reconnect_time_wait": 0,
            "connect_timeout": CONNECT_S,
            "error_cb": _ignore,
        }
        async with asyncio.timeout(2 * CONNECT_S):
            await client.connect(**options)
        return client


def read_server_stats(url: str) -> NatsServerStats:
    """Read the figures of a server once; see `ServerMonitor`."""

    async def read() -> NatsServerStats:
        monitor = ServerMonitor(url)
        try:
            return await monitor.read()
        finally:
            await monitor.close()

    return asyncio.run(read())


def _figures(server_page: bytes, store_page: bytes, health_page: bytes, *, is_local: bool) -> NatsServerStats:
    server, store, health = _SERVER.decode(server_page), _JETSTREAM.decode(store_page), _HEALTH.decode(health_page)
    if server.mem is None:  # something else responds there
        return NatsServerStats()
    folder = Path(store.config.store_dir)
    return NatsServerStats(
        memory=server.mem,
        connections=server.connections,
        storage_limit=store.config.max_storage or None,
        reserved=store.reserved_storage,
        has_leader=None if store.meta_cluster is None else bool(store.meta_cluster.leader),
        storage_fault=_storage_fault(health),
        free=free_bytes(folder) if is_local and store.config.store_dir else None,
    )


def _storage_fault(health: _Health) -> str | None:
    if not health.status:
        return None
    return health.error if any(sign in health.error for sign in _BROKEN) else ""


def free_bytes(folder: Path) -> int | None:
    """Return the bytes that this user may still write; None if the folder cannot be read."""
    try:
        disk = os.statvfs(folder)
    except OSError:
        return None
    return disk.f_bavail * disk.f_frsize


async def _ignore(_error: Exception) -> None:
    """The caller gets the error as well."""


def _get_pages(url: str) -> list[bytes]:
    return [_get(url, page) for page in ("varz", "jsz", "healthz")]


def _get(url: str, page: str) -> bytes:
    try:
        with _OPENER.open(f"{url.rstrip('/')}/{page}", timeout=ANSWER_S) as answer:
            return bytes(answer.read())
    except urllib.error.HTTPError as error:  # of /healthz, whose body says what is wrong
        with error:
            return error.read()

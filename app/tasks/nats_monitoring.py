"""Statistics of a NATS server: of its process and of its JetStream storage.

They come from its monitoring port (``http://``). The embedded server has no such port; its statistics come over a
connection to its system account (``nats://``).
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

from app.tasks.nats_client import ServiceClient

RESPONSE_TIMEOUT_S: Final = 0.3
CONNECT_TIMEOUT_S: Final = 0.3
SYSTEM_SCHEME: Final = "nats"
# https://github.com/nats-io/nats-server/blob/main/server/monitor.go
_STORAGE_FAULTS: Final = ("write error", "JetStream not enabled")


class NatsServerStats(msgspec.Struct, frozen=True, kw_only=True):
    """Statistics of a NATS server; None if it does not report a value."""

    memory: int | None = None  # resident memory of the server's process, in bytes
    connections: int | None = None
    storage_limit: int | None = None  # bytes that the server may store
    reserved: int | None = None  # bytes of its storage that streams reserve with their limits
    has_leader: bool | None = None  # whether the cluster has a leader; None if the server is not part of a cluster
    # Why a stream is not writable; empty if all are. nats-server 2.11 does not report it.
    storage_fault: str | None = None
    free: int | None = None  # bytes free on the disk of the storage, if it is local


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


# Ignore HTTP_PROXY, because the server is in the local network.
_OPENER: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_SERVER: Final = msgspec.json.Decoder(_Server)
_JETSTREAM: Final = msgspec.json.Decoder(_JetStream)
_HEALTH: Final = msgspec.json.Decoder(_Health)
_RESPONSE: Final = msgspec.json.Decoder(_Response)


class ServerMonitor:
    """Client for the statistics of one server.

    The URL is ``http://nats:8222``, or ``nats://user:password@host:port`` of a user of the system account, or empty if
    neither is known.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._client: ServiceClient | None = None
        self._lock = asyncio.Lock()

    async def read(self) -> NatsServerStats:
        """Return the statistics; all are None if the server does not respond."""
        if not self._url:
            return NatsServerStats()
        try:
            is_system = urlsplit(self._url).scheme == SYSTEM_SCHEME
            pages = await self._request() if is_system else await asyncio.to_thread(_get_pages, self._url)
            return _parse(*pages, is_local=is_system)
        except (nats.errors.Error, OSError, TimeoutError, ValueError):  # msgspec's errors are ValueErrors
            return NatsServerStats()

    async def close(self) -> None:
        """Close the connection, if it is open."""
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    await client.close()
            client.close_transport()

    async def _request(self) -> list[bytes]:
        async with self._lock:
            client = await self._connect()
        responses = await asyncio.gather(
            *(
                client.request(f"$SYS.REQ.SERVER.PING.{name}", payload, timeout=RESPONSE_TIMEOUT_S)
                for name, payload in (("VARZ", b""), ("JSZ", b'{"config":true}'), ("HEALTHZ", b""))
            )
        )
        return [bytes(_RESPONSE.decode(response.data).data) for response in responses]

    async def _connect(self) -> ServiceClient:
        if self._client is not None and self._client.is_connected:
            return self._client
        await self.close()
        url, client = urlsplit(self._url), ServiceClient()
        self._client = client
        options: dict[str, Any] = {
            "servers": [f"nats://{url.hostname}:{url.port}"],
            "user": unquote(url.username or ""),
            "password": unquote(url.password or ""),
            "name": "facial-service monitoring",
            "allow_reconnect": False,
            "max_reconnect_attempts": 1,
            "reconnect_time_wait": 0,
            "connect_timeout": CONNECT_TIMEOUT_S,
            "error_cb": _ignore,
        }
        async with asyncio.timeout(2 * CONNECT_TIMEOUT_S):
            await client.connect(**options)
        return client


def read_server_stats(url: str) -> NatsServerStats:
    """Return the statistics of a server once; see `ServerMonitor`."""

    async def read() -> NatsServerStats:
        monitor = ServerMonitor(url)
        try:
            return await monitor.read()
        finally:
            await monitor.close()

    return asyncio.run(read())


def _parse(server_page: bytes, storage_page: bytes, health_page: bytes, *, is_local: bool) -> NatsServerStats:
    server, storage = _SERVER.decode(server_page), _JETSTREAM.decode(storage_page)
    if server.mem is None:  # the port belongs to another program
        return NatsServerStats()
    return NatsServerStats(
        memory=server.mem,
        connections=server.connections,
        storage_limit=storage.config.max_storage or None,
        reserved=storage.reserved_storage,
        has_leader=None if storage.meta_cluster is None else bool(storage.meta_cluster.leader),
        storage_fault=_storage_fault(_HEALTH.decode(health_page)),
        free=free_bytes(Path(storage.config.store_dir)) if is_local and storage.config.store_dir else None,
    )


def _storage_fault(health: _Health) -> str | None:
    if not health.status:
        return None
    return health.error if any(text in health.error for text in _STORAGE_FAULTS) else ""


def free_bytes(folder: Path) -> int | None:
    """Return how many bytes this user can still write; None if the folder is not readable."""
    try:
        disk = os.statvfs(folder)
    except OSError:
        return None
    return disk.f_bavail * disk.f_frsize


async def _ignore(_error: Exception) -> None:
    """Ignore an error, because the call that fails raises it as well."""


def _get_pages(url: str) -> list[bytes]:
    return [_get(url, page) for page in ("varz", "jsz", "healthz")]


def _get(url: str, page: str) -> bytes:
    try:
        with _OPENER.open(f"{url.rstrip('/')}/{page}", timeout=RESPONSE_TIMEOUT_S) as response:
            return bytes(response.read())
    except urllib.error.HTTPError as error:  # /healthz, whose body contains the reason
        with error:
            return error.read()

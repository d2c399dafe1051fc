"""What the queue's server tells on its monitoring port: itself, where JetStream tells of streams."""

from __future__ import annotations

import urllib.request
from typing import Final

import msgspec

ANSWER_S: Final = 0.3


class MonitorFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What was read; None is what it does not tell.

    Attributes:
        memory: bytes that the server's process takes.
        connections: clients that are connected to it.
        storage_limit: bytes that it may store.
        has_leader: whether the cluster has a leader; None of a server that is in none.
    """

    memory: int | None = None
    connections: int | None = None
    storage_limit: int | None = None
    has_leader: bool | None = None


class _Server(msgspec.Struct):
    mem: int | None = None
    connections: int | None = None


class _Config(msgspec.Struct):
    max_storage: int = 0


class _Cluster(msgspec.Struct):
    leader: str = ""


class _JetStream(msgspec.Struct):
    config: _Config = msgspec.field(default_factory=_Config)
    meta_cluster: _Cluster | None = None


# Of this network: an HTTP_PROXY is for what is outside.
_OPENER: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_SERVER: Final = msgspec.json.Decoder(_Server)
_JETSTREAM: Final = msgspec.json.Decoder(_JetStream)


def read_monitor(url: str) -> MonitorFigures:
    """Ask the monitoring port; all is None where there is none, or no answer.

    Args:
        url: of the port, such as ``http://nats:8222``; empty where it is not known.
    """
    if not url:
        return MonitorFigures()
    try:
        server = _SERVER.decode(_get(url, "varz"))
        store = _JETSTREAM.decode(_get(url, "jsz"))
    except (OSError, ValueError):  # msgspec's errors are ValueErrors
        return MonitorFigures()
    return MonitorFigures(
        memory=server.mem,
        connections=server.connections,
        storage_limit=store.config.max_storage or None,
        has_leader=None if store.meta_cluster is None else bool(store.meta_cluster.leader),
    )


def _get(url: str, page: str) -> bytes:
    with _OPENER.open(f"{url.rstrip('/')}/{page}", timeout=ANSWER_S) as answer:
        return bytes(answer.read())

"""The instance that runs here: who answers at the ports of the settings, and what it says of itself."""

from __future__ import annotations

import http.client
import time
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

import orjson
import psutil

if TYPE_CHECKING:
    from collections.abc import Mapping

    from app.settings import Settings

ANSWER_S = 2.0
LARGEST_ANSWER = 8 << 20


class Listener(Enum):
    """Who is behind a port."""

    NOBODY = "nobody"
    SERVICE = "this service"
    SILENT = "somebody who does not answer"
    STRANGER = "somebody else"


class Role(Enum):
    """What kind of instance it is, and where the chart has its values."""

    API = "api"
    WORKER = "worker"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back, and when (seconds since 1970, by the clock of this machine)."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    sent_at: float
    received_at: float


@dataclass(frozen=True, slots=True)
class Port:
    """A port of the settings.

    Attributes:
        host: where it is asked.
        number: of the port.
        listener: who is there.
        health: the answer to ``/health``; None unless it is this service.
        holders: the processes that listen, as far as this user may know, as ``name (process 7)``.
    """

    host: str
    number: int
    listener: Listener
    health: Answer | None = None
    holders: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """Where it is, as one writes it."""
        return f"[{self.host}]:{self.number}" if ":" in self.host else f"{self.host}:{self.number}"

    @property
    def report(self) -> dict[str, Any]:
        """What the service says of its health; nothing unless it is this service."""
        return {} if self.health is None else dict(orjson.loads(self.health.body))


@dataclass(frozen=True, slots=True)
class Instance:
    """What was found at the two ports."""

    api: Port
    metrics: Port

    @property
    def is_running(self) -> bool:
        """Whether an instance answers at the port of metrics."""
        return self.metrics.listener is Listener.SERVICE

    @property
    def role(self) -> Role:
        """What kind it is; an API unless one that runs says otherwise."""
        names = [str(worker["name"]) for worker in self.metrics.report.get("workers", [])]
        return Role.WORKER if names and all(name.startswith("task") for name in names) else Role.API

    @property
    def master(self) -> psutil.Process | None:
        """The master process, where it runs in sight of this one."""
        for worker in self.metrics.report.get("workers", []):
            with suppress(psutil.Error):
                return psutil.Process(worker["pid"]).parent()
        return None


def look_around(settings: Settings) -> Instance:
    """Find out who is behind the ports of the settings."""
    host = _reachable(settings.host)
    return Instance(api=_look(host, settings.port), metrics=_look(host, settings.metrics_port))


def get(host: str, port: int, path: str, *, limit_s: float = ANSWER_S, is_tls: bool = False) -> Answer:
    """Request a page.

    Args:
        host: name or address of the server.
        port: its port.
        path: of the page.
        limit_s: timeout of each step, in seconds.
        is_tls: whether to use HTTPS.

    Raises:
        OSError: the server is unreachable, its certificate is refused, or it does not respond in time.
        http.client.HTTPException: the response is not HTTP.
    """
    kind = http.client.HTTPSConnection if is_tls else http.client.HTTPConnection
    connection = kind(host, port, timeout=limit_s)
    try:
        sent_at = time.time()
        connection.request("GET", path)
        with connection.getresponse() as response:
            received_at = time.time()
            headers = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, headers, response.read(LARGEST_ANSWER), sent_at, received_at)
    finally:
        connection.close()


def _look(host: str, number: int) -> Port:
    if not number:  # a free one is taken at each start, and nobody here knows which
        return Port(host, number, Listener.NOBODY)
    try:
        answer = get(host, number, "/health")
    except (ConnectionRefusedError, ConnectionResetError):
        return Port(host, number, Listener.NOBODY)
    except TimeoutError:
        return Port(host, number, Listener.SILENT, holders=find_holders(number))
    except http.client.HTTPException:
        return Port(host, number, Listener.STRANGER, holders=find_holders(number))
    except OSError:  # no such address, no route to it: whether it can be listened on is another matter
        return Port(host, number, Listener.NOBODY)
    is_ours = _is_health(answer.body)
    listener = Listener.SERVICE if is_ours else Listener.STRANGER
    return Port(host, number, listener, answer if is_ours else None, find_holders(number))


def _is_health(body: bytes) -> bool:
    try:
        report = orjson.loads(body)
    except orjson.JSONDecodeError:
        return False
    return isinstance(report, dict) and {"live", "ready", "draining", "workers", "task_workers"} <= report.keys()


def find_holders(number: int) -> tuple[str, ...]:
    """Name the processes that listen on a port, as far as this user may know them."""
    names = {}
    with suppress(psutil.Error, OSError):
        for peer in psutil.net_connections("tcp"):
            if peer.status == psutil.CONN_LISTEN and peer.laddr and peer.laddr.port == number and peer.pid is not None:
                with suppress(psutil.Error):
                    # The name alone: what stands behind it may hold a password.
                    names[peer.pid] = f"{psutil.Process(peer.pid).name().rstrip(':')} (process {peer.pid})"
    return tuple(names[pid] for pid in sorted(names))


def _reachable(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - not listened on here

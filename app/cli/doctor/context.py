"""The deployment to check: its settings, its environment, and the instance that runs on this host."""

from __future__ import annotations

import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import msgspec
import psutil
from pydantic import ValidationError

from app.observability.health import HealthResponse, WorkerHealth
from app.settings import InvalidSetting, Settings, find_invalid_settings, load_settings, read_environment
from app.supervisor.scoreboard import count_task_workers

if TYPE_CHECKING:
    from collections.abc import Mapping

RESPONSE_TIMEOUT_S = 2.0
NO_HEALTH = HealthResponse(live=False, ready=False, draining=False, workers=[], task_workers=[])


class Listener(Enum):
    """What listens on a port."""

    NONE = "none"
    SERVICE = "this service"
    UNRESPONSIVE = "a process that does not respond"
    OTHER = "another program"


class Role(Enum):
    """The kind of an instance, named like its section in the values of the chart."""

    API = "api"
    WORKER = "worker"


@dataclass(frozen=True, slots=True)
class Port:
    """A port of the settings."""

    host: str  # address to connect to
    number: int  # port number; 0 means that the service picks a free port
    listener: Listener = Listener.NONE
    health: HealthResponse = NO_HEALTH  # as reported, if this service listens
    processes: tuple[str, ...] = ()  # the processes that listen, as ``name (process 7)``, if this user can see them

    @property
    def address(self) -> str:
        """Host and port number."""
        return f"[{self.host}]:{self.number}" if ":" in self.host else f"{self.host}:{self.number}"

    @property
    def process_names(self) -> str:
        """The processes that listen, as text."""
        return ", ".join(self.processes) or "a process that this user cannot see"


@dataclass(frozen=True, slots=True)
class LocalInstance:
    """The instance that runs on this host, as seen at its two ports."""

    api: Port
    metrics: Port

    @property
    def is_running(self) -> bool:
        """Whether this service responds on the metrics port."""
        return self.metrics.listener is Listener.SERVICE

    @property
    def role(self) -> Role:
        """The role: API, unless a running instance has only task workers."""
        workers = self.metrics.health.workers
        return Role.WORKER if workers and all(worker.name.startswith("task") for worker in workers) else Role.API

    @property
    def workers(self) -> list[WorkerHealth]:
        """The worker processes of both kinds."""
        return self.metrics.health.workers + self.metrics.health.task_workers

    @property
    def master(self) -> psutil.Process | None:
        """The master process, if it is visible from here."""
        for worker in self.metrics.health.workers:
            with suppress(psutil.Error):
                return psutil.Process(worker.pid).parent()
        return None


@dataclass(frozen=True)
class Context:
    """Input of the checks."""

    settings: Settings  # the settings of the deployment, with defaults in place of invalid values
    environment: Mapping[str, str]  # all environment variables
    invalid: tuple[InvalidSetting, ...]  # the settings with invalid values
    cgroup_root: Path  # mount point of the cgroup file system
    temporary: Path | None  # folder for temporary files; None if no such folder is writable
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def instance(self) -> LocalInstance:
        """The instance that runs here. The first check that needs it queries the ports."""
        with self._lock:
            return self._instance

    @cached_property
    def _instance(self) -> LocalInstance:
        settings = self.settings
        host = {"0.0.0.0": "127.0.0.1", "::": "127.0.0.1"}.get(settings.host, settings.host)  # noqa: S104 - not a bind
        return LocalInstance(api=_query_port(host, settings.port), metrics=_query_port(host, settings.metrics_port))

    @property
    def is_in_container(self) -> bool:
        """Whether the service has its own container: it runs in a pod, or as process 1."""
        if "KUBERNETES_SERVICE_HOST" in self.environment:
            return True
        try:
            return "facial-service" in " ".join(psutil.Process(1).cmdline())
        except psutil.Error:
            return False

    @property
    def api_worker_count(self) -> int:
        """Number of API worker processes that an instance here should have."""
        return 0 if self.instance.role is Role.WORKER else self.settings.workers

    @property
    def task_worker_count(self) -> int:
        """Number of task worker processes that an instance here should have."""
        has_workers = self.settings.is_queue_embedded or self.instance.role is Role.WORKER
        return count_task_workers(self.settings) if has_workers else 0

    @property
    def worker_count(self) -> int:
        """Number of worker processes of both kinds that an instance here should have."""
        return self.api_worker_count + self.task_worker_count


def load_context(cgroup_root: Path) -> Context | tuple[InvalidSetting, ...]:
    """Read the settings from the environment, with defaults in place of invalid values.

    Return only the invalid settings if the valid ones contradict each other.
    """
    environment, temporary = read_environment(), _find_temporary_folder()
    try:
        return Context(load_settings(), environment, (), cgroup_root, temporary)
    except ValidationError as failure:
        invalid = find_invalid_settings(failure)
    fields = {
        name: field for name, field in Settings.model_fields.items() if name.upper() in {one.name for one in invalid}
    }
    if not fields:
        return invalid
    defaults: dict[str, Any] = {name: field.get_default(call_default_factory=True) for name, field in fields.items()}
    try:
        return Context(Settings(**defaults), environment, invalid, cgroup_root, temporary)
    except ValidationError as failure:
        return invalid + find_invalid_settings(failure)


def _find_temporary_folder() -> Path | None:
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError:
        # Some libraries call gettempdir() when they are imported. Let them, so that other checks can run.
        tempfile.tempdir = "/"
        return None


def http_get(url: str, timeout_s: float = RESPONSE_TIMEOUT_S) -> httpx.Response:
    """Send a GET request to this host, without a proxy.

    Raises:
        httpx.HTTPError: nothing listens there, it does not respond in time, or the response is not HTTP.
    """
    # Uncompressed, because compression would count as time of the service.
    return httpx.get(url, headers={"Accept-Encoding": "identity"}, timeout=timeout_s, trust_env=False)


def find_listeners(port: int) -> tuple[str, ...]:
    """Return the names of the processes that listen on a port, if this user can see them."""
    names = {}
    with suppress(psutil.Error, OSError):
        for peer in psutil.net_connections("tcp"):
            if peer.status == psutil.CONN_LISTEN and peer.laddr and peer.laddr.port == port and peer.pid is not None:
                with suppress(psutil.Error):
                    # Only the name, because arguments may contain a password.
                    names[peer.pid] = f"{psutil.Process(peer.pid).name().rstrip(':')} (process {peer.pid})"
    return tuple(names[pid] for pid in sorted(names))


def _query_port(host: str, number: int) -> Port:
    if not number:
        return Port(host, number)
    try:
        response = http_get(f"http://{Port(host, number).address}/health")
        health = msgspec.json.decode(response.content, type=HealthResponse)
    except httpx.TimeoutException:
        return Port(host, number, Listener.UNRESPONSIVE, processes=find_listeners(number))
    except (httpx.RemoteProtocolError, msgspec.DecodeError, UnicodeDecodeError):
        return Port(host, number, Listener.OTHER, processes=find_listeners(number))
    except (httpx.TransportError, httpx.InvalidURL):
        # Refused, or not an address of this host; the check of the port then tries to bind it.
        return Port(host, number)
    return Port(host, number, Listener.SERVICE, health, find_listeners(number))

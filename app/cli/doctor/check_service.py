"""The checks of the local instance: its ports, health, worker processes, metrics and version."""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING

import httpx
from prometheus_client.parser import text_string_to_metric_families

from app import __version__
from app.cli.doctor.context import Listener, LocalInstance, Port, Role, find_listeners, http_get
from app.cli.doctor.findings import Finding, error, note, ok, skipped, warning
from app.supervisor.application import listening_host

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from prometheus_client.samples import Sample

    from app.cli.doctor.context import Context
    from app.observability.health import HealthResponse, WorkerHealth

SCRAPE_TIMEOUT_S, SLOW_SCRAPE_S = 5.0, 1.0


def check_ports(context: Context) -> Iterator[Finding]:
    """Check that `PORT` and `METRICS_PORT` are free, or used by the service."""
    instance = context.instance
    if instance.role is Role.WORKER:
        yield skipped("ports.api", "PORT", "a worker instance listens only on METRICS_PORT")
    else:
        yield _check_port("ports.api", "PORT", context.settings.host, instance.api)
    yield _check_port("ports.metrics", "METRICS_PORT", context.settings.host, instance.metrics)
    if instance.is_running and instance.api.listener is Listener.SERVICE:
        api, metrics = ({worker.pid for worker in port.health.workers} for port in (instance.api, instance.metrics))
        if api and metrics and api.isdisjoint(metrics):
            advice = "set PORT and METRICS_PORT to the ports of the same instance"
            yield note("ports.api", "PORT, METRICS_PORT", "used by two different instances", advice)


def _check_port(part: str, setting: str, host: str, port: Port) -> Finding:
    subject = f"{setting} {port.address}"
    if not port.number:
        return skipped(part, f"{setting}=0", "each start picks a free port")
    if port.listener is Listener.SERVICE:
        return ok(part, subject, f"used by this service: {port.process_names}")
    if port.listener is Listener.NONE:
        return _try_bind(part, setting, host, port.number)
    suffix = ", which does not respond" if port.listener is Listener.UNRESPONSIVE else ""
    found = f"in use by {port.process_names}{suffix}"
    return error(part, subject, found, expected="a free port, or facial-service on it")


def _try_bind(part: str, setting: str, host: str, port: int) -> Finding:
    """Bind the port without listening, so that no client can connect to this process."""
    subject = f"{setting} {host}:{port}"
    host = listening_host(host)
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as failure:
        found = f"cannot listen: {os.strerror(failure.errno) if failure.errno else 'no such address'}"
        advice: str | None = "set HOST to an address of this machine, 127.0.0.1, or :: for all addresses"
        if failure.errno == errno.EADDRINUSE:
            found, advice = f"{found} ({', '.join(find_listeners(port)) or 'no visible process'})", None
        elif failure.errno == errno.EACCES:
            advice = f"set {setting} above 1023, or grant the capability NET_BIND_SERVICE"
        return error(part, subject, found, expected="an address and a port that this user can listen on", advice=advice)
    return ok(part, subject, "free")


def check_service(context: Context) -> Iterator[Finding]:
    """Check the running instance."""
    instance = context.instance
    yield _check_running(context, instance)
    if not instance.is_running:
        return
    health = instance.metrics.health
    yield _check_health(health, instance.metrics.address)
    if context.api_worker_count:
        yield _check_workers(health.workers, context.api_worker_count, "WORKERS", context.settings.timeout_s)
    if context.task_worker_count:
        # A worker instance reports its task workers as `workers`.
        workers = health.task_workers if context.api_worker_count else health.workers
        yield _check_workers(workers, context.task_worker_count, "TASK_WORKERS", context.settings.timeout_s)
    if context.settings.enable_metrics:
        yield from _check_metrics(instance)
    else:
        yield skipped("service.metrics", "ENABLE_METRICS=false", "metrics are disabled")


def _check_running(context: Context, instance: LocalInstance) -> Finding:
    part, port = "service.running", instance.metrics
    subject = f"METRICS_PORT {port.address}"
    if not port.number:
        return note(part, "METRICS_PORT=0", "each start picks a free port", "set it to the port of the instance")
    if instance.is_running:
        return ok(part, subject, f"{instance.role.value} instance")
    if port.listener is Listener.UNRESPONSIVE:
        found = f"open, but does not respond: {port.process_names}"
        return error(part, subject, found, expected="a response within 2 s, regardless of load")
    command = "`facial-service serve`" + ("" if context.settings.is_queue_embedded else " or `facial-service worker`")
    return note(part, subject, "the service does not run here", f"start it: {command}")


def _check_health(health: HealthResponse, address: str) -> Finding:
    part, expected = "service.health", "live and ready"
    if not health.live:
        advice = "search the log for `exited:`; see FacialServiceCrashLooping"
        found = "not live: no worker has sent a heartbeat in time"
        return error(part, address, found, expected=expected, advice=advice)
    if not health.ready:
        found = "draining, because it is shutting down" if health.draining else "not ready: workers are starting"
        return warning(part, address, found, expected=expected)
    return ok(part, address, expected)


def _check_workers(workers: Sequence[WorkerHealth], expected: int, setting: str, timeout_s: int) -> Finding:
    part, subject = "service.workers", f"{setting}={expected}"
    silent = [worker.name for worker in workers if worker.last_beat_s > timeout_s]
    ready = [worker for worker in workers if worker.state == "ready" and worker.last_beat_s <= timeout_s]
    found = f"{len(ready)} of {expected} ready" + (f"; no heartbeat: {', '.join(silent)}" if silent else "")
    if len(ready) >= expected and not silent:
        return ok(part, subject, found)
    report = warning if ready else error
    return report(part, subject, found, expected=f"{expected} ready, with a heartbeat within TIMEOUT_S ({timeout_s} s)")


def _check_metrics(instance: LocalInstance) -> Iterator[Finding]:
    part, port = "service.metrics", instance.metrics
    subject, expected = f"{port.address}/metrics", "metrics within a second"
    try:
        response = http_get(f"http://{subject}", SCRAPE_TIMEOUT_S)
    except httpx.HTTPError:
        yield error(part, subject, f"no response within {SCRAPE_TIMEOUT_S:g} s", expected=expected)
        return
    if response.status_code != httpx.codes.OK:
        advice = "set ENABLE_METRICS as in the service; search its log for `A scrape failed`"
        yield error(part, subject, f"status {response.status_code}", expected=expected, advice=advice)
        return
    families = text_string_to_metric_families(response.text)
    samples = [sample for family in families for sample in family.samples]
    yield _check_samples(instance, response, samples)
    if any(sample.name == "queue_up" and not sample.value for sample in samples):
        advice = "see the findings of `queue`; if there are none, restart the instance; see "
        advice += "FacialServiceQueueUnreachableFromInstance"
        yield error(part, "queue_up", "0: the instance cannot reach the NATS server", expected="1", advice=advice)
    yield _check_version(samples)


def _check_samples(instance: LocalInstance, response: httpx.Response, samples: list[Sample]) -> Finding:
    part, subject = "service.metrics", f"{instance.metrics.address}/metrics"
    reported = {sample.labels["process"] for sample in samples if sample.name == "memory_usage_bytes"}
    elapsed_s, problems = response.elapsed.total_seconds(), []
    if missing := [worker.name for worker in instance.workers if worker.name not in reported]:
        problems.append(f"no metrics of {', '.join(missing)}")
    if elapsed_s > SLOW_SCRAPE_S:
        problems.append(f"response after {elapsed_s:.1f} s")
    exits = [sample for sample in samples if sample.name == "app_worker_exits_total"]
    if unexpected := sum(sample.value for sample in exits if sample.labels["reason"] != "stopped"):
        problems.append(f"{unexpected:.0f} worker processes have exited unexpectedly since the start")
    if problems:
        expected = "metrics of each process within a second, and no unexpected exits"
        return warning(part, subject, "; ".join(problems), expected=expected)
    return ok(part, subject, f"{len(samples)} samples in {1000 * elapsed_s:.0f} ms")


def _check_version(samples: list[Sample]) -> Finding:
    builds = (sample.labels["version"] for sample in samples if sample.name == "app_build_info")
    version = next(builds, "unknown")
    if version == __version__:
        return ok("service.version", "version", version)
    found = f"the service has {version}, this command {__version__}"
    return warning("service.version", "version", found, expected="the same version")

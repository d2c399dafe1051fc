"""The service itself, where it runs: health, workers, metrics, version."""

from __future__ import annotations

import http.client
import re
from typing import TYPE_CHECKING, Any

from app import __version__
from app.cli.doctor.figures import count_api_workers, count_own_task_workers
from app.cli.doctor.findings import Finding, error, note, ok, skipped, warning
from app.cli.doctor.instance import Answer, Listener, get

if TYPE_CHECKING:
    from collections.abc import Iterator

    from app.cli.doctor.context import Context
    from app.cli.doctor.instance import Instance

SCRAPE_S, SLOW_S = 5.0, 1.0
_SAMPLE = re.compile(r"^(?P<name>\w+)(?:\{(?P<labels>[^}]*)\})? (?P<value>\S+)$", re.MULTILINE)


def run(context: Context) -> Iterator[Finding]:
    """Look at the instance that runs here."""
    instance = context.instance
    yield _judge_running(context, instance)
    if not instance.is_running:
        return
    report = instance.metrics.report
    yield _judge_health(report, instance.metrics.place)
    yield from _judge_workers(context, report)
    if context.settings.enable_metrics:
        yield from _look_at_metrics(instance)
    else:
        yield skipped("service.metrics", "ENABLE_METRICS=false", "there are none")


def _judge_running(context: Context, instance: Instance) -> Finding:
    part, port = "service.running", instance.metrics
    place = f"METRICS_PORT {port.place}"
    if not port.number:
        return note(part, "METRICS_PORT=0", "a free port is taken at each start: set it to that of the instance meant")
    if instance.is_running:
        return ok(part, place, f"{instance.role.value} instance")
    if port.listener is Listener.SILENT:
        return error(
            part,
            place,
            f"listens, and does not answer: {', '.join(port.holders) or 'a process that this user may not see'}",
            expected="an answer within 2 s, however busy the workers are",
            advice="it is stopped or hangs: look at its log, then end it, and start it again",
        )
    advice = f"start it: `facial-service {'serve' if context.settings.is_queue_embedded else 'serve` or `worker'}`"
    return note(part, place, "the service does not run here", advice)


def _judge_health(report: dict[str, Any], place: str) -> Finding:
    part = "service.health"
    if report["live"] and report["ready"]:
        return ok(part, place, "live and ready")
    if not report["live"]:
        found = "not live: no worker has shown a sign of life in time"
        advice = "look for `ended:` in its log; see FacialServiceCrashLooping"
        return error(part, place, found, expected="live and ready", advice=advice)
    found = "draining: it has been told to stop" if report["draining"] else "not ready: workers have yet to boot"
    return warning(
        part,
        place,
        found,
        expected="live and ready",
        advice="wait for it; where it lasts, its log says what it waits for",
    )


def _judge_workers(context: Context, report: dict[str, Any]) -> Iterator[Finding]:
    api, tasks, timeout_s = count_api_workers(context), count_own_task_workers(context), context.settings.timeout_s
    if not api:  # a worker instance has its task processes where an API has its own
        yield _judge_set(report["workers"], tasks, "TASK_WORKERS", timeout_s)
        return
    yield _judge_set(report["workers"], api, "WORKERS", timeout_s)
    if tasks:
        yield _judge_set(report["task_workers"], tasks, "TASK_WORKERS", timeout_s)


def _judge_set(workers: list[dict[str, Any]], expected: int, setting: str, timeout_s: int) -> Finding:
    part, place = "service.workers", f"{setting}={expected}"
    silent = [str(worker["name"]) for worker in workers if worker["last_beat_s"] > timeout_s]
    serving = [worker for worker in workers if worker["state"] == "ready" and worker["last_beat_s"] <= timeout_s]
    found = f"{len(serving)} of {expected} work" + (f"; silent: {', '.join(silent)}" if silent else "")
    if len(serving) >= expected and not silent:
        return ok(part, place, found)
    return (warning if serving else error)(
        part,
        place,
        found,
        expected=f"{expected} that are ready, with a sign of life within TIMEOUT_S ({timeout_s} s)",
        advice="look for `ended:` and `cannot work` in its log; see FacialServiceWorkerExits. Where this shell has "
        f"other settings than the service, set {setting} as there",
    )


def _look_at_metrics(instance: Instance) -> Iterator[Finding]:
    part, port = "service.metrics", instance.metrics
    place = f"{port.place}/metrics"
    try:
        answer = get(port.host, port.number, "/metrics", limit_s=SCRAPE_S)
    except (OSError, http.client.HTTPException):
        answer = None
    if answer is None or answer.status != http.client.OK:
        yield error(
            part,
            place,
            f"no answer within {SCRAPE_S:g} s" if answer is None else f"status {answer.status}",
            expected="metrics within a second",
            advice="look for `A scrape failed` in the log; ENABLE_METRICS may be false there",
        )
        return
    samples = {
        (found["name"], found["labels"] or ""): found["value"] for found in _SAMPLE.finditer(answer.body.decode())
    }
    yield from _judge_samples(instance, answer, samples)


def _judge_samples(instance: Instance, answer: Answer, samples: dict[tuple[str, str], str]) -> Iterator[Finding]:
    part, place = "service.metrics", f"{instance.metrics.place}/metrics"
    told = {labels for name, labels in samples if name == "memory_usage_bytes"}
    report = instance.metrics.report
    workers = [str(worker["name"]) for worker in [*report["workers"], *report["task_workers"]]]
    missing = [name for name in workers if f'process="{name}"' not in told]
    took_s, troubles = answer.received_at - answer.sent_at, []
    if missing:
        troubles.append(f"nothing of {', '.join(missing)}")
    if took_s > SLOW_S:
        troubles.append(f"took {took_s:.1f} s; see FacialServiceScrapeSlow")
    ended = {labels: float(value) for (name, labels), value in samples.items() if name == "app_worker_exits_total"}
    unasked = sum(value for labels, value in ended.items() if 'reason="stopped"' not in labels)
    if unasked:
        troubles.append(f"{unasked:.0f} worker processes have ended unasked since its start")
    if troubles:
        yield warning(
            part,
            place,
            "; ".join(troubles),
            expected="the memory of each process, within a second, and no worker that ends unasked",
            advice="look for `ended:` in the log; see FacialServiceWorkerExits",
        )
    else:
        yield ok(part, place, f"{len(samples)} samples in {1000 * took_s:.0f} ms")
    if samples.get(("queue_up", "")) == "0.0":
        yield error(
            part,
            "queue_up",
            "0: the instance that runs does not reach its queue",
            expected="1",
            advice="see what `queue` finds; where that is well, start the instance again: see "
            "FacialServiceQueueUnreachableFromInstance",
        )
    yield _judge_version(samples)


def _judge_version(samples: dict[tuple[str, str], str]) -> Finding:
    labels = next((labels for name, labels in samples if name == "app_build_info"), "")
    found = re.search(r'version="([^"]*)"', labels)
    version = found[1] if found else "unknown"
    if version == __version__:
        return ok("service.version", "version", version)
    return warning(
        "service.version",
        "version",
        f"the service is {version}, this command {__version__}",
        expected="the same",
        advice="run the command of the service's own version (`kubectl exec` into its pod), or start the service again",
    )

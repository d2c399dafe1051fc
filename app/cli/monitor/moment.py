"""All that is known at one moment, put together: figures, the state that follows from them, and what is wrong."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from app.cli.monitor.figures import Figures, InstanceFigures, Problem, ProcessFigures
from app.cli.monitor.instance import EXITS, FAULTS, MEMORY, RECENT_S, kind_of
from app.cli.monitor.rates import merge_buckets, quantile
from app.cli.monitor.samples import known, rows
from app.cli.monitor.summary import (
    DURATION,
    HAS_LEADER,
    QUEUE_UP,
    REQUESTS,
    errors_of,
    flows,
    is_product,
    is_work,
    queue_gauge,
    requests_of,
    routes_of,
    steps_of,
    tasks_of,
)
from app.cli.monitor.units import format_percent, format_span, printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from app.cli.monitor.figures import Tasks
    from app.cli.monitor.instance import Instance, Process

REJECTIONS: Final = known("api_rejections_total", "counter", "reason")
CPU: Final = known("cpu_usage_percent", "gauge", "process")
BUILD: Final = known("app_build_info", "gauge", "version", "python")

SILENT_S: Final = 5.0  # workers beat once a second
NEARLY_FULL: Final = 0.9
_ORDER: Final = {"api": 0, "tasks": 1, "other": 2}
_ENDED: Final = {"killed": "was killed", "timeout": "was replaced for its silence", "crashed": "crashed"}


def summarize(
    instances: Sequence[Instance], *, at: float, when: datetime, began: float, interval_s: float, window_s: float
) -> Figures:
    """Put the instances' figures together.

    Args:
        instances: those watched, after a round of scrapes.
        at: the moment, on the clock of the scrapes.
        when: the same moment, with its zone.
        began: when the view began, on the clock of the scrapes.
        interval_s: between two rounds.
        window_s: how far back rates and quantiles look.
    """
    shown = [_instance(instance, at) for instance in instances]
    tasks = tasks_of(instances)
    problems = sorted(_problems(instances, tasks, at, when), key=lambda problem: not problem.is_severe)
    present = [process for one in shown if one.state != "away" for process in one.processes]
    cpu = [process.cpu_percent for process in present if process.cpu_percent is not None]
    memory = [process.memory_bytes for process in present if process.memory_bytes is not None]
    return Figures(
        time=when.astimezone(UTC).isoformat(timespec="milliseconds"),
        view_s=round(at - began, 3),
        interval_s=interval_s,
        window_s=window_s,
        state=_state(shown, problems),
        problems=problems,
        instances=shown,
        requests=requests_of(instances),
        routes=routes_of(instances),
        errors=errors_of(instances),
        rejections=flows(instances, REJECTIONS, lambda labels: labels[0]),
        worker_exits=flows(instances, EXITS, lambda labels: labels[0]),
        tasks=tasks,
        steps=steps_of(instances),
        cpu_percent=sum(cpu) if cpu else None,
        memory_bytes=sum(memory) if memory else None,
    )


def step_rate(instances: Sequence[Instance]) -> float | None:
    """Add up the API's rate of requests between the last two scrapes; None where nobody was scraped twice in a row."""
    parts = [instance.step for instance in instances if instance.step is not None]
    if not parts:
        return None
    return sum(
        value / part.seconds
        for part in parts
        for labels, value in rows(part.grown.counters, REQUESTS).items()
        if is_product(labels)
    )


def step_p95_s(instances: Sequence[Instance]) -> float | None:
    """Estimate the 95th percentile of requests for work between the last two scrapes."""
    parts = [instance.step for instance in instances if instance.step is not None]
    found = (
        buckets
        for part in parts
        for labels, buckets in rows(part.grown.histograms, DURATION).items()
        if is_work(labels)
    )
    return quantile(0.95, merge_buckets(found))


def _state(shown: Sequence[InstanceFigures], problems: Sequence[Problem]) -> str:
    states = {one.state for one in shown}
    if states == {"away"}:
        return "away"
    if states & {"not_ready", "draining"}:
        return "not_ready"
    return "degraded" if any(problem.is_severe for problem in problems) else "ready"


def _instance(instance: Instance, at: float) -> InstanceFigures:
    latest = instance.latest
    up = queue_gauge(instance, QUEUE_UP)
    processes = sorted(instance.processes.values(), key=lambda process: _ORDER[kind_of(process.name)])
    return InstanceFigures(
        name=instance.name,
        state=_instance_state(instance),
        away_s=None if instance.away_since is None else round(at - instance.away_since, 3),
        reason=instance.reason,
        version=next((version for version, _ in rows(instance.samples.gauges, BUILD)), None),
        scraped_s=None if latest is None else round(at - latest.at, 3),
        scrape_ms=None if latest is None else round(1000 * latest.took_s, 1),
        queue_up=None if up is None else bool(up),
        processes=[_process(instance, process, at) for process in processes],
    )


def _instance_state(instance: Instance) -> str:
    if instance.is_away or instance.latest is None:
        return "away"
    health = instance.latest.health
    if health.draining:
        return "draining"
    return "ready" if health.ready else "not_ready"


def _process(instance: Instance, process: Process, at: float) -> ProcessFigures:
    gauges, labels = instance.samples.gauges, (process.name,)
    return ProcessFigures(
        name=process.name,
        kind=kind_of(process.name),
        pid=process.pid or None,
        state=process.state,
        last_beat_s=process.last_beat_s,
        changed_s=None if process.changed_at is None else round(at - process.changed_at, 3),
        cpu_percent=rows(gauges, CPU).get(labels),
        memory_bytes=rows(gauges, MEMORY).get(labels),
    )


def _problems(instances: Sequence[Instance], tasks: Tasks, at: float, when: datetime) -> Iterator[Problem]:
    for instance in instances:
        place = f"{instance.name}: " if len(instances) > 1 else ""
        if instance.away_since is not None:
            since = datetime.fromtimestamp(when.timestamp() - (at - instance.away_since), when.tzinfo)
            span = format_span(at - instance.away_since)
            text = f"{instance.name} is away since {since:%H:%M:%S} ({span}): {instance.reason}"
            yield Problem(is_severe=True, text=text)
        else:
            yield from _health_problems(instance, place)
            yield from _process_problems(instance, place, at)
    if tasks.storage_bytes is not None and tasks.storage_limit_bytes:
        share = tasks.storage_bytes / tasks.storage_limit_bytes
        if share > NEARLY_FULL:
            yield Problem(is_severe=False, text=f"the queue's storage is {format_percent(100 * share)} full")


def _health_problems(instance: Instance, place: str) -> Iterator[Problem]:
    state = _instance_state(instance)
    if state == "draining":
        yield Problem(is_severe=True, text=f"{place}the service stops, and takes nothing new")
    elif state == "not_ready":
        yield Problem(is_severe=True, text=f"{place}the service is not ready")
    if instance.latest is not None and instance.latest.samples is None:
        yield Problem(is_severe=False, text=f"{place}metrics are off (ENABLE_METRICS); health alone is shown")
    if queue_gauge(instance, QUEUE_UP) == 0:
        yield Problem(is_severe=True, text=f"{place}the queue does not answer")
    if queue_gauge(instance, HAS_LEADER) == 0:
        yield Problem(is_severe=True, text=f"{place}the queue's cluster has no leader")


def _process_problems(instance: Instance, place: str, at: float) -> Iterator[Problem]:
    for process in instance.processes.values():
        name = printable(process.name)
        if process.state == "gone" and process.changed_at is not None:
            yield Problem(is_severe=True, text=f"{place}{name} is gone for {format_span(at - process.changed_at)}")
        elif process.last_beat_s is not None and process.last_beat_s > SILENT_S:
            yield Problem(is_severe=True, text=f"{place}{name} is silent for {format_span(process.last_beat_s)}")
    for reason, ended_at in instance.exits.items():
        if reason in FAULTS and at - ended_at < RECENT_S:
            text = f"{place}a worker process {_ENDED[reason]} {format_span(at - ended_at)} ago"
            yield Problem(is_severe=False, text=text)
    if instance.restarted_at is not None and at - instance.restarted_at < RECENT_S:
        text = f"{place}the service was started anew {format_span(at - instance.restarted_at)} ago"
        yield Problem(is_severe=False, text=text)

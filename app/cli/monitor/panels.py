"""What is shown of each subject: panels that make use of the room they get."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rich.text import Text

from app.cli.monitor.lines import LABEL, Cell, chart, grid, table
from app.cli.monitor.summary import API_PREFIX
from app.cli.monitor.units import format_count, format_rate, format_seconds, format_size, format_span

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from app.cli.monitor.figures import Figures, Flow, Latency, Route
    from app.cli.monitor.history import History

GOOD: Final = "green"
WARN: Final = "yellow"
BAD: Final = "bold red"
HEAVY: Final = "bold"
CHART_MOST: Final = 10
NOTHING: Final = "no metrics yet"
_FULL_PERCENT: Final = 90
_WIDE: Final = 54


@dataclass(frozen=True, slots=True)
class View:
    """What is drawn, and for what kind of terminal.

    Attributes:
        figures: of the moment.
        history: for the charts.
        is_plain: whether the terminal's encoding has ASCII alone.
    """

    figures: Figures
    history: History
    is_plain: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """A subject.

    Attributes:
        title: its name.
        least: lines that it is of use with.
        wanted: lines that it can fill.
        most: lines that it can fill where its charts are as high as is useful.
        draw: takes a width and a height, and gives at most that many lines.
    """

    title: str
    least: int
    wanted: int
    most: int
    draw: Callable[[int, int], list[Text]]


def has_metrics(figures: Figures) -> bool:
    """Tell whether any instance has ever told its metrics, without which nothing is known to be fine."""
    return any(one.version is not None for one in figures.instances)


def requests_panel(view: View) -> Panel:
    """Show rate, latency and statuses of requests to the API."""
    requests = view.figures.requests
    found = requests.latency

    def draw(width: int, height: int) -> list[Text]:
        head = [("rate", Cell(format_rate(requests.flow.per_s), HEAVY))]
        head.append(("in progress", Cell(format_count(requests.in_progress))))
        lines = grid(head, width, 2)
        lines += grid([(name, Cell(text)) for name, text in quantiles(found)], width, 3)
        lines += grid(list(_statuses(requests.by_status)), width, 3)
        return lines + _charts(view, width, height - len(lines))

    return Panel("Requests", 5, 5, 3 + 2 * CHART_MOST, draw)


def _charts(view: View, width: int, height: int) -> list[Text]:
    rates, times = view.history.rate, view.history.p95_s
    height = min(height, 2 * CHART_MOST)
    upper = (height + 1) // 2
    lines = []
    if upper > 0:
        lines += chart("rate", list(rates), format_rate, width, upper, style="cyan", is_plain=view.is_plain)
    if height > upper:
        lower = height - upper
        lines += chart("p95", list(times), format_seconds, width, lower, style="magenta", is_plain=view.is_plain)
    return lines


def quantiles(found: Latency) -> Iterator[tuple[str, str]]:
    """Write three quantiles; one beyond the last bucket as more than that."""
    for name, value in (("p50", found.p50_s), ("p95", found.p95_s), ("p99", found.p99_s)):
        yield name, _quantile(found, value)


def _quantile(found: Latency, value: float | None) -> str:
    is_beyond = value is not None and found.bound_s is not None and value >= found.bound_s
    return format_seconds(value, is_beyond=is_beyond)


def _statuses(by_status: dict[str, Flow]) -> Iterator[tuple[str, Cell]]:
    for first, style in (("2", GOOD), ("4", WARN), ("5", BAD)):
        parts = [flow.per_s for status, flow in by_status.items() if status.startswith(first)]
        known = [part for part in parts if part is not None]
        rate = sum(known) if known or not parts else None
        yield f"{first}xx", Cell(format_rate(rate), style if rate else "")


def tasks_panel(view: View) -> Panel:
    """Show the queue and what is done with tasks."""
    tasks = view.figures.tasks
    if tasks.queue_up is None:
        told = "no queue: tasks are off" if has_metrics(view.figures) else NOTHING
        return Panel("Tasks", 1, 1, 1, lambda *_: [Text(told, LABEL)])

    def draw(width: int, height: int) -> list[Text]:
        storage = format_size(tasks.storage_bytes)
        if tasks.storage_bytes is not None and tasks.storage_limit_bytes:
            share = 100 * tasks.storage_bytes / tasks.storage_limit_bytes
            storage = f"{storage} of {format_size(tasks.storage_limit_bytes)}"
            style = WARN if share > _FULL_PERCENT else ""
        else:
            style = ""
        up = Cell("answers", GOOD) if tasks.queue_up else Cell("does not answer", BAD)
        lines = grid([("queue", up), ("stored", Cell(storage, style))], width, 2 if width >= _WIDE else 1)
        lines += grid(list(_queue_items(view)), width, 2)
        room = height - len(lines)
        if room > 0:
            waiting = list(view.history.waiting)
            high = min(room, CHART_MOST // 2)
            lines += chart("queue", waiting, format_count, width, high, style="blue", is_plain=view.is_plain)
        return lines[:height]

    return Panel("Tasks", 8, 9, 8 + CHART_MOST // 2, draw)


def _queue_items(view: View) -> Iterator[tuple[str, Cell]]:
    tasks = view.figures.tasks
    yield "waiting", Cell(format_count(tasks.waiting), HEAVY)
    yield "active", Cell(format_count(tasks.active))
    yield "oldest", Cell(format_span(tasks.oldest_age_s))
    yield "kept aside", Cell(format_count(tasks.dead_kept), WARN if tasks.dead_kept else "")
    yield "submitted", Cell(format_rate(tasks.submitted.per_s))
    yield "done", Cell(format_rate(tasks.succeeded.per_s), GOOD if tasks.succeeded.per_s else "")
    yield "failed", _flow(tasks.failed, WARN)
    yield "cancelled", _flow(tasks.cancelled, "")
    yield "redelivered", _flow(tasks.redelivered, WARN)
    yield "given up", _flow(tasks.dead, BAD)
    yield "wait p95", Cell(_quantile(tasks.wait, tasks.wait.p95_s))
    yield "work p95", Cell(_quantile(tasks.work, tasks.work.p95_s))


def _flow(flow: Flow, style: str) -> Cell:
    return Cell(format_rate(flow.per_s), style if flow.per_s else "")


def errors_panel(view: View) -> Panel:
    """Show what went wrong, by kind; what is of late comes first, what was before the view last."""
    found = [(name, flow, style) for name, flow, style in _errors(view.figures) if flow.total or flow.seen]
    found.sort(key=lambda item: (-(item[1].per_s or 0.0), -item[1].seen, -item[1].total))

    def draw(width: int, height: int) -> list[Text]:
        body = [
            [
                Cell(name, style if flow.seen else LABEL),
                Cell(format_rate(flow.per_s), style if flow.per_s else LABEL),
                Cell(format_count(flow.seen), "" if flow.seen else LABEL),
                Cell(format_count(flow.total), "" if flow.seen else LABEL),
            ]
            for name, flow, style in found
        ]
        if not body:
            is_known = has_metrics(view.figures)
            return [Text("none since the service was started", GOOD) if is_known else Text(NOTHING, LABEL)]
        return table(("kind", "now", "in view", "ever"), body, width, height)

    lines = max(2, 1 + len(found))
    return Panel("Errors", 3, lines, lines, draw)


def _errors(figures: Figures) -> Iterator[tuple[str, Flow, str]]:
    for status, flow in figures.requests.by_status.items():
        if status >= "400":
            yield f"status {status}", flow, BAD if status >= "500" else WARN
    for error in figures.errors:
        yield f"{error.type} ({error.component})", error.flow, WARN
    for reason, flow in figures.rejections.items():
        yield f"rejected: {reason}", flow, WARN
    for reason, flow in figures.worker_exits.items():
        if reason != "stopped":
            yield f"worker {reason}", flow, BAD
    yield "tasks failed", figures.tasks.failed, WARN
    yield "tasks redelivered", figures.tasks.redelivered, WARN
    yield "tasks given up", figures.tasks.dead, BAD


def routes_panel(view: View) -> Panel:
    """Show requests by route; probes and scrapes only where there were some of late."""
    routes = [route for route in view.figures.routes if route.flow.seen or route.endpoint.startswith(API_PREFIX)]

    def draw(width: int, height: int) -> list[Text]:
        heads = ("route", "now", "errors", "p50", "p95") if width >= _WIDE else ("route", "now", "p95", "errors")
        body = [[cells[head] for head in heads] for cells in map(_route_cells, routes)]
        return table(heads, body, width, height) or [Text("no requests yet", LABEL)]

    return Panel("Routes", 3, 1 + len(routes), 1 + len(routes), draw)


def _route_cells(route: Route) -> dict[str, Cell]:
    return {
        "route": Cell(_short(route), "" if route.flow.per_s else LABEL, is_end_kept=True),
        "now": Cell(format_rate(route.flow.per_s)),
        "errors": Cell(format_rate(route.errors.per_s), WARN if route.errors.per_s else LABEL),
        "p50": Cell(_quantile(route.latency, route.latency.p50_s)),
        "p95": Cell(_quantile(route.latency, route.latency.p95_s)),
    }


def _short(route: Route) -> str:
    """Write a route, less what all routes of the API begin with: the prefix and the version."""
    if not route.endpoint.startswith(API_PREFIX):
        return f"{route.method} {route.endpoint}"
    return f"{route.method} {route.endpoint.removeprefix(API_PREFIX).partition('/')[2]}"


def steps_panel(view: View) -> Panel:
    """Show the steps of the work on images."""
    steps = view.figures.steps

    def draw(width: int, height: int) -> list[Text]:
        body = [
            [
                Cell(step.operation),
                Cell(format_rate(step.per_s)),
                Cell(_quantile(step.latency, step.latency.p50_s)),
                Cell(_quantile(step.latency, step.latency.p95_s)),
            ]
            for step in steps
        ]
        return table(("step", "now", "p50", "p95"), body, width, height) or [Text("none of late", LABEL)]

    return Panel("Image steps", 3, 1 + len(steps), 1 + len(steps), draw)

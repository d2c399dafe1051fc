"""Screen layout: a status bar, problems, and panels in one to three columns that fill the terminal."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

from rich import box
from rich.console import Group
from rich.panel import Panel as Frame
from rich.table import Table
from rich.text import Text

from app.cli.monitor.formatting import (
    LABEL_STYLE,
    Cell,
    chart,
    fit,
    format_count,
    format_percent,
    format_rate,
    format_seconds,
    format_size,
    format_span,
    grid,
    printable,
    table,
)
from app.cli.monitor.snapshot import API_PREFIX, DEGRADED, NOT_READY, READY, STORAGE_NEARLY_FULL, UNREACHABLE
from app.observability.log_text import count_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rich.console import RenderableType

    from app.cli.monitor.snapshot import (
        CounterStats,
        History,
        InstanceStatus,
        LatencyStats,
        ProcessStatus,
        RouteStats,
        Snapshot,
    )

GOOD: Final = "green"
WARN: Final = "yellow"
BAD: Final = "bold red"
STRONG: Final = "bold"

BADGES: Final = {
    READY: "bold reverse green",
    DEGRADED: "bold reverse yellow",
    NOT_READY: "bold reverse red",
    UNREACHABLE: "bold reverse red",
}
STATE_LABELS: Final = {NOT_READY: "not ready", UNREACHABLE: "unreachable"}
NO_METRICS: Final = "no metrics yet"
MAX_PROBLEMS: Final = 4
OLD_MIN: Final = 10  # a kind of error that has not occurred for so long is only counted
MAX_CHART_HEIGHT: Final = 10
FRAME: Final = 2  # lines of a panel's frame
FRAME_WIDTH: Final = 4  # columns of a panel's frame, padding included

TWO_COLUMNS, THREE_COLUMNS = 64, 150  # widths of the terminal
_WIDE: Final = 54  # width of a panel


@dataclass(frozen=True, slots=True)
class View:
    """A snapshot to draw, with its history."""

    snapshot: Snapshot
    history: History  # values for the charts
    is_ascii: bool = False  # whether the terminal's encoding supports ASCII only


@dataclass(frozen=True, slots=True)
class Panel:
    """A panel and the heights at which it is useful."""

    title: str
    min_lines: int  # lines below which the panel is omitted
    content_lines: int  # lines that its content fills
    max_lines: int  # lines that it fills with charts of the largest useful height
    draw: Callable[[int, int], list[Text]]  # draws the panel for a width and a height, in at most that many lines


def draw_screen(view: View, width: int, height: int | None, *, hint: str = "") -> RenderableType:
    """Draw the whole screen, with a hint how to quit; a height of None shows everything, as for a file."""
    top = [_encodable(line, view) for line in (_status_bar(view.snapshot, width, hint), *_problems(view, width))]
    count = 1 if width < TWO_COLUMNS else 2 if width < THREE_COLUMNS else 3
    columns = [
        ([make(view) for make in required], [make(view) for make in optional]) for required, optional in COLUMNS[count]
    ]
    if height is None:
        body = max(sum(_full_height(panel) for panel in (*required, *optional)) for required, optional in columns)
    else:
        body = height - len(top)
    bottom = []
    if height is not None and (hidden := _find_hidden(columns, body)):
        body -= 1
        needed = len(top) + max(_min_height(required, optional) for required, optional in columns)
        hidden = _find_hidden(columns, body)
        text = f" {count_of(len(hidden), 'section')} hidden; {needed} lines needed: "
        bottom = [_encodable(Text(fit(text + ", ".join(hidden), width), LABEL_STYLE, no_wrap=True), view)]
    layout = Table.grid(expand=False, padding=0)
    cells = []
    for number, (required, optional) in enumerate(columns):
        column_width = width * (number + 1) // count - width * number // count
        layout.add_column(width=column_width)
        cells.append(_draw_column(_allocate_lines(required, optional, body), column_width, view))
    layout.add_row(*cells)
    return Group(*top, layout, *bottom)


def _min_height(required: Sequence[Panel], optional: Sequence[Panel]) -> int:
    """Return the lines with which a column shows all its panels; optional ones follow the content of the others."""
    heights = [_full_height(panel) if optional else panel.min_lines + FRAME for panel in required]
    return sum(heights) + sum(panel.min_lines + FRAME for panel in optional)


def _find_hidden(columns: Sequence[tuple[list[Panel], list[Panel]]], height: int) -> list[str]:
    """Return the titles of the panels for which a column has no lines left."""
    hidden = []
    for required, optional in columns:
        shown = {panel.title for panel, _ in _allocate_lines(required, optional, height)}
        hidden += [panel.title for panel in (*required, *optional) if panel.title not in shown]
    return hidden


def _status_bar(snapshot: Snapshot, width: int, hint: str) -> Text:
    versions = sorted({instance.version for instance in snapshot.instances if instance.version})
    bar = Text(no_wrap=True, overflow="crop")
    bar.append(f" facial-service {printable(' '.join(versions))} ".replace("  ", " "), STRONG)
    bar.append(f" {STATE_LABELS.get(snapshot.state, snapshot.state).upper()} ", BADGES[snapshot.state])
    names = [instance.name for instance in snapshot.instances]
    parts = [
        printable(names[0]) if len(names) == 1 else f"{len(names)} instances",
        f"watching {format_span(snapshot.view_s)}",
        _scrape_time(snapshot),
        f"every {snapshot.interval_s:g} s",
    ]
    parts += [hint] if hint else []
    # Drop parts from the left if space is short: the user knows the address best.
    while parts and bar.cell_len + sum(len(part) + 2 for part in parts) + 1 > width:
        parts.pop(0)
    bar.append(f"{'  '.join(parts)} ".rjust(max(0, width - bar.cell_len)), LABEL_STYLE)
    return bar


def _scrape_time(snapshot: Snapshot) -> str:
    ages = [instance.scraped_s for instance in snapshot.instances if instance.scraped_s is not None]
    if not ages:
        return "no response yet"
    scraped_at = datetime.fromisoformat(snapshot.time).timestamp() - min(ages)
    return f"scraped {datetime.fromtimestamp(scraped_at):%H:%M:%S}"  # noqa: DTZ006 - local time


def _problems(view: View, width: int) -> list[Text]:
    problems = view.snapshot.problems
    shown = problems if len(problems) <= MAX_PROBLEMS else problems[: MAX_PROBLEMS - 1]
    lines = [
        Text(fit(f" ! {problem.text}", width), BAD if problem.is_severe else WARN, no_wrap=True) for problem in shown
    ]
    if len(shown) < len(problems):
        lines.append(Text(f" ! and {len(problems) - len(shown)} more", WARN, no_wrap=True))
    return lines


def _full_height(panel: Panel) -> int:
    return max(panel.content_lines, panel.min_lines) + FRAME


def _allocate_lines(required: Sequence[Panel], optional: Sequence[Panel], height: int) -> list[tuple[Panel, int]]:
    """Distribute the lines of a column over its panels.

    Required panels come first, with their minimum and then with their content. Optional panels follow in the same way.
    Charts take what is left.
    """
    panels = [*required, *optional]
    lines: dict[int, int] = {}
    left = height
    for group in (range(len(required)), range(len(required), len(panels))):
        for number in group:
            if left >= panels[number].min_lines + FRAME:
                lines[number] = panels[number].min_lines
                left -= panels[number].min_lines + FRAME
        for number, count in lines.items():
            extra = max(0, min(panels[number].content_lines - count, left))
            lines[number] = count + extra
            left -= extra
    while left and (growing := [number for number in lines if lines[number] < panels[number].max_lines]):
        for number in growing[:left]:
            lines[number] += 1
        left -= len(growing[:left])
    if left > 0 and lines:  # all columns end at the same height
        lines[max(lines)] += left
    return [(panels[number], lines[number]) for number in sorted(lines)]


def _encodable(line: Text, view: View) -> Text:
    if view.is_ascii:
        line.plain = line.plain.replace("…", "~").encode("ascii", "replace").decode()
    return line


def _draw_column(panels: Sequence[tuple[Panel, int]], width: int, view: View) -> Group:
    frames, is_stale = [], view.snapshot.state == UNREACHABLE
    for panel, height in panels:
        lines = [_encodable(line, view) for line in panel.draw(width - FRAME_WIDTH, height)[:height]]
        if is_stale:
            lines = [Text(line.plain, LABEL_STYLE, no_wrap=True) for line in lines]
        frames.append(
            Frame(
                Group(*lines),
                title=Text(panel.title, LABEL_STYLE if is_stale else "bold not dim"),
                title_align="left",
                box=box.ROUNDED,
                border_style=LABEL_STYLE,
                width=width,
                height=height + FRAME,
            )
        )
    return Group(*frames)


def _has_metrics(view: View) -> bool:
    """Return whether any instance has ever served metrics."""
    return any(instance.version is not None for instance in view.snapshot.instances)


def _latency_text(latency: LatencyStats, value: float | None) -> str:
    is_above_bounds = value is not None and latency.bound_s is not None and value >= latency.bound_s
    return format_seconds(value, is_lower_bound=is_above_bounds)


def _rate_cell(stats: CounterStats, style: str) -> Cell:
    return Cell(format_rate(stats.per_s), style if stats.per_s else "")


def _requests_panel(view: View) -> Panel:
    """Show rate, latency and statuses of API requests."""
    requests, latency = view.snapshot.requests, view.snapshot.requests.latency
    quantiles = (("p50", latency.p50_s), ("p95", latency.p95_s), ("p99", latency.p99_s))

    def draw(width: int, height: int) -> list[Text]:
        head = [("rate", Cell(format_rate(requests.flow.per_s), STRONG))]
        head.append(("in progress", Cell(format_count(requests.in_progress))))
        lines = grid(head, width, 2)
        lines += grid([(name, Cell(_latency_text(latency, value))) for name, value in quantiles], width, 3)
        lines += grid(list(_status_items(requests.by_status)), width, 3)
        return lines + _request_charts(view, width, height - len(lines))

    return Panel("Requests", 5, 5, 3 + 2 * MAX_CHART_HEIGHT, draw)


def _request_charts(view: View, width: int, height: int) -> list[Text]:
    height = min(height, 2 * MAX_CHART_HEIGHT)
    upper = (height + 1) // 2
    rates, latencies = list(view.history.rate), list(view.history.p95_s)
    lines = []
    if upper > 0:
        lines += chart("rate", rates, format_rate, width, upper, style="cyan", is_ascii=view.is_ascii)
    if height > upper:
        lower = height - upper
        lines += chart("p95", latencies, format_seconds, width, lower, style="magenta", is_ascii=view.is_ascii)
    return lines


def _status_items(by_status: dict[str, CounterStats]) -> Iterator[tuple[str, Cell]]:
    for first, style in (("2", GOOD), ("4", WARN), ("5", BAD)):
        rates = [stats.per_s for status, stats in by_status.items() if status.startswith(first)]
        known = [rate for rate in rates if rate is not None]
        rate = sum(known) if known or not rates else None
        yield f"{first}xx", Cell(format_rate(rate), style if rate else "")


def _tasks_panel(view: View) -> Panel:
    """Show the queue and the task counters."""
    tasks = view.snapshot.tasks
    if tasks.queue_up is None:
        text = "tasks are disabled" if _has_metrics(view) else NO_METRICS
        return Panel("Tasks", 1, 1, 1, lambda *_: [Text(text, LABEL_STYLE)])

    def draw(width: int, height: int) -> list[Text]:
        storage = Cell(format_size(tasks.storage_bytes))
        if tasks.storage_bytes is not None and tasks.storage_limit_bytes:
            is_nearly_full = tasks.storage_bytes > STORAGE_NEARLY_FULL * tasks.storage_limit_bytes
            text = f"{format_size(tasks.storage_bytes)} of {format_size(tasks.storage_limit_bytes)}"
            storage = Cell(text, WARN if is_nearly_full else "")
        up = Cell("up", GOOD) if tasks.queue_up else Cell("unreachable", BAD)
        lines = grid([("queue", up), ("storage", storage)], width, 2 if width >= _WIDE else 1)
        lines += grid(list(_task_items(view)), width, 2)
        if (room := height - len(lines)) > 0:
            waiting, rows = list(view.history.waiting), min(room, MAX_CHART_HEIGHT // 2)
            lines += chart("queue", waiting, format_count, width, rows, style="blue", is_ascii=view.is_ascii)
        return lines[:height]

    return Panel("Tasks", 8, 9, 8 + MAX_CHART_HEIGHT // 2, draw)


def _task_items(view: View) -> Iterator[tuple[str, Cell]]:
    tasks = view.snapshot.tasks
    yield "waiting", Cell(format_count(tasks.waiting), STRONG)
    yield "active", Cell(format_count(tasks.active))
    yield "oldest", Cell(format_span(tasks.oldest_age_s))
    yield "dead letters", Cell(format_count(tasks.dead_kept), WARN if tasks.dead_kept else "")
    yield "submitted", _rate_cell(tasks.submitted, "")
    yield "succeeded", _rate_cell(tasks.succeeded, GOOD)
    yield "failed", _rate_cell(tasks.failed, WARN)
    yield "cancelled", _rate_cell(tasks.cancelled, "")
    yield "redelivered", _rate_cell(tasks.redelivered, WARN)
    yield "dead-lettered", _rate_cell(tasks.dead, BAD)
    yield "wait p95", Cell(_latency_text(tasks.wait, tasks.wait.p95_s))
    yield "work p95", Cell(_latency_text(tasks.work, tasks.work.p95_s))


def _errors_panel(view: View) -> Panel:
    """Show errors by kind: current ones first, then those seen by the monitor, then earlier ones; count old ones."""
    known = [(name, stats, style) for name, stats, style in _errors(view.snapshot) if stats.total or stats.seen]
    errors = [error for error in known if not _is_old(error[1], view.snapshot)]
    old = len(known) - len(errors)
    errors.sort(key=lambda error: (-(error[1].per_s or 0.0), -error[1].seen, -error[1].total))

    def draw(width: int, height: int) -> list[Text]:
        body = [
            [
                Cell(name, style if stats.seen else LABEL_STYLE),
                Cell(format_rate(stats.per_s), style if stats.per_s else LABEL_STYLE),
                Cell(format_count(stats.seen), "" if stats.seen else LABEL_STYLE),
                Cell(format_count(stats.total), "" if stats.seen else LABEL_STYLE),
            ]
            for name, stats, style in errors
        ]
        if not known:
            return [
                Text("none since the service started", GOOD) if _has_metrics(view) else Text(NO_METRICS, LABEL_STYLE)
            ]
        rows = table(("error", "rate", "seen", "total"), body, width, height - bool(old)) if body else []
        if old:
            rows.append(Text(f"{count_of(old, 'kind')} not seen for {OLD_MIN} min", LABEL_STYLE))
        return rows

    lines = max(2, bool(errors) + len(errors) + bool(old))
    return Panel("Errors", 3, lines, lines, draw)


def _is_old(stats: CounterStats, snapshot: Snapshot) -> bool:
    return (snapshot.view_s if stats.age_s is None else stats.age_s) >= 60 * OLD_MIN


def _errors(snapshot: Snapshot) -> Iterator[tuple[str, CounterStats, str]]:
    for status, stats in snapshot.requests.by_status.items():
        if status >= "400":
            yield f"status {status}", stats, BAD if status >= "500" else WARN
    for error in snapshot.errors:
        yield f"{error.type} ({error.component})", error.flow, WARN
    for reason, stats in snapshot.rejections.items():
        yield f"rejected: {reason}", stats, WARN
    for reason, stats in snapshot.worker_exits.items():
        if reason != "stopped":
            yield f"worker {reason}", stats, BAD
    yield "tasks failed", snapshot.tasks.failed, WARN
    yield "tasks redelivered", snapshot.tasks.redelivered, WARN
    yield "tasks dead-lettered", snapshot.tasks.dead, BAD


def _routes_panel(view: View) -> Panel:
    """Show requests by route; routes outside the API only if they had requests since the monitor started."""
    routes = [route for route in view.snapshot.routes if route.flow.seen or route.endpoint.startswith(API_PREFIX)]

    def draw(width: int, height: int) -> list[Text]:
        head = ("route", "rate", "errors", "p50", "p95") if width >= _WIDE else ("route", "rate", "p95", "errors")
        body = [[cells[name] for name in head] for cells in map(_route_cells, routes)]
        return table(head, body, width, height) or [Text("no requests yet", LABEL_STYLE)]

    return Panel("Routes", 3, 1 + len(routes), 1 + len(routes), draw)


def _route_cells(route: RouteStats) -> dict[str, Cell]:
    path = route.endpoint
    if path.startswith(API_PREFIX):  # drop the prefix and the version, which all API routes share
        path = path.removeprefix(API_PREFIX).partition("/")[2]
    return {
        "route": Cell(f"{route.method} {path}", "" if route.flow.per_s else LABEL_STYLE, keep_end=True),
        "rate": Cell(format_rate(route.flow.per_s)),
        "errors": Cell(format_rate(route.errors.per_s), WARN if route.errors.per_s else LABEL_STYLE),
        "p50": Cell(_latency_text(route.latency, route.latency.p50_s)),
        "p95": Cell(_latency_text(route.latency, route.latency.p95_s)),
    }


def _steps_panel(view: View) -> Panel:
    """Show the steps of image processing."""
    steps = view.snapshot.steps

    def draw(width: int, height: int) -> list[Text]:
        body = [
            [
                Cell(step.operation),
                Cell(format_rate(step.per_s)),
                Cell(_latency_text(step.latency, step.latency.p50_s)),
                Cell(_latency_text(step.latency, step.latency.p95_s)),
            ]
            for step in steps
        ]
        return table(("step", "rate", "p50", "p95"), body, width, height) or [Text("none recently", LABEL_STYLE)]

    return Panel("Image steps", 3, 1 + len(steps), 1 + len(steps), draw)


def _processes_panel(view: View) -> Panel:
    """Show state, CPU usage and memory of each process."""
    rows = list(_process_rows(view.snapshot))

    def draw(width: int, height: int) -> list[Text]:
        lines = grid(list(_process_totals(view.snapshot)), width, 2)
        room = height - len(lines)
        shown = rows if len(rows) < room else sorted(rows, key=lambda row: row[0])
        lines += table(("", "", "CPU", "memory"), [row[1] for row in shown], width, max(0, min(room, len(rows) + 1)))
        if (room := height - len(lines)) > 0:
            cpu, height_left = list(view.history.cpu_percent), min(room, MAX_CHART_HEIGHT)
            lines += chart("CPU", cpu, format_percent, width, height_left, style="blue", is_ascii=view.is_ascii)
        return lines[:height]

    lines = 3 + len(rows)
    return Panel("Processes", 5, lines + 1, lines + MAX_CHART_HEIGHT, draw)


def _process_totals(snapshot: Snapshot) -> Iterator[tuple[str, Cell]]:
    for kind, label in (("api", "API"), ("tasks", "tasks")):
        states = [
            process.state if instance.state != UNREACHABLE else UNREACHABLE
            for instance in snapshot.instances
            for process in instance.processes
            if process.kind == kind
        ]
        ready = states.count("ready")
        style = GOOD if ready == len(states) and states else WARN if ready else BAD if states else LABEL_STYLE
        yield label, Cell(f"{ready}/{len(states)} ready" if states else "none", style)
    yield "CPU", Cell(format_percent(snapshot.cpu_percent))
    yield "memory", Cell(format_size(snapshot.memory_bytes))


def _process_rows(snapshot: Snapshot) -> Iterator[tuple[int, list[Cell]]]:
    """Yield rows with their priority: the lowest numbers stay visible if there are not enough lines."""
    hosts = {instance.name.rpartition(":")[0] for instance in snapshot.instances}
    for instance in snapshot.instances:
        if len(snapshot.instances) > 1:
            yield 0, _instance_row(instance, is_only_host=len(hosts) == 1)
        for process in instance.processes:
            yield _process_row(process, is_unreachable=instance.state == UNREACHABLE)


def _instance_row(instance: InstanceStatus, *, is_only_host: bool) -> list[Cell]:
    name = f":{instance.name.rpartition(':')[2]}" if is_only_host else instance.name
    state = STATE_LABELS.get(instance.state, instance.state)
    return [Cell(name, STRONG), Cell(state, GOOD if instance.state == READY else BAD), Cell(""), Cell("")]


def _process_row(process: ProcessStatus, *, is_unreachable: bool) -> tuple[int, list[Cell]]:
    text, style = process.state, {"ready": GOOD, "up": GOOD, "gone": BAD}.get(process.state, WARN)
    if is_unreachable:
        text, style = "unknown", LABEL_STYLE
    elif process.changed_s is not None and process.state != "gone":
        text, style = f"new {format_span(process.changed_s)}" if text == "ready" else text, WARN
    cpu, memory = format_percent(process.cpu_percent), format_size(process.memory_bytes)
    priority = 1 if style not in {GOOD, LABEL_STYLE} else {"api": 2, "tasks": 2}.get(process.kind, 3)
    rest = LABEL_STYLE if is_unreachable else ""
    return priority, [Cell(process.name, rest), Cell(text, style), Cell(cpu, rest), Cell(memory, rest)]


# By number of columns: the required panels of each column, then the panels that are added if there is space.
COLUMNS: Final[dict[int, list[tuple[list[Callable[[View], Panel]], list[Callable[[View], Panel]]]]]] = {
    1: [([_requests_panel, _tasks_panel, _errors_panel, _processes_panel], [_routes_panel, _steps_panel])],
    2: [([_requests_panel, _errors_panel], [_routes_panel, _steps_panel]), ([_tasks_panel, _processes_panel], [])],
    3: [
        ([_requests_panel, _routes_panel], []),
        ([_tasks_panel, _errors_panel], []),
        ([_processes_panel, _steps_panel], []),
    ],
}

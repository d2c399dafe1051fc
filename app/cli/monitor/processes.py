"""The panel of processes: who is there, how they do, what they take."""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.cli.monitor.lines import LABEL, Cell, chart, grid, table
from app.cli.monitor.panels import BAD, CHART_MOST, GOOD, HEAVY, WARN, Panel, View
from app.cli.monitor.units import format_percent, format_size, format_span

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.text import Text

    from app.cli.monitor.figures import Figures, InstanceFigures, ProcessFigures


def processes_panel(view: View) -> Panel:
    """Show each process with its state, CPU and memory."""
    figures = view.figures
    rows = list(_process_rows(figures))

    def draw(width: int, height: int) -> list[Text]:
        lines = grid(list(_counts(figures)), width, 2)
        room = height - len(lines)
        shown = rows if len(rows) < room else sorted(rows, key=lambda row: row[0])
        lines += table(("", "", "CPU", "memory"), [row[1] for row in shown], width, max(0, min(room, len(rows) + 1)))
        room = height - len(lines)
        if room > 0:
            cpu = list(view.history.cpu_percent)
            lines += chart(
                "CPU", cpu, format_percent, width, min(room, CHART_MOST), style="blue", is_plain=view.is_plain
            )
        return lines[:height]

    lines = 3 + len(rows)
    return Panel("Processes", 5, lines + 1, lines + CHART_MOST, draw)


def _counts(figures: Figures) -> Iterator[tuple[str, Cell]]:
    processes = [(one, process) for one in figures.instances for process in one.processes]
    for kind, label in (("api", "API"), ("tasks", "tasks")):
        states = [
            process.state if one.state != "away" else "away" for one, process in processes if process.kind == kind
        ]
        ready = states.count("ready")
        style = GOOD if ready == len(states) and states else WARN if ready else BAD if states else LABEL
        yield label, Cell(f"{ready}/{len(states)} ready" if states else "none here", style)
    yield "CPU", Cell(format_percent(figures.cpu_percent))
    yield "memory", Cell(format_size(figures.memory_bytes))


def _process_rows(figures: Figures) -> Iterator[tuple[int, list[Cell]]]:
    """Yield rows with how far down they may be pushed where room is short: what is wrong stays."""
    hosts = {instance.name.rpartition(":")[0] for instance in figures.instances}
    for instance in figures.instances:
        if len(figures.instances) > 1:
            yield 0, _heading(instance, has_one_host=len(hosts) == 1)
        for process in instance.processes:
            yield _process_row(process, is_away=instance.state == "away")


def _heading(instance: InstanceFigures, *, has_one_host: bool) -> list[Cell]:
    style = GOOD if instance.state == "ready" else BAD
    name = f":{instance.name.rpartition(':')[2]}" if has_one_host else instance.name
    return [Cell(name, HEAVY), Cell(instance.state.replace("_", " "), style), Cell(""), Cell("")]


def _process_row(process: ProcessFigures, *, is_away: bool) -> tuple[int, list[Cell]]:
    text, style = process.state, {"ready": GOOD, "up": GOOD, "gone": BAD}.get(process.state, WARN)
    if is_away:
        text, style = "unknown", LABEL
    elif process.changed_s is not None and process.state != "gone":
        text, style = f"new {format_span(process.changed_s)}" if text == "ready" else text, WARN
    cpu, memory = format_percent(process.cpu_percent), format_size(process.memory_bytes)
    order = 1 if style not in {GOOD, LABEL} else {"api": 2, "tasks": 2}.get(process.kind, 3)
    rest = LABEL if is_away else ""
    return order, [Cell(process.name, rest), Cell(text, style), Cell(cpu, rest), Cell(memory, rest)]

"""Figures as a picture of a terminal's size: a bar, what is wrong, and panels in one to three columns."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Final

from rich import box
from rich.console import Group
from rich.panel import Panel as Frame
from rich.table import Table
from rich.text import Text

from app.cli.monitor.lines import fit
from app.cli.monitor.panels import (
    Panel,
    View,
    errors_panel,
    requests_panel,
    routes_panel,
    steps_panel,
    tasks_panel,
)
from app.cli.monitor.processes import processes_panel
from app.cli.monitor.units import format_span, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.console import RenderableType

    from app.cli.monitor.figures import Figures

TITLE: Final = "facial-service"
BADGES: Final = {
    "ready": "bold reverse green",
    "degraded": "bold reverse yellow",
    "not_ready": "bold reverse red",
    "away": "bold reverse red",
}
PROBLEMS: Final = 4
FRAME: Final = 2  # lines, and columns without the padding
PADDING: Final = 4

TWO_COLUMNS, THREE_COLUMNS = 64, 150
# By number of columns: what has to be there, then what is added where there is room.
COLUMNS: Final[dict[int, list[tuple[list[Callable[[View], Panel]], list[Callable[[View], Panel]]]]]] = {
    1: [([requests_panel, tasks_panel, errors_panel, processes_panel], [routes_panel, steps_panel])],
    2: [([requests_panel, errors_panel], [routes_panel, steps_panel]), ([tasks_panel, processes_panel], [])],
    3: [
        ([requests_panel, routes_panel], []),
        ([tasks_panel, errors_panel], []),
        ([processes_panel, steps_panel], []),
    ],
}


def draw_screen(view: View, width: int, height: int | None, *, hint: str = "") -> RenderableType:
    """Draw all of it.

    Args:
        view: what is drawn.
        width: columns of the terminal.
        height: its lines; None where there is no end of them, and everything is shown.
        hint: how to leave, for the bar.
    """
    figures = view.figures
    top = [_encodable(line, view) for line in (_bar(figures, width, hint), *_problems(figures, width))]
    count = 1 if width < TWO_COLUMNS else 2 if width < THREE_COLUMNS else 3
    columns = [([make(view) for make in must], [make(view) for make in may]) for must, may in COLUMNS[count]]
    body = max(_natural(must, may) for must, may in columns) if height is None else height - len(top)
    grid = Table.grid(expand=False, padding=0)
    cells = []
    for number, (must, may) in enumerate(columns):
        each = width * (number + 1) // count - width * number // count
        grid.add_column(width=each)
        cells.append(_column(_share(must, may, body), each, view))
    grid.add_row(*cells)
    return Group(*top, grid)


def _bar(figures: Figures, width: int, hint: str) -> Text:
    versions = sorted({one.version for one in figures.instances if one.version})
    bar = Text(no_wrap=True, overflow="crop")
    bar.append(f" {TITLE} {printable(' '.join(versions))} ".replace("  ", " "), "bold")
    bar.append(f" {figures.state.replace('_', ' ').upper()} ", BADGES[figures.state])
    names = [one.name for one in figures.instances]
    place = printable(names[0]) if len(names) == 1 else f"{len(names)} instances"
    when = datetime.fromisoformat(figures.time).astimezone()
    parts = [place, f"view {format_span(figures.view_s)}", _scraped(figures, when), f"every {figures.interval_s:g} s"]
    parts += [hint] if hint else []
    # What matters most is at the right: an address is known to whoever typed it.
    while parts and bar.cell_len + sum(len(part) + 2 for part in parts) + 1 > width:
        parts.pop(0)
    told = "  ".join(parts)
    bar.append(f"{told} ".rjust(max(0, width - bar.cell_len)), "dim")
    return bar


def _scraped(figures: Figures, when: datetime) -> str:
    ages = [one.scraped_s for one in figures.instances if one.scraped_s is not None]
    if not ages:
        return "no answer yet"
    return f"scraped {datetime.fromtimestamp(when.timestamp() - min(ages)):%H:%M:%S}"  # noqa: DTZ006 - a wall's clock


def _problems(figures: Figures, width: int) -> list[Text]:
    found = figures.problems
    shown = found if len(found) <= PROBLEMS else found[: PROBLEMS - 1]
    lines = [
        Text(fit(f" ! {problem.text}", width), "bold red" if problem.is_severe else "yellow", no_wrap=True)
        for problem in shown
    ]
    if len(shown) < len(found):
        lines.append(Text(f" ! and {len(found) - len(shown)} more", "yellow", no_wrap=True))
    return lines


def _natural(must: Sequence[Panel], may: Sequence[Panel]) -> int:
    return sum(max(panel.wanted, panel.least) + FRAME for panel in (*must, *may))


def _share(must: Sequence[Panel], may: Sequence[Panel], height: int) -> list[tuple[Panel, int]]:
    """Give panels their lines: what they need, then what they can fill, then further panels, then room for charts."""
    lines: dict[int, int] = {}
    left = height
    for number, panel in enumerate(must):
        if left >= panel.least + FRAME:
            lines[number] = panel.least
            left -= panel.least + FRAME
    left = _grow(must, lines, left)
    panels = [*must, *may]
    for number, panel in enumerate(may, start=len(must)):
        if left >= panel.least + FRAME:
            lines[number] = panel.least
            left -= panel.least + FRAME
    left = _grow(panels, lines, left)
    while left and (low := [number for number in lines if lines[number] < panels[number].most]):
        for number in low[:left]:
            lines[number] += 1
        left -= len(low[:left])
    if left > 0 and lines:  # the columns are to end at one height
        lines[max(lines)] += left
    return [(panels[number], lines[number]) for number in sorted(lines)]


def _grow(panels: Sequence[Panel], lines: dict[int, int], left: int) -> int:
    for number, has in lines.items():
        more = max(0, min(panels[number].wanted - has, left))
        lines[number] = has + more
        left -= more
    return left


def _encodable(line: Text, view: View) -> Text:
    if view.is_plain:
        line.plain = line.plain.replace("…", "~").encode("ascii", "replace").decode()
    return line


def _column(shares: Sequence[tuple[Panel, int]], width: int, view: View) -> Group:
    frames, is_dim = [], view.figures.state == "away"
    for panel, height in shares:
        lines = [_encodable(line, view) for line in panel.draw(width - PADDING, height)[:height]]
        if is_dim:  # of a service that is away, these are the last figures
            lines = [Text(line.plain, "dim", no_wrap=True) for line in lines]
        frames.append(
            Frame(
                Group(*lines),
                title=Text(panel.title, "dim" if is_dim else "bold not dim"),
                title_align="left",
                box=box.ROUNDED,
                border_style="dim",
                width=width,
                height=height + FRAME,
            )
        )
    return Group(*frames)

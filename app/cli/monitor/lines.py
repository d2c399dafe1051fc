"""Lines that fit: figures in a grid, tables, charts with their labels. All text from outside is made printable here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rich.text import Text

from app.cli.monitor.chart import draw_chart, highest_shown
from app.cli.monitor.units import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

LABEL: Final = "dim"
GAP: Final = 2
_NAME_LEAST: Final = 18  # what names are not cut below as long as there is a column to leave out
_LABEL_WIDTH: Final = 6
_SIDE_WIDTH: Final = 12


@dataclass(frozen=True, slots=True)
class Cell:
    """Text and how it looks; where it has to be cut, its end can be what is kept."""

    text: str
    style: str = ""
    is_end_kept: bool = False


def fit(text: str, width: int, *, is_end_kept: bool = False) -> str:
    """Make text printable and cut it to a width; where its end is kept, the first word goes as a whole.

    Example:
        >>> fit("POST frontal/crop", 14), fit("POST frontal/crop", 14, is_end_kept=True)
        ('POST frontal/…', '…frontal/crop')
    """
    shown = printable(text)
    if len(shown) <= width:
        return shown
    if width < 1:
        return ""
    if not is_end_kept:
        return f"{shown[: width - 1]}…"
    rest = shown.partition(" ")[2] or shown
    return f"…{rest[max(0, len(rest) - width + 1) :]}"


def grid(items: Sequence[tuple[str, Cell]], width: int, columns: int) -> list[Text]:
    """Set labels and figures in columns of one width, each label at the left and its figure at the right."""
    room = width - GAP * (columns - 1)
    ends = [room * (number + 1) // columns for number in range(columns)]
    lines = []
    for at in range(0, len(items), columns):
        line = Text(no_wrap=True, overflow="crop")
        for number, (label, cell) in enumerate(items[at : at + columns]):
            line.append(" " * GAP if number else "")
            each = ends[number] - (ends[number - 1] if number else 0)
            value = fit(cell.text, each)
            name = fit(label, each - len(value) - 1)
            line.append(name, LABEL)
            line.append(" " * (each - len(name) - len(value)))
            line.append(value, cell.style)
        lines.append(line)
    return lines


def table(head: Sequence[str], body: Sequence[Sequence[Cell]], width: int, height: int) -> list[Text]:
    """Set rows under a head: the first column takes what is left, the others are as wide as they need to be.

    Rows that find no room are counted in the last line; columns that find none are left out, from the right.
    """
    if height < 1 or not body:
        return []
    widths = [max(len(name), *(len(row[at].text) for row in body)) for at, name in enumerate(head)]
    least = min(widths[0], _NAME_LEAST)
    while len(widths) > 1 and width - sum(widths[1:]) - GAP * (len(widths) - 1) < least:
        widths.pop()
    widths[0] = width - sum(widths[1:]) - GAP * (len(widths) - 1)
    has_head = any(head) and height > 1
    room = height - has_head
    shown = body if len(body) <= room else body[: room - 1]
    lines = [_row([Cell(name, LABEL) for name in head], widths)] if has_head else []
    lines += [_row(row, widths) for row in shown]
    if len(shown) < len(body):
        lines.append(Text(f"and {len(body) - len(shown)} more", LABEL, no_wrap=True))
    return lines


def _row(cells: Sequence[Cell], widths: Sequence[int]) -> Text:
    line = Text(no_wrap=True, overflow="crop")
    for at, (cell, width) in enumerate(zip(cells, widths, strict=False)):
        text = fit(cell.text, width, is_end_kept=cell.is_end_kept)
        line.append(" " * GAP if at else "")
        line.append(text.rjust(width) if at else text.ljust(width), cell.style)
    return line


def chart(
    label: str,
    values: Sequence[float | None],
    unit: Callable[[float | None], str],
    width: int,
    height: int,
    *,
    style: str,
    is_plain: bool,
) -> list[Text]:
    """Draw values with what they are, and the highest of those shown: both at the left where there are lines for it."""
    is_flat = height == 1
    side = _LABEL_WIDTH if is_flat else _SIDE_WIDTH
    room = width - side - (_SIDE_WIDTH if is_flat else 0)
    highest = highest_shown(values, room)
    told = "" if highest is None else f"max {unit(highest)}"
    lines = []
    for number, drawn in enumerate(draw_chart(values, room, height, is_plain=is_plain)):
        line = Text(no_wrap=True, overflow="crop")
        name = {0: label, 1: told}.get(number, "")
        line.append(fit(name, side - 1).ljust(side), LABEL)
        line.append(drawn, style)
        if is_flat:
            line.append(told.rjust(_SIDE_WIDTH), LABEL)
        lines.append(line)
    return lines

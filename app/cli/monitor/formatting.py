"""Text building blocks: numbers with units, grids, tables and charts that fit a given width.

Every text that comes from the network is made printable here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

NO_VALUE: Final = "-"
LABEL_STYLE: Final = "dim"
BLOCKS: Final = " ▁▂▃▄▅▆▇█"
ASCII_BLOCKS: Final = " .:-=+*#%"

_MINUTE, _HOUR, _DAY = 60, 3600, 86_400
_GAP: Final = 2  # columns between cells
_MIN_NAME_WIDTH: Final = 18  # a table drops columns before it cuts names below this width
_FLAT_LABEL_WIDTH: Final = 6
_LABEL_WIDTH: Final = 12


def format_number(value: float) -> str:
    """Format a number with two or three significant digits.

    Example:
        >>> [format_number(value) for value in (0, 0.0002, 0.0312, 0.5, 3.14159, 42.4, 512.3, 15_300, 2_500_000)]
        ['0', '<0.001', '0.031', '0.50', '3.1', '42', '512', '15.3k', '2.5M']
    """
    if value == 0:
        return "0"
    for limit, text in (
        (0.001, "<0.001"),
        (0.1, f"{value:.3f}"),
        (1, f"{value:.2f}"),
        (10, f"{value:.1f}"),
        (9_999.5, f"{value:.0f}"),  # rounds to at most four digits
        (999_950, f"{value / 1000:.1f}k"),
    ):
        if value < limit:
            return text
    return f"{value / 1e6:.1f}M"


def format_rate(per_s: float | None) -> str:
    """Format a rate per second.

    Example:
        >>> format_rate(12.34), format_rate(None)
        ('12/s', '-')
    """
    return NO_VALUE if per_s is None else f"{format_number(per_s)}/s"


def format_count(value: float | None) -> str:
    """Format a count.

    Example:
        >>> format_count(3.0), format_count(9999), format_count(123_456)
        ('3', '9999', '123.5k')
    """
    if value is None:
        return NO_VALUE
    whole = f"{value:.0f}"
    return whole if len(whole) <= len("9999") else format_number(value)


def format_seconds(seconds: float | None, *, is_lower_bound: bool = False) -> str:
    """Format a latency, which may be a lower bound of an unknown one.

    Example:
        >>> [format_seconds(value) for value in (0, 0.00042, 0.0031, 0.0425, 0.31, 2.345, 75)]
        ['0 ms', '0.42 ms', '3.1 ms', '42 ms', '310 ms', '2.3 s', '75 s']
        >>> format_seconds(10.0, is_lower_bound=True)
        '>10 s'
    """
    if seconds is None:
        return NO_VALUE
    is_short = seconds < 0.9995  # noqa: PLR2004 - rounds to less than 1000 ms
    text = f"{format_number(1000 * seconds)} ms" if is_short else f"{format_number(seconds)} s"
    return f">{text}" if is_lower_bound else text


def format_span(seconds: float | None) -> str:
    """Format a duration or an age.

    Example:
        >>> [format_span(value) for value in (0.4, 59.4, 60, 3725, 200_000)]
        ['0 s', '59 s', '1 min 0 s', '1 h 2 min', '2 d 7 h']
    """
    if seconds is None:
        return NO_VALUE
    whole = int(seconds)
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE} s"
    if whole < _DAY:
        return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE} min"
    return f"{whole // _DAY} d {whole % _DAY // _HOUR} h"


def format_size(size: float | None) -> str:
    """Format a number of bytes.

    Example:
        >>> [format_size(value) for value in (0, 900, 42_147, 101_580_800, 4_831_838_208)]
        ['0 B', '900 B', '41 KiB', '97 MiB', '4.5 GiB']
    """
    if size is None:
        return NO_VALUE
    for unit in ("B", "KiB", "MiB"):
        if size < 1023.5:  # noqa: PLR2004 - rounds to less than 1024
            return f"{size:.0f} B" if unit == "B" else f"{format_number(size)} {unit}"
        size /= 1024
    return f"{format_number(size)} GiB"


def format_percent(percent: float | None) -> str:
    """Format a percentage.

    Example:
        >>> format_percent(0.41), format_percent(33.3), format_percent(None)
        ('0.4 %', '33 %', '-')
    """
    if percent is None:
        return NO_VALUE
    return f"{percent:.1f} %" if 0 < percent < 9.95 else f"{percent:.0f} %"  # noqa: PLR2004 - "9.9 %", then "10 %"


def printable(text: str) -> str:
    r"""Replace characters that are not printable, such as terminal escapes, with question marks.

    Example:
        >>> printable("a\x1b[31mb\n")
        'a?[31mb?'
    """
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def fit(text: str, width: int, *, keep_end: bool = False) -> str:
    """Make text printable and cut it to a width, at its end or, with ``keep_end``, at its start.

    Example:
        >>> fit("POST frontal/crop", 14), fit("POST frontal/crop", 14, keep_end=True)
        ('POST frontal/…', '…frontal/crop')
    """
    shown = printable(text)
    if len(shown) <= width:
        return shown
    if width < 1:
        return ""
    if not keep_end:
        return f"{shown[: width - 1]}…"
    rest = shown.partition(" ")[2] or shown  # drop the whole first word
    return f"…{rest[max(0, len(rest) - width + 1) :]}"


@dataclass(frozen=True, slots=True)
class Cell:
    """Text of a grid or table, its style, and which end to keep when it is cut."""

    text: str
    style: str = ""
    keep_end: bool = False


def grid(items: Sequence[tuple[str, Cell]], width: int, columns: int) -> list[Text]:
    """Arrange labelled values in columns of equal width, with labels to the left and values to the right."""
    available = width - _GAP * (columns - 1)
    ends = [available * (column + 1) // columns for column in range(columns)]
    lines = []
    for start in range(0, len(items), columns):
        line = Text(no_wrap=True, overflow="crop")
        for column, (label, cell) in enumerate(items[start : start + columns]):
            line.append(" " * _GAP if column else "")
            cell_width = ends[column] - (ends[column - 1] if column else 0)
            value = fit(cell.text, cell_width)
            name = fit(label, cell_width - len(value) - 1)
            line.append(name, LABEL_STYLE)
            line.append(" " * (cell_width - len(name) - len(value)))
            line.append(value, cell.style)
        lines.append(line)
    return lines


def table(head: Sequence[str], body: Sequence[Sequence[Cell]], width: int, height: int) -> list[Text]:
    """Arrange rows below a header; the first column takes the width that the others leave.

    If the height does not suffice, the last line counts the hidden rows. If the width does not suffice, columns are
    dropped from the right.
    """
    if height < 1 or not body:
        return []
    widths = [max(len(name), *(len(row[column].text) for row in body)) for column, name in enumerate(head)]
    min_width = min(widths[0], _MIN_NAME_WIDTH)
    while len(widths) > 1 and width - sum(widths[1:]) - _GAP * (len(widths) - 1) < min_width:
        widths.pop()
    widths[0] = width - sum(widths[1:]) - _GAP * (len(widths) - 1)
    has_head = any(head) and height > 1
    available = height - has_head
    shown = body if len(body) <= available else body[: available - 1]
    lines = [_row([Cell(name, LABEL_STYLE) for name in head], widths)] if has_head else []
    lines += [_row(row, widths) for row in shown]
    if len(shown) < len(body):
        lines.append(Text(f"and {len(body) - len(shown)} more", LABEL_STYLE, no_wrap=True))
    return lines


def _row(cells: Sequence[Cell], widths: Sequence[int]) -> Text:
    line = Text(no_wrap=True, overflow="crop")
    for column, (cell, width) in enumerate(zip(cells, widths, strict=False)):
        text = fit(cell.text, width, keep_end=cell.keep_end)
        line.append(" " * _GAP if column else "")
        line.append(text.rjust(width) if column else text.ljust(width), cell.style)
    return line


def chart(
    label: str,
    values: Sequence[float | None],
    unit: Callable[[float | None], str],
    width: int,
    height: int,
    *,
    style: str,
    is_ascii: bool,
) -> list[Text]:
    """Draw a bar chart with its label and the highest value shown."""
    is_flat = height == 1  # there is no second line for the maximum, so it goes to the right
    label_width = _FLAT_LABEL_WIDTH if is_flat else _LABEL_WIDTH
    chart_width = width - label_width - (_LABEL_WIDTH if is_flat else 0)
    shown = [value for value in values[-chart_width:] if value is not None] if chart_width > 0 else []
    maximum = f"max {unit(max(shown))}" if shown else ""
    lines = []
    for row, bars in enumerate(draw_bars(values, chart_width, height, is_ascii=is_ascii)):
        line = Text(no_wrap=True, overflow="crop")
        name = {0: label, 1: maximum}.get(row, "")
        line.append(fit(name, label_width - 1).ljust(label_width), LABEL_STYLE)
        line.append(bars, style)
        if is_flat:
            line.append(maximum.rjust(_LABEL_WIDTH), LABEL_STYLE)
        lines.append(line)
    return lines


def draw_bars(values: Sequence[float | None], width: int, height: int, *, is_ascii: bool = False) -> list[str]:
    """Draw one bar per column, the newest value at the right, scaled to the highest value shown; return rows of text.

    Values are not negative. A value of 0 still leaves a mark, but None leaves none.

    Example:
        >>> draw_bars([0, 1, 2, None, 4], 5, 1)
        ['▁▂▄ █']
        >>> draw_bars([4, 8], 3, 2)
        ['  █', ' ██']
    """
    marks = ASCII_BLOCKS if is_ascii else BLOCKS
    levels = len(marks) - 1
    shown = list(values[-width:]) if width > 0 else []
    highest = max((value for value in shown if value is not None), default=0.0) or 1.0
    bars = [0 if value is None else max(1, round(height * levels * value / highest)) for value in shown]
    return [
        "".join(marks[min(max(bar - row * levels, 0), levels)] for bar in bars).rjust(width)
        for row in reversed(range(height))
    ]

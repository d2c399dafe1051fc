"""Chart of a simulated day as an SVG: panels with lines over the hours, one below the other."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Sequence

WIDTH, PANEL_HEIGHT, GAP = 860, 130, 46
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 56, 30
HOURS_PER_LABEL = 3
COLOURS = ("#1f6feb", "#bf8700", "#cf222e")
INK, GRID = "#1f2328", "#d0d7de"


@dataclass(frozen=True, slots=True)
class Panel:
    """A panel: title with unit, and lines by name, each with a value per point in time; NaN leaves a gap.

    If `floor` is set, the scale is logarithmic and begins at this value.
    """

    title: str
    lines: dict[str, Sequence[float]]
    floor: float = 0.0

    def highest(self) -> float:
        """Return the top of the scale: 1, 2 or 5 times a power of ten."""
        values = [value for line in self.lines.values() for value in line if not math.isnan(value)]
        top = max([*values, 10 * self.floor, 1e-9])
        power = 10.0 ** math.floor(math.log10(top))
        return next(step * power for step in (1, 2, 5, 10) if step * power >= top)

    def fraction(self, value: float, highest: float) -> float:
        """Return the height of a value, from 0 to 1."""
        if self.floor:
            return math.log(max(value, self.floor) / self.floor) / math.log(highest / self.floor)
        return value / highest

    def ticks(self, highest: float) -> list[float]:
        """Return the values of the grid lines."""
        if not self.floor:
            return [0.0, highest / 2, highest]
        powers = range(round(math.log10(self.floor)), math.floor(math.log10(highest) + 1e-9) + 1)
        return [10.0**power for power in powers]


def draw(title: str, hours: Sequence[float], panels: Sequence[Panel]) -> str:
    """Return the SVG of panels over the same points in time."""
    height = TOP + len(panels) * (PANEL_HEIGHT + GAP) - GAP + BOTTOM
    end = math.ceil(hours[-1])
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        _text(LEFT, 20, title, size=15, weight="bold"),
    ]
    for number, panel in enumerate(panels):
        top = TOP + number * (PANEL_HEIGHT + GAP)
        parts += _panel(panel, hours, end, top)
    parts += [
        _text(_x(hour, end), height - 10, f"{hour}:00", anchor="middle") for hour in range(0, end + 1, HOURS_PER_LABEL)
    ]
    return "\n".join([*parts, "</svg>", ""])


def _panel(panel: Panel, hours: Sequence[float], end: int, top: float) -> list[str]:
    highest = panel.highest()

    def y(value: float) -> float:
        return top + PANEL_HEIGHT * (1 - panel.fraction(value, highest))

    parts = [_text(LEFT, top - 8, panel.title, weight="bold")]
    for tick in panel.ticks(highest):
        parts.append(f'<path d="M{LEFT} {y(tick):.1f}H{WIDTH - RIGHT}" stroke="{GRID}"/>')
        parts.append(_text(LEFT - 6, y(tick) + 4, f"{tick:g}", anchor="end"))
    legend = WIDTH - RIGHT
    for (name, line), colour in reversed(list(zip(panel.lines.items(), COLOURS, strict=False))):
        if len(panel.lines) > 1:
            parts.append(_text(legend, top - 8, name, anchor="end", colour=colour, weight="bold"))
            legend -= 12 + 8 * len(name)
        path, is_drawing = [], False
        for hour, value in zip(hours, line, strict=True):
            if math.isnan(value):
                is_drawing = False
                continue
            path.append(f"{'L' if is_drawing else 'M'}{_x(hour, end):.1f} {y(value):.1f}")
            is_drawing = True
        parts.append(f'<path d="{"".join(path)}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
    return parts


def _x(hour: float, end: int) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * hour / end


def _text(
    x: float, y: float, text: str, *, size: int = 12, anchor: str = "start", weight: str = "normal", colour: str = INK
) -> str:
    attributes = f'font-size="{size}" text-anchor="{anchor}" font-weight="{weight}" fill="{colour}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {attributes}>{escape(text)}</text>'

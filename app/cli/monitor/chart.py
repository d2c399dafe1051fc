"""Charts of characters: one column a value, the newest at the right."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

BLOCKS: Final = " ▁▂▃▄▅▆▇█"
PLAIN: Final = " .:-=+*#%"  # where the terminal's encoding has no blocks
_LEVELS: Final = len(BLOCKS) - 1


def draw_chart(values: Sequence[float | None], width: int, height: int, *, is_plain: bool = False) -> list[str]:
    """Draw the newest values that find room, between 0 and the highest of them.

    A value leaves a mark at the bottom even where it is 0; None leaves nothing.

    Args:
        values: none of them negative, the newest last.
        width: columns.
        height: rows.
        is_plain: whether to use ASCII alone.

    Returns:
        As many lines as rows, the upper one first, each as wide as asked for.

    Example:
        >>> draw_chart([0, 1, 2, None, 4], 5, 1)
        ['▁▂▄ █']
        >>> draw_chart([4, 8], 3, 2)
        ['  █', ' ██']
    """
    marks = PLAIN if is_plain else BLOCKS
    shown = list(values[-width:]) if width > 0 else []
    highest = max((value for value in shown if value is not None), default=0.0)
    steps = [None if value is None else _steps(value, highest, height) for value in shown]
    lines = []
    for row in reversed(range(height)):
        cells = (" " if step is None else marks[min(max(step - row * _LEVELS, 0), _LEVELS)] for step in steps)
        lines.append("".join(cells).rjust(width))
    return lines


def highest_shown(values: Sequence[float | None], width: int) -> float | None:
    """Return the highest of the values that find room; None where there is none."""
    return max((value for value in values[-width:] if value is not None), default=None) if width > 0 else None


def _steps(value: float, highest: float, height: int) -> int:
    return max(1, round(height * _LEVELS * value / highest)) if highest > 0 else 1

"""Colours with a meaning, as Grafana colour names."""

from __future__ import annotations

from typing import Final

GREEN: Final = "green"
YELLOW: Final = "yellow"
ORANGE: Final = "orange"
RED: Final = "red"
DARK_RED: Final = "dark-red"
BLUE: Final = "blue"
PURPLE: Final = "purple"
GREY: Final = "#8e8e8e"
NONE: Final = "transparent"

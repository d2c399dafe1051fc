"""Generator for the tables of the chart's README, from the keys of values.yaml."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any

from service_settings import MANAGED_SETTINGS, SHARED_SETTINGS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from values_file import Key

_MAX_DEFAULT_LENGTH = 60


def values_tables(keys: Sequence[Key]) -> str:
    """Return one Markdown table per section."""
    parts = []
    for section, members in itertools.groupby(keys, lambda key: key.section):
        leaves = itertools.chain.from_iterable(key.leaves() for key in members)
        rows = ((f"`{key.name}`", _default(key.default), _description(key)) for key in leaves)
        parts.append(f"\n### {section}\n\n{_table(('key', 'default', 'description'), rows)}")
    return "".join(parts) + "\n"


def managed_settings_table() -> str:
    """Return the Markdown table of settings that the chart manages."""
    rows = ((f"`{name}`", values or "none") for name, values in MANAGED_SETTINGS.items())
    shared = ", ".join(f"`{name}`" for name in sorted(SHARED_SETTINGS))
    return f"{_table(('setting', 'value to set instead'), rows)}\nAllowed only in `settings`: {shared}.\n"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def _default(value: Any) -> str:
    if value in (None, ""):
        return ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"`{text}`" if len(text) <= _MAX_DEFAULT_LENGTH else "see `values.yaml`"


def _description(key: Key) -> str:
    choices = [f"`{choice}`" for choice in key.tags.get("enum", ())]
    parts = [key.description]
    if choices:
        parts.append(f"One of {', '.join(choices)}.")
    match key.tags.get("minimum"), key.tags.get("maximum"):
        case (None, None):
            pass
        case (low, None):
            parts.append(f"Minimum: {low}.")
        case (None, high):
            parts.append(f"Maximum: {high}.")
        case (low, high):
            parts.append(f"Range: {low} to {high}.")
    return " ".join(parts)

"""Makes the tables of the chart's README of the keys of values.yaml."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any

from service_settings import OWN_SETTINGS, SHARED_SETTINGS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from values_file import Key

_LONGEST_DEFAULT = 60


def values_tables(keys: Sequence[Key]) -> str:
    """Draw one table a section."""
    parts = []
    for section, members in itertools.groupby(keys, lambda key: key.section):
        leaves = itertools.chain.from_iterable(key.leaves() for key in members)
        rows = ((f"`{key.name}`", _default(key.default), _meaning(key)) for key in leaves)
        parts.append(f"\n### {section}\n\n{_table(('key', 'default', 'meaning'), rows)}")
    return "".join(parts) + "\n"


def own_settings_table() -> str:
    """Draw the table of settings that are no business of `settings`."""
    rows = ((f"`{name}`", instead or "nothing") for name, instead in OWN_SETTINGS.items())
    shared = ", ".join(f"`{name}`" for name in sorted(SHARED_SETTINGS))
    return f"{_table(('setting', 'what to set instead'), rows)}\nTaken by `settings` alone: {shared}.\n"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def _default(value: Any) -> str:
    if value in (None, ""):
        return ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"`{text}`" if len(text) <= _LONGEST_DEFAULT else "see `values.yaml`"


def _meaning(key: Key) -> str:
    choices = [f"`{choice}`" for choice in key.notes.get("enum", ())]
    parts = [key.meaning]
    if choices:
        parts.append(f"{', '.join(choices[:-1])} or {choices[-1]}.")
    match key.notes.get("minimum"), key.notes.get("maximum"):
        case (None, None):
            pass
        case (low, None):
            parts.append(f"At least {low}.")
        case (None, high):
            parts.append(f"At most {high}.")
        case (low, high):
            parts.append(f"{low} to {high}.")
    return " ".join(parts)

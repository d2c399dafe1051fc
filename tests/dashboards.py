"""The committed dashboards, read as Grafana reads them: panels, queries and variables."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "grafana" / "dashboards"
# End of a description if the data needs another exporter, or if an alert has thresholds.
NEEDS = re.compile(r"Requires ([^.]+)\.$")
THRESHOLDS = re.compile(r"Threshold: ([\w, ]+)\.")
RULES = "the recording rules"

Json = dict[str, Any]

_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")


@dataclass(frozen=True)
class Target:
    """One query of one panel."""

    dashboard: str
    panel: Json
    query: Json

    @property
    def expr(self) -> str:
        text: str = self.query["expr"]
        return text

    @property
    def name(self) -> str:
        return f"{self.dashboard.removeprefix('facial-service-')}/{self.panel['title']}/{self.query['refId']}"

    @property
    def needs(self) -> set[str]:
        """Exporters that it needs in addition to the service, by the panel's description."""
        return needs(self.panel)


def load() -> dict[str, Json]:
    """Read every dashboard, by the name of its file."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))}


def entries(document: Json) -> Iterator[Json]:
    """Yield the panels of a dashboard and the titles of its sections, including collapsed ones."""
    for entry in document["panels"]:
        yield entry
        yield from entry.get("panels") or ()


def panels(document: Json) -> list[Json]:
    """Return the panels of a dashboard, without section titles."""
    return [entry for entry in entries(document) if entry["type"] != "row"]


def targets() -> list[Target]:
    """Return every query of every panel."""
    return [
        Target(uid, panel, query)
        for uid, document in load().items()
        for panel in panels(document)
        for query in panel["targets"]
    ]


def needs(panel: Json) -> set[str]:
    """Return the exporters that a panel needs in addition to the service."""
    found = NEEDS.search(panel["description"])
    return set(found[1].split(" and ")) if found else set()


def alerts(panel: Json) -> list[str]:
    """Return the alerts whose thresholds a panel shows."""
    found = THRESHOLDS.search(panel["description"])
    return found[1].split(", ") if found else []


def fill(text: str, values: Mapping[str, str]) -> str:
    """Replace variables with values, but not other text such as `$1` of `label_replace`."""
    return _VARIABLE.sub(lambda found: values.get(found[1] or found[2], found[0]), text)

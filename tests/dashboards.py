"""The committed dashboards, read as Grafana reads them: panels, queries, and variables put into them."""

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
# What stands at the end of a description where not every Prometheus has the data, and where an alert gives the steps.
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
        """Who has to export something for it besides the service, by the panel's description."""
        return needs(self.panel)


def load() -> dict[str, Json]:
    """Read every dashboard, by the name of its file."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))}


def entries(document: Json) -> Iterator[Json]:
    """Yield the panels of a dashboard and the titles of its sections, those that are folded away included."""
    for entry in document["panels"]:
        yield entry
        yield from entry.get("panels") or ()


def panels(document: Json) -> list[Json]:
    """List the panels of a dashboard, titles of sections left out."""
    return [entry for entry in entries(document) if entry["type"] != "row"]


def targets() -> list[Target]:
    """List every query of every panel."""
    return [
        Target(uid, panel, query)
        for uid, document in load().items()
        for panel in panels(document)
        for query in panel["targets"]
    ]


def needs(panel: Json) -> set[str]:
    """Read who has to export something for a panel besides the service."""
    found = NEEDS.search(panel["description"])
    return set(found[1].split(" and ")) if found else set()


def alerts(panel: Json) -> list[str]:
    """Read which alerts a panel's steps are of."""
    found = THRESHOLDS.search(panel["description"])
    return found[1].split(", ") if found else []


def fill(text: str, values: Mapping[str, str]) -> str:
    """Put values in the place of variables; what is no variable stays, as `$1` of `label_replace` does."""
    return _VARIABLE.sub(lambda found: values.get(found[1] or found[2], found[0]), text)

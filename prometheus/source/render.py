"""From tables to text: YAML that Prometheus reads, and the list of alerts that people read."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from prometheus.source.model import Alert, Group, Recording

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

HEADER = "# Written by `make generate` from prometheus/source; change it there.\n"

_UNITS_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_DURATION = re.compile(r"(\d+)(ms|[smhd])")
_RANGE = re.compile(r"(?<=\[)\d+[a-z]+(?=\])")


@dataclass(frozen=True, slots=True, kw_only=True)
class Links:
    """What the paths in annotations begin with.

    Attributes:
        runbooks: where the repository is to be read, such as the address of its main branch.
        dashboards: address of Grafana.
    """

    runbooks: str = ""
    dashboards: str = ""

    def runbook_url(self, alert: Alert) -> str:
        """Return where the alert's page is."""
        return f"{self.runbooks}/docs/runbooks/{alert.name}.md"

    def dashboard_url(self, alert: Alert) -> str:
        """Return where the alert's dashboard is, as a template that fills in the namespace if there is one."""
        namespace = "{{ with $labels.namespace }}?var-namespace={{ . }}{{ end }}"
        return f"{self.dashboards}/d/{alert.dashboard}{namespace}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedUp:
    """How to shorten what takes hours, for tests that cannot wait.

    Attributes:
        factor: what windows, intervals and `for` are divided by.
        least_window_ms: what no window falls below, for a rate needs a few scrapes.
    """

    factor: float = 1
    least_window_ms: int = 0

    def apply(self, group: Group) -> Group:
        """Shorten a group's windows, `for` and interval, and nothing else."""
        rules = tuple(self._shorten_rule(rule) for rule in group.rules)
        return replace(group, rules=rules, interval=group.interval and self._shorten(group.interval, least_ms=1))

    def _shorten_rule(self, rule: Alert | Recording) -> Alert | Recording:
        expr = _RANGE.sub(lambda window: self._shorten(window[0], least_ms=self.least_window_ms), rule.expr)
        if isinstance(rule, Recording):
            return replace(rule, expr=expr)
        return replace(rule, expr=expr, hold=self._shorten(rule.hold, least_ms=1))

    def _shorten(self, duration: str, *, least_ms: int) -> str:
        if self.factor == 1:
            return duration
        return format_duration(max(least_ms, round(parse_duration_ms(duration) / self.factor)))


def parse_duration_ms(text: str) -> int:
    """Read a duration as Prometheus writes it.

    Raises:
        ValueError: it is none.

    Example:
        >>> parse_duration_ms("1h30m")
        5400000
    """
    if not re.fullmatch(f"(?:{_DURATION.pattern})+", text):
        raise ValueError(f"expected a duration such as 5m, got {text!r}")
    return sum(int(number) * _UNITS_MS[unit] for number, unit in _DURATION.findall(text))


def format_duration(milliseconds: int) -> str:
    """Write a duration as Prometheus reads it, in the largest unit that leaves no fraction.

    Example:
        >>> format_duration(90_000), format_duration(833)
        ('90s', '833ms')
    """
    unit = max((unit for unit in _UNITS_MS if not milliseconds % _UNITS_MS[unit]), key=_UNITS_MS.__getitem__)
    return f"{milliseconds // _UNITS_MS[unit]}{unit}"


def rules_yaml(groups: Iterable[Group], links: Links) -> str:
    """Write one file of rules."""
    return HEADER + "groups:\n" + "".join(line for group in groups for line in _group_lines(group, links))


def _group_lines(group: Group, links: Links) -> Iterator[str]:
    yield f"  - name: {group.name}\n"
    if group.interval is not None:
        yield f"    interval: {group.interval}\n"
    yield "    rules:\n"
    for rule in group.rules:
        yield from _recording_lines(rule) if isinstance(rule, Recording) else _alert_lines(rule, links)


def _recording_lines(rule: Recording) -> Iterator[str]:
    yield f"      - record: {rule.name}\n"
    yield from _expr_lines(rule.expr)


def _alert_lines(alert: Alert, links: Links) -> Iterator[str]:
    yield f"      - alert: {alert.name}\n"
    yield from _expr_lines(alert.expr)
    yield f"        for: {alert.hold}\n"
    yield from _mapping_lines("labels", {"severity": alert.severity, **alert.labels})
    annotations = {
        "summary": alert.summary,
        "description": alert.description,
        "runbook_url": links.runbook_url(alert),
        "dashboard_url": links.dashboard_url(alert),
    }
    yield from _mapping_lines("annotations", annotations)


def _expr_lines(expr: str) -> Iterator[str]:
    yield "        expr: |-\n"
    for line in expr.splitlines():
        yield f"          {line}\n"


def _mapping_lines(name: str, entries: Mapping[str, str]) -> Iterator[str]:
    yield f"        {name}:\n"
    for key, value in entries.items():
        # A JSON string is one of YAML's too.
        yield f"          {key}: {value if value.isalpha() else json.dumps(value, ensure_ascii=False)}\n"


def alerts_markdown(files: Mapping[str, tuple[Group, ...]]) -> str:
    """Write the list of all alerts, by file and group."""
    lines = []
    for file, groups in files.items():
        alerts = {rule.name: rule for group in groups for rule in group.rules if isinstance(rule, Alert)}
        lines += [f"\n## {file}\n\n", "| alert | severity | what it says |\n", "| --- | --- | --- |\n"]
        for name, alert in alerts.items():
            severities = dict.fromkeys(
                rule.severity
                for group in groups
                for rule in group.rules
                if isinstance(rule, Alert) and rule.name == name
            )
            lines.append(f"| [{name}]({name}.md) | {', '.join(severities)} | {alert.summary} |\n")
    return "".join(lines)

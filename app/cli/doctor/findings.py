"""Findings of the checks, and the report: a coloured table, plain lines or JSON."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import orjson

from app import __version__
from app.cli.doctor.catalogue import CATALOGUE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.text import Text

    from app.settings import InvalidSetting

DOCUMENT = "docs/doctor.md"


class Status(StrEnum):
    """Result of a check, from best to worst."""

    OK = "ok"
    SKIPPED = "skipped"
    NOTE = "note"
    WARNING = "warning"
    ERROR = "error"

    @property
    def rank(self) -> int:
        """Position from best to worst."""
        return list(Status).index(self)


STYLES = {
    Status.OK: "green",
    Status.SKIPPED: "dim",
    Status.NOTE: "cyan",
    Status.WARNING: "yellow",
    Status.ERROR: "bold red",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One result of a check. The attributes are also the keys of the JSON output.

    Raises:
        ValueError: the catalogue has no such name, or a warning or an error lacks the expected state or the advice.
    """

    name: str  # key in `CATALOGUE`
    status: Status
    looked_at: str  # the variable, file or address that was checked
    found: str  # the state that was found
    expected: str = ""  # the state that was expected; required for warnings and errors
    advice: str = ""  # what to do; required for warnings and errors

    def __post_init__(self) -> None:
        if self.name not in CATALOGUE:
            raise ValueError(f"name: expected a name in the catalogue, got {self.name}")
        if self.status in {Status.WARNING, Status.ERROR} and not (self.expected and self.advice):
            raise ValueError(f"{self.name}: expected and advice are required for a {self.status}")


def ok(name: str, looked_at: str, found: str) -> Finding:
    """Report that something is as expected."""
    return Finding(name, Status.OK, looked_at, found)


def skipped(name: str, looked_at: str, reason: str) -> Finding:
    """Report why something was not checked."""
    return Finding(name, Status.SKIPPED, looked_at, reason)


def note(name: str, looked_at: str, found: str, advice: str = "") -> Finding:
    """Report something that may be intended."""
    return Finding(name, Status.NOTE, looked_at, found, advice=advice)


def warning(name: str, looked_at: str, found: str, *, expected: str, advice: str | None = None) -> Finding:
    """Report something that affects some requests, or will cause an outage. The default advice is the remedy."""
    advice = CATALOGUE[name].remedy if advice is None else advice
    return Finding(name, Status.WARNING, looked_at, found, expected, advice)


def error(name: str, looked_at: str, found: str, *, expected: str, advice: str | None = None) -> Finding:
    """Report something that stops the service, or a part of it, from working. The default advice is the remedy."""
    advice = CATALOGUE[name].remedy if advice is None else advice
    return Finding(name, Status.ERROR, looked_at, found, expected, advice)


def invalid_value(setting: InvalidSetting) -> Finding:
    """Report an invalid setting."""
    expected = setting.message.removeprefix("expected ")
    return error("settings.values", setting.name, "invalid value", expected=expected)


def worst_status(findings: Sequence[Finding]) -> Status:
    """Return the worst status, or ``ok`` if there are no findings."""
    return max((finding.status for finding in findings), key=lambda status: status.rank, default=Status.OK)


def write_report(findings: Sequence[Finding], seconds: float, *, is_json: bool, is_verbose: bool) -> None:
    """Write the findings to standard output: as JSON, as a table on a terminal, otherwise one line each.

    The worst findings are last, next to the prompt. Those with status ok or skipped are only counted, unless
    `is_verbose` is set.
    """
    if is_json:
        text = orjson.dumps(to_json(findings, seconds), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
        sys.stdout.write(text.decode())
        return
    shown = [finding for finding in findings if is_verbose or finding.status.rank >= Status.NOTE.rank]
    shown.sort(key=lambda finding: finding.status.rank)
    if sys.stdout.isatty():
        _write_table(shown)
    else:
        sys.stdout.writelines(f"{format_line(finding)}\n" for finding in shown)
    hidden = " (--verbose shows all)" if len(shown) < len(findings) else ""
    sys.stdout.write(f"{summarize(findings, seconds)}{hidden}\n")


def _count(findings: Sequence[Finding]) -> dict[Status, int]:
    return {status: sum(finding.status is status for finding in findings) for status in Status}


def to_json(findings: Sequence[Finding], seconds: float) -> dict[str, Any]:
    """Build the JSON output. Its keys must not change."""
    checks = [finding.name.partition(".")[0] for finding in findings]
    return {
        "version": __version__,
        "status": worst_status(findings),
        "seconds": round(seconds, 3),
        "counts": {status.value: count for status, count in _count(findings).items()},
        "findings": [
            {"check": check, **asdict(finding), "document": f"{DOCUMENT}#{check}"}
            for check, finding in zip(checks, findings, strict=True)
        ],
    }


def summarize(findings: Sequence[Finding], seconds: float) -> str:
    """Return the last line of the report: the number of findings, by status."""
    counts = {status: count for status, count in reversed(_count(findings).items()) if count}
    plurals = {Status.NOTE: "notes", Status.WARNING: "warnings", Status.ERROR: "errors"}
    parts = [f"{count} {plurals.get(status, status) if count > 1 else status}" for status, count in counts.items()]
    return f"{', '.join(parts) or 'no findings'} in {seconds:.1f} s"


def format_line(finding: Finding) -> str:
    """Format a finding as one line.

    Example:
        >>> format_line(ok("queue.version", "nats-server", "2.15.1"))
        'ok       queue.version: nats-server: 2.15.1'
    """
    parts = [f"{finding.looked_at}: {finding.found}"]
    parts += [f"expected: {finding.expected}"] if finding.expected else []
    parts += [f"advice: {finding.advice}"] if finding.advice else []
    return f"{finding.status:<8} {finding.name}: {'; '.join(parts)}"


def _write_table(findings: Sequence[Finding]) -> None:
    from rich.console import Console  # noqa: PLC0415 - needed only on a terminal
    from rich.table import Table  # noqa: PLC0415 - as above

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        table.add_row(f"[{STYLES[finding.status]}]{finding.status}[/]", finding.name, _format_cell(finding))
    Console(highlight=False).print(table)


def _format_cell(finding: Finding) -> Text:
    from rich.text import Text  # noqa: PLC0415 - as above

    # Not parsed as markup, because the texts include file names and messages of other programs.
    text = Text.assemble((finding.looked_at, "bold"), ": ", finding.found)
    for label, content in (("expected", finding.expected), ("advice", finding.advice)):
        if content:
            text.append(f"\n{label}: ", "dim").append(content)
    return text

"""What was found, written: coloured for a person, plain lines for a pipe, JSON for a program."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import orjson

from app import __version__
from app.cli.doctor.findings import Finding, Status

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.text import Text

STYLES = {
    Status.OK: "green",
    Status.SKIPPED: "dim",
    Status.NOTE: "cyan",
    Status.WARNING: "yellow",
    Status.ERROR: "bold red",
}
DOCUMENT = "docs/doctor.md"
_QUIET = {Status.OK, Status.SKIPPED}


def worst_status(findings: Sequence[Finding]) -> Status:
    """Return the worst there is; ok where nothing was found."""
    return max((finding.status for finding in findings), key=lambda status: status.rank, default=Status.OK)


def _count(findings: Sequence[Finding]) -> dict[Status, int]:
    return {status: sum(finding.status is status for finding in findings) for status in Status}


def count_text(findings: Sequence[Finding], seconds: float) -> str:
    """Sum it up in a line."""
    counts = _count(findings)
    plural = {Status.NOTE: "notes", Status.WARNING: "warnings", Status.ERROR: "errors"}
    parts = [
        f"{counts[status]} {plural.get(status, status) if counts[status] != 1 else status}"
        for status in reversed(list(Status))
        if counts[status]
    ]
    return f"{', '.join(parts) or 'nothing was looked at'}, in {seconds:.1f} s"


def document(findings: Sequence[Finding], seconds: float) -> dict[str, Any]:
    """Build the JSON document; its keys stay."""
    counts = _count(findings)
    return {
        "version": __version__,
        "status": worst_status(findings),
        "seconds": round(seconds, 3),
        "counts": {status.value: counts[status] for status in Status},
        "findings": [
            {
                "check": finding.name.partition(".")[0],
                "name": finding.name,
                "status": finding.status,
                "looked_at": finding.looked_at,
                "found": finding.found,
                "expected": finding.expected,
                "advice": finding.advice,
                "document": f"{DOCUMENT}#{finding.name.partition('.')[0]}",
            }
            for finding in findings
        ],
    }


def write(findings: Sequence[Finding], seconds: float, *, is_json: bool, is_quiet: bool) -> None:
    """Write to standard output, in the form that suits who reads it."""
    if is_json:
        text = orjson.dumps(document(findings, seconds), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
        sys.stdout.write(text.decode())
        return
    shown = [finding for finding in findings if not (is_quiet and finding.status in _QUIET)]
    if sys.stdout.isatty():
        _write_coloured(shown)
    else:
        sys.stdout.writelines(f"{plain_line(finding)}\n" for finding in shown)
    sys.stdout.write(f"{count_text(findings, seconds)}\n")


def plain_line(finding: Finding) -> str:
    """Write a finding as one line.

    Example:
        >>> plain_line(Finding(name="queue.version", status=Status.OK, looked_at="nats-server", found="2.15.1"))
        'ok       queue.version: nats-server: 2.15.1'
    """
    parts = [f"{finding.looked_at}: {finding.found}"]
    parts += [f"expected: {finding.expected}"] if finding.expected else []
    parts += [f"do: {finding.advice}"] if finding.advice else []
    return f"{finding.status:<8} {finding.name}: {'; '.join(parts)}"


def _write_coloured(findings: Sequence[Finding]) -> None:
    from rich.console import Console  # noqa: PLC0415 - only where somebody looks
    from rich.table import Table  # noqa: PLC0415 - likewise

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        table.add_row(f"[{STYLES[finding.status]}]{finding.status}[/]", finding.name, _describe(finding))
    Console(highlight=False).print(table)


def _describe(finding: Finding) -> Text:
    from rich.text import Text  # noqa: PLC0415 - as above

    # Never as markup: what was found is in others' words.
    text = Text.assemble((finding.looked_at, "bold"), ": ", finding.found)
    for label, content in (("expected", finding.expected), ("do", finding.advice)):
        if content:
            text.append(f"\n{label}: ", "dim").append(content)
    return text

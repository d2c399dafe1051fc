"""docs/process.md matches the command."""

from __future__ import annotations

import re
from pathlib import Path

from app.cli.process.command import process
from app.face.errors import PUBLIC_CODES
from app.web.problems import PROBLEMS

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs" / "process.md").read_text(encoding="utf-8")
SOURCES = list((ROOT / "app" / "cli" / "process").glob("*.py"))
# The ways in which the source names a code.
CODE = re.compile(r'(?:JobError|Failure|Outcome)\([^"()]*"([a-z_]+)"|code, reason = "([a-z_]+)"')


def test_documented_codes_are_those_of_the_command() -> None:
    raised = {one or other for path in SOURCES for one, other in CODE.findall(path.read_text(encoding="utf-8"))}
    table = TEXT.partition("## Error codes")[2]
    documented = set(re.findall(r"^\| `([a-z_]+)` \|", table, re.MULTILINE))
    assert {"file_unreadable", "process_died", "service_unreachable"} <= documented
    assert documented == raised - set(PROBLEMS) - set(PUBLIC_CODES)


def test_documented_options_exist() -> None:
    named = set(re.findall(r"--([a-z][a-z-]*)", TEXT.replace("--no-detect", "--detect")))
    parameters = {*process.__signature__.parameters, "format", "json", "report"}  # type: ignore[attr-defined]
    assert {name for name in named if name.replace("-", "_") not in parameters} == set()

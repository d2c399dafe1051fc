"""Every alert has a runbook, whose metrics, settings and commands exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.settings import Settings
from tests.contracts.test_rules import ALERTS, metrics
from tests.contracts.test_rules_promtool import promtool
from tests.promql import Expression

ROOT = Path(__file__).parents[2]
RUNBOOKS = ROOT / "docs" / "runbooks"
PAGES = sorted(path for path in RUNBOOKS.glob("*.md") if path.name != "README.md")
HEADINGS = ["Meaning", "Impact", "Diagnosis", "Mitigation"]
PROMQL = re.compile(r"```promql\n(.*?)```", re.DOTALL)
CONSOLE = re.compile(r"```console\n(.*?)```", re.DOTALL)
EACH_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)

KNOWN = metrics() | {"scrape_samples_scraped": metrics()["up"]}
# Names in the form of settings: streams of the queue, placeholders, and variables of the pages.
NOT_SETTINGS = {"KV_TASK_RECORDS", "TASKS_DEAD", "TASK_ID", "TASK_ID_OR_ITS_FIRST_8_LETTERS"}
COMMANDS = {"kubectl", "helm", "curl", "facial-service", "export"}


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def test_there_is_a_page_for_every_alert_and_no_other() -> None:
    assert {page.stem for page in PAGES} == {alert["alert"] for alert in ALERTS}
    listed = set(re.findall(r"\((FacialService\w+)\.md\)", text_of(RUNBOOKS / "README.md")))
    assert listed == {page.stem for page in PAGES}


@EACH_PAGE
def test_page_has_its_four_parts(page: Path) -> None:
    text = text_of(page)
    assert text.startswith(f"# {page.stem}\n\n## Meaning\n")
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == HEADINGS
    parts = re.split(r"^## .*$", text, flags=re.MULTILINE)[1:]
    assert all(len(part.split()) >= 8 for part in parts)
    assert PROMQL.search(parts[2])
    assert CONSOLE.search(parts[2])


@EACH_PAGE
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", text_of(page)):
        assert (page.parent / target).exists(), target


@EACH_PAGE
def test_promql_names_metrics_and_labels_that_exist(page: Path) -> None:
    for query in PROMQL.findall(text_of(page)):
        expression = Expression(query, KNOWN)
        if all(use.name for use in expression.uses):  # a selector without a name matches all metrics
            assert expression.labels is not None


def test_promtool_reads_every_query(tmp_path: Path) -> None:
    """All expressions are checked as rules of one file."""
    queries = [query for page in PAGES for query in PROMQL.findall(text_of(page))]
    rules = [{"record": f"page:query:{number}", "expr": query} for number, query in enumerate(queries)]
    file = tmp_path / "queries.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}), encoding="utf-8")
    assert len(rules) > len(PAGES)
    promtool("check", "rules", file)


@EACH_PAGE
def test_settings_exist(page: Path) -> None:
    named = set(re.findall(r"\b[A-Z]+(?:_[A-Z0-9]+)+\b", text_of(page))) - NOT_SETTINGS
    assert named <= {name.upper() for name in Settings.model_fields}


@EACH_PAGE
def test_values_of_the_chart_exist(page: Path) -> None:
    values: dict[str, Any] = yaml.safe_load((ROOT / "charts" / "facial-service" / "values.yaml").read_text())
    for path in re.findall(r"`(?:--set )?((?:\w+\.)+\w+)(?:[=:][^`]*)?`", text_of(page)):
        first, *rest = path.split(".")
        if first not in values:
            continue
        found: Any = values[first]
        for key in rest:
            if found == {}:  # a map with free keys
                break
            assert key in found, f"the chart has no {path}"
            found = found[key]


@EACH_PAGE
def test_commands_are_of_programs_that_an_operator_has(page: Path) -> None:
    for block in CONSOLE.findall(text_of(page)):
        lines = [line.strip() for line in block.splitlines() if line.strip()]
        assert lines[0].startswith("$ ")
        for line in lines:
            if line.startswith("$ "):
                assert line.split()[1] in COMMANDS, line
                assert " $ " not in line, "expected one command per line"


def test_log_lines_that_operators_search_for_exist() -> None:
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "app").rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    texts = [node.value for node in nodes if isinstance(node.value, str)]
    runbooks = [block for page in PAGES for block in CONSOLE.findall(text_of(page)) if " logs " in block]
    patterns = re.findall(r"grep (?:-B \d+ |-i )?'?([\w|\\: ]+)", "\n".join(runbooks))
    patterns += re.findall(r"search (?:the|its|their) log for `([^`]+)`", "\n".join(texts))
    words = {word for pattern in patterns for word in pattern.split(r"\|")} - {"TASK_ID_OR_ITS_FIRST_8_LETTERS"}
    assert len(words) > 8
    # Of `exited: killed`, the reason is an argument of the message.
    shown = {word: re.split(r"(?<=:) ", word)[0] for word in words}
    messages = "\n".join(text for text in texts if "search " not in text)
    assert [word for word in words if shown[word] not in messages] == []

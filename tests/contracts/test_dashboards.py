"""The dashboards match their builder, are complete and well laid out, and follow the rules of Grafana's linter."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import units

from grafana.builder import __main__ as builder
from grafana.builder.layout import SCREEN, WIDTH, models
from grafana.builder.links import MORE
from prometheus.source.model import LABELS
from prometheus.source.render import Links
from tests.dashboards import FOLDER, ROOT, alerts, entries, load, panels

if TYPE_CHECKING:
    from pathlib import Path

DOCUMENTS = load()
UIDS = {f"facial-service-{name}" for name in ("overview", "tasks", "images", "resources")}
EACH = pytest.mark.parametrize("document", DOCUMENTS.values(), ids=DOCUMENTS)
PANELS = [(uid, panel) for uid, document in DOCUMENTS.items() for panel in panels(document)]
EACH_PANEL = pytest.mark.parametrize(
    "panel", [panel for _, panel in PANELS], ids=[f"{uid}/{panel['title']}" for uid, panel in PANELS]
)
UNITS = {value for name, value in vars(units).items() if isinstance(value, str) and not name.startswith("_")}
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
MIB = 1024 * 1024


def variables(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {variable["name"]: variable for variable in document["templating"]["list"]}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "grafana.builder", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_committed_is_what_the_builder_makes() -> None:
    done = run("--check")
    assert (done.returncode, done.stderr) == (0, "")


def test_builder_explains_itself_with_an_example() -> None:
    text = run("--help").stdout
    assert "--check" in text
    assert "Example: python -m grafana.builder" in text


def test_check_finds_what_differs_is_missing_or_is_left_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder, "FOLDER", tmp_path)
    monkeypatch.setattr(sys, "argv", ["builder"])
    builder.main()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        path.name: path.read_bytes() for path in FOLDER.iterdir()
    }
    (tmp_path / "facial-service-tasks.json").write_text("{}", encoding="utf-8")
    (tmp_path / "facial-service-images.json").unlink()
    (tmp_path / "old.json").write_text("{}", encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["builder", "--check"])
    with pytest.raises(SystemExit, match=r"-images\.json, [^,]+-tasks\.json, [^,]+/old\.json;"):
        builder.main()
    monkeypatch.setattr(sys, "argv", ["builder"])
    builder.main()
    assert not (tmp_path / "old.json").exists()


def test_files_are_called_by_their_uids() -> None:
    assert set(DOCUMENTS) == UIDS
    assert {name: document["uid"] for name, document in DOCUMENTS.items()} == {uid: uid for uid in UIDS}


@EACH
def test_fits_a_config_map(document: dict[str, Any]) -> None:
    assert (FOLDER / f"{document['uid']}.json").stat().st_size < MIB


@EACH
def test_nothing_is_lost_on_schema_classes(document: dict[str, Any]) -> None:
    """Grafana's types accept every field, so that none is misspelt or misplaced."""
    made = models.Dashboard.from_json(document)
    made.links[0].placement = None  # added by the types
    assert json.loads(json.dumps(made, cls=JSONEncoder)) == document


@EACH
def test_head(document: dict[str, Any]) -> None:
    assert document["title"].startswith("facial-service / ")
    assert document["description"]
    assert document["editable"] is False
    assert document["timezone"] == "utc"
    assert document["refresh"] == "30s"
    assert document["tags"] == ["facial-service"]
    assert document["schemaVersion"] >= 39  # Grafana 11
    assert "id" not in document  # assigned by each Grafana
    (link,) = document["links"]
    assert (link["type"], link["tags"]) == ("dashboards", document["tags"])
    assert link["asDropdown"]
    assert link["includeVars"]
    assert link["keepTime"]


@EACH
def test_variables_build_on_one_another(document: dict[str, Any]) -> None:
    there = variables(document)
    assert list(there) == ["datasource", *LABELS, "pod", "instance"]
    assert (there["datasource"]["type"], there["datasource"]["query"]) == ("datasource", "prometheus")
    assert there["datasource"]["label"] == "Data source"
    for at, name in enumerate(list(there)[1:], 1):
        variable, before = there[name], list(there)[1:at]
        assert variable["type"] == "query"
        assert variable["label"] == name.title()
        assert variable["datasource"] == DATASOURCE
        assert variable["refresh"] == 2, "on a change of the time range"
        assert variable["multi"]
        matchers = ", ".join(f'{earlier}=~"${earlier}"' for earlier in before)
        selected = f"app_build_info{{{matchers}}}" if before else "app_build_info"
        assert variable["query"]["query"] == variable["definition"] == f"label_values({selected}, {name})"


@EACH
def test_a_label_that_is_absent_is_selected_by_default(document: dict[str, Any]) -> None:
    there = variables(document)
    for name in ("cluster", "namespace", "release", "pod"):
        assert (there[name]["includeAll"], there[name]["allValue"]) == (True, ".*")
        assert there[name]["current"]["value"] == "$__all"
    assert (there["instance"]["includeAll"], there["instance"]["allValue"]) == (True, ".+")
    # Grafana's linter expects `.+` for All here too, but it would match `errors_total` and `up` of other services.
    assert there["job"]["includeAll"] is False
    assert there["job"]["current"]["value"] == ["facial-service"]


@EACH
def test_annotations(document: dict[str, Any]) -> None:
    there = {annotation["name"]: annotation for annotation in document["annotations"]["list"]}
    assert list(there) == ["New version", "Deployment changed (requires kube-state-metrics)", "Alert firing"]
    for annotation in there.values():
        assert annotation["datasource"] == DATASOURCE
        assert annotation["enable"]
        assert annotation["titleFormat"]


@EACH
def test_nothing_overlaps_and_nothing_sticks_out(document: dict[str, Any]) -> None:
    for entry in entries(document):
        place = entry["gridPos"]
        assert place["x"] >= 0
        assert place["w"] > 0
        assert place["x"] + place["w"] <= WIDTH
    for shown in shown_together(document):
        assert overlaps(shown) == []


def shown_together(document: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """Return the panels that share space: all open ones, and those under one collapsed title."""
    return [document["panels"], *(entry["panels"] for entry in document["panels"] if entry.get("panels"))]


def overlaps(placed: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [
        (one["title"], other["title"])
        for one, other in itertools.combinations(placed, 2)
        if all(
            one["gridPos"][at] < other["gridPos"][at] + other["gridPos"][size]
            and other["gridPos"][at] < one["gridPos"][at] + one["gridPos"][size]
            for at, size in (("x", "w"), ("y", "h"))
        )
    ]


@EACH
def test_lines_are_full(document: dict[str, Any]) -> None:
    for shown in shown_together(document):
        lines: Counter[int] = Counter()
        for entry in shown:
            lines[entry["gridPos"]["y"]] += entry["gridPos"]["w"]
        assert set(lines.values()) == {WIDTH}


@EACH
def test_the_first_screen_holds_the_answer(document: dict[str, Any]) -> None:
    """Single values are at the top; the first section title is below the first screen."""
    top = list(itertools.takewhile(lambda entry: entry["type"] != "row", document["panels"]))
    assert {entry["type"] for entry in top if entry["gridPos"]["y"] == 0} == {"stat"}
    assert max(entry["gridPos"]["y"] + entry["gridPos"]["h"] for entry in top) <= SCREEN
    assert len(top) >= 10


@EACH
def test_numbers_and_titles_of_panels_are_unique(document: dict[str, Any]) -> None:
    for name in ("id", "title"):
        values = [entry[name] for entry in entries(document)]
        assert len(values) == len(set(values))


def is_unit(name: str) -> bool:
    return name in UNITS or name.startswith(("suffix:", "prefix:"))


@EACH_PANEL
def test_panel_says_what_it_shows(panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert re.fullmatch(r"[A-Z0-9].{20,}\.", panel["description"]), panel["description"]
    assert is_unit(panel["fieldConfig"]["defaults"]["unit"])
    if panel["type"] == "heatmap":
        assert panel["options"]["yAxis"]["unit"] == panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"] == DATASOURCE
    assert panel["targets"]
    assert [target["refId"] for target in panel["targets"]] == list("ABCDEFGH"[: len(panel["targets"])])
    for target in panel["targets"]:
        assert target["datasource"] == DATASOURCE
        assert target["expr"]
        assert not target.get("hide")


@EACH_PANEL
def test_series_have_names(panel: dict[str, Any]) -> None:
    """Values and series of a panel have distinct names."""
    legends = [target["legendFormat"] for target in panel["targets"]]
    if panel["type"] == "timeseries" or len(legends) > 1:
        assert all(legends)
        assert len(set(legends)) == len(legends)
    if panel["type"] == "heatmap":
        assert (legends, panel["targets"][0]["format"]) == (["{{le}}"], "heatmap")


@EACH_PANEL
def test_steps_rise(panel: dict[str, Any]) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    overrides = [
        entry["value"]
        for override in panel["fieldConfig"]["overrides"]
        for entry in override["properties"]
        if entry["id"] == "thresholds"
    ]
    given = [*overrides, *([defaults["thresholds"]] if "thresholds" in defaults else [])]
    assert given or panel["type"] != "stat"
    for thresholds in given:
        first, *steps = thresholds["steps"]
        assert first["value"] is None
        values = [step["value"] for step in steps]
        assert values == sorted(set(values))
    if alerts(panel):
        assert len(defaults["thresholds"]["steps"]) > 1


BASE = Links(runbooks="https://code.example.org/main")
LINKED = [
    (uid, panel)
    for uid, text in builder.dashboard_files(links=BASE, has_logs=True).items()
    for panel in panels(json.loads(text))
]


@pytest.mark.parametrize(("uid", "panel"), LINKED, ids=[f"{uid}/{panel['title']}" for uid, panel in LINKED])
def test_panel_leads_to_a_runbook_or_to_another_panel(uid: str, panel: dict[str, Any]) -> None:
    assert panel["links"]
    names = [link["title"] for link in panel["links"]]
    assert len(set(names)) == len(names)
    for link in panel["links"]:
        kind, _, name = link["title"].partition(": ")
        if kind == "Runbook":
            assert link["url"] == f"https://code.example.org/main/docs/runbooks/{name}.md"
            assert (ROOT / "docs" / "runbooks" / f"{name}.md").is_file()
        else:
            assert kind == "Details"
            found = re.fullmatch(
                r"/d/([\w-]+)\?viewPanel=(\d+)&\$\{__all_variables\}&\$\{__url_time_range\}", link["url"]
            )
            assert found
            (shown,) = (entry for entry in panels(DOCUMENTS[found[1]]) if entry["id"] == int(found[2]))
            assert shown["title"] == name
            assert (f"{found[1]}.json", name) != (uid, panel["title"])
    runbooks = [name.removeprefix("Runbook: ") for name in names if name.startswith("Runbook")]
    assert set(alerts(panel)) <= set(runbooks)


def test_no_link_of_the_table_is_left_over() -> None:
    titles = {uid: {panel["title"] for panel in panels(document)} for uid, document in DOCUMENTS.items()}
    for uid, table in MORE.items():
        for key in table:
            assert any(title == key or title.startswith((f"{key} (", f"{key}:")) for title in titles[uid]), key


def test_runbooks_without_an_address_are_not_linked() -> None:
    links = [link for _, panel in PANELS for link in panel.get("links") or ()]
    assert links
    assert not [link for link in links if not link["url"].startswith("/d/")]


@pytest.mark.parametrize(
    ("option", "variable", "attributes"),
    [("has_logs", "loki", "expr"), ("has_traces", "tempo", "query")],
)
def test_logs_and_traces_are_linked_only_if_asked_for(option: str, variable: str, attributes: str) -> None:
    """Grafana shows a variable and a link even if there is no data source of that type."""
    for name, text in builder.dashboard_files(**{option: True}).items():
        document, without = json.loads(text), DOCUMENTS[name.removesuffix(".json")]
        added = document["templating"]["list"].pop()
        assert (added["name"], added["type"], added["query"]) == (variable, "datasource", variable)
        link = document["links"].pop()
        assert document == without
        assert link["url"].startswith("/explore?schemaVersion=1&panes=")
        (pane,) = json.loads(unquote(link["url"].partition("panes=")[2])).values()
        source = f"${{{variable}}}"
        assert pane["datasource"] == source
        assert pane["range"] == {"from": "${__from}", "to": "${__to}"}
        (query,) = pane["queries"]
        assert query["datasource"] == {"type": variable, "uid": source}
        # Loki rejects a selector whose matchers all match the empty string, which `.*` of All does.
        matchers = dict(re.findall(r'([\w.]+)=~"([^"]+)"', query[attributes]))
        filled = {label: re.sub(r"\$\{\w+:pipe\}", ".*", value) for label, value in matchers.items()}
        assert variable == "tempo" or any(not re.fullmatch(value, "") for value in filled.values())
        assert set(re.findall(r"\$\{(\w+):pipe\}", query[attributes])) == {"namespace", "pod"}
        assert set(re.findall(r"\$\{(\w+):pipe\}", query[attributes])) <= set(variables(document))


def test_links_of_a_run_by_hand_are_absolute(tmp_path: Path) -> None:
    done = run("--output", str(tmp_path), "--runbooks", "https://code.example.org/main/", "--logs", "--traces")
    assert (done.returncode, done.stderr) == (0, "")
    written = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()}
    assert written == builder.dashboard_files(links=BASE, has_logs=True, has_traces=True)
    for options in (["--logs"], ["--traces"], ["--runbooks", "https://code.example.org"]):
        assert run(*options).returncode == 2

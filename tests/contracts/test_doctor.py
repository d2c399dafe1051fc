"""The documentation of `facial-service doctor` matches the command."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.cli.doctor.catalogue import CATALOGUE, Check
from app.cli.doctor.findings import Status, to_json, warning
from app.cli.doctor.runner import MODULES, load_check
from app.cli.main import doctor
from app.face.detection.model_files import KNOWN_FILES
from app.settings import Settings

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "app" / "cli" / "doctor").glob("*.py"))
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "charts").rglob("*.md")]
PAGE = (ROOT / "docs" / "doctor.md").read_text(encoding="utf-8")
# Names in the form of settings that are none.
OTHERS = {"OPENCV_IO_MAX_IMAGE_PIXELS", "KV_TASK_RECORDS", "TASKS_DEAD"}
VALUES: dict[str, Any] = yaml.safe_load((ROOT / "charts" / "facial-service" / "values.yaml").read_text())


def texts_of(path: Path) -> list[str]:
    """Return every string in a module."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def test_the_catalogue_contains_every_finding_and_no_other() -> None:
    named = {text for path in SOURCES if path.name != "catalogue.py" for text in texts_of(path)}
    checks = "|".join(Check)
    used = {text for text in named if re.fullmatch(rf"(?:{checks})\.[a-z-]+", text)}
    declared = {name for name in CATALOGUE if not name.endswith(".check")}
    assert used == declared
    assert {name.removesuffix(".check") for name in CATALOGUE if name.endswith(".check")} == set(Check)


def test_every_check_has_a_function_and_every_module_a_check() -> None:
    modules = {path.stem for path in SOURCES if path.stem.startswith("check_")}
    assert set(MODULES.values()) == modules
    assert all(callable(load_check(check)) for check in Check)


def test_the_page_has_a_heading_for_every_check_and_every_option() -> None:
    headings = re.findall(r"^## (.*)$", PAGE, re.MULTILINE)
    assert [heading for heading in headings if heading in list(Check)] == list(Check)
    options = set(re.findall(r"^\| `(--[a-z-]+)", PAGE, re.MULTILINE))
    hints = doctor.__annotations__
    assert len(options) == len(hints) - 1  # without the return value
    shown = subprocess.run(
        [sys.executable, "-m", "app", "doctor", "--help"], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
    assert [option for option in options if option not in shown] == []


def test_the_page_shows_the_json_output() -> None:
    (block,) = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    shown = json.loads(block)
    made = to_json([warning("queue.payload", "a", "b", expected="c", advice="d")], 1.0)
    assert list(shown) == list(made)
    assert list(shown["counts"]) == list(made["counts"]) == [status.value for status in Status]
    assert list(shown["findings"][0]) == list(made["findings"][0])


def test_commands_in_documents_use_existing_checks_and_options() -> None:
    found = 0
    for path in DOCUMENTS:
        for line in re.findall(r"facial-service doctor([^`\n]*)", path.read_text(encoding="utf-8")):
            words = shlex.split(line.partition("#")[0].partition("|")[0])
            for before, word in zip(["", *words], words, strict=False):
                if before in {"--only", "--skip"}:
                    assert word in list(Check), f"{path.name}: {word}"
                    found += 1
                elif word.startswith("-"):
                    assert f"`{word}" in PAGE, f"{path.name}: {word}"
    assert found >= 10


def test_settings_in_the_catalogue_exist() -> None:
    known = {name.upper() for name in Settings.model_fields} | OTHERS
    for name, entry in CATALOGUE.items():
        named = set(re.findall(r"\b([A-Z]+(?:_[A-Z0-9]+)+)\b", " ".join(entry)))
        assert named <= known, name


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_chart_values_in_texts_exist(path: Path) -> None:
    for text in texts_of(path):
        for value in re.findall(r"`([a-z]\w*(?:\.\w+)+)`", text):
            first, *rest = value.split(".")
            if first not in VALUES:
                continue
            found: Any = VALUES[first]
            for key in rest:
                if found == {}:  # a map with free keys
                    break
                assert key in found, f"the chart has no {value}"
                found = found[key]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_runbooks_in_texts_exist(path: Path) -> None:
    for text in texts_of(path):
        for name in re.findall(r"FacialService[A-Z]\w+", text):
            assert (ROOT / "docs" / "runbooks" / f"{name}.md").exists(), name


def test_model_hashes_match_the_tool_that_installs_them() -> None:
    """Both contain the hashes, because the image build runs the tool before the app is installed."""
    code = "import json, models; print(json.dumps({item.name: item.sha256 for item in models.MODELS.files}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "tools", capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {name: known.sha256 for name, known in KNOWN_FILES.items()}

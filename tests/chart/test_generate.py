"""Files generated from values.yaml, and errors in it, which are reported with their line."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import yaml

from app import __version__
from tests.chart.generator import generate, keys, schema, values_file, values_schema
from tests.chart.helm import CHART, ROOT

if TYPE_CHECKING:
    from pathlib import Path

SOURCES = ("charts",)
HEAD = "# A file.\n\n## Section\n\n"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the files that the generator reads and writes."""
    for folder in SOURCES:
        shutil.copytree(ROOT / folder, tmp_path / folder)
    return tmp_path


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert text.count(old) >= 1
    file.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_committed_files_are_fresh() -> None:
    done = subprocess.run(
        [sys.executable, "charts/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_help_shows_an_example() -> None:
    done = subprocess.run(
        [sys.executable, "charts/generate.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "python charts/generate.py --check" in done.stdout


@pytest.mark.parametrize(
    "path",
    [
        "values.schema.json",
        "README.md",
    ],
)
@pytest.mark.parametrize("is_gone", [True, False])
def test_check_finds_what_differs_and_writing_mends_it(tree: Path, path: str, *, is_gone: bool) -> None:
    file = tree / generate.CHART / path
    good = file.read_bytes()
    generate.main(["--check"], tree)
    if is_gone and path != "README.md":  # half of the file is written by hand
        file.unlink()
    else:
        edit(file, "\n| `api.replicas` |" if path == "README.md" else "e", "\nE")
    changed = file.read_bytes() if file.exists() else None
    with pytest.raises(SystemExit, match=f"{path}; run `make generate`"):
        generate.main(["--check"], tree)
    assert (file.read_bytes() if file.exists() else None) == changed
    generate.main([], tree)
    assert file.read_bytes() == good
    generate.main(["--check"], tree)


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (
            "Chart.yaml",
            "\nversion: ",
            "\nversion: 9.",
            r"Chart.yaml: version: expected app.__version__ \(.*\), got 9\.",
        ),
        (
            "Chart.yaml",
            "\nappVersion: ",
            "\nappVersion: 9.",
            r"Chart.yaml: appVersion: expected app.__version__ \(.*\), got 9\.",
        ),
        ("values.yaml", "  replicas: 2", "  replicas: -2", "api.replicas: the default does not match the schema"),
        (
            "values.yaml",
            "pullPolicy: IfNotPresent",
            "pullPolicy: Sometimes",
            "image.pullPolicy: the default does not match",
        ),
        (
            "values.yaml",
            "  # Worker processes per pod.\n",
            "",
            r"values.yaml: line \d+: api.workers: missing description",
        ),
        ("README.md", "<!-- generated: settings -->", "", "expected one block each for values, settings"),
    ],
)
def test_what_does_not_fit_is_said(tree: Path, file: str, old: str, new: str, message: str) -> None:
    edit(tree / generate.CHART / file, old, new)
    for arguments in ([], ["--check"]):
        with pytest.raises(SystemExit, match=message):
            generate.main(arguments, tree)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + "a: 1\n", "line 5: a: missing description"),
        (HEAD + "# A.\na:\n  b: 1\n", "line 7: a.b: missing description"),
        (HEAD + "# A.\n\na: 1\n", "line 5: comment without a key"),
        (HEAD + "# A.\na: 1\n# More.\n", "line 7: comment without a key"),
        (HEAD + "# A.\na: 1  # one\n", "line 6: comment without a key"),
        (HEAD + "  # A.\na: 1\n", "line 5: comment without a key"),
        (HEAD + "# A.\n# + free\na:\n  # B.\n  b: 1\n", "line 8: comment without a key"),
        (HEAD + "# A.\n# + mininum: 1\na: 1\n", "line 6: `+ mininum: 1`: unknown tag; expected one of free, map"),
        (HEAD + "# A.\n# + minimum: one\na: 1\n", "line 6: `+ minimum: one`: expected a number"),
        (HEAD + "# A.\n# + minimum\na: 1\n", "line 6: `+ minimum`: expected a number"),
        (HEAD + "# A.\n# + type: text\na: 1\n", "line 6: `+ type: text`: expected types from array"),
        (HEAD + "# A.\n# + map: number\na: {}\n", "line 6: `+ map: number`: expected string or env or alert"),
        (HEAD + "# A.\n# + pattern: (\na: b\n", "line 6: `+ pattern: (`: expected a regular expression"),
        (HEAD + "# A.\n# + free: yes\na: {}\n", "line 6: `+ free: yes`: expected no argument"),
        (HEAD + "# A.\n# + minimum: 1\n# + minimum: 2\na: 1\n", "line 7: `minimum`: duplicate tag"),
        (HEAD + "# + minimum: 1\n# A.\na: 1\n", "line 6: expected the description above the tags"),
        (HEAD + "# A.\n# + enum: 1\na:\n  # B.\n  b: 1\n", "line 7: a: tags apply to single values only"),
        (HEAD + "# A.\na: {}\n", "line 6: a: an empty default needs a tag"),
        (HEAD + "# A.\na: []\n", "line 6: a: an empty default needs a tag"),
        (HEAD + "# A.\na: null\n", "line 6: a: a null default needs a `+ type` tag"),
        ("# A file.\n\n# A.\na: 1\n", "line 4: expected a `## Section` comment above the key"),
        ("- 1\n", "line 1: expected a mapping"),
    ],
)
def test_what_is_wrong_with_values_is_said_with_its_line(text: str, message: str) -> None:
    with pytest.raises(values_file.ValuesError) as caught:
        values_file.read_values(text)
    assert message in str(caught.value)


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(values_file.ValuesError) as caught:
        values_file.read_values(HEAD + "a: 1\nb: 2  # two\n")
    assert [line.partition(":")[0] for line in str(caught.value).splitlines()] == ["line 5", "line 6"]


def test_values_are_read_with_all_that_is_said() -> None:
    text = HEAD + (
        "# Of two\n# lines.\n# + minimum: 1\n# + type: integer, null\na: null\n"
        "b:\n  # With a sign.\n  c: 'x # y'\n  # Taken whole.\n  # + free\n  d: {e: {f: 1}}\n\n## More\n\n"
        "# A list.\n# + items: string, object\ng:\n  - h\n"
    )
    first, second, third = values_file.read_values(text)
    assert (first.name, first.line, first.section, first.default) == ("a", 9, "Section", None)
    assert (first.description, first.tags) == ("Of two lines.", {"minimum": 1, "type": ["integer", "null"]})
    assert [(leaf.name, leaf.default) for leaf in second.leaves()] == [("b.c", "x # y"), ("b.d", {"e": {"f": 1}})]
    assert (third.section, third.default, third.tags) == ("More", ["h"], {"items": ["string", "object"]})


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("a: true", {"type": "boolean"}),
        ("a: 1", {"type": "integer"}),
        ("a: 1.5", {"type": "number"}),
        ("a: b", {"type": "string"}),
        ("# + enum: 1, 3\na: 1", {"type": "integer", "enum": [1, 3]}),
        ("# + minimum: 0.5\na: 1", {"type": "integer", "minimum": 0.5}),
        ("# + type: integer, null\na: null", {"type": ["integer", "null"]}),
        ("# + items: object\na: []", {"type": "array", "items": {"type": "object"}}),
        ("# + free\na: {}", {"type": "object"}),
        ("# + map: string\na: {}", {"type": "object", "additionalProperties": {"type": "string"}}),
    ],
)
def test_schema_of_a_key(lines: str, expected: dict[str, object]) -> None:
    (key,) = values_file.read_values(f"{HEAD}# A.\n{lines}\n")
    made = values_schema.key_schema(key)
    assert made.pop("title") == "Section"
    assert made.pop("description") == "A."
    assert made.pop("default") == key.default
    assert made == expected


def test_table_has_every_key_and_its_default() -> None:
    text = (CHART / "README.md").read_text(encoding="utf-8")
    for key in keys():
        for leaf in key.leaves():
            assert f"\n| `{leaf.name}` |" in text
    assert "| `api.replicas` | `2` |" in text
    assert "One of `Always`, `IfNotPresent`, `Never`." in text


def test_readme_tells_of_every_scenario() -> None:
    text = (CHART / "README.md").read_text(encoding="utf-8")
    for file in (CHART / "ci").iterdir():
        assert f"](ci/{file.name})" in text
        first = file.read_text(encoding="utf-8").splitlines()[0]
        assert first.startswith("# ")


def test_readme_builds_the_image_that_the_chart_asks_for() -> None:
    tags = re.findall(r"/facial-service:([0-9.]+)", (CHART / "README.md").read_text(encoding="utf-8"))
    assert tags == [__version__] * 2


def test_chart_names_the_images_of_its_defaults() -> None:
    annotations = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))["annotations"]
    images = {item["name"]: item["image"] for item in yaml.safe_load(annotations["artifacthub.io/images"])}
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    nats = values["nats"]["image"]
    assert images == {
        "facial-service": f"{values['image']['repository']}:{__version__}",
        "nats": f"{nats['repository']}:{nats['tag']}",
    }
    for name in ("artifacthub.io/links", "artifacthub.io/changes"):
        assert all(item for item in yaml.safe_load(annotations[name]))


def test_schema_is_json_that_people_can_read() -> None:
    text = (CHART / "values.schema.json").read_text(encoding="utf-8")
    assert text == json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"

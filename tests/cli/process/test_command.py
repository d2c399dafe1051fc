"""The command line: usage errors, and the options of the API with the same values, bounds, defaults and texts."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from app.cli.main import cli
from app.cli.process.command import process
from app.cli.process.remote_pool import to_form_fields
from app.service.options import OPTION_NAMES, CropOptions
from app.web import openapi
from app.web.multipart_body import options_from_text

if TYPE_CHECKING:
    from pathlib import Path

PARAMETERS = inspect.signature(process).parameters
SCHEMAS = openapi.option_schemas()


def run(*arguments: str) -> Any:
    return CliRunner().invoke(cli, ["process", *arguments], env={"COLUMNS": "200", "TERM": "dumb"})


@pytest.mark.parametrize("name", OPTION_NAMES)
def test_option_equals_that_of_the_api(name: str) -> None:
    parameter, schema = PARAMETERS[name], SCHEMAS[name]
    annotation, option = get_args(parameter.annotation)
    assert parameter.default == schema.get("default")
    assert option.help == schema["description"]
    bounds = next((one for one in schema.get("anyOf", [schema]) if one.get("type") != "null"), schema)
    assert (option.min, option.max) == (bounds.get("minimum"), bounds.get("maximum"))
    choices = bounds.get("enum")
    if choices is not None:
        assert sorted(get_args(annotation)) == sorted(choices)


def test_help_names_every_option_of_the_api() -> None:
    text = run("--help").output
    assert [name for name in OPTION_NAMES if f"--{name.replace('_', '-')}" not in text] == []
    assert set(OPTION_NAMES) < set(PARAMETERS)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--region-opacity", "1.5"], "less than or equal to"),
        (["--output-size", "15"], "greater than or equal to"),
        (["--crop", "hair"], "face"),
        (["--face", "x"], "integer"),
        (["--detect", "--landmarks", "{stem}.json"], "expected at most one of them, got both"),
        (["--landmarks", "{stam}.json"], "--landmarks: expected only the placeholders"),
        (["--segmentation-map", "{stem"], "--segmentation-map: expected braces only in"),
        (["--format", "gif"], "gif"),
        (["--jobs", "0"], "1"),
        (["--nonsense"], "nonsense"),
        (["--url", "ftp://127.0.0.1"], "--url: expected a URL such as"),
    ],
)
def test_usage_error_is_reported_and_changes_nothing(arguments: list[str], text: str, tmp_path: Any) -> None:
    out = tmp_path / "out"
    done = run(str(tmp_path), "--out", str(out), *arguments)
    assert done.exit_code == 2
    assert text in done.output
    assert not out.exists()


given_options = st.builds(
    CropOptions,
    landmark_units=st.sampled_from(["pixels", "normalized"]),
    show_labels=st.booleans(),
    region_opacity=st.floats(0, 1),
    stroke_width=st.none() | st.floats(0, 64),
    output_size=st.none() | st.integers(16, 4096),
    background=st.sampled_from(["none", "image"]),
)


@given(given_options)
def test_form_fields_give_the_service_the_same_options(options: CropOptions) -> None:
    assert options_from_text(to_form_fields(options), "body", CropOptions) == options


@pytest.mark.parametrize("arguments", [["--help"], ["process", "--help"]])
def test_help_loads_no_image_libraries(arguments: list[str]) -> None:
    script = "import sys; from app.cli.main import cli; cli(sys.argv[1:], standalone_mode=False); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    heavy = {"cv2", "numpy", "fastapi", "httpx", "multiprocessing", "rich.progress", "app.settings"}
    assert not heavy & set(done.stdout.split())


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_a_dry_run_lists_every_name_in_any_encoding(tmp_path: Path, encoding: str, arguments: list[str]) -> None:
    for name in ("é.png", "顔.png", "顔.gif", "顔.landmarks.json"):
        (tmp_path / name).write_bytes(b"[]")
    command = [sys.executable, "-m", "app", "process", str(tmp_path), "--out", str(tmp_path / "out"), "--dry-run"]
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "LC_ALL": "C.UTF-8"}
    done = subprocess.run([*command, *arguments], capture_output=True, env=environment, check=True)
    if arguments:
        document = json.loads(done.stdout)
        assert [os.path.basename(one["photo"]) for one in document["to_do"]] == ["é.png", "顔.png"]
        assert [os.path.basename(one["path"]) for one in document["ignored"]] == ["顔.gif"]
    else:
        assert len(done.stdout.splitlines()) == 2
        assert "顔.png".encode(encoding, "backslashreplace") in done.stdout
        assert b".gif: ignored: expected an image, got a .gif file" in done.stderr

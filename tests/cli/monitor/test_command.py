"""Command line without a running service: help, usage errors, unreachable instances and JSON."""

from __future__ import annotations

import dataclasses
import json
import re
import socket
import subprocess
import sys
import types
import typing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.cli.main import cli
from app.cli.monitor.snapshot import Snapshot

ROOT = Path(__file__).parents[3]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "app", "monitor", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture(scope="module")
def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


def test_help_names_options_and_an_example() -> None:
    result = CliRunner().invoke(cli, ["monitor", "--help"], env={"COLUMNS": "120", "TERM": "dumb"})
    assert result.exit_code == 0
    for text in ("--interval", "--window", "--timeout", "--once", "--json", "Example: facial-service monitor http://"):
        assert text in result.output


def test_help_loads_nothing_heavy() -> None:
    script = "import sys; from app.cli.main import cli; cli(['monitor', '--help'], standalone_mode=False);"
    script += "print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(done.stderr.split())
    assert "app.cli.main" in loaded
    assert not {"cv2", "numpy", "fastapi", "gunicorn", "httpx", "prometheus_client"} & loaded


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["ftp://h"], "facial-service: URL: expected http://HOST:PORT, got scheme 'ftp'"),
        (["h:1", "h:1"], "facial-service: URL: expected each instance once, got h:1 twice"),
        (["--interval", "0"], "facial-service: --interval: expected 0.2 to 3600 seconds, got 0"),
        (["--interval", "nan"], "facial-service: --interval: expected 0.2 to 3600 seconds, got nan"),
        (["--window", "inf"], "facial-service: --window: expected 0.2 to 3600 seconds, got inf"),
        (["--timeout", "-1"], "facial-service: --timeout: expected 0.2 to 3600 seconds, got -1"),
    ],
)
def test_usage_error_is_one_line(arguments: list[str], line: str) -> None:
    result = CliRunner().invoke(cli, ["monitor", *arguments])
    assert (result.exit_code, result.stderr) == (2, f"{line}\n")


def test_once_exits_with_1_if_the_instance_is_unreachable(closed_port: str) -> None:
    done = run(f"http://user:QXsecretQX@{closed_port}", "--once", "--interval", "0.2")
    assert (done.returncode, done.stderr) == (1, f"facial-service: {closed_port}: connection refused\n")
    assert "UNREACHABLE" in done.stdout
    assert "QXsecretQX" not in done.stdout + done.stderr


def test_json_of_an_unreachable_instance(closed_port: str) -> None:
    done = run(closed_port, "--once", "--json", "--interval", "0.2")
    assert done.returncode == 1
    snapshot = json.loads(done.stdout)
    assert snapshot.keys() == {field.name for field in dataclasses.fields(Snapshot)}
    assert (snapshot["state"], snapshot["requests"]["flow"]["per_s"]) == ("away", None)
    assert snapshot["instances"][0]["reason"] == "connection refused"


def keys(kind: object) -> set[str]:
    """Collect the names of all JSON keys below a type of the model."""
    found: set[str] = set()
    for part in (*typing.get_args(kind), kind):
        if dataclasses.is_dataclass(part) and isinstance(part, type):
            hints = typing.get_type_hints(part)
            found |= hints.keys() | {key for hint in hints.values() for key in keys(hint)}
        elif part is not kind and isinstance(part, types.GenericAlias | types.UnionType):
            found |= keys(part)
    return found


def test_every_key_is_documented() -> None:
    text = (ROOT / "docs" / "monitor.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"`(\w+)`", text))
    assert len(keys(Snapshot)) > 40
    assert keys(Snapshot) - documented == set()

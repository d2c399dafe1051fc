"""The script for kind clusters, with programs that only record their arguments."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.tools.conftest import WriteProgram

SCRIPT = Path(__file__).parents[2] / "tools" / "kind.sh"
LIMIT_S = 60
BASH = str(shutil.which("bash"))
USED = ("cat", "dirname", "grep", "mktemp", "rm", "sleep", "tail", "touch")
NEW, EXISTING = "", "echo facial-service"
CRASHED = 'case "$*" in *readyz*) exit 1;; esac'
BROKEN_LOAD = 'case "$*" in *docker-image*) exit 1;; esac'
# Constructs that bash 3.2, the version of macOS, does not have.
NEWER_BASH = re.compile(r"wait -n|mapfile|readarray|declare -A|\$\{\w+(\^|,)|&>>|\|&|coproc|\$\{\w+@")


class Programs:
    """Programs on PATH that record how they are called.

    Attributes:
        folder: folder that is on PATH.
    """

    def __init__(self, folder: Path, write_program: WriteProgram) -> None:
        self.folder = folder
        self._write = write_program
        self._log = folder.parent / "calls"
        self._log.touch()
        for name in ("docker", "kind", "kubectl", "helm", "curl"):
            self.add(name)
        for name in USED:
            (folder / name).symlink_to(str(shutil.which(name)))

    def add(self, name: str, script: str = "") -> None:
        """Add a program that records its arguments and then runs a script."""
        self._write(self.folder, name, f'echo "{name} $*" >> {self._log}\n{script}')

    def calls(self, start: str) -> list[str]:
        """Return the calls that begin with a text, in order."""
        return [line for line in self._log.read_text(encoding="utf-8").splitlines() if line.startswith(start)]

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [BASH, str(SCRIPT), *arguments],
            env=self.environment(variables),
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )

    def environment(self, variables: dict[str, str]) -> dict[str, str]:
        return {"PATH": str(self.folder), "HOME": str(self.folder), **variables}


@pytest.fixture
def programs(tmp_path: Path, write_program: WriteProgram) -> Programs:
    return Programs(tmp_path / "path", write_program)


def test_the_script_needs_no_newer_bash() -> None:
    assert NEWER_BASH.findall(SCRIPT.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("argument", ["--help", "-h"])
def test_help_names_every_variable(programs: Programs, argument: str) -> None:
    done = programs.run(argument)
    assert done.returncode == 0
    variables = set(re.findall(r"\$\{([A-Z_]+):-", SCRIPT.read_text(encoding="utf-8"))) - {"KUBECONFIG"}
    assert {name for name in variables if name not in done.stdout} == set()


@pytest.mark.parametrize("arguments", [[], ["sideways"]])
def test_other_commands_are_refused(programs: Programs, arguments: list[str]) -> None:
    done = programs.run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage:")


REFUSED = [
    pytest.param({"IMAGE": "facial-service"}, "IMAGE: expected name:tag, got facial-service", id="image"),
    pytest.param({"KIND_MONITORING": "all"}, "KIND_MONITORING: expected chart or none, got all", id="monitoring"),
]


@pytest.mark.parametrize(("variables", "message"), REFUSED)
def test_a_wrong_variable_is_refused_in_a_sentence(programs: Programs, variables: dict[str, str], message: str) -> None:
    done = programs.run("up", **variables)
    assert (done.returncode, done.stderr) == (1, f"· {message}\n")
    assert programs.calls("kind") == []


@pytest.mark.parametrize("name", ["docker", "kind", "kubectl", "helm"])
def test_a_missing_program_is_named(programs: Programs, name: str) -> None:
    (programs.folder / name).unlink()
    done = programs.run("up")
    assert done.returncode == 1
    assert done.stderr.startswith(f"· {name}: not found on PATH; ")


def test_without_go_the_optional_definitions_are_left_out(programs: Programs) -> None:
    done = programs.run("up")
    assert done.returncode == 0
    assert "without Go, the definitions of KEDA and the Gateway API are not installed" in done.stderr


def test_a_new_cluster_has_the_pinned_nodes_and_everything_else(programs: Programs) -> None:
    programs.add("kind", NEW)
    done = programs.run("up", IMAGE="faces:2024")
    assert done.returncode == 0, done.stderr
    (create,) = programs.calls("kind create")
    assert re.search(r"--image kindest/node:v[\d.]+@sha256:[0-9a-f]{64}", create)
    assert programs.calls("kind load") == ["kind load docker-image faces:2024 --quiet --name facial-service"]
    installed = [re.search(r"--install (\S+)", call) for call in programs.calls("helm")]
    assert [found[1] for found in installed if found] == ["kube-prometheus-stack", "metrics-server", "facial"]
    assert all("--version" in call for call in programs.calls("helm") if "--repo" in call)
    # A tag of digits must not become a number.
    assert "--set-string image.repository=faces,image.tag=2024" in programs.calls("helm")[-1]
    rollouts = programs.calls("kubectl --context kind-facial-service -n monitoring rollout status")
    assert [call.split("/")[1].split()[0] for call in rollouts] == [
        "prometheus-kube-prometheus-stack-prometheus",
        "alertmanager-kube-prometheus-stack-alertmanager",
    ]
    assert len(done.stdout.splitlines()) == 3
    assert "http://127.0.0.1:8080/docs" in done.stdout


def test_mirrors_and_monitoring_can_be_chosen(programs: Programs) -> None:
    programs.add("kind", NEW)
    mirrors = {"KPS_REPO": "oci://mirror/kps", "METRICS_SERVER_REPO": "oci://mirror/ms", "NODE_IMAGE": "mine:1"}
    assert programs.run("up", **mirrors).returncode == 0
    assert "--image mine:1" in programs.calls("kind create")[0]
    assert [re.findall(r"--repo (\S+)", call) for call in programs.calls("helm")][:2] == [
        ["oci://mirror/kps"],
        ["oci://mirror/ms"],
    ]
    before = len(programs.calls("helm"))
    assert programs.run("up", KIND_MONITORING="none").returncode == 0
    assert not any("--repo" in call for call in programs.calls("helm")[before:])


def test_without_the_operator_the_service_is_installed_without_its_objects(programs: Programs) -> None:
    programs.add("kubectl", 'case "$*" in *"get crd"*) exit 1;; esac')
    done = programs.run("up", KIND_MONITORING="none")
    assert done.returncode == 0, done.stderr
    assert "metrics.serviceMonitor.enabled=false" in programs.calls("helm")[-1]


def test_a_cluster_that_responds_is_kept(programs: Programs) -> None:
    programs.add("kind", EXISTING)
    assert programs.run("up").returncode == 0
    assert programs.calls("kind create") == programs.calls("kind delete") == []


def test_a_cluster_that_does_not_respond_is_created_again(programs: Programs, tmp_path: Path) -> None:
    deleted = tmp_path / "deleted"
    programs.add("kind", f'case "$1" in delete) touch {deleted};; get) [ -e {deleted} ] || echo facial-service;; esac')
    programs.add("kubectl", CRASHED)
    assert programs.run("up").returncode == 0
    assert len(programs.calls("kind delete")) == len(programs.calls("kind create")) == 1


def test_an_image_that_kind_cannot_load_is_loaded_from_an_archive(programs: Programs) -> None:
    programs.add("kind", BROKEN_LOAD)
    assert programs.run("up").returncode == 0
    assert len(programs.calls("docker save facial-service:e2e")) == 1
    assert len(programs.calls("kind load image-archive")) == 1


@pytest.mark.parametrize("is_installed", [True, False])
def test_pods_of_an_earlier_image_are_restarted(programs: Programs, *, is_installed: bool) -> None:
    programs.add("helm", "" if is_installed else 'case "$*" in *" status "*) exit 1;; esac')
    assert programs.run("up").returncode == 0
    restarts = [call for call in programs.calls("kubectl") if "rollout restart" in call]
    assert len(restarts) == is_installed


@pytest.fixture
def start_forward(programs: Programs) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Return a function that starts the command; it and its children end with the test."""
    started: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [BASH, str(SCRIPT), "forward"],
            env=programs.environment({}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


FORWARDING = 'case "$*" in *port-forward*) echo $$ >> {pids}; exec sleep 300;; esac'


def read_pids(file: Path) -> list[int]:
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_forwards_print_their_address_reconnect_and_end(
    programs: Programs, start_forward: Callable[[], subprocess.Popen[str]], tmp_path: Path
) -> None:
    pids = tmp_path / "pids"
    programs.add("kubectl", FORWARDING.format(pids=pids))
    process = start_forward()
    assert process.stdout is not None
    printed = "".join(process.stdout.readline() for _ in range(5))
    for port in (8000, 9090, 9093, 3000):
        assert f"http://127.0.0.1:{port}" in printed
    wait_for(lambda: len(read_pids(pids)) == 4, "four forwards")
    os.kill(read_pids(pids)[0], signal.SIGKILL)  # its pod is replaced
    wait_for(lambda: len(read_pids(pids)) == 5, "a new forward")
    process.send_signal(signal.SIGTERM)
    assert process.wait(LIMIT_S) == 143
    wait_for(lambda: not any(map(is_running, read_pids(pids))), "the end of all forwards")


def test_a_forward_that_does_not_answer_prints_no_address(
    programs: Programs, start_forward: Callable[[], subprocess.Popen[str]], tmp_path: Path
) -> None:
    pids = tmp_path / "pids"
    programs.add("kubectl", FORWARDING.format(pids=pids))
    programs.add("curl", 'case "$*" in *:9090*) exit 0;; esac; exit 7')
    process = start_forward()
    assert process.stdout is not None
    assert "9090" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=LIMIT_S)
    assert out == ""
    assert process.returncode == 130


def test_a_port_in_use_is_reported_once(
    programs: Programs, start_forward: Callable[[], subprocess.Popen[str]], tmp_path: Path
) -> None:
    attempts = tmp_path / "attempts"
    script = f'case "$*" in *port-forward*8000:*) echo x >> {attempts}; echo "unable to listen on 8000" >&2; exit 1;; '
    programs.add("kubectl", script + "*port-forward*) exec sleep 300;; esac")
    process = start_forward()
    wait_for(lambda: attempts.exists() and len(attempts.read_text().split()) >= 3, "three attempts")
    process.terminate()
    out, errors = process.communicate(timeout=LIMIT_S)
    assert "8000" not in out
    assert errors.count("unable to listen on 8000") == 1


def test_a_cluster_without_a_server_is_reported(programs: Programs) -> None:
    programs.add("kubectl", CRASHED)
    done = programs.run("forward")
    assert done.returncode == 1
    assert done.stderr == "· cluster facial-service: its API server does not respond; run `make kind-up`\n"


def wait_for(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < end, f"no {what}"
        time.sleep(0.05)

"""The container image: its Dockerfile and, if a Docker engine runs, its behaviour.

FACIAL_SERVICE_IMAGE names an existing image; BASE_IMAGE names another base image than that of the Dockerfile.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import time
import tomllib
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import httpx
import numpy as np
import pillow_heif
import pytest
import yaml

from app import __version__
from app.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import Sample

pytestmark = pytest.mark.timeout(1200)  # the first build downloads 100 MB of wheels
live = pytest.mark.live

ROOT = Path(__file__).parents[2]
# Lines that end in a backslash continue, even over comments.
DOCKERFILE = re.sub(r"\\\n", " ", re.sub(r"(?m)^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(encoding="utf-8")))
UID = "10001"
MAX_BYTES_OVER_BASE = 350_000_000
LIMIT_S = 60.0
CROP = "/api/v1/frontal/crop"
CONFINED = ("--read-only", "--tmpfs=/tmp", "--cap-drop=ALL", "--security-opt=no-new-privileges")


def last(instruction: str) -> str:
    """Return the arguments of the last instruction of a kind, which is in the final stage."""
    return re.findall(rf"^{instruction} +(.*)$", DOCKERFILE, re.MULTILINE)[-1].strip()


def default(argument: str) -> str:
    """Return the default of an ARG."""
    return re.findall(rf"^ARG {argument}=(.*)$", DOCKERFILE, re.MULTILINE)[0]


def field(name: str) -> Any:
    return Settings.model_fields[name].default


def test_user_is_the_charts() -> None:
    values = yaml.safe_load((ROOT / "charts/facial-service/values.yaml").read_text(encoding="utf-8"))
    security = values["podSecurityContext"]
    assert last("USER") == f"{security['runAsUser']}:{security['runAsGroup']}" == f"{UID}:{UID}"
    assert security["fsGroup"] == security["runAsGroup"]


def test_ports_are_the_settings() -> None:
    assert last("EXPOSE").split() == [str(field("port")), str(field("metrics_port"))]
    assert f"os.environ.get('METRICS_PORT') or {field('metrics_port')})" in last("HEALTHCHECK")


def test_variables_are_settings() -> None:
    names = {name.lower() for name in re.findall(r"(\w+)=", last("ENV"))} - {"path", "pythondontwritebytecode"}
    assert names == {"host", "data_dir"}
    assert names <= Settings.model_fields.keys()


def test_base_is_pinned_fits_the_package_and_names_no_registry() -> None:
    base = default("BASE_IMAGE")
    minor = int(re.fullmatch(r"python:3\.(\d+)\.\d+-slim-\w+@sha256:[0-9a-f]{64}", base)[1])  # type: ignore[index]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lowest, beyond = map(int, re.fullmatch(r">=3\.(\d+),<3\.(\d+)", project["requires-python"]).groups())  # type: ignore[union-attr]
    assert lowest <= minor < beyond
    assert "://" not in DOCKERFILE


def test_labels_are_the_packages() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    labels = dict(re.findall(r'org\.opencontainers\.image\.([\w.]+)="([^"]*)"', last("LABEL")))
    assert labels["title"] == project["name"]
    assert labels["description"] == project["description"]
    assert labels["licenses"] == project["license"]
    assert {name: labels[name] for name in ("base.name", "version", "revision", "created")} == {
        "base.name": "${BASE_IMAGE}",
        "version": "${VERSION}",
        "revision": "${REVISION}",
        "created": "${CREATED}",
    }
    assert default("VERSION") == __version__


def test_context_is_what_is_copied() -> None:
    rules = [
        line
        for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    ]
    assert rules[0] == "*"
    allowed = {rule[1:].rstrip("/") for rule in rules if rule.startswith("!")}
    copies = re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE)
    assert {source.rstrip("/") for copy in copies for source in copy.split()} == allowed


def test_every_package_comes_with_a_hash() -> None:
    installs = re.findall(r"pip install [^&]*", DOCKERFILE)
    assert len(installs) == 3
    assert all("--require-hashes" in line or "--no-index" in line for line in installs)


# --- on a Docker engine -----------------------------------------------------------------------------------------------


def docker(*arguments: str, limit_s: float = LIMIT_S, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run docker; its output is in the report of a failed test."""
    program = shutil.which("docker") or pytest.skip("docker is not on PATH")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=limit_s, check=False)
    if check and done.returncode:
        pytest.fail(f"docker {' '.join(arguments)}: {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done


def require_image(name: str) -> None:
    """Skip the test if an image is missing and cannot be pulled."""
    if docker("image", "inspect", name, check=False).returncode:
        pulled = docker("pull", "--quiet", name, limit_s=600, check=False)
        if pulled.returncode:
            pytest.skip(f"{name} is not here and cannot be pulled (BASE_IMAGE names another): {pulled.stderr.strip()}")


@pytest.fixture(scope="module")
def image() -> Iterator[str]:
    if docker("version", check=False).returncode:
        pytest.skip("no Docker engine runs")
    named = os.environ.get("FACIAL_SERVICE_IMAGE")
    if named:
        yield named
        return
    base, tag = os.environ.get("BASE_IMAGE") or default("BASE_IMAGE"), "facial-service:test"
    require_image(base)
    docker("build", "--tag", tag, "--build-arg", f"BASE_IMAGE={base}", str(ROOT), limit_s=1100)
    yield tag
    docker("image", "rm", "--no-prune", tag)


def inspect(kind: str, name: str) -> Any:
    return json.loads(docker(kind, "inspect", name).stdout)[0]


def eventually(condition: Callable[[], bool], what: str) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"{what}: not within {LIMIT_S:g} s")
        time.sleep(0.05)


class Container:
    """The service in a container with the restrictions of a cluster.

    Attributes:
        name: name of the container.
        api: base URL of the API.
        metrics: base URL of the metrics port.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.api, self.metrics = (self._address(port) for port in ("8000", "9000"))

    def _address(self, port: str) -> str:
        return f"http://{docker('port', self.name, port).stdout.splitlines()[0]}"

    def execute(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in the container, with its environment and as its user."""
        return docker("exec", self.name, *command, check=check)

    def state(self) -> Any:
        """Return the state of its main process."""
        return inspect("container", self.name)["State"]

    def wait_ready(self) -> None:
        """Wait until the readiness probe succeeds."""
        eventually(self._is_ready, "/health/ready")

    def _is_ready(self) -> bool:
        if not self.state()["Running"]:
            pytest.fail(f"the service ended: {docker('logs', self.name).stderr}")
        try:
            return httpx.get(f"{self.metrics}/health/ready", timeout=5).status_code == 200
        except httpx.TransportError:
            return False


@contextmanager
def running(image: str, *options: str) -> Iterator[Container]:
    name = f"facial-service-test-{uuid.uuid4().hex[:8]}"
    ports = ("--publish=127.0.0.1::8000", "--publish=127.0.0.1::9000")
    try:
        docker("run", "--detach", f"--name={name}", *CONFINED, *ports, *options, image)
        container = Container(name)
        container.wait_ready()
        yield container
    finally:
        docker("rm", "--force", "--volumes", name, check=False)


@pytest.fixture(scope="module")
def container(image: str) -> Iterator[Container]:
    with running(image, "--volume=/data") as container:
        yield container


def form(sample: Sample) -> dict[str, tuple[str, bytes]]:
    return {"image": ("photo.png", sample.photo), "landmarks": ("landmarks.json", sample.landmarks)}


@live
def test_it_answers_on_a_read_only_file_system(container: Container, sample: Sample) -> None:
    answer = httpx.post(container.api + CROP, files=form(sample), headers={"Accept": "image/svg+xml"}, timeout=30)
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "image/svg+xml")
    assert answer.text.startswith("<svg")


@live
@pytest.mark.parametrize("extension", [".png", ".jpg", ".webp", ".avif", ".heic"])
def test_it_finds_faces_in_every_format(container: Container, sample: Sample, extension: str) -> None:
    pixels = cv2.imdecode(np.frombuffer(sample.photo, np.uint8), cv2.IMREAD_COLOR)
    if extension == ".heic":
        file = io.BytesIO()
        pillow_heif.from_bytes("BGR", (512, 512), pixels.tobytes()).save(file)
        photo = file.getvalue()
    else:
        photo = cv2.imencode(extension, pixels)[1].tobytes()
    answer = httpx.post(f"{container.api}/api/v1/frontal/landmarks", files={"image": photo}, timeout=30)
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["landmarks"]) == 478


@live
def test_tasks_are_worked_on(container: Container, sample: Sample) -> None:
    submitted = httpx.post(f"{container.api}{CROP}/submit", files=form(sample), timeout=30).raise_for_status().json()
    url = f"{container.api}{CROP}/status/{submitted['task_id']}"
    eventually(lambda: httpx.get(url, params={"wait": 20}, timeout=30).json()["status"] == "SUCCESS", "the task")


@live
def test_every_process_is_unprivileged(container: Container) -> None:
    done = container.execute("sh", "-c", "cat /proc/[0-9]*/status")
    found = {key: set(re.findall(rf"^{key}:\s+(.*)$", done.stdout, re.MULTILINE)) for key in ("Uid", "Gid", "CapEff")}
    ids = "\t".join([UID] * 4)
    assert found == {"Uid": {ids}, "Gid": {ids}, "CapEff": {"0" * 16}}
    assert len(re.findall(r"^Uid:", done.stdout, re.MULTILINE)) > 4  # master, exporter, queue, workers


@live
def test_what_only_builds_is_gone(container: Container) -> None:
    code = (
        "import importlib.util as u, json, os, shutil, sys; "
        "path = os.environ['PATH'] + ':/usr/local/bin:/usr/bin:/bin'; "
        "names = 'pip pip3 gcc cc g++ clang make ld uv curl wget'.split(); "
        "modules = 'pip ensurepip setuptools wheel pkg_resources'.split(); "
        "print(json.dumps([[n for n in names if shutil.which(n, path=path)], [m for m in modules if u.find_spec(m)]]))"
    )
    base = container.execute("python", "-c", "import sys; print(sys._base_executable)").stdout.strip()
    for python in ("python", base):  # of the virtual environment, and its base
        assert json.loads(container.execute(python, "-c", code).stdout) == [[], []]


@live
def test_no_trace_of_the_build_is_left(image: str) -> None:
    places = "ls -d /wheels /build /service /root/.cache /opt/venv/lib/python*/site-packages/pip*"
    done = docker("run", "--rm", "--user=0", "--entrypoint=sh", image, "-c", f"{places} || [ $? = 2 ]")
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == len(places.split()) - 2


@live
def test_what_runs_cannot_be_changed_by_who_runs_it(container: Container) -> None:
    found = container.execute(
        "find", "/opt/venv", "!", "-type", "l", "(", "!", "-user", "0", "-o", "-perm", "/022", ")"
    )
    assert found.stdout == ""


@live
def test_queue_server_is_on_path(image: str) -> None:
    done = docker("run", "--rm", "--read-only", "--entrypoint=nats-server", image, "--version")
    assert done.stdout.startswith("nats-server: v2.")


@live
def test_size_over_base(image: str) -> None:
    base = inspect("image", image)["Config"]["Labels"]["org.opencontainers.image.base.name"]
    require_image(base)
    sizes = [docker("history", "--human=false", "--format={{.Size}}", name).stdout.split() for name in (image, base)]
    over = sum(map(int, sizes[0])) - sum(map(int, sizes[1]))
    assert 0 < over <= MAX_BYTES_OVER_BASE


@live
def test_nothing_is_compiled_at_start(container: Container) -> None:
    modules = (
        "import importlib, pkgutil, app; "
        "[importlib.import_module(m.name) for m in pkgutil.walk_packages(app.__path__, 'app.')"
        " if not m.name.endswith('__main__')]"
    )
    told = container.execute("python", "-v", "-c", modules).stderr
    assert re.search(r"^# '?/opt/venv/\S+/app/__pycache__/main\S*\.pyc'? matches", told, re.MULTILINE)
    assert re.findall(r"^# code object from '?(/opt/venv/\S+\.py)'?$", told, re.MULTILINE) == []


@live
def test_bytecode_holds_whatever_the_files_times(container: Container) -> None:
    code = (
        "import collections, glob; "
        "flags = (open(f, 'rb').read(8)[4:] for f in glob.glob('/opt/venv/lib/**/*.pyc', recursive=True)); "
        "print(sorted(collections.Counter(int.from_bytes(f, 'little') for f in flags)))"
    )
    assert container.execute("python", "-c", code).stdout.strip() == "[1]"  # hash-based and unchecked


@live
def test_health_check(container: Container) -> None:
    eventually(lambda: container.state()["Health"]["Status"] == "healthy", "HEALTHCHECK")
    kind, *command = inspect("container", container.name)["Config"]["Healthcheck"]["Test"]
    assert kind == "CMD"
    assert container.execute(*command).returncode == 0
    elsewhere = docker("exec", "--env=METRICS_PORT=1", container.name, *command, check=False)
    assert elsewhere.returncode == 1


@live
def test_labels(image: str) -> None:
    labels = inspect("image", image)["Config"]["Labels"]
    version = docker("run", "--rm", *CONFINED, image, "version").stdout.strip()
    assert labels["org.opencontainers.image.version"] == version == __version__
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(Z|[+-]\d\d:\d\d)", labels["org.opencontainers.image.created"])
    assert labels["org.opencontainers.image.revision"]


@live
def test_a_folder_that_cannot_be_written_is_named(image: str) -> None:
    done = docker("run", "--rm", *CONFINED, image, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("facial-service: DATA_DIR /data cannot be used: Read-only file system; set it")
    assert len(done.stderr.splitlines()) == 1


@live
def test_docker_stop_ends_it_in_order(image: str) -> None:
    with running(image, "--volume=/data") as container:
        began = time.monotonic()
        docker("stop", "--time=60", container.name, limit_s=90)
        took = time.monotonic() - began
        state = container.state()
        lines = [json.loads(line) for line in docker("logs", container.name).stderr.splitlines()]
    assert (state["ExitCode"], state["OOMKilled"]) == (0, False)
    assert took < 50  # otherwise docker would have killed it
    exited = [line["message"] for line in lines if "exited" in line["message"]]
    assert exited
    assert all("exited: stopped" in message for message in exited)


@live
@pytest.mark.parametrize("signal", ["INT", "QUIT"])
def test_other_signals_end_it(image: str, signal: str) -> None:
    with running(image, "--env=ENABLE_TASKS=false") as container:  # so that only /tmp is writable
        docker("kill", f"--signal={signal}", container.name)
        eventually(lambda: not container.state()["Running"], f"the end after SIG{signal}")
        assert container.state()["ExitCode"] == 0


@live
def test_a_signal_while_modules_load_is_heard(image: str) -> None:
    code = "import app.cli, os, signal, time; os.kill(1, signal.SIGTERM); time.sleep(5)"
    assert docker("run", "--rm", "--entrypoint=python", image, "-c", code, check=False).returncode == 143


@live
def test_sbom_is_complete(image: str, tmp_path: Path) -> None:
    tools = ROOT / ".tools"
    if not shutil.which("syft", path=f"{tools / 'bin'}:{os.environ['PATH']}") or not (tools / "spdx").is_dir():
        pytest.skip("syft and tools/spdx are not installed; `make release-tools` installs them")
    script = ROOT / "tools/release/sbom.sh"
    file = tmp_path / "image.spdx.json"
    done = subprocess.run([script, f"docker:{image}", file], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert "valid and complete" in done.stderr

"""compose.yaml and the files it mounts, compared with the service, its rules and dashboards; and its service, run."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import yaml

from app.settings import Settings
from app.supervisor.api_server import QUEUE_STOP_S, TASK_MARGIN_S
from app.supervisor.application import EXPORTER_STOP_S, RESPONSE_MARGIN_S

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Sample

pytestmark = pytest.mark.timeout(1200)  # the first build downloads 100 MB of wheels

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, Any] = COMPOSE["services"]
SERVICE = SERVICES["facial-service"]
ENDURING = [name for name, service in SERVICES.items() if "restart" in service]
CROP = "/api/v1/frontal/crop"
LIMIT_S = 60.0


def read(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def field(name: str) -> Any:
    return Settings.model_fields[name].default


def substitute(text: str) -> str:
    """Replace variables with their defaults."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def mounts(name: str) -> dict[str, str]:
    """Return the mounts of a service: path in the container to source."""
    found = {}
    for mount in SERVICES[name].get("volumes", []):
        source, target = mount.split(":")[:2]
        found[target] = source
    return found


def container_ports(name: str) -> set[int]:
    return {int(port.rpartition(":")[2]) for port in SERVICES[name]["ports"]}


def address(text: str) -> tuple[str, int]:
    host, _, port = text.removeprefix("http://").partition(":")
    return host, int(port)


def test_ports_are_the_settings() -> None:
    defaults = {"PORT": field("port"), "METRICS_PORT": field("metrics_port")}
    assert SERVICE["ports"] == [f"127.0.0.1:${{{name}:-{port}}}:{port}" for name, port in defaults.items()]
    assert {name: int(SERVICE["environment"][name]) for name in defaults} == defaults


@pytest.mark.parametrize("name", ENDURING)
def test_only_this_machine_reaches_it(name: str) -> None:
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name]["ports"])


def test_variables_are_settings_that_the_service_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    others = {name for name in SERVICE["environment"] if name.lower() not in Settings.model_fields}
    assert {name: SERVICE["environment"][name] for name in others} == {"GRAFANA_PASSWORD": ""}  # not passed on
    for name, value in SERVICE["environment"].items():
        monkeypatch.setenv(name, value)
    assert Settings().log_file == Path(SERVICE["environment"]["LOG_FILE"])


def test_images_are_pinned_and_name_no_registry() -> None:
    for name, service in SERVICES.items():
        image = re.fullmatch(r"\$\{[A-Z_]+_IMAGE:-([\w/-]+):([\w.-]+)(@sha256:[0-9a-f]{64})?\}", service["image"])
        assert image, name
        if "build" not in service and service["image"] != SERVICE["image"]:
            assert re.fullmatch(r"v?\d+\.\d+\.\d+", image[2]), name
            assert image[3], name


def test_the_base_is_the_dockerfiles() -> None:
    default = re.search(r"^ARG (BASE_IMAGE)=(.*)$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    assert default
    assert SERVICE["build"]["args"]["BASE_IMAGE"] == f"${{{default[1]}:-{default[2]}}}"


@pytest.mark.parametrize("name", SERVICES)
def test_no_privileges(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service.get("read_only", False) is (name != "grafana")  # Grafana unpacks plugins next to its program


def test_what_the_service_writes_is_mounted() -> None:
    environment = SERVICE["environment"]
    folders = {Path(environment["DATA_DIR"]), Path(environment["LOG_FILE"]).parent}
    assert folders == set(map(Path, mounts("facial-service")))
    assert [str(parent) for parent in Path(environment["PROMETHEUS_MULTIPROC_DIR"]).parents][:-1] == SERVICE["tmpfs"]


def test_logs_stay_in_the_folder_that_git_ignores() -> None:
    assert mounts("facial-service")["/logs"] == mounts("log-folder")["/logs"] == "./logs"
    assert "/logs/" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    group = re.search(r"^USER \d+:(\d+)$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    assert group
    assert f"chgrp -R {group[1]} /logs" in SERVICES["log-folder"]["entrypoint"][-1]


def test_the_grace_holds_every_part_of_an_orderly_end() -> None:
    margins = RESPONSE_MARGIN_S + TASK_MARGIN_S + QUEUE_STOP_S + EXPORTER_STOP_S
    parts = 2 * field("graceful_timeout_s") + margins  # requests first, then tasks
    assert int(SERVICE["stop_grace_period"].removesuffix("s")) >= parts


@pytest.mark.parametrize("name", ENDURING)
def test_health_is_checked(name: str) -> None:
    if name == "facial-service":  # set by the image
        assert "healthcheck" not in SERVICE
        assert "\nHEALTHCHECK " in (ROOT / "Dockerfile").read_text(encoding="utf-8")
    else:
        kind, *command = SERVICES[name]["healthcheck"]["test"]
        assert kind == "CMD"
        (port,) = container_ports(name)
        assert any(f"http://127.0.0.1:{port}" in part for part in command)


def test_what_is_mounted_is_there() -> None:
    named = set(COMPOSE["volumes"])
    for name in SERVICES:
        for source in mounts(name).values():
            assert source in named or source == "./logs" or (ROOT / source).exists(), source


def test_prometheus_scrapes_what_the_rules_go_by() -> None:
    jobs = {job["job_name"]: job for job in read("compose/prometheus.yml")["scrape_configs"]}
    rules = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "prometheus/rules").glob("*.yaml"))
    assert set(re.findall(r'job="([^"]+)"', rules)) == {"facial-service"}
    targets = {name: address(job["static_configs"][0]["targets"][0]) for name, job in jobs.items()}
    assert targets.pop("facial-service") == ("facial-service", field("metrics_port"))
    assert targets.pop("prometheus")[1] in container_ports("prometheus")
    assert targets == {"alertmanager": ("alertmanager", *container_ports("alertmanager"))}


def test_prometheus_sends_alerts_to_alertmanager() -> None:
    (manager,) = read("compose/prometheus.yml")["alerting"]["alertmanagers"]
    ((target,),) = (entry["targets"] for entry in manager["static_configs"])
    assert address(target) == ("alertmanager", *container_ports("alertmanager"))


def test_prometheus_finds_every_rule() -> None:
    (pattern,) = map(Path, read("compose/prometheus.yml")["rule_files"])
    source = ROOT / mounts("prometheus")[str(pattern.parent)]
    found = set(source.glob(pattern.name))
    assert found
    assert found == set((ROOT / "prometheus/rules").iterdir())


def test_grafana_finds_sources_and_dashboards() -> None:
    (sources,) = (ROOT / "compose/grafana/provisioning/datasources").iterdir()
    for source in read(str(sources))["datasources"]:
        host, port = address(source["url"])
        assert port in container_ports(host)
    (providers,) = (ROOT / "compose/grafana/provisioning/dashboards").iterdir()
    (provider,) = read(str(providers))["providers"]
    folder = ROOT / mounts("grafana")[provider["options"]["path"]]
    home = Path(SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert str(home.parent) == provider["options"]["path"]
    assert folder / home.name in set(folder.glob("*.json"))


def test_grafana_knows_how_often_prometheus_scrapes() -> None:
    interval = read("compose/prometheus.yml")["global"]["scrape_interval"]
    sources = read("compose/grafana/provisioning/datasources/datasources.yaml")["datasources"]
    (told,) = (source["jsonData"]["timeInterval"] for source in sources if source["type"] == "prometheus")
    assert told == interval


def test_tempo_receives_traces_and_serves_grafana() -> None:
    tempo = read("compose/tempo.yaml")
    assert {tempo["server"]["http_listen_port"]} == container_ports("tempo")
    assert tempo["distributor"]["receivers"]["otlp"]["protocols"]["http"]["endpoint"] == "0.0.0.0:4318"
    assert "OTEL_EXPORTER_OTLP_ENDPOINT=http://tempo:4318\n" in (ROOT / "compose.yaml").read_text(encoding="utf-8")
    paths = [tempo["storage"]["trace"]["wal"]["path"], tempo["storage"]["trace"]["local"]["path"]]
    assert all(Path(path).is_relative_to(SERVICES["tempo"]["tmpfs"][0]) for path in paths)


def test_alerts_of_every_severity_reach_someone() -> None:
    manager = read("compose/alertmanager.yml")
    assert manager["route"]["receiver"] in [receiver["name"] for receiver in manager["receivers"]]
    matchers = [matcher for rule in manager["inhibit_rules"] for matcher in rule["target_matchers"]]
    known = set(re.findall(r"\w+", " ".join(matchers)))
    files = (ROOT / "prometheus/rules").glob("*.yaml")
    groups = [group for path in files for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]]
    severities = {rule["labels"]["severity"] for group in groups for rule in group["rules"] if "alert" in rule}
    assert severities <= known | {"critical"}


# --- with the programs ------------------------------------------------------------------------------------------------


def require(program: str) -> str:
    """Return the path of a program, or skip the test."""
    return shutil.which(program) or pytest.skip(f"{program} is not on PATH; `make tools` sets up what it can")


def run(*command: str, limit_s: float = LIMIT_S, env: dict[str, str] | None = None) -> str:
    """Run a program in the repository; its output is in the report of a failed test."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=limit_s,
        env={**os.environ, **(env or {})},
        check=False,
    )
    if done.returncode:
        pytest.fail(f"{' '.join(command)}: {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done.stdout


def test_promtool_takes_the_configuration(tmp_path: Path) -> None:
    promtool = require("promtool")
    text = (ROOT / "compose/prometheus.yml").read_text(encoding="utf-8")
    inside = "/etc/prometheus/rules"
    assert inside in text
    file = tmp_path / "prometheus.yml"
    file.write_text(text.replace(inside, str(ROOT / mounts("prometheus")[inside])), encoding="utf-8")
    assert "rules found" in run(promtool, "check", "config", str(file))


def test_amtool_takes_the_configuration() -> None:
    assert "SUCCESS" in run(require("amtool"), "check-config", "compose/alertmanager.yml")


@pytest.fixture(scope="module")
def compose() -> str:
    """Return docker, if it has compose."""
    docker = require("docker")
    if subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("docker has no compose")
    return docker


def test_compose_takes_the_file(compose: str) -> None:
    made = json.loads(run(compose, "compose", "--profile=*", "config", "--format=json"))
    assert made["services"].keys() == SERVICES.keys()


class Project:
    """The service of compose.yaml with another name, other ports and its own log folder.

    Attributes:
        logs: log folder.
        api: base URL of the API.
    """

    def __init__(self, docker: str, folder: Path) -> None:
        self.logs = folder / "logs"
        self.logs.mkdir()
        self._override = folder / "override.yaml"
        volumes = [f"{self.logs}:/logs"]
        override = {"services": {name: {"volumes": volumes} for name in ("facial-service", "log-folder")}}
        self._override.write_text(yaml.safe_dump(override), encoding="utf-8")
        self._command = [docker, "compose", "--project-name=facial-service-test", "--file=compose.yaml"]
        api, metrics = free_ports(2)
        self._env = {"PORT": str(api), "METRICS_PORT": str(metrics)}
        self.api = f"http://127.0.0.1:{api}"
        if "FACIAL_SERVICE_IMAGE" not in os.environ:
            self._env["FACIAL_SERVICE_IMAGE"] = "facial-service:compose-test"

    def run(self, *arguments: str, limit_s: float = LIMIT_S) -> str:
        """Run a compose command."""
        return run(*self._command, f"--file={self._override}", *arguments, limit_s=limit_s, env=self._env)

    def up(self) -> None:
        """Start the service from the image that FACIAL_SERVICE_IMAGE names, or from one built now; wait for health."""
        build = [] if "FACIAL_SERVICE_IMAGE" in os.environ else ["--build"]
        self.run("up", "--detach", "--wait", "--wait-timeout=60", *build, "facial-service", limit_s=1100)

    def down(self) -> None:
        """Remove its containers and volumes."""
        images = [] if "FACIAL_SERVICE_IMAGE" in os.environ else ["--rmi=all"]
        self.run("down", "--volumes", "--remove-orphans", *images, limit_s=120)

    def log_lines(self) -> list[dict[str, Any]]:
        """Return the lines of the log file."""
        return [json.loads(line) for line in (self.logs / "facial-service.jsonl").read_text().splitlines()]


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@contextmanager
def project(docker: str, folder: Path) -> Iterator[Project]:
    made = Project(docker, folder)
    try:
        made.up()
        yield made
    finally:
        made.down()


def require_engine_and_base(docker: str) -> None:
    """Skip the test if images cannot be built or run."""

    def succeeds(*command: str) -> bool:
        return subprocess.run([docker, *command], capture_output=True, timeout=600, check=False).returncode == 0

    if not succeeds("version"):
        pytest.skip("no Docker engine runs")
    base = os.environ.get("BASE_IMAGE") or substitute(SERVICE["build"]["args"]["BASE_IMAGE"])
    needed = os.environ.get("FACIAL_SERVICE_IMAGE") or base
    if not succeeds("image", "inspect", needed) and not succeeds("pull", "--quiet", needed):
        pytest.skip(f"{needed} is not here and cannot be pulled; BASE_IMAGE names another base")


@pytest.mark.live
def test_tasks_and_logs_outlive_the_container(compose: str, tmp_path: Path, sample: Sample) -> None:
    require_engine_and_base(compose)
    files = {"image": ("photo.png", sample.photo), "landmarks": ("landmarks.json", sample.landmarks)}
    with project(compose, tmp_path) as service:
        svg = httpx.post(service.api + CROP, files=files, headers={"Accept": "image/svg+xml"}, timeout=30)
        assert svg.text.startswith("<svg")
        task = httpx.post(f"{service.api}{CROP}/submit", files=files, timeout=30).raise_for_status().json()["task_id"]
        done = httpx.get(f"{service.api}{CROP}/status/{task}?wait=30", timeout=60).raise_for_status().json()
        assert done["status"] == "SUCCESS"
        service.run("up", "--detach", "--wait", "--force-recreate", "facial-service", limit_s=180)
        again = httpx.get(f"{service.api}{CROP}/status/{task}", timeout=30).raise_for_status().json()
        assert again == done
        lines = service.log_lines()
    assert sum("listens on" in line["message"] for line in lines) == 2
    assert any(line["logger"] == "facial.tasks" and line.get("task_id") == task for line in lines)

"""The queue's configuration is one that nats-server takes, and means what the service's own server has."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
import subprocess
import time
from typing import TYPE_CHECKING, Any

import httpx
import orjson
import pytest

from app.service.crop import CropService, ImageLimits
from app.settings import Settings
from app.tasks import embedded_server
from app.tasks.stream import DEAD_STREAM, STREAM
from tests.chart.environment import environment, read_settings
from tests.chart.helm import NAMESPACE, RELEASE, Release, Values, template
from tests.chart.pods import pod_of
from tests.tasks.conftest import free_ports, open_desk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from app.service.crop import CropInput

NAME = f"{RELEASE}-facial-service-nats"
# If they were not quoted, nats-server would read them as a number, a variable, a comment or a block.
TOKENS = ["s3cret", "20m", "1e5", "$HOME", "a#b", 'quo"te', "back\\slash", "{x: y}", "ümlaut", "tru e", "@:/%"]
# Tokens of a cluster are part of URLs.
SAFE_TOKENS = ["s3cret", "20m", "1e5", "a-b.c_d~e", "0123456789abcdef" * 3]
LIMIT_S = 15.0


def configuration(release: Release) -> str:
    text: str = release.get("ConfigMap", NAME)["data"]["nats.conf"]
    return text


def place(release: Release, folder: Path, *, token: str | None = None, index: int = 0) -> tuple[Path, dict[str, str]]:
    """Put the configuration where the pod has it, below a folder of the test's.

    Returns:
        Its path, and the variables that its process has.
    """
    file = folder / "nats.conf"
    text = configuration(release).replace('"/etc/nats-tls/', f'"{folder}/')
    file.write_text(text, encoding="utf-8")
    variables = environment(release, pod_of(release, "nats"), {"s": {"token": token or ""}})
    return file, {**variables, "POD_NAME": f"{NAME}-{index}"}


def judge(file: Path, variables: dict[str, str]) -> str:
    """Check a configuration with nats-server; return its errors, or an empty text if it is valid."""
    command = [embedded_server.find_program(), "-t", "-c", str(file)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    return done.stderr + done.stdout if done.returncode else ""


def test_scenarios_are_taken(release: Release, tmp_path: Path) -> None:
    if release.all("StatefulSet"):
        pod = pod_of(release, "nats")
        assert "initContainers" not in pod.spec
        file, variables = place(release, tmp_path)
        assert judge(file, variables | ({"TOKEN": "'s3cret'"} if "TOKEN" in variables else {})) == ""


FORMS = [(replicas, "always", token) for replicas in (1, 3, 5) for token in (None, "s3cret")]
FORMS += [(1, "2m", token) for token in TOKENS] + [(3, "2m", token) for token in SAFE_TOKENS]


@pytest.mark.parametrize(("replicas", "interval", "token"), FORMS)
def test_every_form_is_taken(replicas: int, interval: str, token: str | None, tmp_path: Path) -> None:
    auth = {"existingSecret": "s"} if token else {}
    release = template(values={"nats": {"replicas": replicas, "syncInterval": interval, "auth": auth}})
    assert judge(*place(release, tmp_path, token=token)) == ""


def test_what_is_wrong_is_found(tmp_path: Path) -> None:
    file, variables = place(template(), tmp_path)
    assert "POD_NAME" in judge(file, {})
    file.write_text(file.read_text(encoding="utf-8").replace("max_payload", "max_payloat"), encoding="utf-8")
    assert "max_payloat" in judge(file, variables)


class Server:
    """A server that runs from the chart's configuration, on ports and in a folder of the test's."""

    def __init__(self, release: Release, folder: Path, token: str | None) -> None:
        self.port, self.monitor = free_ports(2)
        file, variables = place(release, folder, token=token)
        text = file.read_text(encoding="utf-8").replace('"/data"', f'"{folder}/data"')
        text = text.replace("0.0.0.0:4222", f"127.0.0.1:{self.port}")
        text = text.replace("0.0.0.0:8222", f"127.0.0.1:{self.monitor}")
        assert "0.0.0.0" not in text  # noqa: S104
        file.write_text(text, encoding="utf-8")
        command = [embedded_server.find_program(), "-c", str(file)]
        self.process = subprocess.Popen(command, env=variables, stderr=subprocess.DEVNULL)

    def figures(self) -> dict[str, Any]:
        """Return its `/varz` after its readiness probe succeeds."""
        end = time.monotonic() + LIMIT_S
        while True:
            try:
                answer = httpx.get(f"http://127.0.0.1:{self.monitor}/healthz?js-server-only=true")
                if answer.is_success:
                    break
            except httpx.TransportError:
                pass
            assert time.monotonic() < end
            assert self.process.poll() is None
            time.sleep(0.05)
        figures: dict[str, Any] = httpx.get(f"http://127.0.0.1:{self.monitor}/varz").json()
        return figures


@pytest.fixture
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """`/varz` of a server with the chart's configuration."""
    unlimited = {**request.param.get("api", {}), "resources": {"limits": None}}
    server = Server(template(values={**request.param, "api": unlimited}), tmp_path, token=None)
    try:
        yield server.figures()
    finally:
        server.process.terminate()
        server.process.wait(LIMIT_S)


AGREEMENT: list[tuple[Values, dict[str, str]]] = [
    ({}, {}),
    ({"settings": {"MAX_BODY_BYTES": 48 * 2**20}}, {"MAX_BODY_BYTES": str(48 * 2**20)}),
    ({"api": {"settings": {"MAX_BODY_BYTES": 33 * 2**20}}}, {"MAX_BODY_BYTES": str(33 * 2**20)}),
    ({"settings": {"MAX_BODY_BYTES": 4096}}, {"MAX_BODY_BYTES": "4096"}),
    ({"nats": {"syncInterval": "always"}}, {"NATS_SYNC_INTERVAL": "always"}),
    ({"nats": {"syncInterval": "30s"}}, {"NATS_SYNC_INTERVAL": "30s"}),
]
SECONDS = {"10s": 10, "30s": 30}


@pytest.mark.live
@pytest.mark.parametrize(("served", "variables"), AGREEMENT, indirect=["served"])
def test_agrees_with_the_server_that_the_service_starts(
    served: dict[str, Any], variables: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: Settings = read_settings(monkeypatch, variables)
    own = orjson.loads(embedded_server.configuration(settings, tmp_path, password="", system_password="", port=1))
    assert served["server_name"] == f"{NAME}-0"
    assert served["max_payload"] == own["max_payload"]
    assert served["max_pending"] == own["max_pending"]
    store = served["jetstream"]["config"]
    assert store["max_memory"] == own["jetstream"]["max_mem"]
    # The server reserves the bounds of its streams.
    bounds = settings.task_queue_max_bytes + settings.result_max_bytes + settings.task_dead_max_bytes
    assert store["max_storage"] >= embedded_server.STORE_HEADROOM * bounds
    assert store["max_storage"] <= 0.95 * 8 * 2**30
    interval = own["jetstream"]["sync_interval"]
    assert store.get("sync_always", False) is (interval == "always")
    if interval != "always":
        assert store["sync_interval"] == SECONDS[interval] * 10**9


@pytest.mark.live
@pytest.mark.parametrize("token", TOKENS)
def test_token_lets_in_and_nothing_else_does(token: str, tmp_path: Path) -> None:
    server = Server(template(values={"nats": {"auth": {"existingSecret": "s"}}}), tmp_path, token)
    try:
        server.figures()
        assert greet(server.port, {"auth_token": token}) == "PONG"
        assert "Authorization" in greet(server.port, {"auth_token": f"{token}x"})
        assert "Authorization" in greet(server.port, {})
    finally:
        server.process.terminate()
        server.process.wait(LIMIT_S)


def greet(port: int, credentials: dict[str, str]) -> str:
    """Connect as a client does, and return the response of the server."""
    with socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S) as connection:
        connection.sendall(b"CONNECT " + orjson.dumps({"verbose": False} | credentials) + b"\r\nPING\r\n")
        lines = connection.makefile("rb")
        assert lines.readline().startswith(b"INFO")
        return lines.readline().decode().strip()


@pytest.mark.live
def test_server_listens_on_both_families(tmp_path: Path) -> None:
    ports = free_ports(2)
    file, variables = place(template(), tmp_path)
    text = file.read_text(encoding="utf-8").replace('"/data"', f'"{tmp_path}/data"')
    file.write_text(text.replace(":4222", f":{ports[0]}").replace(":8222", f":{ports[1]}"), encoding="utf-8")
    command = [embedded_server.find_program(), "-c", str(file)]
    process = subprocess.Popen(command, env=variables, stderr=subprocess.DEVNULL)
    try:
        for host in ("127.0.0.1", "::1") if socket.has_dualstack_ipv6() else ("127.0.0.1",):
            for port in ports:
                wait_until_open(host, port)
    finally:
        process.terminate()
        process.wait(LIMIT_S)


def wait_until_open(host: str, port: int) -> None:
    end = time.monotonic() + LIMIT_S
    while True:
        try:
            socket.create_connection((host, port), timeout=1).close()
        except OSError:
            assert time.monotonic() < end
            time.sleep(0.05)
        else:
            return


MIB = 1 << 20
LOWER = {"TASK_QUEUE_MAX_BYTES": 128 * MIB, "RESULT_MAX_BYTES": 128 * MIB, "TASK_DEAD_MAX_BYTES": 64 * MIB}
DEFAULT_LIMITS, LOWER_LIMITS = [1024 * MIB, 256 * MIB], [128 * MIB, 64 * MIB]


@pytest.fixture
def use_queue(tmp_path: Path, make_input: Callable[..., CropInput]) -> Callable[[Values], tuple[list[int], int]]:
    """Return ``use_queue(values)``, which runs the server of a release on the same store, and submits a task.

    It returns the limits of the streams, and the number of tasks, after the service has connected.
    """

    async def submit(settings: Settings) -> tuple[list[int], int]:
        async with open_desk(settings) as desk:
            await desk.queue.submit(CropService(ImageLimits()).check(make_input()))
            manager = desk.connection.client.jetstream()
            limits = [(await manager.stream_info(name)).config.max_bytes or 0 for name in (STREAM, DEAD_STREAM)]
            return limits, await desk.count()

    def use(values: Values) -> tuple[list[int], int]:
        server = Server(template(values=values), tmp_path, token=None)
        try:
            server.figures()
            limits = {name.lower(): value for name, value in values.get("settings", {}).items()}
            url = f"nats://127.0.0.1:{server.port}"
            # As if each task took time, because the start of a light task is not stored.
            return asyncio.run(submit(Settings(nats_url=url, nats_timeout_s=5, fault_work_s=1e-6, **limits)))
        finally:
            server.process.terminate()
            server.process.wait(LIMIT_S)

    return use


@pytest.mark.live
def test_limits_can_be_lowered_on_an_existing_store(use_queue: Callable[[Values], tuple[list[int], int]]) -> None:
    """With the size that it has; the size can then follow. The chart rejects both at once (see test_upgrades)."""
    small: Values = {"nats": {"persistence": {"size": "1Gi"}}}
    assert use_queue({}) == (DEFAULT_LIMITS, 1)
    assert use_queue({"settings": LOWER}) == (LOWER_LIMITS, 2)
    assert use_queue({"settings": LOWER} | small) == (LOWER_LIMITS, 3)


@pytest.mark.live
def test_limits_and_size_cannot_be_lowered_at_once(use_queue: Callable[[Values], tuple[list[int], int]]) -> None:
    """Without access to the cluster the chart cannot reject it; the streams then keep their limits, and work."""
    assert use_queue({}) == (DEFAULT_LIMITS, 1)
    assert use_queue({"settings": LOWER, "nats": {"persistence": {"size": "1Gi"}}}) == (DEFAULT_LIMITS, 2)


def test_route_of_every_server_leads_to_a_pod() -> None:
    for replicas in (3, 5):
        release = template(values={"nats": {"replicas": replicas}})
        text = configuration(release)
        servers = pod_of(release, "nats").owner["spec"]
        hosts = [f"{NAME}-{index}.{servers['serviceName']}" for index in range(replicas)]
        assert [line.strip().strip('"') for line in text.splitlines() if "nats-route://" in line] == [
            f"nats-route://{host}:6222" for host in hosts
        ]


def test_store_is_where_the_volume_is() -> None:
    for count, enabled in ((1, True), (3, True), (1, False)):
        release = template(values={"nats": {"replicas": count, "persistence": {"enabled": enabled}}})
        pod = pod_of(release, "nats")
        (name,) = (mount["name"] for mount in pod.main["volumeMounts"] if mount["mountPath"] == "/data")
        claims = {item["metadata"]["name"] for item in pod.owner["spec"].get("volumeClaimTemplates", ())}
        volumes = {item["name"] for item in pod.spec["volumes"]}
        assert (name in claims, name in volumes) == (enabled, not enabled)
        assert 'store_dir: "/data"' in configuration(release)


def make_certificate(folder: Path) -> None:
    """Write a certificate of the loopback address, which is its own authority, as the keys of a Secret."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("no openssl on PATH to make certificates with")
    command = [program, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=a", "-days", "1"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "extendedKeyUsage=serverAuth,clientAuth"]
    command += ["-keyout", f"{folder}/tls.key", "-out", f"{folder}/tls.crt"]
    subprocess.run(command, check=True, capture_output=True)
    shutil.copy(folder / "tls.crt", folder / "ca.crt")


@pytest.mark.live
@pytest.mark.parametrize("token", [None, "s3cret"])
def test_server_with_a_certificate_accepts_only_tls(token: str | None, tmp_path: Path) -> None:
    make_certificate(tmp_path)
    auth = {"existingSecret": "s"} if token else {}
    server = Server(template(values={"nats": {"tls": {"existingSecret": "t"}, "auth": auth}}), tmp_path, token)
    context = ssl.create_default_context(cafile=str(tmp_path / "ca.crt"))
    try:
        server.figures()  # probes and KEDA read the monitoring port without TLS
        with socket.create_connection(("127.0.0.1", server.port), timeout=LIMIT_S) as connection:
            info = orjson.loads(connection.recv(65536).removeprefix(b"INFO "))
            assert (info["tls_required"], info.get("auth_required", False)) == (True, token is not None)
            with context.wrap_socket(connection, server_hostname="127.0.0.1") as encrypted:
                login = {"auth_token": token} if token else {}
                encrypted.sendall(b"CONNECT " + orjson.dumps({"verbose": False} | login) + b"\r\nPING\r\n")
                assert b"PONG" in encrypted.recv(65536)
    finally:
        server.process.terminate()
        server.process.wait(LIMIT_S)


@pytest.mark.live
@pytest.mark.parametrize("has_tls", [False, True])
def test_servers_of_the_chart_form_a_cluster(has_tls: bool, tmp_path: Path) -> None:
    """With a token, and with certificates that cover the names of the servers."""
    tls = {"existingSecret": "t"} if has_tls else {}
    release = template(values={"nats": {"replicas": 3, "tls": tls, "auth": {"existingSecret": "s"}}})
    ports = free_ports(9)
    processes = []
    if has_tls:
        make_certificate(tmp_path)
    for index in range(3):
        folder = tmp_path / str(index)
        folder.mkdir()
        if has_tls:
            for name in ("tls.key", "tls.crt", "ca.crt"):
                shutil.copy(tmp_path / name, folder / name)
        file, variables = place(release, folder, token=SAFE_TOKENS[0], index=index)
        text = file.read_text(encoding="utf-8").replace('"/data"', f'"{folder}/data"')
        for offset, port in enumerate((4222, 8222, 6222)):
            text = text.replace(f"0.0.0.0:{port}", f"127.0.0.1:{ports[3 * index + offset]}")
        file.write_text(text, encoding="utf-8")
        for other in range(3):
            address = f"{NAME}-{other}.{NAME}{f'.{NAMESPACE}.svc' if has_tls else ''}:6222"
            assert address in variables["ROUTES"]
            variables["ROUTES"] = variables["ROUTES"].replace(address, f"127.0.0.1:{ports[3 * other + 2]}")
        command = [embedded_server.find_program(), "-c", str(file)]
        processes.append(subprocess.Popen(command, env=variables, stderr=subprocess.DEVNULL))
    try:
        end = time.monotonic() + 3 * LIMIT_S
        while not all(is_healthy(port) for port in ports[1::3]):
            assert time.monotonic() < end
            time.sleep(0.1)
        routes = httpx.get(f"http://127.0.0.1:{ports[1]}/routez").json()["routes"]
        assert {route["remote_name"] for route in routes} == {f"{NAME}-1", f"{NAME}-2"}
    finally:
        for process in processes:
            process.kill()
            process.wait(LIMIT_S)


def is_healthy(port: int) -> bool:
    """Return whether the server is ready, which a server of a cluster is only with the others."""
    try:
        return httpx.get(f"http://127.0.0.1:{port}/healthz").is_success
    except httpx.TransportError:
        return False

"""Real faults of a deployment: how to cause each one, and the finding of `facial-service doctor` that reports it."""

from __future__ import annotations

import asyncio
import http.server
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nats
import psutil
import pytest

from app import PACKAGE_MODELS
from app.settings import Settings
from app.tasks.stream import ensure_streams, task_subject

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

INHERITED = ("PATH", "HOME", "LANG", "TMPDIR", "VIRTUAL_ENV")
COMMAND = (sys.executable, "-m", "app", "doctor")
PASSWORD = "QXpasswordQX"  # noqa: S105 - not a real secret; the output must not contain it


@dataclass
class Site:
    """Resources for faults.

    Attributes:
        folder: for the files of one fault.
        run_nats: the fixture.
        service: a healthy instance with an embedded NATS server.
        env: the environment variables of the service.
    """

    folder: Path
    run_nats: Callable[..., AbstractContextManager[Any]]
    service: Any
    env: dict[str, object]


@dataclass
class Seeded:
    """Environment variables, options and shell limits of the command."""

    env: dict[str, object] = field(default_factory=dict)
    options: list[str] = field(default_factory=list)
    ulimit: str = ""


@dataclass(frozen=True)
class Fault:
    """A fault.

    Attributes:
        name: description.
        seed: causes the fault.
        part: name of the finding that reports it.
        status: status of the finding.
        words: text that the finding contains.
        advice: text that the advice contains.
    """

    name: str
    seed: Callable[[Site], AbstractContextManager[Seeded]]
    part: str
    status: str
    words: str
    advice: str


def run_doctor(env: dict[str, object], *options: str, ulimit: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command with only these settings; with a limit, run it in a shell."""
    inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
    return subprocess.run(
        [*(["bash", "-c", f'ulimit {ulimit}; exec "$@"', "-"] if ulimit else []), *COMMAND, *options],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**inherited, **{name: str(value) for name, value in env.items()}},
    )


def free_port() -> int:
    """Return a free port below the range of outgoing connections."""
    for port in random.sample(range(10_000, 20_000), 1000):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise OSError("no free port")


def with_environment(ulimit: str = "", **env: object) -> Callable[[Site], Any]:
    """Cause a fault by environment variables or limits of the shell."""

    def seed(_: Site) -> AbstractContextManager[Seeded]:
        return nullcontext(Seeded(dict(env), ulimit=ulimit))

    return seed


def with_nats(config: dict[str, Any], **env: object) -> Callable[[Site], Any]:
    """Cause a fault by the configuration of a NATS server."""

    @contextmanager
    def seed(site: Site) -> Iterator[Seeded]:
        with site.run_nats(**config) as server:
            yield Seeded({"NATS_URL": server.url, "NATS_MONITOR_URL": server.monitor_url, **env})

    return seed


@contextmanager
def small_store(site: Site) -> Iterator[Seeded]:
    with with_nats({"jetstream": {"store_dir": str(site.folder), "max_file": 1 << 30}})(site) as seeded:
        yield seeded


@contextmanager
def streams_with_other_settings(site: Site) -> Iterator[Seeded]:
    with site.run_nats() as server:
        asyncio.run(make_streams(server.url, tasks=0))
        yield Seeded({"NATS_URL": server.url, "TASK_QUEUE_MAX_MESSAGES": 500, "TASK_ACK_WAIT_S": 20})


@contextmanager
def tasks_without_workers(site: Site) -> Iterator[Seeded]:
    with site.run_nats() as server:
        asyncio.run(make_streams(server.url, tasks=3))
        yield Seeded({"NATS_URL": server.url})


async def make_streams(url: str, tasks: int) -> None:
    client = await nats.connect(url)
    await ensure_streams(client, Settings(nats_url=url))
    for number in range(tasks):
        await client.jetstream().publish(task_subject(f"{number}"), b"x")
    await client.close()


@contextmanager
def unknown_authority(site: Site) -> Iterator[Seeded]:
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("openssl is not on PATH")
    key, certificate = site.folder / "key.pem", site.folder / "cert.pem"
    make = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=nats"]
    subprocess.run([program, *make, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    with site.run_nats(tls={"cert_file": str(certificate), "key_file": str(key)}) as server:
        yield Seeded({"NATS_URL": server.url})


@contextmanager
def server_without_tls(site: Site) -> Iterator[Seeded]:
    with site.run_nats() as server:
        yield Seeded({"NATS_URL": server.url.replace("nats://", "tls://")})


@contextmanager
def other_program_on_port(_: Site) -> Iterator[Seeded]:
    with other_program() as port:
        yield Seeded({"PORT": port, "METRICS_PORT": free_port()})


@contextmanager
def suspended_exporter(site: Site) -> Iterator[Seeded]:
    children = psutil.Process(site.service.pid).children()
    exporter = next(child for child in children if "exporter" in " ".join(child.cmdline()))
    exporter.send_signal(signal.SIGSTOP)
    try:
        yield Seeded(site.env)
    finally:
        exporter.send_signal(signal.SIGCONT)


@contextmanager
def fewer_workers(site: Site) -> Iterator[Seeded]:
    yield Seeded({**site.env, "WORKERS": 3})


@contextmanager
def locked_data_dir(site: Site) -> Iterator[Seeded]:
    yield Seeded({**site.env, "PORT": free_port(), "METRICS_PORT": free_port()})


@contextmanager
def files_of_an_exited_process(site: Site) -> Iterator[Seeded]:
    file = Path(str(site.env["PROMETHEUS_MULTIPROC_DIR"])) / "gauge_livesum_worker-7.db"
    file.write_bytes(b"")  # a scrape ignores an empty file
    try:
        yield Seeded(site.env)
    finally:
        file.unlink()


@contextmanager
def foreign_files(site: Site) -> Iterator[Seeded]:
    (site.folder / "counter_12345.db").write_bytes(b"")
    yield Seeded({"PROMETHEUS_MULTIPROC_DIR": site.folder})


@contextmanager
def full_disk(site: Site) -> Iterator[Seeded]:
    command = [shutil.which("mount") or "mount", "-t", "tmpfs", "-o", "size=1m", "none", str(site.folder)]
    if os.geteuid() or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("this user cannot mount a file system")
    try:
        with suppress(OSError), (site.folder / "all").open("wb") as file:
            while True:
                file.write(bytes(65536))
        yield Seeded({"DATA_DIR": site.folder})
    finally:
        subprocess.run([str(shutil.which("umount")), str(site.folder)], check=True)


def models_with(change: Callable[[Path], None]) -> Callable[[Site], Any]:
    """Cause a fault by changing a copy of the models."""

    @contextmanager
    def seed(site: Site) -> Iterator[Seeded]:
        if not PACKAGE_MODELS.is_dir():
            pytest.skip("no models; run `make models`")
        folder = shutil.copytree(PACKAGE_MODELS, site.folder / "models")
        change(folder / "face_landmark.tflite")
        yield Seeded({"MODELS_DIR": folder})

    return seed


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:50_000])


def change_byte(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF  # among the weights: the model loads, but its output changes
    file.write_bytes(data)


@contextmanager
def no_models(site: Site) -> Iterator[Seeded]:
    yield Seeded({"MODELS_DIR": site.folder})


def cgroup(**files: str) -> Callable[[Site], Any]:
    """Cause a fault by files of a cgroup."""

    @contextmanager
    def seed(site: Site) -> Iterator[Seeded]:
        for name, text in files.items():
            (site.folder / name.replace("_dot_", ".")).write_text(text, encoding="ascii")
        yield Seeded({"WORKERS": 4, "ENABLE_TASKS": "false"}, ["--cgroup-root", str(site.folder)])

    return seed


@contextmanager
def other_program() -> Iterator[int]:
    """Run an HTTP server that is not this service, and yield its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response_only(404)
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - the base class's name
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@contextmanager
def incomplete_credentials(site: Site) -> Iterator[Seeded]:
    file = site.folder / "user.creds"
    file.write_text("-----BEGIN USER NKEY SEED-----\n", encoding="ascii")
    with with_nats({}, NATS_CREDS_FILE=str(file))(site) as seeded:
        yield seeded


FAULTS = (
    Fault("a value out of range", with_environment(WORKERS=0), "settings.values", "error", "WORKERS", "unset it"),
    Fault("two equal ports", with_environment(PORT=9000), "settings.values", "error", "PORT, METRICS_PORT", "unset"),
    Fault(
        "a misspelt name",
        with_environment(MAX_BODY_BYTE=1),
        "settings.names",
        "warning",
        "MAX_BODY_BYTE",
        "to MAX_BODY_BYTES",
    ),
    Fault(
        "fault injection", with_environment(FAULT_WORK_S=1), "settings.combinations", "warning", "FAULT_WORK_S", "unset"
    ),
    Fault(
        "an unused setting",
        with_environment(NATS_USER="a"),
        "settings.combinations",
        "warning",
        "NATS_USER",
        "NATS_URL",
    ),
    Fault("a used port", other_program_on_port, "ports.api", "error", "in use by", "another PORT"),
    Fault("a foreign address", with_environment(HOST="192.0.2.1"), "ports.metrics", "error", "192.0.2.1", "for all"),
    Fault("no server", with_environment(NATS_URL="nats://127.0.0.1:1"), "queue.address", "error", "refused", "start"),
    Fault(
        "an unknown name", with_environment(NATS_URL="nats://q.invalid"), "queue.address", "error", "resolved", "DNS"
    ),
    Fault(
        "a wrong password",
        with_nats({"authorization": {"user": "u", "password": "p"}}, NATS_USER="u", NATS_PASSWORD=PASSWORD),
        "queue.access",
        "error",
        "rejects the credentials",
        "NATS_PASSWORD",
    ),
    Fault("an unknown authority", unknown_authority, "queue.access", "error", "TLS: self", "NATS_TLS_CA_FILE"),
    Fault(
        "a missing credentials file",
        with_nats({}, NATS_CREDS_FILE="/nowhere/creds"),
        "queue.access",
        "error",
        "does not exist",
        "NATS_CREDS_FILE",
    ),
    Fault(
        "incomplete credentials",
        incomplete_credentials,
        "queue.access",
        "error",
        "contains no JWT",
        "nsc generate creds",
    ),
    Fault(
        "a server without TLS",
        server_without_tls,
        "queue.access",
        "error",
        "TLS is required by the settings, but not supported",
        "tls {}",
    ),
    Fault("an invalid seed", with_nats({}, NATS_NKEY_SEED=PASSWORD), "queue.access", "error", "NKey", "NKEY_SEED"),
    Fault("no JetStream", with_nats({"jetstream": False}), "queue.jetstream", "error", "is disabled", "jetstream {}"),
    Fault("small messages", with_nats({"max_payload": 1 << 20}), "queue.payload", "warning", "413", "max_payload"),
    Fault("more replicas than servers", with_nats({}, NATS_REPLICAS=3), "queue.replicas", "error", "one server", "=1"),
    Fault("old streams", streams_with_other_settings, "queue.streams", "warning", "10000", "same TASK_*"),
    Fault("tasks without workers", tasks_without_workers, "queue.workers", "error", "waiting: 3", "worker`"),
    Fault("a small queue", small_store, "queue.storage", "warning", "1 GiB, less", "raise the limit"),
    Fault("a locked folder", locked_data_dir, "queue.holder", "error", "another instance", "DATA_DIR"),
    Fault("a full disk", full_disk, "disk.data-dir", "error", "no space left", "free some space"),
    Fault("a limit on file size", with_environment("-f 0"), "disk.data-dir", "error", "too large", "DATA_DIR"),
    Fault(
        "a log without a folder",
        with_environment(LOG_FILE="/proc/no/log"),
        "disk.log-file",
        "error",
        "not writable",
        "folder",
    ),
    Fault("missing models", no_models, "models.files", "error", "face_landmark", "make models"),
    Fault("a truncated model", models_with(truncate), "models.files", "error", "face_landmark", "original files"),
    Fault("a changed model", models_with(change_byte), "models.files", "warning", "not the original", "original files"),
    Fault(
        "foreign metric files", foreign_files, "metric-files.names", "warning", "counter_12345", "only this instance"
    ),
    Fault(
        "a read-only folder",
        with_environment(PROMETHEUS_MULTIPROC_DIR="/proc/metrics"),
        "metric-files.folder",
        "error",
        "not writable",
        "PROMETHEUS_MULTIPROC_DIR",
    ),
    Fault("stale files", files_of_an_exited_process, "metric-files.slots", "warning", "worker-7", "delete pod"),
    Fault("a suspended service", suspended_exporter, "service.running", "error", "does not respond", "restart it"),
    Fault("missing workers", fewer_workers, "service.workers", "warning", "1 of 3", "FacialServiceWorkerExits"),
    Fault("too little memory", cgroup(memory_dot_max="134217728"), "limits.memory", "error", "128 MiB", "api.workers"),
    Fault(
        "killed processes",
        cgroup(memory_dot_max="8589934592", memory_dot_events="oom 1\noom_kill 2"),
        "limits.memory",
        "warning",
        "because of the limit: 2",
        "FacialServiceOomKilled",
    ),
    Fault(
        "too little CPU",
        cgroup(memory_dot_max="max", cpu_dot_max="100000 100000"),
        "limits.cpu",
        "warning",
        "1 CPU for 4",
        "fewer processes",
    ),
    Fault(
        "too few processes",
        cgroup(memory_dot_max="max", pids_dot_max="20"),
        "limits.processes",
        "error",
        "limit 20",
        "podPidsLimit",
    ),
    Fault("few open files", with_environment("-n 200"), "limits.files", "error", "200", "ulimit -n"),
    Fault(
        "a low limit of OpenCV",
        with_environment(OPENCV_IO_MAX_IMAGE_PIXELS=1000),
        "python.pixels",
        "warning",
        "rejected",
        "unset",
    ),
)

"""Faults of a deployment, each for real: how it is brought about, and what `facial-service doctor` is to say of it."""

from __future__ import annotations

import asyncio
import http.server
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nats
import psutil
import pytest

from app.cli.doctor.check_models import PACKAGE_MODELS
from app.settings import Settings
from app.tasks.stream import ensure_streams, task_subject

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

INHERITED = ("PATH", "HOME", "LANG", "TMPDIR", "VIRTUAL_ENV")
COMMAND = (sys.executable, "-m", "app", "doctor")
PASSWORD = "QXpasswordQX"  # noqa: S105 - no secret; looked for where none should be
HEALTH = {"live": True, "ready": True, "draining": False, "workers": [], "task_workers": []}


@dataclass
class Site:
    """What faults are made of.

    Attributes:
        folder: for files of this fault alone.
        run_nats: the fixture.
        service: an instance with a queue of its own that runs well, and the variables that it was started with.
        env: likewise.
    """

    folder: Path
    run_nats: Callable[..., AbstractContextManager[Any]]
    service: Any
    env: dict[str, object]


@dataclass
class Seeded:
    """How the command is to be run: with which variables, options and limits of the shell."""

    env: dict[str, object] = field(default_factory=dict)
    options: list[str] = field(default_factory=list)
    ulimit: str = ""


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        name: of the fault.
        seed: brings it about.
        part: the finding that is to tell it.
        status: how bad that is.
        words: what stands in the finding, one way or another.
        advice: what stands in the advice.
    """

    name: str
    seed: Callable[[Site], AbstractContextManager[Seeded]]
    part: str
    status: str
    words: str
    advice: str


def run_doctor(env: dict[str, object], *options: str, ulimit: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command with these variables and no others that are settings; in a shell where a limit is given."""
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
    """Return a port that nobody has, below those of outgoing connections."""
    for port in random.sample(range(10_000, 20_000), 1000):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise OSError("no port is free")


def given(ulimit: str = "", **env: object) -> Callable[[Site], Any]:
    """Seed a fault that is in the variables or the limits of the shell alone."""

    def seed(_: Site) -> AbstractContextManager[Seeded]:
        return nullcontext(Seeded(dict(env), ulimit=ulimit))

    return seed


def with_nats(config: dict[str, Any], **env: object) -> Callable[[Site], Any]:
    """Seed a fault of a NATS server, by its configuration."""

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
def streams_of_other_settings(site: Site) -> Iterator[Seeded]:
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
def authority_unknown(site: Site) -> Iterator[Seeded]:
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("no openssl on PATH to make certificates with")
    key, certificate = site.folder / "key.pem", site.folder / "cert.pem"
    make = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=nats"]
    subprocess.run([program, *make, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    with site.run_nats(tls={"cert_file": str(certificate), "key_file": str(key)}) as server:
        yield Seeded({"NATS_URL": server.url})


@contextmanager
def plain_server(site: Site) -> Iterator[Seeded]:
    with site.run_nats() as server:
        yield Seeded({"NATS_URL": server.url.replace("nats://", "tls://")})


@contextmanager
def stranger_on_port(_: Site) -> Iterator[Seeded]:
    with serving("/nothing", {}) as port:
        yield Seeded({"PORT": port, "METRICS_PORT": free_port()})


@contextmanager
def stopped_exporter(site: Site) -> Iterator[Seeded]:
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
def held_data_dir(site: Site) -> Iterator[Seeded]:
    yield Seeded({**site.env, "PORT": free_port(), "METRICS_PORT": free_port()})


@contextmanager
def files_of_a_dead_process(site: Site) -> Iterator[Seeded]:
    file = Path(str(site.env["PROMETHEUS_MULTIPROC_DIR"])) / "gauge_livesum_worker-7.db"
    file.write_bytes(b"")  # a file that is empty is left out of a scrape
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
        pytest.skip("this user may not mount a small file system")
    try:
        with suppress(OSError), (site.folder / "all").open("wb") as file:
            while True:
                file.write(bytes(65536))
        yield Seeded({"DATA_DIR": site.folder})
    finally:
        subprocess.run([str(shutil.which("umount")), str(site.folder)], check=True)


def models_with(change: Callable[[Path], None]) -> Callable[[Site], Any]:
    """Seed a fault of the models, by a change to a copy of them."""

    @contextmanager
    def seed(site: Site) -> Iterator[Seeded]:
        if not PACKAGE_MODELS.is_dir():
            pytest.skip("no models; `make models` gets them")
        folder = shutil.copytree(PACKAGE_MODELS, site.folder / "models")
        change(folder / "face_landmark.tflite")
        yield Seeded({"MODELS_DIR": folder})

    return seed


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:50_000])


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF  # among the weights: it is read, and gives something else
    file.write_bytes(data)


@contextmanager
def no_models(site: Site) -> Iterator[Seeded]:
    yield Seeded({"MODELS_DIR": site.folder})


def group(**files: str) -> Callable[[Site], Any]:
    """Seed a limit of the container, by files such as the kernel shows."""

    @contextmanager
    def seed(site: Site) -> Iterator[Seeded]:
        for name, text in files.items():
            file = site.folder / name.replace("__", "/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.with_name(file.name.replace("_dot_", ".")).write_text(text, encoding="ascii")
        yield Seeded({"WORKERS": 4, "ENABLE_TASKS": "false"}, ["--cgroup-root", str(site.folder)])

    return seed


def clock_of_service(ahead_s: float) -> Callable[[Site], Any]:
    @contextmanager
    def seed(_: Site) -> Iterator[Seeded]:
        with serving("/health", HEALTH, ahead_s) as port:
            yield Seeded({"METRICS_PORT": port, "PORT": 0})

    return seed


def clock_of_queue(ahead_s: float) -> Callable[[Site], Any]:
    @contextmanager
    def seed(_: Site) -> Iterator[Seeded]:
        now = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(time.time() + ahead_s))
        with serving("/varz", {"now": f"{now}.123456789Z"}) as port:
            yield Seeded(
                {"NATS_URL": f"nats://127.0.0.1:{free_port()}", "NATS_MONITOR_URL": f"http://127.0.0.1:{port}"}
            )

    return seed


@contextmanager
def serving(path: str, document: dict[str, Any], ahead_s: float = 0) -> Iterator[int]:
    """Answer one path, by a clock of one's own; give the port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response_only(200 if self.path == path else 404)
            self.send_header("Date", formatdate(time.time() + ahead_s, usegmt=True))
            self.end_headers()
            self.wfile.write(json.dumps(document if self.path == path else {}).encode())

        def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - the base class's name
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


FAULTS = (
    Fault("a value out of range", given(WORKERS=0), "settings.values", "error", "WORKERS", "unset it"),
    Fault("two ports that are one", given(PORT=9000), "settings.values", "error", "PORT and METRICS_PORT", "unset"),
    Fault("a misspelt name", given(MAX_BODY_BYTE=1), "settings.names", "warning", "MAX_BODY_BYTE", "to MAX_BODY_BYTES"),
    Fault("a rehearsal", given(FAULT_WORK_S=1), "settings.combinations", "warning", "FAULT_WORK_S", "unset"),
    Fault("a queue's setting alone", given(NATS_USER="a"), "settings.combinations", "warning", "NATS_USER", "NATS_URL"),
    Fault("a port of somebody else's", stranger_on_port, "ports.api", "error", "taken by", "another PORT"),
    Fault("an address of nobody here", given(HOST="192.0.2.1"), "ports.metrics", "error", "192.0.2.1", "for all"),
    Fault("a queue nobody answers", given(NATS_URL="nats://127.0.0.1:1"), "queue.address", "error", "refused", "start"),
    Fault("a queue without a name", given(NATS_URL="nats://q.invalid"), "queue.address", "error", "resolved", "DNS"),
    Fault(
        "a wrong password",
        with_nats({"authorization": {"user": "u", "password": "p"}}, NATS_USER="u", NATS_PASSWORD=PASSWORD),
        "queue.access",
        "error",
        "refuses these credentials",
        "NATS_PASSWORD",
    ),
    Fault("an unknown authority", authority_unknown, "queue.access", "error", "TLS: self", "NATS_TLS_CA_FILE"),
    Fault(
        "a credentials file that is gone",
        with_nats({}, NATS_CREDS_FILE="/nowhere/creds"),
        "queue.access",
        "error",
        "is not there",
        "NATS_CREDS_FILE",
    ),
    Fault(
        "TLS that the server has not",
        plain_server,
        "queue.access",
        "error",
        "TLS is asked for, and the server does without",
        "tls {}",
    ),
    Fault("a seed that is none", with_nats({}, NATS_NKEY_SEED=PASSWORD), "queue.access", "error", "NKey", "NKEY_SEED"),
    Fault("no JetStream", with_nats({"jetstream": False}), "queue.jetstream", "error", "is off", "jetstream {}"),
    Fault("small messages", with_nats({"max_payload": 1 << 20}), "queue.payload", "warning", "413", "max_payload"),
    Fault("more copies than servers", with_nats({}, NATS_REPLICAS=3), "queue.replicas", "error", "one server", "=1"),
    Fault("streams of old settings", streams_of_other_settings, "queue.streams", "warning", "10000", "same TASK_*"),
    Fault("tasks without workers", tasks_without_workers, "queue.workers", "error", "3 tasks wait", "worker`"),
    Fault("a queue too small", small_store, "queue.storage", "warning", "1 GiB in all", "raise the limit"),
    Fault("a folder of another instance", held_data_dir, "queue.holder", "error", "another instance", "DATA_DIR"),
    Fault("a disk that is full", full_disk, "disk.data-dir", "error", "no space left", "make room"),
    Fault("a limit on files", given("-f 0"), "disk.data-dir", "error", "too large", "DATA_DIR"),
    Fault(
        "a log in no folder", given(LOG_FILE="/proc/no/log"), "disk.log-file", "error", "cannot be", "another folder"
    ),
    Fault("models that are not there", no_models, "models.files", "error", "face_landmark", "make models"),
    Fault("a model cut short", models_with(cut_short), "models.detection", "error", "face_landmark", "right files"),
    Fault("a model with a wrong byte", models_with(flip), "models.files", "warning", "another hash", "right files"),
    Fault("foreign metric files", foreign_files, "metric-files.names", "warning", "counter_12345", "of its own"),
    Fault(
        "a folder that is read-only",
        given(PROMETHEUS_MULTIPROC_DIR="/proc/metrics"),
        "metric-files.folder",
        "error",
        "cannot be written",
        "PROMETHEUS_MULTIPROC_DIR",
    ),
    Fault("files of the dead", files_of_a_dead_process, "metric-files.slots", "warning", "worker-7", "delete pod"),
    Fault("a service that is stopped", stopped_exporter, "service.running", "error", "does not answer", "end it"),
    Fault(
        "workers that are missing", fewer_workers, "service.workers", "warning", "1 of 3", "FacialServiceWorkerExits"
    ),
    Fault("a clock far ahead", clock_of_service(3600), "clock.service", "error", "ahead of", "chrony"),
    Fault("a clock behind", clock_of_queue(-12), "clock.queue", "warning", "behind", "chrony"),
    Fault("too little memory", group(memory_dot_max="134217728"), "limits.memory", "error", "128 MiB", "api.workers"),
    Fault(
        "too little memory, as older kernels show it",
        group(memory__memory_dot_limit_in_bytes="134217728"),
        "limits.memory",
        "error",
        "128 MiB",
        "resources.limits.memory",
    ),
    Fault(
        "killed for want of memory",
        group(memory_dot_max="8589934592", memory_dot_events="oom 1\noom_kill 2"),
        "limits.memory",
        "warning",
        "killed for want of it: 2",
        "FacialServiceOomKilled",
    ),
    Fault(
        "too little CPU",
        group(memory_dot_max="max", cpu_dot_max="100000 100000"),
        "limits.cpu",
        "warning",
        "1 cores for 4",
        "fewer processes",
    ),
    Fault(
        "too few processes",
        group(memory_dot_max="max", pids_dot_max="20"),
        "limits.processes",
        "error",
        "20 allowed",
        "podPidsLimit",
    ),
    Fault("few open files", given("-n 200"), "limits.files", "error", "200", "ulimit -n"),
    Fault(
        "a bound that OpenCV has",
        given(OPENCV_IO_MAX_IMAGE_PIXELS=1000),
        "python.pixels",
        "warning",
        "not decoded",
        "unset",
    ),
)

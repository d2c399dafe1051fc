"""The embedded queue and task workers, and separate workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import orjson
import psutil
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.live

CROP = "/api/v1/frontal/crop"
JSON = {"Content-Type": "application/json"}
ENDED = {"SUCCESS", "FAILURE", "CANCELLED"}


def submit(service: Any, body: bytes) -> str:
    """Submit a task, which must be accepted."""
    answer = httpx.post(f"{service.api}{CROP}/submit", content=body, headers=JSON, timeout=30)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["task_id"])


def end_of(service: Any, task_id: str) -> str:
    """Wait for a task to end, and return its status."""
    answer = httpx.get(f"{service.api}{CROP}/status/{task_id}?wait=30", timeout=60).raise_for_status()
    return str(answer.json()["status"])


def is_gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def family(service: Any) -> list[psutil.Process]:
    """Return every process of an instance, except the master."""
    return psutil.Process(service.pid).children(recursive=True)


def refuse(verb: str, **env: object) -> subprocess.CompletedProcess[str]:
    """Start the command, which must end by itself."""
    settings = {"PORT": "0", "METRICS_PORT": "0", "LOG_FORMAT": "json", "PATH": os.environ["PATH"]}
    given = {name: str(value) for name, value in env.items()}
    command = [sys.executable, "-m", "app", verb]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=settings | given, timeout=60)


@pytest.fixture(scope="module")
def own(run_service: Any) -> Iterator[Any]:
    """Return an instance that these tests may damage."""
    with run_service(WORKERS=1, TASK_WORKERS=2, ENABLE_TASKS="true") as service:
        service.wait_tasks()
        yield service


def test_one_scrape_and_one_report_have_everything(own: Any, sample: Any, wait_until: Callable[..., Any]) -> None:
    assert end_of(own, submit(own, sample.json())) == "SUCCESS"
    completed = ("task_completions_total", frozenset({("type", "facial_processing"), ("status", "SUCCESS")}))
    wait_until(lambda: own.scrape()[completed] >= 1, limit_s=30, what="the task's count")
    processes = {dict(labels)["process"] for name, labels in own.scrape() if name == "memory_usage_bytes"}
    expected = {"master", "exporter", "worker-0", "nats-server", "task-master", "task-0", "task-1"}
    assert processes == expected
    from_api = httpx.get(f"{own.api}/metrics", timeout=30).text
    assert all(f'memory_usage_bytes{{process="{name}"}}' in from_api for name in expected)
    for base in (own.metrics, own.api):
        report = httpx.get(f"{base}/health", timeout=30).json()
        assert [worker["name"] for worker in report["workers"]] == ["worker-0"]
        assert {worker["name"] for worker in report["task_workers"]} == {"task-0", "task-1"}
    assert {worker["pid"] for worker in own.health()["task_workers"]} == {process.pid for process in own.task_workers()}


def test_nobody_else_can_read_the_queue(own: Any) -> None:
    configuration = Path(own.nats_server().cmdline()[2])
    assert configuration.stat().st_mode & 0o077 == 0
    values = orjson.loads(configuration.read_bytes())
    users = values["authorization"]["users"] + values["accounts"]["$SYS"]["users"]
    for password in {user["password"] for user in users}:
        assert len(password) > 30
        assert password not in own.log_text()
        assert not any(password in argument for process in family(own) for argument in process.cmdline())
    assert {peer.laddr.ip for peer in own.nats_server().net_connections("tcp")} == {"127.0.0.1"}


def test_second_instance_on_the_folder_is_refused_at_once(own: Any, sample: Any) -> None:
    folder = Path(own.nats_server().cmdline()[2]).parent
    done = refuse("serve", DATA_DIR=folder)
    assert done.returncode == 1
    assert done.stderr == (
        f"facial-service: DATA_DIR {folder} is in use by process {own.pid}; "
        "stop it, or set another DATA_DIR for this instance\n"
    )
    assert end_of(own, submit(own, sample.json())) == "SUCCESS"


def test_queue_comes_back_with_its_tasks(own: Any, sample: Any, wait_until: Callable[..., Any]) -> None:
    before, server = submit(own, sample.json()), own.nats_server()
    server.kill()
    wait_until(lambda: has_another(own.nats_server, server), limit_s=30, what="another nats-server")
    assert own.health()["ready"], "the API does not depend on it"
    wait_until(lambda: reaches(own, before), limit_s=30, what="the queue")
    assert end_of(own, before) == "SUCCESS"
    assert end_of(own, submit(own, sample.json())) == "SUCCESS"
    (line,) = [line for line in own.log_lines() if line.get("child") == "nats-server"]
    assert (line["level"], line["how"], line["pid"]) == (
        "ERROR",
        "killed by SIGKILL (possibly out of memory)",
        server.pid,
    )


def test_task_workers_come_back_after_those_of_a_killed_master(
    own: Any, sample: Any, wait_until: Callable[..., Any]
) -> None:
    master, workers = own.worker_master(), own.task_workers()
    master.kill()
    new = wait_until(lambda: has_another(own.worker_master, master), limit_s=30, what="another master")
    assert all(map(is_gone, workers)), "two would write under one name"
    own.wait_tasks()
    assert end_of(own, submit(own, sample.json())) == "SUCCESS"
    assert {process.ppid() for process in own.task_workers()} == {new.pid}
    assert {worker["name"] for worker in own.health()["task_workers"]} == {"task-0", "task-1"}
    assert len([line for line in own.log_lines() if line.get("child") == "task-master"]) == 1


def has_another(find: Callable[[], psutil.Process], old: psutil.Process) -> psutil.Process | None:
    try:
        found = find()
    except psutil.NoSuchProcess:
        return None
    return found if found.pid != old.pid else None


def reaches(service: Any, task_id: str) -> bool:
    return httpx.get(f"{service.api}{CROP}/status/{task_id}", timeout=30).status_code == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_every_way_to_stop_leaves_nobody(run_service: Any, number: signal.Signals) -> None:
    with run_service(WORKERS=1, TASK_WORKERS=1, ENABLE_TASKS="true") as service:
        service.wait_tasks()
        processes = family(service)
        assert len(processes) == 5
        assert service.stop(number) == 0
        assert all(map(is_gone, processes))
        lines = service.log_lines()
    assert [line for line in lines if "raw" in line or line.get("level") in {"WARNING", "ERROR", "CRITICAL"}] == []
    assert [line["reason"] for line in lines if "reason" in line] == ["stopped", "stopped"]


def test_ctrl_c_in_the_terminal_reaches_the_queue_in_its_turn(run_service: Any) -> None:
    with run_service(WORKERS=1, TASK_WORKERS=1, ENABLE_TASKS="true") as service:
        service.wait_tasks()
        processes = [process for process in family(service) if os.getpgid(process.pid) == os.getpgid(service.pid)]
        # A terminal sends the signal to every process of the foreground group.
        for process in processes:
            process.send_signal(signal.SIGINT)
        assert service.stop(signal.SIGINT) == 0
        lines = service.log_lines()
    assert len(processes) == 1, "managed processes are in separate groups"
    assert [line for line in lines if line.get("level") in {"WARNING", "ERROR"}] == []


def test_quick_stop_waits_for_no_work(run_service: Any, sample: Any) -> None:
    with run_service(WORKERS=1, TASK_WORKERS=1, ENABLE_TASKS="true", FAULT_WORK_S=60) as service:
        service.wait_tasks()
        submit(service, sample.json())
        service.wait_for_lines(lambda line: line.get("event") == "started")
        processes = family(service)
        assert service.stop(signal.SIGQUIT) == 0, "within the limit of the test, which is below that of the work"
        assert all(map(is_gone, processes))
        lines = service.log_lines()
    assert [line for line in lines if line.get("level") in {"ERROR", "CRITICAL"}] == []


def test_killed_master_leaves_nobody_and_the_folder_free(
    run_service: Any, sample: Any, wait_until: Callable[..., Any], tmp_path: Path
) -> None:
    with run_service(WORKERS=1, TASK_WORKERS=1, DATA_DIR=tmp_path) as service:
        service.wait_tasks()
        done = submit(service, sample.json())
        assert end_of(service, done) == "SUCCESS"
        processes = family(service)
        os.kill(service.pid, signal.SIGKILL)
        service.stop()
        with run_service(WORKERS=1, TASK_WORKERS=1, DATA_DIR=tmp_path) as again:
            again.wait_tasks()
            assert end_of(again, done) == "SUCCESS", "what was stored is there again"
            assert end_of(again, submit(again, sample.json())) == "SUCCESS"
            wait_until(lambda: all(map(is_gone, processes)), limit_s=30, what="an end to all of them")


def test_metrics_off(run_service: Any, sample: Any) -> None:
    with run_service(WORKERS=1, TASK_WORKERS=1, ENABLE_TASKS="true", ENABLE_METRICS="false") as service:
        service.wait_tasks()
        assert end_of(service, submit(service, sample.json())) == "SUCCESS"
        assert httpx.get(f"{service.metrics}/metrics", timeout=30).status_code == 404


def test_no_tasks_no_processes_for_them(run_service: Any, run_nats: Any) -> None:
    with run_service(WORKERS=1, ENABLE_TASKS="false") as service:
        assert len(family(service)) == 2
        assert service.health()["task_workers"] == []
    with run_nats() as nats, run_service(WORKERS=1, NATS_URL=nats.url) as service:
        assert len(family(service)) == 2


def test_worker_for_itself(
    run_service: Any, run_nats: Any, run_worker: Any, sample: Any, wait_until: Callable[..., Any]
) -> None:
    with (
        run_nats(authorization={"token": "a-token"}) as nats,
        run_worker(NATS_URL=nats.url, NATS_TOKEN="a-token", TASK_WORKERS=2) as worker,  # noqa: S106 - not a real one
        run_service(WORKERS=1, NATS_URL=nats.url, NATS_TOKEN="a-token") as service,  # noqa: S106
    ):
        assert worker.tasks == 2
        assert {row["name"] for row in worker.health()["workers"]} == {"task-0", "task-1"}
        wait_until(lambda: reaches_queue(service), limit_s=30, what="the queue")
        assert end_of(service, submit(service, sample.json())) == "SUCCESS"
        victim = worker.task_workers()[0]
        victim.kill()
        killed = ("app_worker_exits_total", frozenset({("reason", "killed")}))
        wait_until(lambda: worker.scrape()[killed] == 1, limit_s=30, what="the count of the kill")
        wait_until(lambda: {row["state"] for row in worker.health()["workers"]} == {"ready"}, limit_s=30, what="two")
        processes = {dict(labels)["process"] for name, labels in worker.scrape() if name == "memory_usage_bytes"}
        assert processes == {"master", "exporter", "task-0", "task-1"}
        assert end_of(service, submit(service, sample.json())) == "SUCCESS"
        everybody = family(worker)
        assert worker.stop() == 0
        assert all(map(is_gone, everybody))


def reaches_queue(service: Any) -> bool:
    return httpx.get(f"{service.api}{CROP}/status/{'0' * 32}", timeout=30).status_code == 404


def test_worker_waits_for_a_queue_that_is_not_there_yet(run_nats: Any, run_worker: Any) -> None:
    with run_nats() as nats:
        nats.kill()
        nats.start()  # while the worker starts
        with run_worker(NATS_URL=nats.url, TASK_WORKERS=1) as worker:
            assert worker.health()["ready"]


def test_worker_without_a_queue_says_so() -> None:
    done = refuse("worker")
    assert done.returncode == 2
    assert done.stderr.startswith("facial-service: NATS_URL: expected the URL of a NATS server, got nothing")


@pytest.mark.parametrize("command", ["serve", "worker"])
@pytest.mark.parametrize(
    ("content", "missing"),
    [
        ("-----BEGIN USER NKEY SEED-----\nx\n------END USER NKEY SEED------\n", "JWT"),
        ("-----BEGIN NATS USER JWT-----\nx\n------END NATS USER JWT------\n", "NKey seed"),
        ("secret", "JWT and no NKey seed"),
    ],
)
def test_incomplete_credentials_are_refused_at_start(tmp_path: Path, command: str, content: str, missing: str) -> None:
    file = tmp_path / "user.creds"
    file.write_text(content)
    done = refuse(command, NATS_URL="nats://127.0.0.1:1", NATS_CREDS_FILE=file)
    assert done.returncode == 1
    assert done.stderr == (
        f"facial-service: NATS_CREDS_FILE {file}: expected a JWT and an NKey seed, as `nsc generate creds` writes "
        f"them, got no {missing}\n"
    )


def test_task_workers_are_looked_after_as_the_api_s_are(
    run_nats: Any, run_worker: Any, wait_until: Callable[..., Any]
) -> None:
    with run_nats() as nats, run_worker(NATS_URL=nats.url, TASK_WORKERS=1, TIMEOUT_S=2) as worker:
        (silent,) = worker.task_workers()
        silent.send_signal(signal.SIGSTOP)
        timeout = ("app_worker_exits_total", frozenset({("reason", "timeout")}))
        wait_until(lambda: worker.scrape()[timeout] == 1, limit_s=60, what="the end of the silent one")
        os.kill(worker.pid, signal.SIGTTIN)
        wait_until(lambda: states(worker) == {"task-0": "ready", "task-1": "ready"}, limit_s=30, what="a second one")
        before = {process.pid for process in worker.task_workers()}
        os.kill(worker.pid, signal.SIGHUP)
        wait_until(
            lambda: not before & {row["pid"] for row in worker.health()["workers"]} and len(states(worker)) == 2,
            limit_s=60,
            what="two new processes",
        )
        assert set(states(worker)) == {"task-0", "task-1"}


def states(worker: Any) -> dict[str, str]:
    return {row["name"]: row["state"] for row in worker.health()["workers"]}


def test_workers_of_a_killed_master_end(run_nats: Any, run_worker: Any, wait_until: Callable[..., Any]) -> None:
    with run_nats() as nats, run_worker(NATS_URL=nats.url, TASK_WORKERS=2) as worker:
        processes = family(worker)
        assert len(processes) == 3
        os.kill(worker.pid, signal.SIGKILL)
        wait_until(lambda: all(map(is_gone, processes)), limit_s=30, what="an end to workers and exporter")


def test_bounds_can_be_lowered_on_an_existing_store(run_service: Any, sample: Any, tmp_path: Path) -> None:
    """A server with less storage than its streams reserve would reject every message."""
    mib = 1024 * 1024
    lower = {
        "TASK_QUEUE_MAX_BYTES": 128 * mib,
        "RESULT_MAX_BYTES": 128 * mib,
        "TASK_DEAD_MAX_BYTES": 64 * mib,
    }
    accepted = []
    for settings in ({}, lower, lower):
        with run_service(ENABLE_TASKS="true", WORKERS=1, TASK_WORKERS=1, DATA_DIR=tmp_path, **settings) as service:
            answer = httpx.post(
                f"{service.api}/api/v1/frontal/crop/submit",
                content=sample.json(),
                headers={"Content-Type": "application/json"},
                timeout=30,
            )
            assert answer.status_code == 202, answer.text
            accepted.append(answer.json()["task_id"])
            for task_id in accepted:
                status = httpx.get(f"{service.api}/api/v1/frontal/crop/status/{task_id}?wait=30", timeout=60)
                assert status.json()["status"] == "SUCCESS", "what was stored before is still there"
            assert not [line for line in service.log_lines() if "keeps its old settings" in str(line)]

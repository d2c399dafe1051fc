"""Tasks during faults of a worker, the queue or the task itself, and during overload."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from datetime import datetime
from typing import TYPE_CHECKING, Any

import httpx
import orjson
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import psutil

pytestmark = pytest.mark.live

CROP = "/api/v1/frontal/crop"
JSON = {"Content-Type": "application/json"}
ACK_WAIT_S = 2
FINAL = {"SUCCESS", "FAILURE", "CANCELLED"}


def submit(service: Any, body: bytes) -> httpx.Response:
    return httpx.post(f"{service.api}{CROP}/submit", content=body, headers=JSON, timeout=30)


def take(service: Any, body: bytes, wait_until: Callable[..., Any]) -> str:
    """Submit a task as soon as the queue is reachable."""

    def taken() -> str | None:
        answer = submit(service, body)
        assert answer.status_code in {202, 503}, answer.text
        return str(answer.json()["task_id"]) if answer.status_code == 202 else None

    return str(wait_until(taken, limit_s=30, what="a queue that takes tasks"))


def status(service: Any, task_id: str, wait_s: float = 0) -> dict[str, Any]:
    answer = httpx.get(f"{service.api}{CROP}/status/{task_id}?wait={wait_s}", timeout=90)
    document: dict[str, Any] = answer.raise_for_status().json()
    return document


def started(service: Any, task_id: str, attempt: int) -> dict[str, Any] | None:
    """Return the log line of the start of an attempt."""
    for line in service.log_lines():
        if line.get("task_id") == task_id and line.get("event") == "started" and line.get("attempt") == attempt:
            found: dict[str, Any] = line
            return found
    return None


def seconds(line: dict[str, Any]) -> float:
    return datetime.fromisoformat(line["time"]).timestamp()


def test_task_of_a_killed_worker_goes_to_another_in_time(
    run_service: Any, sample: Any, wait_until: Callable[..., Any]
) -> None:
    with run_service(ENABLE_TASKS="true", TASK_WORKERS=2, FAULT_WORK_S=3, TASK_ACK_WAIT_S=ACK_WAIT_S) as service:
        task_id = take(service, sample.json(), wait_until)
        first = wait_until(lambda: started(service, task_id, 1), limit_s=30, what="the first attempt")
        victim = wait_until(lambda: working(service), limit_s=10, what="the one that works")
        victim.kill()
        killed = time.time()
        second = wait_until(lambda: started(service, task_id, 2), limit_s=30, what="the second attempt")
        document = status(service, task_id, 60)
        scraped = service.scrape()
    assert seconds(first) < killed
    assert seconds(second) - killed <= ACK_WAIT_S + 1
    assert document["status"] == "SUCCESS"
    assert document["attempts"] == 2
    assert scraped["task_redeliveries_total", frozenset({("type", "facial_processing")})] >= 1


def working(service: Any) -> psutil.Process | None:
    """Return the task process that has used CPU for a while, as the injected work does."""
    heavy = [worker for worker in service.task_workers() if worker.cpu_percent(interval=0.2) > 30]
    return heavy[0] if heavy else None


def test_poison_task_is_put_aside_and_the_others_go_on(
    run_service: Any, sample: Any, wait_until: Callable[..., Any], tmp_path: Path
) -> None:
    settings = {"TASK_ACK_WAIT_S": 1, "TASK_MAX_DELIVERIES": 3, "TASK_WORKERS": 2, "DATA_DIR": tmp_path}
    poison = sample.json(segmentation_map={"poison": [1, 2, 98, 327]})
    with run_service(ENABLE_TASKS="true", FAULT_POISON_REGION="poison", **settings) as service:
        bad = take(service, poison, wait_until)
        good = [take(service, sample.json(), wait_until) for _ in range(20)]
        assert {status(service, task_id, 60)["status"] for task_id in good} == {"SUCCESS"}
        document = status(service, bad, 60)
        scraped = service.scrape()
        listed = run_tasks(tmp_path, "dead", "list", "--json")
        assert run_tasks(tmp_path, "dead", "retry", bad).returncode == 0
        again = wait_until(lambda: ended(service, bad), limit_s=60, what="the end of the second round")
        unknown = run_tasks(tmp_path, "dead", "drop", "0" * 32)
        dropped = run_tasks(tmp_path, "dead", "drop", "--all")
        after = run_tasks(tmp_path, "dead", "list", "--json")
    assert (document["status"], document["error"]["code"], document["attempts"]) == ("FAILURE", "task_gave_up", 3)
    assert scraped["task_dead_total", frozenset({("type", "facial_processing")})] == 1
    assert scraped["app_worker_exits_total", frozenset({("reason", "killed")})] == 3
    (entry,) = orjson.loads(listed.stdout)
    assert (entry["task_id"], entry["attempts"]) == (bad, 3)
    assert (again["error"]["code"], again["attempts"]) == ("task_gave_up", 3)
    assert (unknown.returncode, dropped.returncode) == (1, 0)
    assert orjson.loads(after.stdout) == []


def ended(service: Any, task_id: str) -> dict[str, Any] | None:
    document = status(service, task_id)
    return document if document["status"] in FINAL else None


def run_tasks(data_dir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "DATA_DIR": str(data_dir)}
    command = [sys.executable, "-m", "app", "tasks", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_full_queue_refuses_and_loses_nothing(run_service: Any, sample: Any, wait_until: Callable[..., Any]) -> None:
    settings = {"TASK_QUEUE_MAX_MESSAGES": 5, "TASK_WORKERS": 1, "FAULT_WORK_S": 0.3}
    with run_service(ENABLE_TASKS="true", **settings) as service:
        first = take(service, sample.json(), wait_until)
        answers = [submit(service, sample.json()) for _ in range(25)]
        taken = [first, *(answer.json()["task_id"] for answer in answers if answer.status_code == 202)]
        refused = [answer for answer in answers if answer.status_code != 202]
        ends = [status(service, task_id, 60)["status"] for task_id in taken]
        scraped = service.scrape()
        assert submit(service, sample.json()).status_code == 202, "there is room again"
    assert refused
    assert {(answer.status_code, answer.json()["code"]) for answer in refused} == {(503, "queue_full")}
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    assert Counter(ends) == {"SUCCESS": len(taken)}
    assert scraped["api_rejections_total", frozenset({("reason", "queue_full")})] == len(refused)
    assert scraped["task_submissions_total", frozenset({("type", "facial_processing")})] == len(taken)


def test_a_worker_is_ready_before_its_queue(
    run_service: Any, run_nats: Any, run_worker: Any, sample: Any, wait_until: Callable[..., Any]
) -> None:
    with run_nats() as nats:
        nats.kill()
        with run_worker(NATS_URL=nats.url) as worker:  # waits until it is ready
            assert worker.health()["ready"]
            nats.start()
            with run_service(NATS_URL=nats.url) as service:
                task_id = take(service, sample.json(), wait_until)
                assert status(service, task_id, 30)["status"] == "SUCCESS"


def test_queue_away_leaves_the_synchronous_route_alone(
    run_service: Any, run_nats: Any, run_worker: Any, sample: Any, wait_until: Callable[..., Any]
) -> None:
    settings = {"NATS_TIMEOUT_S": 1}
    with (
        run_nats() as nats,
        run_service(NATS_URL=nats.url, **settings) as service,
        run_worker(NATS_URL=nats.url, **settings),
    ):
        before = take(service, sample.json(), wait_until)
        assert status(service, before, 30)["status"] == "SUCCESS"
        nats.kill()
        answers = [submit(service, sample.json()), httpx.get(f"{service.api}{CROP}/status/{before}", timeout=30)]
        wait_until(lambda: service.scrape()["queue_up", frozenset()] == 0, limit_s=30, what="queue_up 0")
        for _ in range(10):
            assert httpx.get(f"{service.metrics}/health/ready", timeout=10).status_code == 200
            assert (
                httpx.post(f"{service.api}{CROP}", content=sample.json(), headers=JSON, timeout=30).status_code == 200
            )
        nats.start()
        after = take(service, sample.json(), wait_until)
        assert status(service, after, 30)["status"] == "SUCCESS"
        assert status(service, before)["status"] == "SUCCESS", "what was stored is there again"
        wait_until(lambda: service.scrape()["queue_up", frozenset()] == 1, limit_s=30, what="queue_up 1")
    for answer in answers:
        assert (answer.status_code, answer.json()["code"]) == (503, "queue_unavailable")
        assert int(answer.headers["retry-after"]) >= 1


def test_stop_ends_what_was_begun_and_gives_back_the_rest(
    run_service: Any, run_nats: Any, run_worker: Any, sample: Any, wait_until: Callable[..., Any]
) -> None:
    # The ack wait is ten minutes: a task that is held and not requeued would not end during this test.
    with run_nats() as nats, run_service(NATS_URL=nats.url, TASK_ACK_WAIT_S=600) as service:
        settings = {"NATS_URL": nats.url, "TASK_WORKERS": 2, "TASK_ACK_WAIT_S": 600}
        with run_worker(FAULT_WORK_S=0.5, **settings) as worker:
            ids = [take(service, sample.json(), wait_until) for _ in range(12)]
            wait_until(lambda: started(worker, ids[3], 1), limit_s=30, what="some attempts")
            assert worker.stop() == 0
            begun = {line["task_id"] for line in worker.log_lines() if line.get("event") == "started"}
            succeeded = {line["task_id"] for line in worker.log_lines() if line.get("event") == "succeeded"}
        assert begun == succeeded, "what was begun was ended"
        assert len(begun) < len(ids)
        # With some CPU time per task, because a failed delivery of a very short task may count as an attempt.
        with run_worker(FAULT_WORK_S=0.001, **settings):
            documents = [status(service, task_id, 30) for task_id in ids]
    assert {document["status"] for document in documents} == {"SUCCESS"}
    assert {document["attempts"] for document in documents} == {1}


def test_restart_finds_its_tasks_again(
    run_service: Any, sample: Any, wait_until: Callable[..., Any], tmp_path: Path
) -> None:
    settings = {"TASK_WORKERS": 1, "DATA_DIR": tmp_path, "TASK_ACK_WAIT_S": ACK_WAIT_S}
    with run_service(ENABLE_TASKS="true", FAULT_WORK_S=0.5, **settings) as service:
        ids = [take(service, sample.json(), wait_until) for _ in range(8)]
        first = status(service, ids[0], 30)
        os.kill(service.pid, signal.SIGTERM)
        assert service.stop() == 0
    with run_service(ENABLE_TASKS="true", **settings) as service:
        wait_until(lambda: submit(service, sample.json()).status_code == 202, limit_s=30, what="the queue")
        documents = [status(service, task_id, 30) for task_id in ids]
    assert {document["status"] for document in documents} == {"SUCCESS"}
    assert documents[0] == first

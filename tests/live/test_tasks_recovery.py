"""Every task ends after cancels next to unacknowledged messages, kills of the NATS server, and a damaged store."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from app.settings import Settings
from app.tasks.embedded_server import find_running_server
from tests.live.queue_state import describe_rest

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.live

CROP = "/api/v1/frontal/crop"
JSON = {"Content-Type": "application/json"}
SHORT = {"TASK_ACK_WAIT_S": 2, "GRACEFUL_TIMEOUT_S": 1, "TIMEOUT_S": 2, "NATS_TIMEOUT_S": 2}


def ask(service: Any, method: str, path: str, **request: Any) -> httpx.Response:
    return httpx.request(method, f"{service.api}{CROP}/{path}", timeout=60, **request)


def submit(service: Any, body: bytes, key: str = "") -> str | None:
    """Submit a task; return None if it must be submitted again."""
    headers = JSON | ({"Idempotency-Key": key} if key else {})
    answer = ask(service, "POST", "submit", content=body, headers=headers)
    if answer.status_code == 503:
        return None
    assert answer.status_code == 202, answer.text
    return str(answer.json()["task_id"])


def end_of(service: Any, task_id: str, wait_until: Callable[..., Any]) -> str:
    """Wait for a task to end; return its status and the code of its error."""

    def ended() -> str:
        answer = ask(service, "GET", f"status/{task_id}?wait=10")
        if answer.status_code == 503:
            return ""
        document = answer.raise_for_status().json()
        if document["status"] in {"PENDING", "STARTED"}:
            return ""
        return " ".join(filter(None, (document["status"], (document["error"] or {}).get("code"))))

    return str(wait_until(ended, limit_s=90, what=f"the end of {task_id}"))


def is_held(service: Any, count: int) -> bool:
    """Return whether this number of tasks is with workers."""
    return any(name == "active_tasks_count" and value == count for (name, _), value in service.scrape().items())


def test_cancels_beside_a_task_that_is_worked_on_do_not_strand_it(
    run_service: Any, run_nats: Any, run_worker: Any, sample: Any, wait_until: Callable[..., Any]
) -> None:
    with run_nats() as nats:
        settings = {"NATS_URL": nats.url, "TASK_WORKERS": 1, **SHORT, "TASK_ACK_WAIT_S": 20}
        with run_service(WORKERS=1, **settings) as service, run_worker(**settings) as first:
            (holder,) = wait_until(first.task_workers, limit_s=30, what="a worker")
            before = wait_until(lambda: submit(service, sample.json()), limit_s=30, what="an id")
            assert end_of(service, before, wait_until) == "SUCCESS"  # the worker has reached the queue
            holder.suspend()
            long = submit(service, sample.json())
            assert long is not None
            wait_until(lambda: is_held(service, 1), limit_s=30, what="the task with the worker")
            with run_worker(**settings):
                for _ in range(6):
                    cancelled = submit(service, sample.json(image=sample.photo))
                    ask(service, "DELETE", f"status/{cancelled}")
                    other = submit(service, sample.json())
                    assert other is not None
                    assert end_of(service, other, wait_until) == "SUCCESS"
        with run_service(WORKERS=1, **settings) as service, run_worker(**settings):
            assert end_of(service, long, wait_until) == "SUCCESS"
            left = Settings(nats_url=nats.url)
            wait_until(lambda: not describe_rest(left, service), limit_s=60, what="an empty queue")


def test_a_task_of_a_killed_worker_goes_on_although_a_later_one_was_cancelled(
    run_service: Any, run_nats: Any, run_worker: Any, sample: Any, wait_until: Callable[..., Any]
) -> None:
    with run_nats() as nats:
        settings = {"NATS_URL": nats.url, "TASK_WORKERS": 1, **SHORT}
        with run_service(WORKERS=1, **settings) as service:
            older, later = (wait_until(lambda: submit(service, sample.json()), limit_s=30, what="an id") for _ in "ab")
            with run_worker(FAULT_WORK_S=60, **settings) as first:
                (holder,) = wait_until(first.task_workers, limit_s=30, what="a worker")
                wait_until(lambda: is_held(service, 2), limit_s=30, what="both tasks with the worker")
                holder.suspend()
                assert ask(service, "DELETE", f"status/{later}").status_code == 200
                os.kill(first.pid, signal.SIGKILL)
                holder.kill()  # it would stay suspended, because the signal that the kernel sends does not resume it
            with run_worker(**settings):
                assert end_of(service, older, wait_until) == "SUCCESS"
                assert end_of(service, later, wait_until) == "CANCELLED"
                queue = Settings(nats_url=nats.url)
                wait_until(lambda: not describe_rest(queue, service), limit_s=60, what="an empty queue")


def test_no_message_of_an_ended_task_stays_when_the_server_is_killed_amid_cancels(
    run_service: Any, sample: Any, wait_until: Callable[..., Any], tmp_path: Path
) -> None:
    settings = {"ENABLE_TASKS": "true", "DATA_DIR": tmp_path / "data", "WORKERS": 1, "TASK_WORKERS": 2, **SHORT}
    ends: Counter[str] = Counter()
    with run_service(FAULT_WORK_S=0.02, **settings) as service:
        service.wait_tasks()
        ids = []
        for number in range(120):
            key = f"task-{number}"
            ids.append(wait_until(lambda key=key: submit(service, sample.json(), key), limit_s=60, what="an id"))
            if number % 6 == 5:
                ask(service, "DELETE", f"status/{ids[-1]}")
            if number % 20 == 10:
                os.kill(service.nats_server().pid, signal.SIGKILL)
        for task_id in ids:
            ends[end_of(service, task_id, wait_until)] += 1
        queue = find_running_server(Settings(data_dir=tmp_path / "data"))
        wait_until(lambda: not describe_rest(queue, service), limit_s=60, what="an empty queue")
    assert ends["CANCELLED"]
    assert ends.keys() == {"SUCCESS", "CANCELLED"}


def test_waiting_tasks_whose_messages_were_cut_off_the_store_end_as_lost(
    run_service: Any, sample: Any, wait_until: Callable[..., Any], tmp_path: Path
) -> None:
    data = tmp_path / "data"
    settings = {"ENABLE_TASKS": "true", "DATA_DIR": data, "WORKERS": 1, "TASK_WORKERS": 1, **SHORT}
    with run_service(FAULT_WORK_S=60, **settings) as service:
        service.wait_tasks()
        ids = [submit(service, sample.json()) for _ in range(6)]
        wait_until(lambda: is_held(service, 1), limit_s=30, what="a task with the worker")
    (block,) = Path(data, "jetstream").glob("*/streams/TASKS/msgs/*.blk")
    os.truncate(block, block.stat().st_size // 2)
    with run_service(**settings) as service:
        service.wait_tasks()
        ends = Counter(end_of(service, task_id, wait_until) for task_id in ids if task_id)
        queue = find_running_server(Settings(data_dir=data))
        wait_until(lambda: not describe_rest(queue, service), limit_s=60, what="an empty queue")
        repairs = {
            dict(labels).get("reason"): value
            for (name, labels), value in service.scrape().items()
            if name == "task_repairs_total"
        }
        errors = service.scrape()["errors_total", frozenset({("type", "task_lost"), ("component", "tasks")})]
        lost = [line for line in service.log_lines() if line.get("event") == "failed"]
        again = submit(service, sample.json())
        assert again is not None
        assert end_of(service, again, wait_until) == "SUCCESS"
    assert {line["code"] for line in lost} == {"task_lost"}
    assert errors == len(lost) == ends["FAILURE task_lost"]
    assert ends.keys() == {"SUCCESS", "FAILURE task_lost"}
    assert ends.total() == 6
    assert repairs["task_lost"] == ends["FAILURE task_lost"]

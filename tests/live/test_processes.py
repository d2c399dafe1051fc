"""Processes: probes while every worker is busy, draining, slots over restarts, and disabled metrics."""

from __future__ import annotations

import os
import signal
import socket
import struct
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.live

CROP = "/api/v1/frontal/crop"
JSON = {"Content-Type": "application/json"}
PROBE_LIMIT_S = 1.0  # limit of the probes even if all workers are busy; the client's timeout
PROBES = ("/health/live", "/health/ready", "/metrics")


def post(service: Any, body: bytes) -> httpx.Response:
    return httpx.post(service.api + CROP, content=body, headers=JSON, timeout=60)


def in_progress(service: Any) -> float:
    return sum(value for (name, _), value in service.scrape().items() if name == "api_requests_in_progress")


def health(service: Any) -> dict[str, Any]:
    report: dict[str, Any] = httpx.get(f"{service.metrics}/health", timeout=30).json()
    return report


def test_probes_answer_while_every_worker_is_saturated(
    run_service: Any, sample: Any, wait_until: Callable[..., Any]
) -> None:
    workers, places, callers = 2, 2, 10
    with (
        run_service(WORKERS=workers, MAX_CONCURRENCY=places, FAULT_WORK_S=0.5) as service,
        ThreadPoolExecutor(callers) as pool,
    ):
        sent = [pool.submit(post, service, sample.json()) for _ in range(callers * 4)]
        wait_until(lambda: in_progress(service) >= workers * places, limit_s=60, what="every place taken")
        answered = 0
        while not all(request.done() for request in sent):
            for path in PROBES:
                assert httpx.get(service.metrics + path, timeout=PROBE_LIMIT_S).status_code == 200
                answered += 1
        responses = [request.result() for request in sent]
        scraped = service.scrape()

    assert answered >= len(PROBES), "the workers were never busy"
    turned_away = [response for response in responses if response.status_code == 503]
    assert turned_away, "as many callers as there are were never let in at once"
    assert {response.status_code for response in responses} == {200, 503}
    assert {response.headers["retry-after"] for response in turned_away} == {"1"}
    assert {response.json()["code"] for response in turned_away} == {"saturated"}
    assert scraped["api_rejections_total", frozenset({("reason", "saturated")})] == len(turned_away)


def test_draining_is_unready_and_loses_nothing(run_service: Any, sample: Any, wait_until: Callable[..., Any]) -> None:
    with run_service(WORKERS=2, FAULT_WORK_S=3) as service, ThreadPoolExecutor(1) as pool:
        request = pool.submit(post, service, sample.json())
        wait_until(lambda: in_progress(service) == 1, limit_s=30, what="the request at work")
        os.kill(service.pid, signal.SIGTERM)
        wait_until(lambda: health(service)["draining"], limit_s=30, what="draining")
        ready = httpx.get(f"{service.metrics}/health/ready", timeout=PROBE_LIMIT_S)
        live = httpx.get(f"{service.metrics}/health/live", timeout=PROBE_LIMIT_S)
        is_still_at_work = not request.done()
        response = request.result()
        status = service.stop()

    assert is_still_at_work, "the request ended before the probes were asked"
    assert (ready.status_code, live.status_code) == (503, 200)
    assert ready.json()["ready"] is False
    assert response.status_code == 200
    assert status == 0


def test_slots_are_taken_over(run_service: Any, sample: Any, wait_until: Callable[..., Any]) -> None:
    with run_service(WORKERS=2) as service:
        post(service, sample.json()).raise_for_status()
        for _ in range(3):
            before = {worker["pid"] for worker in health(service)["workers"]}
            for pid in before:
                os.kill(pid, signal.SIGKILL)
            wait_until(lambda old=before: is_renewed(health(service), old), limit_s=60, what="two new workers")
        names = {worker["name"] for worker in health(service)["workers"]}
        scraped = service.scrape()
        killed = [line for line in service.log_lines() if line.get("reason") == "killed"]
    assert names == {"worker-0", "worker-1"}
    assert scraped["app_worker_exits_total", frozenset({("reason", "killed")})] == 6
    assert scraped["landmarks_processed_total", frozenset()] == 478, "counters go on over the death of their process"
    assert len(killed) == 6


def is_renewed(report: dict[str, Any], old: set[int]) -> bool:
    workers = [worker for worker in report["workers"] if worker["state"] == "ready"]
    return len(workers) == 2 and not old & {worker["pid"] for worker in workers}


def test_exporter_is_replaced(run_service: Any, wait_until: Callable[..., Any]) -> None:
    with run_service(WORKERS=1) as service:
        workers = {worker["pid"] for worker in health(service)["workers"]}
        (exporter,) = {child.pid for child in psutil.Process(service.pid).children()} - workers
        os.kill(exporter, signal.SIGKILL)
        scraped = wait_until(lambda: scrape_or_none(service), limit_s=30, what="another exporter")
        assert ("memory_usage_bytes", frozenset({("process", "exporter")})) in scraped


def scrape_or_none(service: Any) -> Any:
    try:
        return service.scrape()
    except httpx.TransportError:
        return None


def test_resources_name_every_process(run_service: Any) -> None:
    with run_service(WORKERS=2) as service:
        scraped = service.scrape()
        from_api = httpx.get(f"{service.api}/metrics", timeout=30).text
    processes = {dict(labels)["process"] for (name, labels) in scraped if name == "memory_usage_bytes"}
    assert processes == {"master", "exporter", "worker-0", "worker-1"}
    assert all(value > 1e6 for (name, _), value in scraped.items() if name == "memory_usage_bytes")
    assert 'memory_usage_bytes{process="worker-1"}' in from_api


def test_metrics_off_leaves_no_trace(run_service: Any, sample: Any, tmp_path: Any) -> None:
    folder = tmp_path / "metrics"
    with run_service(WORKERS=1, ENABLE_METRICS="false", PROMETHEUS_MULTIPROC_DIR=folder) as service:
        assert post(service, sample.json()).status_code == 200
        assert httpx.get(f"{service.metrics}/metrics", timeout=30).status_code == 404
        assert httpx.get(f"{service.api}/metrics", timeout=30).status_code == 404
        assert httpx.get(f"{service.metrics}/health/ready", timeout=30).status_code == 200
    assert not folder.exists()


def test_stale_values_are_wiped_at_start(run_service: Any, sample: Any, tmp_path: Any) -> None:
    for _ in range(2):
        with run_service(WORKERS=1, PROMETHEUS_MULTIPROC_DIR=tmp_path) as service:
            post(service, sample.json()).raise_for_status()
            assert service.scrape()["landmarks_processed_total", frozenset()] == 478


@pytest.mark.parametrize("variable", ["PORT", "METRICS_PORT"])
def test_taken_port_ends_the_start_with_its_name(run_service: Any, service: Any, variable: str) -> None:
    taken = httpx.URL(service.api if variable == "PORT" else service.metrics).port
    with pytest.raises(RuntimeError, match=rf"{taken}"), run_service(WORKERS=1, **{variable: taken}):
        pytest.fail("the service started on a port that is taken")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT, signal.SIGTERM])
def test_every_way_to_stop_is_orderly(run_service: Any, number: signal.Signals) -> None:
    with run_service(WORKERS=2) as service:
        os.kill(service.pid, number)
        assert service.stop() == 0
        lines = service.log_lines()
    assert [line["reason"] for line in lines if "reason" in line] == ["stopped", "stopped"]
    assert [line for line in lines if line.get("level") in {"ERROR", "CRITICAL"}] == []


def test_callers_who_went_away_are_not_worked_for(
    run_service: Any, sample: Any, wait_until: Callable[..., Any]
) -> None:
    gone = 6
    with run_service(WORKERS=1, FAULT_WORK_S=1) as service:
        url, body = httpx.URL(service.api), sample.json()
        head = (
            f"POST {CROP} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        with ExitStack() as connections:
            for _ in range(gone):
                connection = connections.enter_context(socket.create_connection((url.host, url.port)))
                connection.sendall(head.encode() + body)
            wait_until(lambda: in_progress(service) == gone, limit_s=60, what="all of them taken in")
        assert post(service, body).status_code == 200
        wait_until(lambda: in_progress(service) == 0, limit_s=60, what="an end to all of them")
        scraped = service.scrape()
    assert counted(scraped, "200") == 1
    assert counted(scraped, "499") == gone
    disconnected = frozenset({("type", "client_disconnected"), ("component", "api")})
    assert scraped["errors_total", disconnected] == gone
    assert scraped["landmarks_processed_total", frozenset()] == 478


def counted(scraped: dict[Any, float], status: str) -> float:
    labels = frozenset({("method", "POST"), ("endpoint", CROP), ("status", status)})
    return scraped.get(("api_requests_total", labels), 0)


def test_workers_end_with_their_master(run_service: Any, wait_until: Callable[..., Any]) -> None:
    with run_service(WORKERS=2) as service:
        children = psutil.Process(service.pid).children()
        assert len(children) == 3
        os.kill(service.pid, signal.SIGKILL)
        wait_until(
            lambda: not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children),
            limit_s=30,
            what="an end to workers and exporter",
        )


def test_requests_are_answered_where_metrics_cannot_be_written(
    run_service: Any, sample: Any, wait_until: Callable[..., Any], tmp_path: Any
) -> None:
    folder = tmp_path / "metrics"
    with run_service(WORKERS=1, PROMETHEUS_MULTIPROC_DIR=folder) as service:
        (worker,) = [worker["pid"] for worker in health(service)["workers"]]
        folder.rename(tmp_path / "gone")
        folder.touch()  # a file in place of the folder, so that no process can create it again
        post(service, sample.json()).raise_for_status()
        folder.unlink()
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: is_serving(service, worker), limit_s=30, what="another worker")
        post(service, sample.json()).raise_for_status()
        scraped = wait_until(lambda: scrape_or_none(service), limit_s=30, what="metrics in a new folder")
    assert scraped["landmarks_processed_total", frozenset()] == 478


def is_serving(service: Any, old: int) -> bool:
    return [w["state"] for w in health(service)["workers"] if w["pid"] != old] == ["ready"]


def test_processes_are_told_apart_by_their_titles(run_service: Any) -> None:
    with run_service(WORKERS=1) as service:
        titles = {" ".join(child.cmdline()).strip() for child in psutil.Process(service.pid).children()}
    assert titles == {"facial-service: worker-0", "facial-service: exporter"}


def test_peers_that_never_speak_leave_no_line(run_service: Any) -> None:
    with run_service(WORKERS=1) as service:
        url = httpx.URL(service.metrics)
        linger = struct.pack("ii", 1, 0)
        with socket.create_connection((url.host, url.port)) as connection:
            connection.sendall(b"GET /metrics HTTP/1.1\r\n")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)  # close with a reset
        assert health(service)["live"]
        service.stop()
        assert [line for line in service.log_lines() if "raw" in line] == []

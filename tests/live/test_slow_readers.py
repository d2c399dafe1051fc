"""Clients that request large results and do not read them, together with clients that do."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING, Any

import cv2
import httpx
import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.live

CROP = "/api/v1/frontal/crop"
JSON = {"content-type": "application/json"}
MIB = 1024 * 1024
READERS = 60


def noise_png(side: int) -> bytes:
    pixels = np.random.default_rng(1).integers(0, 255, (side, side, 3), np.uint8)
    return bytes(cv2.imencode(".png", pixels)[1])


def test_unread_results_take_bounded_memory_and_fail_no_other_request(
    run_service: Any, sample: Any, wait_until: Callable[..., Any]
) -> None:
    body = sample.json(image=noise_png(1900), background="image")
    with run_service(ENABLE_TASKS="true", WORKERS=1, TASK_WORKERS=1) as service:
        service.wait_tasks()
        answer = httpx.post(f"{service.api}{CROP}/submit", content=body, headers=JSON, timeout=60)
        path = f"{CROP}/status/{answer.raise_for_status().json()['task_id']}"
        result = httpx.get(f"{service.api}{path}?wait=60", timeout=90)
        assert result.json()["status"] == "SUCCESS"
        size = len(result.content)
        assert size > 4 * MIB
        (worker,) = service.workers()
        before, most = worker.memory_info().rss, 0
        url = httpx.URL(service.api)
        readers, statuses = [], []
        try:
            for _ in range(READERS):
                reader = socket.socket()
                reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                reader.connect((url.host, url.port))
                reader.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
                readers.append(reader)
                statuses.append(httpx.get(f"{service.api}{path}", timeout=60).status_code)
                statuses.append(
                    httpx.post(f"{service.api}{CROP}", content=sample.json(), headers=JSON, timeout=60).status_code
                )
                most = max(most, worker.memory_info().rss)
                time.sleep(0.1)  # new clients arrive over some seconds
        finally:
            for reader in readers:
                reader.close()
        assert set(statuses) == {200}
        print(f"{READERS} results of {size / MIB:.0f} MiB: {before / MIB:.0f} to {most / MIB:.0f} MiB")  # noqa: T201
        assert most - before < READERS * size / 2
        key = ("errors_total", frozenset({("type", "response_timeout"), ("component", "api")}))
        wait_until(lambda: service.scrape().get(key, 0) > 0, limit_s=10, what="connections that were closed")


def test_requests_for_metrics_share_the_work(run_service: Any, sample: Any) -> None:
    with run_service(WORKERS=1) as service, httpx.Client(base_url=service.api, timeout=30) as client:
        client.post(CROP, content=sample.json(), headers=JSON).raise_for_status()
        first = client.get("/metrics")
        assert "landmarks_processed_total 478.0" in first.text
        client.post(CROP, content=sample.json(), headers=JSON).raise_for_status()
        # Not older than the previous request.
        assert "landmarks_processed_total 956.0" in client.get("/metrics").text
        other = client.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
        assert other.headers["content-type"].startswith("application/openmetrics-text")

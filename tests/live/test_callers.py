"""API keys and rate limits of the running service: several worker processes, a file that changes, the log."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.live.conftest import INHERITED, REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.live.conftest import RunningService

pytestmark = pytest.mark.live

CROP = "/api/v1/frontal/crop"
JSON = {"content-type": "application/json"}


def send(service: RunningService, key: str = "", query: str = "", **headers: str) -> httpx.Response:
    """Send a request without image processing, on a new connection."""
    given = {**JSON, **({"x-api-key": key} if key else {}), **headers}
    return httpx.post(f"{service.api}{CROP}{query}", content=b"{}", headers=given, timeout=30)


def write_as_kubelet(folder: Path, text: str, version: int) -> None:
    """Write a file as the kubelet updates a mounted Secret, by replacing a link to a folder."""
    (folder / f"..{version}").mkdir()
    (folder / f"..{version}" / "keys").write_text(text, encoding="ascii")
    (folder / "..new").symlink_to(f"..{version}")
    (folder / "..new").replace(folder / "..data")
    if not (folder / "keys").is_symlink():
        (folder / "keys").symlink_to("..data/keys")


def test_keys_are_rotated_without_a_restart(
    run_service: Callable[..., Any], wait_until: Callable[..., Any], tmp_path: Path
) -> None:
    write_as_kubelet(tmp_path, "# of the shop\nshop:old-secret\n", 1)
    with run_service(WORKERS=2, API_KEYS_FILE=str(tmp_path / "keys")) as service:
        assert [send(service, key).status_code for key in ("old-secret", "new-secret", "")] == [422, 401, 401]

        def statuses(key: str) -> set[int]:
            return {send(service, key).status_code for _ in range(16)}  # of both workers

        write_as_kubelet(tmp_path, "shop:old-secret\nshop:new-secret\n", 2)
        wait_until(lambda: statuses("new-secret") == {422}, limit_s=30, what="the new key")
        assert statuses("old-secret") == {422}
        write_as_kubelet(tmp_path, "shop:new-secret\n", 3)
        wait_until(lambda: statuses("old-secret") == {401}, limit_s=30, what="the end of the old key")
        write_as_kubelet(tmp_path, "", 4)

        def is_logged() -> bool:
            assert (statuses("new-secret"), statuses("")) == ({422}, {401})
            return "API_KEYS_FILE cannot be used" in service.log_text()

        wait_until(is_logged, limit_s=30, what="the error")
        (tmp_path / "keys").unlink()
        write_as_kubelet(tmp_path, "shop:last-secret\n", 5)
        wait_until(lambda: statuses("last-secret") == {422}, limit_s=30, what="the key after the error")
        errors = [line for line in service.log_lines() if line.get("level") == "ERROR"]
        assert 1 <= len(errors) <= 2, "one of each worker"
        assert "secret" not in service.log_text()
        assert {line["api_key"] for line in service.log_lines() if line.get("status") == 422} == {"shop"}


def test_a_key_in_the_query_neither_works_nor_is_logged(run_service: Callable[..., Any]) -> None:
    with run_service(WORKERS=1, API_KEYS="shop:first-secret") as service:
        assert send(service, query="?api_key=first-secret&x-api-key=first-secret").status_code == 401
        wrong = send(service, "first-secret", query="?api_key=first-secret")
        assert (wrong.status_code, "first-secret" in wrong.text) == (422, False)
        assert send(service, authorization="Bearer first-secret").status_code == 422
        service.wait_for_lines(lambda line: line.get("status") == 422)
        service.scrape()
        assert "first-secret" not in service.log_text()
        assert "shop" not in httpx.get(f"{service.metrics}/metrics", timeout=30).text


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"API_KEYS_FILE": "/does/not/exist"}, "API_KEYS_FILE: expected a readable file"),
        ({"API_KEYS_FILE": os.devnull}, "API_KEYS_FILE: expected at least one key"),
        ({"API_KEYS": "a:secret-one,b:secret-one"}, "API_KEYS: key 2: expected different keys"),
        ({"API_KEYS": ":secret-one"}, "API_KEYS: key 1: expected a name"),
        ({"API_KEYS": "secret-one secret-one"}, "API_KEYS: key 1: expected 1 to 1024 visible"),
        ({"API_KEYS": "secret-oné"}, "API_KEYS: key 1: expected 1 to 1024 visible"),
    ],
)
def test_wrong_keys_stop_the_start(variables: dict[str, str], message: str) -> None:
    inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
    env = {**inherited, "PORT": "0", "METRICS_PORT": "0", "ENABLE_TASKS": "false", "LOG_FORMAT": "json", **variables}
    command = [sys.executable, "-m", "app", "serve"]
    done = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode in {1, 2}
    assert message in done.stderr
    assert "secret-one" not in done.stderr
    assert "Traceback" not in done.stderr


def test_worker_processes_share_one_rate_limit(run_service: Callable[..., Any]) -> None:
    with run_service(WORKERS=4, RATE_LIMIT="100/hour") as service, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: send(service), range(160)))
        statuses = Counter(answer.status_code for answer in answers)
        # A count may be lost if two processes count at the same moment.
        assert 100 <= statuses[422] <= 103
        assert statuses[429] == 160 - statuses[422]
        workers = {worker.pid for worker in service.workers()}
        assert len(workers) == 4
        other = httpx.Client(transport=httpx.HTTPTransport(local_address="127.0.0.2"))
        with other:
            assert other.post(service.api + CROP, content=b"{}", headers=JSON).status_code == 422
        samples = service.scrape()
        assert samples["api_rejections_total", frozenset({("reason", "rate_limited")})] == statuses[429]


def test_a_limited_request_is_refused_before_its_body_is_sent(run_service: Callable[..., Any]) -> None:
    with run_service(WORKERS=1, RATE_LIMIT="1/hour") as service:
        assert send(service).status_code == 422
        url = httpx.URL(service.api)
        with socket.create_connection((url.host, url.port), timeout=30) as connection:
            head = (
                f"POST {CROP} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n\r\n"
            )
            connection.sendall(head.encode())
            answer = b""
            while chunk := connection.recv(65536):
                answer += chunk
        assert answer.startswith(b"HTTP/1.1 429 ")
        assert b'"rate_limited"' in answer

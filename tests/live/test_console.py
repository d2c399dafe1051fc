"""The console of the service in a terminal, and the summary of its counters."""

from __future__ import annotations

import re
import signal
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.terminal import Terminal

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Sample

pytestmark = pytest.mark.live

CROP = "/api/v1/frontal/crop"
JSON = {"content-type": "application/json"}
COLOUR = re.compile(r"\x1b\[[\d;]*\b(?:3[0-8]|9[0-7])\b")


def start(tmp_path: Path, **env: str) -> Terminal:
    settings = {"PORT": "0", "METRICS_PORT": "0", "WORKERS": "1", "TASK_WORKERS": "1", "TMPDIR": str(tmp_path)}
    return Terminal("serve", DATA_DIR=str(tmp_path / "data"), **settings, **env)


def wait_for_line(terminal: Terminal, pattern: str) -> re.Match[str]:
    """Wait for a pattern in the output without control sequences and line breaks of the terminal."""
    words = r"[\s\S]*?".join(pattern.split(" … "))
    terminal.wait_written(words)
    found = re.search(words, terminal.raw())
    assert found is not None
    return found


@pytest.mark.parametrize("is_coloured", [True, False])
def test_lines_of_a_task_have_the_id_of_its_request(tmp_path: Path, sample: Sample, is_coloured: bool) -> None:
    with start(tmp_path, **({} if is_coloured else {"NO_COLOR": "1"})) as terminal:
        api = wait_for_line(terminal, r"listens on \S*?(http://[\d.:]+\d)")[1]
        with httpx.Client(base_url=api, timeout=60, headers=JSON) as client:
            submitted = client.post(f"{CROP}/submit", content=sample.json(), headers={"x-request-id": "order-00000017"})
            while submitted.status_code == 503:  # the queue is starting
                submitted = client.post(
                    f"{CROP}/submit", content=sample.json(), headers={"x-request-id": "order-00000017"}
                )
            assert client.get(f"{submitted.headers['location']}?wait=20").json()["status"] == "SUCCESS"
            client.post(CROP, content=b"{\x1b[31m\r\n", headers={"x-request-id": "order-00000018"})
        wait_for_line(terminal, "00000017 … Task started")
        wait_for_line(terminal, "00000017 … Task success")
        wait_for_line(terminal, "00000018 … invalid_json")
        assert terminal.end(signal.SIGTERM) == 0
        text = terminal.raw()
        assert text.count("Stopping: work in progress") == 1
        assert bool(COLOUR.search(text)) is is_coloured


def test_summary_of_counters_covers_all_processes_once(run_service: Any, sample: Sample) -> None:
    count = 12
    with run_service(WORKERS=2, LOG_METRICS_INTERVAL=1, LOG_FORMAT="json") as service:
        for _ in range(count):  # a connection each, so that both workers serve some
            httpx.post(service.api + CROP, content=sample.json(), headers=JSON, timeout=60).raise_for_status()
        service.wait_for_lines(lambda line: line.get("event") == "metrics")
        service.stop()
        rows = [row for line in service.log_lines() if line.get("event") == "metrics" for row in line["metrics"]]
        posts = [row for row in rows if row["labels"].get("endpoint") == CROP]
        assert sum(row["change"] for row in posts) == posts[-1]["value"] == count
        assert {row["labels"]["status"] for row in posts} == {"200"}

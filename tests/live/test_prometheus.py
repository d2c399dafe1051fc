"""Counters in Prometheus match the responses that callers received."""

from __future__ import annotations

import shutil
import socket
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.live

CROP = "/api/v1/frontal/crop"
CONFIGURATION = """
global:
  scrape_interval: 1s
scrape_configs:
  - job_name: facial-service
    static_configs:
      - targets: ["{target}"]
"""


def require(program: str) -> str:
    """Return the path of a program, or skip the test."""
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"{program} is not on PATH; `make tools` sets it up")
    return found


@contextmanager
def prometheus(folder: Path, target: str, wait_until: Callable[..., Any]) -> Iterator[str]:
    """Run a Prometheus that scrapes one target each second, and yield its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    configuration = folder / "prometheus.yml"
    configuration.write_text(CONFIGURATION.format(target=target))
    options = [f"--config.file={configuration}", f"--storage.tsdb.path={folder / 'data'}"]
    with (folder / "log").open("wb") as log:
        command = [require("prometheus"), *options, f"--web.listen-address={address}"]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_until(lambda: is_ready(address), limit_s=60, what="Prometheus")
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(30)


def is_ready(address: str) -> bool:
    try:
        return httpx.get(f"http://{address}/-/ready", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def query(address: str, expression: str) -> dict[str, float]:
    """Return an instant vector: values by the label `by`."""
    answer = httpx.get(f"{address}/api/v1/query", params={"query": expression}, timeout=10).raise_for_status().json()
    return {next(iter(sample["metric"].values()), ""): float(sample["value"][1]) for sample in answer["data"]["result"]}


def test_prometheus_counts_what_callers_saw(
    run_service: Any, sample: Any, tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    bodies = [sample.json()] * 30 + [sample.json(landmarks=[])] * 12 + [b"{"] * 5
    with run_service(WORKERS=3) as service:
        target = service.metrics.removeprefix("http://")
        with prometheus(tmp_path, target, wait_until) as address:
            for body in bodies:
                httpx.post(service.api + CROP, content=body, headers={"Content-Type": "application/json"}, timeout=30)
            total = f'sum(api_requests_total{{endpoint="{CROP}"}})'
            wait_until(lambda: query(address, total) == {"": len(bodies)}, limit_s=60, what="the count of requests")
            by_status = query(address, f'sum by (status) (api_requests_total{{endpoint="{CROP}"}})')
            regions = query(address, "count(regions_generated_total)")
            quantile = query(address, "histogram_quantile(0.5, sum by (le) (api_request_duration_seconds_bucket))")
            up = query(address, "up")
    assert by_status == {"200": 30, "422": 12, "400": 5}
    assert regions[""] >= 12
    assert 0 < quantile[""] < float("inf")
    assert list(up.values()) == [1]


# A name of the specification, which dashboards of users contain.
GIVEN = 'active_tasks_count non-histogram and non-summary metrics should not have "_count" suffix\n'


def test_promtool_finds_nothing_wrong_but_a_name_that_is_given(service: Any, sample: Any) -> None:
    httpx.post(
        service.api + CROP, content=sample.json(), headers={"Content-Type": "application/json"}, timeout=30
    ).raise_for_status()
    text = httpx.get(f"{service.metrics}/metrics", timeout=30).text
    command = [require("promtool"), "check", "metrics"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (3, GIVEN)

"""A Prometheus with the project's rules, queried as Grafana queries it, and targets other than the service."""

from __future__ import annotations

import math
import re
import shutil
import socket
import subprocess
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import yaml

from tests.dashboards import ROOT, fill

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

RECORDED = ROOT / "tests" / "kubernetes.prom"  # by tools/record_kubernetes.py
STEP_S = 5
# Grafana computes it from a scrape interval of a second and this step.
GRAFANA = {"__interval": f"{STEP_S}s", "__rate_interval": f"{STEP_S + 1}s"}


@dataclass
class Server:
    """A running Prometheus, queried as Grafana queries it.

    Attributes:
        url: its base URL.
        start: time of the first request.
        end: time of the last response.
    """

    url: str
    start: float = 0.0
    end: float = 0.0

    def ask(self, path: str, **parameters: Any) -> Any:
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=30)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    def options(self, query: str, values: dict[str, str]) -> list[str]:
        """Return the values that Grafana offers for a variable."""
        metric, label = re.fullmatch(r"label_values\((.+), (\w+)\)", fill(query, values)).groups()
        given = {"match[]": metric, "start": self.start, "end": self.end}
        return sorted(self.ask(f"label/{label}/values", **given))

    def values(self, document: dict[str, Any], **picked: str) -> dict[str, str]:
        """Return the initial values of a dashboard's variables, except for those that are given."""
        values = dict(GRAFANA)
        for variable in document["templating"]["list"][1:]:
            name, current = variable["name"], variable["current"]["value"]
            there = self.options(variable["query"]["query"], values)
            if name in picked:
                assert picked[name] in there
                values[name] = escape(picked[name])
            elif current == "$__all":
                values[name] = variable["allValue"]
            else:
                assert set(current) <= set(there)
                values[name] = "|".join(map(escape, current))
        return values

    def draw(self, expr: str, *, is_instant: bool = False) -> list[dict[str, Any]]:
        """Return the series that contain a number."""
        if is_instant:
            found = self.ask("query", query=expr, time=self.end)["result"]
            rows = [{"metric": series["metric"], "values": [series["value"]]} for series in found]
        else:
            rows = self.ask("query_range", query=expr, start=self.start, end=self.end, step=STEP_S)["result"]
        return [row for row in rows if any(math.isfinite(float(value)) for _, value in row["values"])]


def escape(value: str) -> str:
    """Escape a value for a quoted regular expression, as Grafana does."""
    return re.sub(r"([\\$^*{}\[\]+?.()|])", r"\\\\\1", value)


def recorded_pod(deployment: str) -> str:
    """Return a pod of a deployment that was ready when the exposition was recorded."""
    ready = rf'kube_pod_status_ready\{{condition="true",namespace="\w+",pod="({deployment}-[a-z0-9-]+)",.*\}} 1'
    found = re.search(ready, RECORDED.read_text(encoding="utf-8"))
    assert found is not None
    return found[1]


@contextmanager
def exporter() -> Iterator[str]:
    """Serve the recorded exposition, with counters that grow and a deployment that changes."""
    recorded = RECORDED.read_text(encoding="utf-8")
    growing = {*re.findall(r"# TYPE (\w+) counter", recorded), "kube_deployment_status_observed_generation"}
    began = time.monotonic()

    def expose() -> str:
        passed = int(time.monotonic() - began)
        lines = []
        for line in recorded.splitlines():
            name, value = line.partition("{")[0], line.rpartition(" ")[2]
            grown = float(value) + passed if name in growing else value
            lines.append(f"{line.rpartition(' ')[0]} {grown}" if not line.startswith("#") else line)
        return "\n".join([*lines, ""])

    with serve_exposition(expose) as address:
        yield address


@contextmanager
def serve_exposition(expose: Callable[[], str]) -> Iterator[str]:
    """Serve metrics on loopback, and yield the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = expose().encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with suppress(ConnectionError):  # the scrape has timed out
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with serve(Handler) as address:
        yield address


@contextmanager
def serve(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Serve HTTP on loopback, and yield the address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def write_rules(folder: Path, interval: str, *, has_test_alert: bool) -> None:
    """Write the project's rules, evaluated at the scrape interval, and perhaps an alert that always fires."""
    groups = [
        {**group, "interval": interval}
        for path in sorted((ROOT / "prometheus" / "rules").glob("*.yaml"))
        for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]
    ]
    expr = 'sum by (namespace, job) (up{job="facial-service"})'
    alert = {"alert": "FacialServiceOfThisTest", "expr": expr, "labels": {"severity": "warning"}}
    if has_test_alert:
        groups.append({"name": "of-this-test", "interval": interval, "rules": [alert]})
    (folder / "rules.yaml").write_text(yaml.safe_dump({"groups": groups}), encoding="utf-8")


@contextmanager
def prometheus(
    folder: Path,
    jobs: list[dict[str, Any]],
    wait_until: Callable[..., Any],
    *,
    interval_s: int = 1,
    has_test_alert: bool = True,
) -> Iterator[Server]:
    """Run a Prometheus with the project's rules that scrapes at this interval."""
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not on PATH; `make tools` sets it up")
    folder.mkdir()
    interval = f"{interval_s}s"
    write_rules(folder, interval, has_test_alert=has_test_alert)
    configuration = {
        "global": {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval},
        "rule_files": ["rules.yaml"],
        "scrape_configs": jobs,
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration), encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    options = [f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(["prometheus", *options, f"--web.listen-address={address}"], stdout=log, stderr=log)  # noqa: S607
    try:
        wait_until(lambda: is_ready(address), limit_s=60, what="Prometheus")
        yield Server(f"http://{address}")
    finally:
        process.terminate()
        process.wait(30)


def is_ready(address: str) -> bool:
    try:
        return httpx.get(f"http://{address}/-/ready", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def job(name: str, static: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {"job_name": name, "static_configs": static, **more}

"""A Prometheus with the project's rules on shorter time scales, an Alertmanager, and a webhook for notifications.

Only windows, intervals and `for` are shorter than in the shipped rules: minutes become seconds, and the days of the
alerts on objectives become minutes.
"""

from __future__ import annotations

import random
import shutil
import signal
import socket
import subprocess
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import httpx
import orjson
import pytest
import yaml

from prometheus.source.generate import FILES, rule_files
from prometheus.source.model import Alert
from prometheus.source.objectives import DEFAULT
from prometheus.source.render import Links, SpeedUp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from prometheus.source.model import Scope
    from prometheus.source.objectives import Texts

Target = dict[str, Any]
"""Addresses and their labels, as Prometheus reads them from a file."""

LINKS = Links(runbooks="https://code.example.org/main", dashboards="https://grafana.example.org")
LEAST_WINDOW_MS = 10_000  # a rate needs a few scrapes: one comes each second, or later where the machine is busy
USUAL = SpeedUp(factor=60, min_window_ms=LEAST_WINDOW_MS)
OBJECTIVES = SpeedUp(factor=720, min_window_ms=LEAST_WINDOW_MS)
START_LIMIT_S = 120


@dataclass(frozen=True)
class Pace:
    """Time scale and objectives of the rules.

    Attributes:
        usual: scale of all rules except those on objectives.
        objectives: scale of the rules on objectives.
        texts: texts of the objectives.
        interval_s: interval of scrapes and evaluations.
    """

    usual: SpeedUp = USUAL
    objectives: SpeedUp = OBJECTIVES
    texts: Texts = DEFAULT
    interval_s: int = 1


FAST = Pace()


def alert_rules() -> dict[str, Alert]:
    """Return every alerting rule by its name; those on objectives, which share one, have their long window after it."""
    rules = (rule for groups in FILES.values() for group in groups for rule in group.rules)
    alerts = (rule for rule in rules if isinstance(rule, Alert))
    return {f"{alert.name}-{alert.labels.get('long', '')}".rstrip("-"): alert for alert in alerts}


@dataclass(frozen=True)
class Notice:
    """One alert in one notification.

    Attributes:
        at: when it came in, by the monotonic clock.
        is_firing: else it is resolved.
        labels: of the alert.
        annotations: of the alert, filled in.
    """

    at: float
    is_firing: bool
    labels: dict[str, str]
    annotations: dict[str, str]

    @property
    def rule(self) -> str:
        """The alert's name as in `alert_rules`."""
        return f"{self.labels['alertname']}-{self.labels.get('long', '')}".rstrip("-")

    @property
    def place(self) -> str:
        """The namespace; empty if there is none."""
        return self.labels.get("namespace", "")


class Webhook:
    """Webhook that keeps the notifications of Alertmanager.

    Args:
        host: address to listen on.
        port: port, or 0 for a free one.

    Attributes:
        url: URL of the webhook.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        self._notices: list[Notice] = []
        self._has_more = threading.Condition()
        self._is_closed = False
        webhook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                webhook._take(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer((host, port), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.url = f"http://{host}:{self._server.server_port}/"

    def _take(self, body: bytes) -> None:
        now = time.monotonic()
        with self._has_more:
            for alert in orjson.loads(body)["alerts"]:
                is_firing = alert["status"] == "firing"
                self._notices.append(Notice(now, is_firing, alert["labels"], alert["annotations"]))
            self._has_more.notify_all()

    def notices(self, rule: str | None = None, place: str | None = None) -> list[Notice]:
        """Return the notifications so far, of a rule and a namespace if they are given."""
        with self._has_more:
            return [
                notice
                for notice in self._notices
                if (rule is None or notice.rule == rule) and (place is None or notice.place == place)
            ]

    def firing(self, rule: str, place: str) -> list[Notice]:
        """Return the last notices of the alerts of a rule that are firing now."""
        last = {frozenset(notice.labels.items()): notice for notice in self.notices(rule, place)}
        return [notice for notice in last.values() if notice.is_firing]

    def wait_for(self, condition: Callable[[], bool], *, limit_s: float) -> bool:
        """Wait until a condition on the notices holds; return False after the limit, or if `stop` is set."""
        with self._has_more:
            self._has_more.wait_for(lambda: self._is_closed or condition(), limit_s)
            return condition()

    def stop(self) -> None:
        """Wake up all waiting threads."""
        with self._has_more:
            self._is_closed = True
            self._has_more.notify_all()

    def close(self) -> None:
        """Stop the server."""
        self.stop()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class Monitoring:
    """Running Prometheus and Alertmanager.

    Attributes:
        url: address of Prometheus.
    """

    def __init__(self, url: str, targets: list[Target], file: Path) -> None:
        self.url = url
        self._targets = targets
        self._file = file

    def ask(self, expr: str) -> list[dict[str, Any]]:
        """Return the instant vector of an expression."""
        answer = httpx.get(f"{self.url}/api/v1/query", params={"query": expr}, timeout=30).raise_for_status()
        found: list[dict[str, Any]] = answer.json()["data"]["result"]
        return found

    @contextmanager
    def blind_to(self, address: str) -> Iterator[None]:
        """Remove an address from the targets during the block."""
        _write_targets(self._file, [target for target in self._targets if target["targets"] != [address]])
        try:
            yield
        finally:
            _write_targets(self._file, self._targets)


def _write_targets(file: Path, targets: list[Target]) -> None:
    new = file.with_suffix(".new")
    new.write_bytes(orjson.dumps(targets))
    new.rename(file)


def require(program: str) -> str:
    """Return the path of a program, or skip the test."""
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"{program} is not on PATH; `make tools` sets it up")
    return found


@contextmanager
def monitoring(
    folder: Path,
    webhook: Webhook,
    targets: list[Target],
    jobs: list[dict[str, Any]],
    *,
    absent: Iterable[Scope] = (),
    pace: Pace = FAST,
) -> Iterator[Monitoring]:
    """Run both.

    `jobs` are additional scrape jobs, and `absent` the releases with an alert on their absence, as the chart has it.

    The rules are added after the first scrapes: Prometheus takes some seconds to discover its targets, which is longer
    than the `for` of an alert on their absence.
    """
    file = folder / "targets.json"
    _write_targets(file, targets)
    ports = free_ports(2)
    scraped = {"job_name": "facial-service", "file_sd_configs": [{"files": [file.name], "refresh_interval": "1s"}]}
    configuration = {
        "global": dict.fromkeys(("scrape_interval", "scrape_timeout", "evaluation_interval"), f"{pace.interval_s}s"),
        "rule_files": ["facial-service-*.yaml"],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": [f"127.0.0.1:{ports[0]}"]}]}]},
        "scrape_configs": [scraped, *jobs],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration), encoding="utf-8")
    (folder / "alertmanager.yml").write_text(yaml.safe_dump(_notifying(webhook.url)), encoding="utf-8")
    with ExitStack() as stack:
        options = ["--config.file=alertmanager.yml", "--storage.path=alertmanager", "--cluster.listen-address="]
        stack.enter_context(_running(folder, "alertmanager", ports[0], options))
        options = ["--config.file=prometheus.yml", "--storage.tsdb.path=prometheus"]
        process = stack.enter_context(_running(folder, "prometheus", ports[1], options))
        watching = Monitoring(f"http://127.0.0.1:{ports[1]}", targets, file)
        _wait_for(lambda: len(watching.ask("up == 1")) >= len(targets), "targets that are up")
        for name, text in (rule_files(LINKS, pace.usual) | _objectives(pace) | _absent(absent)).items():
            (folder / name).write_text(text, encoding="utf-8")
        process.send_signal(signal.SIGHUP)
        yield watching


def _absent(scopes: Iterable[Scope]) -> dict[str, str]:
    """Return the alert on the absence of each release, in a file of its own."""
    files = {}
    for scope in scopes:
        rules = yaml.safe_load(rule_files(LINKS, USUAL, scope=scope)["facial-service-api.yaml"])["groups"]
        found = [rule for group in rules for rule in group["rules"] if rule.get("alert") == "FacialServiceAbsent"]
        groups = [{"name": f"absent-{scope.release}", "rules": found}]
        files[f"facial-service-absent-{scope.release}.yaml"] = yaml.safe_dump({"groups": groups})
    return files


def _objectives(pace: Pace) -> dict[str, str]:
    return {name: text for name, text in rule_files(LINKS, pace.objectives, texts=pace.texts).items() if "slo" in name}


def _notifying(url: str) -> dict[str, Any]:
    """Configure Alertmanager to send each alert separately and immediately."""
    receiver = {"name": "webhook", "webhook_configs": [{"url": url, "send_resolved": True}]}
    route = {"receiver": "webhook", "group_by": ["..."], "group_wait": "0s", "group_interval": "500ms"}
    return {"route": {**route, "repeat_interval": "1h"}, "receivers": [receiver]}


@contextmanager
def _running(folder: Path, program: str, port: int, options: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    command = [require(program), *options, f"--web.listen-address=127.0.0.1:{port}"]
    with (folder / f"{program}.log").open("wb") as log:
        # In its own session, Linux gives it a fair share of the CPU next to the tests.
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait_for(lambda: _is_ready(process, port), program)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _is_ready(process: subprocess.Popen[bytes], port: int) -> bool:
    if process.poll() is not None:
        raise RuntimeError(f"it ended with {process.returncode}")
    with suppress(httpx.TransportError):
        return httpx.get(f"http://127.0.0.1:{port}/-/ready", timeout=5).status_code == 200
    return False


def _wait_for(condition: Callable[[], bool], what: str) -> None:
    limit = time.monotonic() + START_LIMIT_S
    while not condition():
        if time.monotonic() > limit:
            raise TimeoutError(f"{what}: not within {START_LIMIT_S} s")
        time.sleep(0.05)


def free_ports(count: int) -> list[int]:
    """Find ports below those of outgoing connections, for what is stopped and started again on the same one."""
    with ExitStack() as stack:
        ports: list[int] = []
        for port in random.sample(range(20_000, 30_000), 1000):
            with suppress(OSError):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
                ports.append(port)
            if len(ports) == count:
                return ports
    raise OSError("no port is free")

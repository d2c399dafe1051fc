"""No critical alert fires in normal traffic: requests, tasks with polls, slow uploads, bursts, errors and restarts.

Two API instances and two workers run on a NATS server. As with a Service, callers use an instance that is not being
restarted. By default, the test is short, and the rules have shorter windows. With NORMAL_TRAFFIC_S=1800, it
uses the shipped rules for half an hour, which needs a quiet machine. NORMAL_TRAFFIC_SEED selects another sequence of
events.
"""

from __future__ import annotations

import http.client
import os
import random
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from prometheus.source.objectives import Objectives, Texts
from prometheus.source.render import SpeedUp
from tests.alerting import Notice, Pace, Webhook, free_ports, monitoring, require
from tests.live.alerts.releases import CROP, JSON, Instance

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Sample

DURATION_S = float(os.environ.get("NORMAL_TRAFFIC_S", "90"))
SEED = int(os.environ.get("NORMAL_TRAFFIC_SEED", "1"))
# The rules see half an hour: of their own time, if the test is shorter.
SPEED_UP = SpeedUp(factor=max(1, 1800 / DURATION_S), min_window_ms=10_000)
IS_SHORT = SPEED_UP.factor > 1
SCRAPE_INTERVAL_S = 1 if IS_SHORT else 5
# Other tests use the machine during the short test, so that requests of a second are normal.
OBJECTIVES = Objectives(latency_threshold_s=Decimal(5)) if IS_SHORT else Objectives()
BURST_INTERVAL_S = min(120, DURATION_S / 4)
RESTART_INTERVAL_S = min(150, DURATION_S / 5)
BURST = 24
ASKING, SUBMITTING, UPLOADING = 3, 2, 6  # callers of each kind
UPLOAD_S = 15
DRAIN_S = 2  # as preStop: no new requests, before the instance is stopped

pytestmark = [pytest.mark.live, pytest.mark.timeout(DURATION_S + 600)]


@dataclass
class Figures:
    """What happened.

    Attributes:
        statuses: responses by kind of request and status; 0 if there was none.
        restarts: restarts by kind.
        notices: notifications of alerts.
    """

    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    restarts: Counter[str] = field(default_factory=Counter)
    notices: list[Notice] = field(default_factory=list)

    def rows(self) -> list[str]:
        """Return the figures as a Markdown table."""
        counts = [*((f"{kind}: {status}", count) for (kind, status), count in sorted(self.statuses.items()))]
        counts += [(f"restart: {kind}", count) for kind, count in sorted(self.restarts.items())]
        fired = Counter((notice.labels["severity"], notice.rule) for notice in self.notices if notice.is_firing)
        counts += [(f"{severity}: {rule}", count) for (severity, rule), count in sorted(fired.items())]
        return ["| event | count |", "| --- | --- |", *(f"| {name} | {count} |" for name, count in counts)]


class Traffic:
    """Callers of a release, and its operator.

    Args:
        apis: instances of the API.
        workers: instances of the workers.
        sample: photo of the requests.

    Attributes:
        figures: what happened so far.
    """

    def __init__(self, apis: list[Instance], workers: list[Instance], sample: Sample) -> None:
        self.figures = Figures()
        self._apis = apis
        self._workers = workers
        self._sample = sample
        self._in_rotation = list(apis)
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._usual = [
            sample.json(),
            sample.json(image=sample.png, verify="pixels"),
            sample.json(segmentation_map=sample.labels),
            sample.json(show_labels=True),
            sample.json(image=sample.photo),
        ]
        self._invalid = [sample.json(landmarks=[]), sample.json(image=sample.jpeg[:-200]), b"{"]

    def run(self, duration_s: float) -> None:
        """Send traffic and restart instances for a while."""
        callers = [*ASKING * [self._ask], *SUBMITTING * [self._submit], *UPLOADING * [self._upload_slowly]]
        roles = [*callers, self._burst, self._restart]
        with ThreadPoolExecutor(len(roles)) as pool:
            runs = [pool.submit(self._repeat, role, random.Random(f"{SEED}/{at}")) for at, role in enumerate(roles)]
            self._stop.wait(duration_s)
            self._stop.set()
        for done in runs:
            done.result()

    def _repeat(self, role: Callable[[random.Random], None], chance: random.Random) -> None:
        while not self._stop.is_set():
            role(chance)

    def _api(self, chance: random.Random) -> str:
        with self._lock:
            address: str = chance.choice(self._in_rotation).running.api
        return address

    def _count(self, kind: str, status: int) -> None:
        with self._lock:
            self.figures.statuses[kind, status] += 1

    def _send(self, kind: str, method: str, url: str, content: bytes = b"") -> httpx.Response | None:
        try:
            response = httpx.request(method, url, content=content, headers=JSON, timeout=60)
        except httpx.TransportError:
            self._count(kind, 0)
            return None
        self._count(kind, response.status_code)
        return response

    def _ask(self, chance: random.Random) -> None:
        if chance.random() < 0.05:
            self._send("invalid", "POST", self._api(chance) + CROP, chance.choice(self._invalid))
        else:
            self._send("request", "POST", self._api(chance) + CROP, chance.choice(self._usual))
        self._stop.wait(chance.uniform(0.2, 0.8))

    def _submit(self, chance: random.Random) -> None:
        accepted = self._send("submission", "POST", f"{self._api(chance)}{CROP}/submit", chance.choice(self._usual))
        if accepted is not None and accepted.status_code == httpx.codes.ACCEPTED:
            wait_s = chance.choice([0, 0, 5])
            for _ in range(60):
                url = f"{self._api(chance)}{accepted.headers['location']}?wait={wait_s}"
                polled = self._send("poll", "GET", url)
                if polled is not None and polled.json().get("status") in {"SUCCESS", "FAILURE"}:
                    break
                self._stop.wait(0.3)
            else:
                self._count("unfinished task", 0)
        self._stop.wait(chance.uniform(0.3, 1.5))

    def _upload_slowly(self, chance: random.Random) -> None:
        """Send a body at a few ten kilobytes per second, as phones do."""
        body, address = self._sample.json(image=self._sample.photo), urlsplit(self._api(chance))
        connection = http.client.HTTPConnection(address.netloc, timeout=60)
        try:
            connection.putrequest("POST", CROP)
            connection.putheader("Content-Type", JSON["Content-Type"])
            connection.putheader("Content-Length", str(len(body)))
            connection.endheaders()
            parts = 10 * UPLOAD_S
            size = -(-len(body) // parts)
            for at in range(0, len(body), size):
                connection.send(body[at : at + size])
                time.sleep(UPLOAD_S / parts)
            self._count("slow upload", connection.getresponse().status)
        except OSError:
            self._count("slow upload", 0)  # its instance was stopped meanwhile
        finally:
            connection.close()
        self._stop.wait(chance.uniform(0.5, 3))

    def _burst(self, chance: random.Random) -> None:
        """Send many requests at once; some may be rejected because of load."""
        if self._stop.wait(BURST_INTERVAL_S * chance.uniform(0.7, 1.3)):
            return
        address = self._api(chance) + CROP
        with ThreadPoolExecutor(BURST) as pool:
            list(pool.map(lambda body: self._send("burst", "POST", address, body), self._usual[:1] * BURST))

    def _restart(self, chance: random.Random) -> None:
        """Restart an instance as a rolling update does, or kill one of its processes."""
        if self._stop.wait(RESTART_INTERVAL_S * chance.uniform(0.7, 1.3)):
            return
        kind = chance.choice(["API", "workers", "API process killed", "task process killed"])
        instance = chance.choice(self._apis if kind.startswith("API") else self._workers)
        if kind == "API":
            with self._lock:
                self._in_rotation.remove(instance)
            self._stop.wait(DRAIN_S)
        if "killed" in kind:
            processes = instance.running.workers() if kind.startswith("API") else instance.running.task_workers()
            if processes:
                with suppress(psutil.NoSuchProcess):
                    chance.choice(processes).kill()
        else:
            with instance.stopped():
                pass
        with self._lock:
            if kind == "API":
                self._in_rotation.append(instance)
            self.figures.restarts[kind] += 1


@pytest.fixture(scope="module")
def figures(
    run_nats: Any,
    run_service: Any,
    run_worker: Any,
    sample: Sample,
    wait_until: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Figures:
    """Run the traffic, and return what happened."""
    for program in ("prometheus", "alertmanager"):
        require(program)
    with ExitStack() as stack:
        webhook = Webhook()
        stack.callback(webhook.close)
        nats = stack.enter_context(run_nats())
        queue = {"NATS_URL": nats.url, "NATS_MONITOR_URL": nats.monitor_url}
        ports = free_ports(6)
        apis = [
            Instance(stack, run_service, WORKERS=2, PORT=port, METRICS_PORT=metrics_port, **queue)
            for port, metrics_port in (ports[:2], ports[2:4])
        ]
        workers = [Instance(stack, run_worker, TASK_WORKERS=1, METRICS_PORT=port, **queue) for port in ports[4:]]
        labels = {"namespace": "faces", "release": "faces"}
        targets = [
            {"targets": [instance.address], "labels": {**labels, "role": role}}
            for role, instances in (("api", apis), ("worker", workers))
            for instance in instances
        ]
        metric = ("queue_up", frozenset[tuple[str, str]]())
        for instance in apis:
            wait_until(lambda one=instance: one.running.scrape().get(metric) == 1, limit_s=60, what="the queue")
        folder = tmp_path_factory.mktemp("normal")
        pace = Pace(SPEED_UP, SPEED_UP, Texts.of(OBJECTIVES), SCRAPE_INTERVAL_S)
        stack.enter_context(monitoring(folder, webhook, targets, [], pace=pace))
        traffic = Traffic(apis, workers, sample)
        traffic.run(DURATION_S)
        traffic.figures.notices = webhook.notices()
    return traffic.figures


def test_no_critical_alert_fires(figures: Figures, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print("\n\n" + "\n".join(figures.rows()))  # noqa: T201 - the result
    assert [notice for notice in figures.notices if notice.labels["severity"] == "critical"] == []


def test_traffic_was_as_planned(figures: Figures) -> None:
    """Every kind of event occurred, and requests were served."""
    kinds = {kind for kind, _ in figures.statuses}
    assert kinds >= {"request", "invalid", "submission", "poll", "slow upload", "burst"}
    assert figures.restarts
    served = figures.statuses["request", 200]
    assert served > 0.98 * sum(count for (kind, _), count in figures.statuses.items() if kind == "request")
    assert ("unfinished task", 0) not in figures.statuses
    assert figures.statuses["slow upload", 200] > 0

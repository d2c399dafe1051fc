"""The dashboards, drawn by Grafana's own components in Chromium with the data of a running service.

`tools/dashboards` draws every panel from the committed JSON. Two API instances, a worker and a NATS server run under
load, and a Prometheus with the project's rules scrapes them. Simulated exporters of a cluster complete the metrics.

`make pictures` sets DASHBOARD_PICTURES, the folder for the pictures; the load then lasts for some minutes.
"""

from __future__ import annotations

import itertools
import math
import os
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import httpx
import numpy as np
import psutil
import pytest

from tests.browser.visitor import LIMIT_MS
from tests.dashboards import ROOT, fill, load, panels
from tests.scraping import STEP_S, job, prometheus, serve_exposition
from tools.docs.draw_page import encode_png

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from playwright.sync_api import Browser, Page, Route

    from tests.conftest import Sample
    from tests.live.conftest import RunningProcesses, RunningService
    from tests.scraping import Server


PICTURES = os.environ.get("DASHBOARD_PICTURES")
DURATION_S = 330 if PICTURES else 40
pytestmark = [pytest.mark.live, pytest.mark.timeout(DURATION_S + 600)]

SCRAPE_INTERVAL_S = 5 if PICTURES else 1
PERIOD_S = DURATION_S / 2.5  # of the load, which rises and falls
CLIENTS = 3
MIN_ROUNDS = 3  # of each client: rates need several requests of each kind, also on a slow machine
WIDTH = 1600
ADDRESS = "http://dashboards/"
CROP = "/api/v1/frontal/crop"
RELEASE = "faces-facial-service"
PODS = {
    f"{RELEASE}-api-7c9d8b6f5-k4x2p": "api",
    f"{RELEASE}-api-7c9d8b6f5-zt9wm": "api",
    f"{RELEASE}-worker-5f6c7d8b94-h8qjn": "worker",
    f"{RELEASE}-nats-0": "nats",
}
MEBI = 2**20
# Requests and limits of the chart's default values.
RESOURCES = {"api": (0.25, 384 * MEBI, 2048 * MEBI), "worker": (0.25, 384 * MEBI, 2048 * MEBI)}
RESOURCES["nats"] = (0.1, 256 * MEBI, 1024 * MEBI)


def expose_cluster(processes: dict[str, int]) -> str:
    """Return the metrics that a healthy cluster's exporters have about pods whose processes run here."""
    lines: list[str] = []

    def add(name: str, value: float, **labels: str) -> None:
        pairs = ",".join(f'{label}="{text}"' for label, text in {"namespace": "faces", **labels}.items())
        lines.append(f"{name}{{{pairs}}} {value}")

    for role, count in (("api", 2), ("worker", 1)):
        name = f"{RELEASE}-{role}"
        for metric in ("spec_replicas", "status_replicas_available", "status_replicas_updated"):
            add(f"kube_deployment_{metric}", count, deployment=name)
        add("kube_deployment_status_observed_generation", 1, deployment=name)
        add("kube_horizontalpodautoscaler_spec_min_replicas", count, horizontalpodautoscaler=name)
        add("kube_horizontalpodautoscaler_spec_max_replicas", 4, horizontalpodautoscaler=name)
        for metric in ("current", "desired"):
            add(f"kube_horizontalpodautoscaler_status_{metric}_replicas", count, horizontalpodautoscaler=name)
    for metric in ("replicas", "status_replicas_ready", "status_replicas_updated"):
        add(f"kube_statefulset_{metric}", 1, statefulset=f"{RELEASE}-nats")
    claim = f"store-{RELEASE}-nats-0"
    add("kubelet_volume_stats_capacity_bytes", 8192 * MEBI, persistentvolumeclaim=claim)
    add("kubelet_volume_stats_available_bytes", 7900 * MEBI, persistentvolumeclaim=claim)
    for pod, role in PODS.items():
        own = {"pod": pod, "container": role}
        cpu, requested, limit = RESOURCES[role]
        add("kube_pod_container_resource_requests", cpu, **own, resource="cpu", unit="core")
        add("kube_pod_container_resource_requests", requested, **own, resource="memory", unit="byte")
        add("kube_pod_container_resource_limits", limit, **own, resource="memory", unit="byte")
        add("kube_pod_container_resource_limits", 2, **own, resource="cpu", unit="core")
        add("kube_pod_container_status_restarts_total", 0, **own)
        for condition, value in (("true", 1), ("false", 0), ("unknown", 0)):
            add("kube_pod_status_ready", value, pod=pod, condition=condition)
        master = psutil.Process(processes[pod])
        tree = [master, *master.children(recursive=True)]
        times = [process.cpu_times() for process in tree]
        used = sum(each.user + each.system for each in times) + times[0].children_user + times[0].children_system
        add("container_cpu_usage_seconds_total", used, **own)
        add("container_memory_working_set_bytes", sum(each.memory_info().rss for each in tree), **own)
        add("container_cpu_cfs_periods_total", 10 * (time.time() - master.create_time()), **own)
        add("container_cpu_cfs_throttled_periods_total", 0, **own)
        add("container_oom_events_total", 0, **own)
    return "\n".join([*lines, ""])


@contextmanager
def cluster_exporter(processes: dict[str, int]) -> Iterator[str]:
    with serve_exposition(lambda: expose_cluster(processes)) as address:
        yield address


def send_requests(apis: list[str], sample: Sample, number: int, has_ended: Callable[[], bool]) -> None:
    """Send a realistic mix at a rate that rises and falls: most requests are valid, some submit tasks, a few fail."""
    choose = random.Random(number)
    crops = [
        *[sample.json(image=image) for image in (sample.jpeg, sample.jpeg, sample.png, sample.webp, sample.photo)],
        sample.json(image=sample.photo, landmarks=None),
        sample.json(image=sample.photo, upright=True, crop="face", background="image"),
        sample.json(image=sample.jpeg, upright=True, crop="face", background="image"),
        sample.json(segmentation_map=sample.labels),
        sample.json(segmentation_map={"mouth": [61, 0, 291, 17]}),
    ]
    bad = [sample.json(landmarks=[]), sample.json(image=sample.jpeg[:-200]), b"{"]
    failing = sample.json(image=sample.png_file(512, 512, b"none"), verify="pixels")
    # Each kind of request comes in every round, so that a slow machine has data for all panels too.
    rounds = itertools.chain.from_iterable(choose.sample(crops, len(crops)) for _ in itertools.count())
    left = MIN_ROUNDS * len(crops)
    began = time.monotonic()
    with httpx.Client(headers={"Content-Type": "application/json", "Connection": "close"}, timeout=60) as client:

        def submit(api: str, content: bytes) -> None:
            response = client.post(f"{api}{CROP}/submit", content=content)
            if response.status_code == 202:  # a busy machine may be too slow for the queue
                client.get(f"{api}{response.headers['location']}", params={"wait": 5})

        for content in bad:
            client.post(f"{apis[0]}{CROP}", content=content)
        submit(apis[0], failing)
        while left > 0 or not has_ended():
            api, kind = choose.choice(apis), choose.random()
            if kind < 0.02:
                client.post(f"{api}{CROP}", content=choose.choice(bad))
            elif kind < 0.022:
                submit(api, failing)
            elif kind < 0.3:
                options = {"region_opacity": round(choose.random(), 2)} if choose.random() < 0.8 else {}
                submit(api, sample.json(image=sample.photo, **options))
            else:
                client.post(f"{api}{CROP}", content=next(rounds))
                left -= 1
            idleness = 0.5 + 0.5 * math.cos(2 * math.pi * (time.monotonic() - began) / PERIOD_S)
            time.sleep(choose.uniform(0.2, 0.5) * (1 + 2 * idleness))


def query(server: Server, document: dict[str, Any]) -> dict[str, Any]:
    """Return what Grafana would give to the panels: the results of all queries and annotations."""
    values = server.values(document)
    values["__rate_interval"] = f"{max(4 * SCRAPE_INTERVAL_S, STEP_S + SCRAPE_INTERVAL_S)}s"
    return {
        "dashboard": document,
        "from": server.start * 1000,
        "to": server.end * 1000,
        "step": STEP_S * 1000,
        "results": {
            str(panel["id"]): {
                target["refId"]: server.draw(fill(target["expr"], values), is_instant=bool(target["instant"]))
                for target in panel["targets"]
            }
            for panel in panels(document)
        },
        "annotations": [
            {**annotation, "series": server.draw(fill(annotation["expr"], values))}
            for annotation in document["annotations"]["list"]
            if "expr" in annotation
        ],
    }


@pytest.fixture(scope="module")
def server(
    run_nats: Callable[..., Any],
    run_service: Callable[..., Any],
    run_worker: Callable[..., Any],
    sample: Sample,
    wait_until: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    """Run everything under load, and return the Prometheus when the load has ended."""
    with ExitStack() as stack:
        nats = stack.enter_context(run_nats())
        queue = {"NATS_URL": nats.url, "NATS_MONITOR_URL": nats.monitor_url, "RESULT_CACHE": "true"}
        apis: list[RunningService] = [stack.enter_context(run_service(WORKERS=2, **queue)) for _ in range(2)]
        worker = stack.enter_context(run_worker(TASK_WORKERS=2, **queue))
        owners: list[RunningProcesses] = [*apis, worker]
        targets = [
            {
                "targets": [owner.metrics.removeprefix("http://")],
                "labels": {"namespace": "faces", "pod": pod, "role": role, "instance": f"10.244.1.{host}:9000"},
            }
            for host, ((pod, role), owner) in enumerate(zip(PODS.items(), owners, strict=False), start=21)
        ]
        pids = dict(zip(PODS, [*(owner.pid for owner in owners), nats.pids()[0]], strict=True))
        cluster = job("kubernetes", [{"targets": [stack.enter_context(cluster_exporter(pids))]}], honor_labels=True)
        folder = tmp_path_factory.mktemp("pictures") / "prometheus"
        jobs = [job("facial-service", targets), cluster]
        running = stack.enter_context(
            prometheus(folder, jobs, wait_until, interval_s=SCRAPE_INTERVAL_S, has_test_alert=False)
        )
        wait_until(lambda: apis[0].scrape().get(("queue_up", frozenset())) == 1, limit_s=60, what="the queue")
        running.start = time.time()
        urls = [api.api for api in apis]
        ends = time.monotonic() + DURATION_S
        with ThreadPoolExecutor(CLIENTS) as pool:
            clients = [
                pool.submit(send_requests, urls, sample, number, lambda: time.monotonic() > ends)
                for number in range(CLIENTS)
            ]
        for client in clients:
            client.result()
        running.end = time.time()
        yield running


@pytest.fixture(scope="module")
def page(browser: Browser) -> Iterator[Page]:
    """Return the page that draws dashboards, at the width of a desktop."""
    setup = subprocess.run(
        [sys.executable, ROOT / "tools" / "setup.py", "dashboards"], capture_output=True, text=True, check=True
    )
    folder = Path(setup.stdout.split()[-1])
    if not folder.is_dir():
        pytest.skip(setup.stderr.splitlines()[-1])

    def respond(route: Route) -> None:
        file = folder / route.request.url.removeprefix(ADDRESS)
        if file.is_file():
            route.fulfill(path=file)
        else:
            route.fulfill(status=404)

    page = browser.new_page(viewport={"width": WIDTH, "height": 1200})
    page.set_default_timeout(LIMIT_MS * 10)  # the page is large, and other programs use the machine too
    page.route("**/*", respond)
    page.goto(f"{ADDRESS}index.html")
    yield page
    page.close()


def draw(page: Page, data: dict[str, Any], *, is_expanded: bool) -> list[dict[str, Any]]:
    """Draw a dashboard as it is at first, or with all sections expanded, and return what its panels look like."""
    page.evaluate("data => draw(data)", {**data, "expanded": is_expanded})
    height = page.evaluate("Math.ceil(document.querySelector('.dashboard').getBoundingClientRect().height)")
    page.set_viewport_size({"width": WIDTH, "height": height})
    drawn: list[dict[str, Any]] = page.evaluate("inspect().panels")
    return drawn


def find_faults(drawn: list[dict[str, Any]]) -> list[str]:
    """Return what an operator could not read: panels without data or plot, texts that are cut, and overlaps."""
    found = [f"{panel['title']}: no data" for panel in drawn if not panel["values"]]
    found += [
        f"{panel['title']}: nothing is drawn"
        for panel in drawn
        if panel["type"] in {"timeseries", "heatmap"} and panel["values"] and not panel["hasColour"]
    ]
    found += [f"{panel['title']}: cut {text!r}" for panel in drawn for text in panel["clipped"]]
    found += [
        f"{one['title']} overlaps {other['title']}"
        for one, other in itertools.combinations(drawn, 2)
        if all(
            one["box"][start] < other["box"][end] and other["box"][start] < one["box"][end]
            for start, end in (("left", "right"), ("top", "bottom"))
        )
    ]
    return found


@pytest.mark.parametrize("uid", load())
def test_every_panel_can_be_read(page: Page, server: Server, uid: str) -> None:
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    document = load()[uid]
    data = query(server, document)
    drawn = draw(page, data, is_expanded=True)
    if PICTURES:
        draw(page, data, is_expanded=False)
        image = cv2.imdecode(np.frombuffer(page.screenshot(), np.uint8), cv2.IMREAD_COLOR)
        Path(PICTURES, f"{uid.replace('facial-service', 'dashboard')}.png").write_bytes(encode_png(image))
    assert [panel["title"] for panel in drawn] == [panel["title"] for panel in panels(document)]
    assert find_faults(drawn) == []
    assert errors == []


def panel(number: int, title: str, kind: str = "timeseries", **position: int) -> dict[str, Any]:
    """Return a panel of another dashboard, with its own results."""
    like = next(each for each in panels(load()["facial-service-overview"]) if each["type"] == kind)
    place = {"x": 6 * number, "y": 0, "w": 6, "h": 6, **position}
    target = {"refId": "A", "expr": "", "legendFormat": "{{name}}"}
    field_config = {"defaults": {**like["fieldConfig"]["defaults"], "noValue": "none"}, "overrides": []}
    return {**like, "id": number, "title": title, "gridPos": place, "targets": [target], "fieldConfig": field_config}


def test_faults_are_found(page: Page) -> None:
    """What the other test asserts can fail."""
    long = "A title that is much too long for a panel of this width, so that Grafana cuts it"
    shown = [
        panel(0, "Good"),
        panel(1, "Empty"),
        panel(2, long, kind="stat"),
        panel(3, "Above"),
        panel(4, "Below", x=20, y=5),
    ]
    series = {"A": [{"metric": {"name": "requests"}, "values": [[at, str(1 + at % 3)] for at in range(0, 300, 5)]}]}
    data = {
        "dashboard": {"title": "Faults", "panels": shown, "templating": {"list": []}},
        "from": 0,
        "to": 300_000,
        "step": 5000,
        "results": {str(each["id"]): {} if each["title"] == "Empty" else series for each in shown},
        "annotations": [],
    }
    assert find_faults(draw(page, data, is_expanded=False)) == [
        "Empty: no data",
        f"{long}: cut {long!r}",
        "Above overlaps Below",
    ]

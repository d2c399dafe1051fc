"""Health, metrics, version and the interactive documentation."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import pytest

from app import __version__
from app.main import create_app
from app.observability import multiprocess
from app.observability.health import WorkerState
from app.settings import Settings
from app.supervisor.scoreboard import Scoreboard

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import httpx
    from fastapi import FastAPI

    Call = Callable[..., httpx.Response]
    MakeApp = Callable[..., FastAPI]


@pytest.mark.parametrize(
    ("states", "is_draining", "live", "ready"),
    [
        ([], False, 200, 503),
        ([WorkerState.STARTING, WorkerState.READY], False, 200, 503),
        ([WorkerState.READY, WorkerState.READY], False, 200, 200),
        ([WorkerState.READY, WorkerState.READY], True, 200, 503),
        ([WorkerState.READY, WorkerState.READY, WorkerState.DRAINING], False, 200, 200),
    ],
)
def test_health_reports_the_scoreboard(
    call: Call, states: list[WorkerState], is_draining: bool, live: int, ready: int
) -> None:
    scoreboard = Scoreboard(expected_workers=2, timeout_s=30)
    for slot, state in enumerate(states):
        scoreboard.heartbeat(slot, state)
    if is_draining:
        scoreboard.drain()
    app = create_app(Settings(), scoreboard=scoreboard)
    responses = {path: call(app, "GET", f"/health{path}") for path in ("", "/live", "/ready")}
    assert {path: response.status_code for path, response in responses.items()} == {
        "": live,
        "/live": live,
        "/ready": ready,
    }
    report = responses[""].json()
    assert (report["live"], report["ready"], report["draining"]) == (live == 200, ready == 200, is_draining)
    assert [worker["state"] for worker in report["workers"]] == [state.name.lower() for state in states]
    assert {worker["pid"] for worker in report["workers"]} <= {os.getpid()}
    app.state.web.admission.close()


def test_metrics_are_available_in_both_formats(call: Call, scrape: object, tmp_path: Path) -> None:
    assert scrape
    app = create_app(Settings(), registry=multiprocess.scrape_registry(tmp_path / "values"))
    call(app, "GET", "/version")
    text = call(app, "GET", "/metrics")
    assert text.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert re.search(
        r'^api_requests_total\{endpoint="/version",method="GET",status="200"\} 1\.0$', text.text, re.MULTILINE
    )
    openmetrics = call(app, "GET", "/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert openmetrics.headers["content-type"].startswith("application/openmetrics-text")
    assert openmetrics.text.endswith("# EOF\n")
    app.state.web.admission.close()


def test_disabled_metrics_are_not_found(make_app: MakeApp, call: Call) -> None:
    response = call(make_app(), "GET", "/metrics")
    assert (response.status_code, response.json()["code"]) == (404, "not_found")


def test_metrics_can_be_absent_from_the_api_port(call: Call, scrape: object, tmp_path: Path) -> None:
    assert scrape
    registry = multiprocess.scrape_registry(tmp_path / "values")
    app = create_app(Settings(metrics_on_api_port=False), registry=registry)
    assert call(app, "GET", "/metrics").status_code == 404
    app.state.web.admission.close()


@pytest.mark.parametrize("path", ["/version", "/docs", "/openapi.json", "/"])
def test_prefix_of_the_proxy_is_accepted(make_app: MakeApp, call: Call, path: str) -> None:
    app = make_app(root_path="/faces/")
    with_prefix, without = call(app, "GET", f"/faces{path}"), call(app, "GET", path)
    assert with_prefix.status_code == 200
    assert with_prefix.content == without.content


@pytest.mark.parametrize(
    ("path", "status", "location"),
    [
        ("/facesx/version", 404, None),
        ("/faces/faces/version", 404, None),
        ("/faces", 308, "/faces/"),
        ("/faces?from=mail&x=%20", 308, "/faces/?from=mail&x=%20"),
    ],
)
def test_prefix_is_a_whole_part_of_the_path(
    make_app: MakeApp, call: Call, path: str, status: int, location: str | None
) -> None:
    response = call(make_app(root_path="/faces"), "GET", path)
    assert response.status_code == status
    assert response.headers.get("location") == location


def test_prefix_that_is_also_a_path_of_the_service_stays_with_the_proxy(make_app: MakeApp, call: Call) -> None:
    app = make_app(root_path="/docs")
    assert [link for link in (call(app, "GET", "/docs"), call(app, "GET", "/version")) if link.status_code != 200] == []


def test_version(make_app: MakeApp, call: Call) -> None:
    response = call(make_app(), "GET", "/version").json()
    assert response["version"] == __version__
    assert re.fullmatch(r"3\.\d+\.\d+", response["python"])


@pytest.mark.parametrize("root", ["", "/faces", "/faces/"])
def test_docs_load_only_their_own_assets(make_app: MakeApp, call: Call, root: str) -> None:
    app = make_app(root_path=root)
    page = call(app, "GET", "/docs")
    assert page.status_code == 200
    prefix = root.rstrip("/")
    links = [link for link in re.findall(r"""(?:src|href|url)\s*[:=]\s*['"]([^'"]+)['"]""", page.text) if "/" in link]
    assert f"{prefix}/openapi.json" in links
    assert len(links) >= 4
    servers = call(app, "GET", "/openapi.json").json().get("servers")
    assert servers == ([{"url": prefix}] if prefix else None)
    for link in links:
        assert link.startswith(f"{prefix}/"), link
        assert call(app, "GET", link.removeprefix(prefix)).status_code == 200

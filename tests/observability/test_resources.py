"""Resources of the processes of an instance, and its build."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import pytest
from prometheus_client.core import GaugeMetricFamily

from app.observability import resources
from app.observability.health import WorkerState
from app.observability.resources import BuildCollector, ResourceCollector
from app.supervisor.scoreboard import Scoreboard

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def scoreboard() -> Scoreboard:
    scoreboard = Scoreboard(expected_workers=1, timeout_s=60)
    scoreboard.heartbeat(0, WorkerState.READY)
    return scoreboard


def test_build_info() -> None:
    (family,) = BuildCollector("1.2.3").collect()
    assert isinstance(family, GaugeMetricFamily)
    assert family.samples[0].labels["version"] == "1.2.3"


def test_resources_of_this_process(scoreboard: Scoreboard) -> None:
    collector = ResourceCollector(scoreboard)
    first = {family.name: family for family in collector.collect()}
    second = {family.name: family for family in collector.collect()}
    (memory,) = first["memory_usage_bytes"].samples
    assert memory.labels == {"process": "master"}
    assert memory.value > 1e6
    assert all(family.samples[0].value >= 0 for family in (first["cpu_usage_percent"], second["cpu_usage_percent"]))


def test_resources_of_managed_processes_and_task_workers(scoreboard: Scoreboard) -> None:
    tasks = Scoreboard(expected_workers=1, timeout_s=60, worker_name="task")
    scoreboard.task_scoreboard = tasks
    child = os.fork()
    if not child:
        tasks.heartbeat(0, WorkerState.READY)
        signal.pause()
    try:
        scoreboard.record_managed_process(0, "nats-server", child)
        while not tasks.workers():
            time.sleep(0.01)
        memory, *_ = ResourceCollector(scoreboard).collect()
        assert {sample.labels["process"] for sample in memory.samples} == {"master", "nats-server", "task-0"}
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_readiness_is_that_of_the_probe(scoreboard: Scoreboard) -> None:
    def read() -> float:
        return next(
            family.samples[0].value
            for family in ResourceCollector(scoreboard).collect()
            if family.name == "service_ready"
        )

    assert read() == scoreboard.health().is_ready == 1
    scoreboard.drain()
    assert read() == scoreboard.health().is_ready == 0


def test_start_time_tells_a_replaced_process_apart(scoreboard: Scoreboard) -> None:
    families = {family.name: family for family in ResourceCollector(scoreboard).collect()}
    (start,) = families["process_start_time_seconds"].samples
    assert start.labels == {"process": "master"}
    assert 0 < time.time() - start.value < 86_400 * 7


@pytest.mark.parametrize(
    ("contents", "expected"),
    [
        (("1048576\n", None), 1_048_576),
        (("max\n", None), None),
        ((None, "2097152\n"), 2_097_152),
        ((None, "9223372036854771712\n"), None),
        ((None, None), None),
    ],
)
def test_memory_limit_of_both_cgroup_versions(
    contents: tuple[str | None, str | None], expected: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = (tmp_path / "v2", tmp_path / "v1")
    for file, content in zip(files, contents, strict=True):
        if content is not None:
            file.write_text(content, encoding="ascii")
    monkeypatch.setattr(resources, "MEMORY_LIMIT_FILES", files)
    assert resources.read_memory_limit() == expected

"""Resources of the processes of an instance, and its build."""

from __future__ import annotations

import os
import signal
import time

import pytest
from prometheus_client.core import GaugeMetricFamily

from app.observability.health import WorkerState
from app.observability.resources import BuildCollector, ResourceCollector
from app.supervisor.scoreboard import Scoreboard


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

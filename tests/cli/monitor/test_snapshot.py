"""Instances are combined correctly: summed, counted once, or skipped while unreachable."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from app.cli.monitor.snapshot import API_PREFIX, WORK_METHOD, History, build_snapshot, is_work
from app.observability.metrics import METRICS
from prometheus.source import model

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.cli.monitor.snapshot import Snapshot

T = "facial_processing"


def take_snapshot(*services: Any) -> Snapshot:
    return build_snapshot(
        [service.instance for service in services],
        at=services[0].now,
        time=datetime(2026, 5, 4, 12, 0, tzinfo=UTC),
        started_at=100.0,
        interval_s=2.0,
        window_s=10.0,
    )


def texts(snapshot: Snapshot) -> list[str]:
    return [problem.text for problem in snapshot.problems]


def charted(service: Any) -> tuple[float | None, float | None]:
    """Return the rate and the 95th percentile that the charts get."""
    history = History()
    history.add(take_snapshot(service), [service.instance])
    return history.rate[-1], history.p95_s[-1]


def test_one_scrape_has_unknown_rates_not_zero_rates(service: Any) -> None:
    service.respond(5)
    service.scrape()
    snapshot = take_snapshot(service)
    assert snapshot.state == "ready"
    assert (snapshot.requests.flow.per_s, snapshot.requests.flow.seen, snapshot.requests.flow.total) == (None, 0, 5)
    assert (snapshot.requests.latency.p50_s, snapshot.requests.latency.count) == (None, 0)
    assert charted(service)[0] is None


def test_rate_and_latency_cover_the_window(service: Any) -> None:
    service.scrape()
    for number in (10, 20, 30):
        service.respond(number, seconds=0.05)
        service.scrape()
    requests = take_snapshot(service).requests
    assert (requests.flow.per_s, requests.flow.seen, requests.flow.total) == (10.0, 60, 60)
    assert requests.latency.p50_s == pytest.approx(0.01 + 0.5 * 0.09)
    assert (requests.latency.count, requests.latency.bound_s) == (60, 1.0)
    assert charted(service)[0] == 15.0


def test_idle_interval_has_rate_zero_and_no_quantile(service: Any) -> None:
    service.respond(7)
    service.scrape()
    service.scrape()
    requests = take_snapshot(service).requests
    assert (requests.flow.per_s, requests.latency.p95_s) == (0.0, None)
    assert charted(service) == (0.0, None)


def test_restart_causes_neither_a_negative_rate_nor_a_spike(service: Any) -> None:
    service.respond(100_000)
    service.scrape()
    service.respond(10)
    service.scrape()
    service.restart()
    service.respond(6)
    service.scrape()
    snapshot = take_snapshot(service)
    assert (snapshot.requests.flow.per_s, snapshot.requests.flow.seen, snapshot.requests.flow.total) == (4.0, 16, 6)
    assert texts(snapshot) == ["the service restarted 0 s ago"]


def test_restart_is_recognised_by_the_start_time_although_all_counters_are_higher(service: Any) -> None:
    service.start(50)
    service.respond(10)
    service.scrape()
    service.restart()
    service.start(service.now + 1)
    service.respond(12)
    service.scrape()
    snapshot = take_snapshot(service)
    assert (snapshot.requests.flow.per_s, snapshot.requests.flow.seen) == (6.0, 12)
    assert texts(snapshot) == ["the service restarted 0 s ago"]


@pytest.mark.parametrize("start", [20, 51])
def test_another_pod_behind_the_address_is_no_burst_of_requests(service: Any, start: float) -> None:
    """Its counters are much higher, and its processes have the same ids, as in every container."""
    service.start(50)
    service.start(51, "worker-0")
    service.respond(10)
    service.scrape()
    service.start(start)
    service.start(start + 1, "worker-0")
    service.respond(1_000_000)
    service.count("app_worker_exits_total", ("killed",), 3)
    service.scrape()
    swapped = take_snapshot(service)
    assert (swapped.requests.flow.per_s, swapped.requests.flow.seen) == (None, 0)
    assert texts(swapped) == ["another instance took over this address 0 s ago"]
    service.respond(4)
    service.scrape()
    assert take_snapshot(service).requests.flow.per_s == 2.0
    service.scrape(60)
    assert texts(take_snapshot(service)) == []


def test_another_pod_after_an_outage_is_reported(service: Any) -> None:
    service.start(50)
    service.scrape()
    service.fail()
    service.start(60)
    service.scrape()
    assert texts(take_snapshot(service)) == ["another instance took over this address 0 s ago"]


def test_counters_that_are_lost_without_a_restart_are_no_restart(service: Any) -> None:
    service.start(50)
    service.respond(10)
    service.scrape()
    service.restart()
    service.respond(6)
    service.scrape()
    snapshot = take_snapshot(service)
    assert snapshot.requests.flow.per_s == 3.0
    assert texts(snapshot) == []


def test_a_process_with_the_same_id_but_another_start_is_new(service: Any) -> None:
    for name in ("master", "exporter"):
        service.start(50, name)
        service.gauge("memory_usage_bytes", 1e8, name)
    service.scrape()
    service.start(service.now + 1, "exporter")
    service.start(service.now + 1, "worker-0")
    service.scrape()
    service.start(service.now + 1, "worker-0")
    service.scrape()
    (instance,) = take_snapshot(service).instances
    changed = {process.name: process.changed_s for process in instance.processes}
    assert changed == {"worker-0": 0.0, "worker-1": None, "master": None, "exporter": 2.0}


def test_rates_start_again_after_an_outage(service: Any) -> None:
    """Behind a forwarded port, another pod with much higher counters may respond."""
    service.respond(10)
    service.scrape()
    service.fail()
    unreachable = take_snapshot(service)
    assert unreachable.state == "away"
    assert unreachable.requests.flow.per_s is None
    assert texts(unreachable) == ["one:9000: unreachable since 12:00:00 (0 s): connection refused"]
    service.fail(62)
    assert texts(take_snapshot(service)) == ["one:9000: unreachable since 11:58:58 (1 min 2 s): connection refused"]
    service.respond(1_000_000)
    service.scrape()
    back = take_snapshot(service)
    assert (back.state, back.requests.flow.per_s, back.requests.flow.seen) == ("ready", None, 0)
    service.respond(4)
    service.scrape()
    assert take_snapshot(service).requests.flow.per_s == 2.0


def test_instances_are_summed_each_over_its_own_time(make_service: Callable[..., Any]) -> None:
    one, two = make_service("one:9000"), make_service("two:9000")
    for service, number, every_s in ((one, 10, 2.0), (two, 30, 3.0)):
        service.scrape()
        service.respond(number)
        service.respond(5, status="503", seconds=5)
        service.scrape(every_s)
    requests = take_snapshot(one, two).requests
    assert requests.flow.per_s == pytest.approx(15 / 2 + 35 / 3)
    assert requests.by_status["503"].per_s == pytest.approx(5 / 2 + 5 / 3)
    assert (requests.flow.seen, requests.latency.count, requests.latency.p99_s) == (50, 50, 1.0)
    one.fail()
    snapshot = take_snapshot(one, two)
    assert (snapshot.state, snapshot.requests.flow.per_s) == ("degraded", pytest.approx(35 / 3))


def test_queue_gauges_are_not_summed(make_service: Callable[..., Any]) -> None:
    one, two = make_service("one:9000"), make_service("two:9000")
    for service in (one, two):
        service.gauge("queue_up", 1)
        service.gauge("task_queue_size", 40, T)
        service.gauge("api_requests_in_progress", 2, *("POST", "/api/v1/frontal/crop"))
        service.scrape()
        service.count("task_completions_total", (T, "SUCCESS"), 6)
        service.scrape()
    snapshot = take_snapshot(one, two)
    assert (snapshot.tasks.waiting, snapshot.tasks.queue_up) == (40, True)
    assert snapshot.tasks.succeeded.per_s == 6.0
    assert snapshot.requests.in_progress == 4
    one.gauge("queue_up", 0)
    one.gauge("task_queue_size", 17, T)
    one.scrape()
    snapshot = take_snapshot(one, two)
    assert (snapshot.tasks.waiting, snapshot.tasks.queue_up, snapshot.state) == (40, False, "degraded")
    assert texts(snapshot) == ["one:9000: the queue is unreachable"]


def test_queue_is_unknown_if_tasks_are_disabled(service: Any) -> None:
    service.scrape()
    tasks = take_snapshot(service).tasks
    assert (tasks.queue_up, tasks.waiting, tasks.oldest_age_s, tasks.has_leader) == (None, None, None, None)


def test_killed_worker_is_reported_for_a_minute(service: Any) -> None:
    service.scrape()
    killed = service.workers.pop("worker-1")
    service.count("app_worker_exits_total", ("killed",), 1)
    service.scrape()
    snapshot = take_snapshot(service)
    assert [(process.name, process.state) for process in snapshot.instances[0].processes] == [
        ("worker-0", "ready"),
        ("worker-1", "gone"),
    ]
    assert snapshot.state == "degraded"
    assert texts(snapshot) == ["worker-1 has been gone for 0 s", "a worker process was killed 0 s ago"]
    service.workers["worker-1"] = killed + 1
    service.scrape(10)
    snapshot = take_snapshot(service)
    assert (snapshot.state, texts(snapshot)) == ("ready", ["a worker process was killed 10 s ago"])
    assert [process.changed_s for process in snapshot.instances[0].processes] == [None, 0.0]
    service.scrape(70)
    snapshot = take_snapshot(service)
    assert texts(snapshot) == []
    assert snapshot.worker_exits["killed"].seen == 1
    assert [process.changed_s for process in snapshot.instances[0].processes] == [None, None]


def test_worker_that_stays_gone_is_removed(service: Any) -> None:
    service.scrape()
    del service.workers["worker-1"]
    service.scrape()
    service.scrape(70)
    assert [process.name for process in take_snapshot(service).instances[0].processes] == ["worker-0"]


@pytest.mark.parametrize(
    ("changes", "state", "text"),
    [
        ({"ready": False}, "not_ready", "the service is not ready"),
        ({"draining": True}, "not_ready", "the service is shutting down and accepts no new requests"),
        ({"beat_s": 7.4}, "degraded", "worker-0 has sent no heartbeat for 7 s"),
    ],
)
def test_bad_health_is_reported(service: Any, changes: dict[str, Any], state: str, text: str) -> None:
    for name, value in changes.items():
        setattr(service, name, value)
    service.scrape()
    snapshot = take_snapshot(service)
    assert (snapshot.state, texts(snapshot)[0]) == (state, text)


def test_full_storage_and_missing_leader_are_reported(service: Any) -> None:
    service.gauge("queue_up", 1)
    service.gauge("queue_storage_bytes", 95)
    service.gauge("queue_storage_limit_bytes", 100)
    service.gauge("queue_cluster_has_leader", 0)
    service.scrape()
    assert texts(take_snapshot(service)) == ["the queue cluster has no leader", "the queue storage is 95 % full"]


def test_snapshot_serializes_without_nan_or_infinity(service: Any) -> None:
    service.respond(3)
    service.scrape()
    service.fail()
    text = orjson.dumps(take_snapshot(service)).decode()
    assert "NaN" not in text
    assert "Infinity" not in text
    assert orjson.loads(text)["instances"][0]["reason"] == "connection refused"


def test_history_has_one_value_per_round_and_gaps_during_outages(service: Any) -> None:
    history = History()
    service.scrape()
    history.add(take_snapshot(service), [service.instance])
    service.respond(8)
    service.scrape()
    history.add(take_snapshot(service), [service.instance])
    service.fail()
    history.add(take_snapshot(service), [service.instance])
    assert list(history.rate) == [None, 4.0, None]


def test_requests_are_selected_as_in_dashboards_and_alerts() -> None:
    assert f'endpoint=~"{API_PREFIX}.+"' == model.API
    assert f'method="{WORK_METHOD}", {model.API}' == model.WORK
    assert is_work(("POST", "/api/v1/frontal/crop"))
    assert not is_work(("GET", "/api/v1/frontal/crop/status/{task_id}"))
    assert not is_work(("POST", "unmatched"))


def test_every_declared_reason_and_status_is_shown(service: Any) -> None:
    """A reason that is added to the metrics appears here without a change to the monitor."""
    counters = {spec.name: spec.labels for spec in METRICS if spec.kind == "counter"}
    service.scrape()
    for name, label in (("api_rejections_total", "reason"), ("app_worker_exits_total", "reason")):
        for value in counters[name][label]:
            service.count(name, (value,), 1)
    for status in counters["task_completions_total"]["status"]:
        service.count("task_completions_total", (T, status), 1)
    service.scrape()
    snapshot = take_snapshot(service)
    assert snapshot.rejections.keys() == set(counters["api_rejections_total"]["reason"])
    assert snapshot.worker_exits.keys() == set(counters["app_worker_exits_total"]["reason"])
    tasks = snapshot.tasks
    assert tasks.succeeded.seen + tasks.failed.seen + tasks.cancelled.seen == 3

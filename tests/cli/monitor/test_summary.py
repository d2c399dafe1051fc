"""Instances are put together rightly: added up, taken once, left out while they are away."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from app.cli.monitor.history import History
from app.cli.monitor.moment import step_p95_s, step_rate, summarize
from app.cli.monitor.summary import API_PREFIX, WORK_METHOD, is_work
from app.observability.metrics import METRICS
from prometheus.source import model

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.cli.monitor.figures import Figures

T = "facial_processing"


def sum_up(*services: Any) -> Figures:
    return summarize(
        [service.instance for service in services],
        at=services[0].now,
        when=datetime(2026, 5, 4, 12, 0, tzinfo=UTC),
        began=100.0,
        interval_s=2.0,
        window_s=10.0,
    )


def texts(figures: Figures) -> list[str]:
    return [problem.text for problem in figures.problems]


def test_one_scrape_has_no_rates_and_no_zeros_for_them(service: Any) -> None:
    service.answer(5)
    service.scrape()
    figures = sum_up(service)
    assert figures.state == "ready"
    assert (figures.requests.flow.per_s, figures.requests.flow.seen, figures.requests.flow.total) == (None, 0, 5)
    assert (figures.requests.latency.p50_s, figures.requests.latency.count) == (None, 0)
    assert step_rate([service.instance]) is None


def test_rate_and_latency_are_those_of_the_window(service: Any) -> None:
    service.scrape()
    for number in (10, 20, 30):
        service.answer(number, seconds=0.05)
        service.scrape()
    requests = sum_up(service).requests
    assert (requests.flow.per_s, requests.flow.seen, requests.flow.total) == (10.0, 60, 60)
    assert requests.latency.p50_s == pytest.approx(0.01 + 0.5 * 0.09)
    assert (requests.latency.count, requests.latency.bound_s) == (60, 1.0)
    assert step_rate([service.instance]) == 15.0


def test_an_idle_interval_has_a_rate_of_zero_and_no_quantile(service: Any) -> None:
    service.answer(7)
    service.scrape()
    service.scrape()
    requests = sum_up(service).requests
    assert (requests.flow.per_s, requests.latency.p95_s) == (0.0, None)
    assert (step_rate([service.instance]), step_p95_s([service.instance])) == (0.0, None)


def test_a_restart_makes_neither_a_negative_rate_nor_a_spike(service: Any) -> None:
    service.answer(100_000)
    service.scrape()
    service.answer(10)
    service.scrape()
    service.restart()
    service.answer(6)
    service.scrape()
    figures = sum_up(service)
    assert (figures.requests.flow.per_s, figures.requests.flow.seen, figures.requests.flow.total) == (4.0, 16, 6)
    assert texts(figures) == ["the service was started anew 0 s ago"]


def test_what_answers_after_an_absence_begins_anew(service: Any) -> None:
    """Through a forwarded port another pod may answer, which has counted far more."""
    service.answer(10)
    service.scrape()
    service.miss()
    away = sum_up(service)
    assert away.state == "away"
    assert away.requests.flow.per_s is None
    assert texts(away) == ["one:9000 is away since 12:00:00 (0 s): connection refused"]
    service.miss(62)
    assert texts(sum_up(service)) == ["one:9000 is away since 11:58:58 (1 min 2 s): connection refused"]
    service.answer(1_000_000)
    service.scrape()
    back = sum_up(service)
    assert (back.state, back.requests.flow.per_s, back.requests.flow.seen) == ("ready", None, 0)
    service.answer(4)
    service.scrape()
    assert sum_up(service).requests.flow.per_s == 2.0


def test_instances_are_added_up_each_over_its_own_time(make_service: Callable[..., Any]) -> None:
    one, two = make_service("one:9000"), make_service("two:9000")
    for service, number, every_s in ((one, 10, 2.0), (two, 30, 3.0)):
        service.scrape()
        service.answer(number)
        service.answer(5, status="503", seconds=5)
        service.scrape(every_s)
    requests = sum_up(one, two).requests
    assert requests.flow.per_s == pytest.approx(15 / 2 + 35 / 3)
    assert requests.by_status["503"].per_s == pytest.approx(5 / 2 + 5 / 3)
    assert (requests.flow.seen, requests.latency.count, requests.latency.p99_s) == (50, 50, 1.0)
    one.miss()
    figures = sum_up(one, two)
    assert (figures.state, figures.requests.flow.per_s) == ("degraded", pytest.approx(35 / 3))


def test_what_the_queue_says_is_taken_once(make_service: Callable[..., Any]) -> None:
    one, two = make_service("one:9000"), make_service("two:9000")
    for service in (one, two):
        service.gauge("queue_up", 1)
        service.gauge("task_queue_size", 40, T)
        service.gauge("api_requests_in_progress", 2, *("POST", "/api/v1/frontal/crop"))
        service.scrape()
        service.count("task_completions_total", (T, "SUCCESS"), 6)
        service.scrape()
    figures = sum_up(one, two)
    assert (figures.tasks.waiting, figures.tasks.queue_up) == (40, True)
    assert figures.tasks.succeeded.per_s == 6.0
    assert figures.requests.in_progress == 4
    one.gauge("queue_up", 0)
    one.gauge("task_queue_size", 17, T)
    one.scrape()
    figures = sum_up(one, two)
    assert (figures.tasks.waiting, figures.tasks.queue_up, figures.state) == (40, False, "degraded")
    assert texts(figures) == ["one:9000: the queue does not answer"]


def test_without_tasks_there_is_no_queue(service: Any) -> None:
    service.scrape()
    tasks = sum_up(service).tasks
    assert (tasks.queue_up, tasks.waiting, tasks.oldest_age_s, tasks.has_leader) == (None, None, None, None)


def test_a_killed_worker_is_told_of_until_it_is_old_news(service: Any) -> None:
    service.scrape()
    killed = service.workers.pop("worker-1")
    service.count("app_worker_exits_total", ("killed",), 1)
    service.scrape()
    figures = sum_up(service)
    assert [(process.name, process.state) for process in figures.instances[0].processes] == [
        ("worker-0", "ready"),
        ("worker-1", "gone"),
    ]
    assert figures.state == "degraded"
    assert texts(figures) == ["worker-1 is gone for 0 s", "a worker process was killed 0 s ago"]
    service.workers["worker-1"] = killed + 1
    service.scrape(10)
    figures = sum_up(service)
    assert (figures.state, texts(figures)) == ("ready", ["a worker process was killed 10 s ago"])
    assert [process.changed_s for process in figures.instances[0].processes] == [None, 0.0]
    service.scrape(70)
    figures = sum_up(service)
    assert texts(figures) == []
    assert figures.worker_exits["killed"].seen == 1
    assert [process.changed_s for process in figures.instances[0].processes] == [None, None]


def test_a_worker_that_stays_away_is_forgotten(service: Any) -> None:
    service.scrape()
    del service.workers["worker-1"]
    service.scrape()
    service.scrape(70)
    assert [process.name for process in sum_up(service).instances[0].processes] == ["worker-0"]


@pytest.mark.parametrize(
    ("changes", "state", "text"),
    [
        ({"ready": False}, "not_ready", "the service is not ready"),
        ({"draining": True}, "not_ready", "the service stops, and takes nothing new"),
        ({"beat_s": 7.4}, "degraded", "worker-0 is silent for 7 s"),
    ],
)
def test_bad_health_is_told(service: Any, changes: dict[str, Any], state: str, text: str) -> None:
    for name, value in changes.items():
        setattr(service, name, value)
    service.scrape()
    figures = sum_up(service)
    assert (figures.state, texts(figures)[0]) == (state, text)


def test_a_full_store_and_a_lost_leader_are_told(service: Any) -> None:
    service.gauge("queue_up", 1)
    service.gauge("queue_storage_bytes", 95)
    service.gauge("queue_storage_limit_bytes", 100)
    service.gauge("queue_cluster_has_leader", 0)
    service.scrape()
    assert texts(sum_up(service)) == ["the queue's cluster has no leader", "the queue's storage is 95 % full"]


def test_figures_are_json_without_numbers_that_are_none(service: Any) -> None:
    service.answer(3)
    service.scrape()
    service.miss()
    text = orjson.dumps(sum_up(service)).decode()
    assert "NaN" not in text
    assert "Infinity" not in text
    assert orjson.loads(text)["instances"][0]["reason"] == "connection refused"


def test_history_has_a_value_a_round_and_gaps_where_there_is_none(service: Any) -> None:
    history = History()
    service.scrape()
    history.add(sum_up(service), [service.instance])
    service.answer(8)
    service.scrape()
    history.add(sum_up(service), [service.instance])
    service.miss()
    history.add(sum_up(service), [service.instance])
    assert list(history.rate) == [None, 4.0, None]


def test_requests_are_those_of_dashboards_and_alerts() -> None:
    assert f'endpoint=~"{API_PREFIX}.+"' == model.API
    assert f'method="{WORK_METHOD}", {model.API}' == model.WORK
    assert is_work(("POST", "/api/v1/frontal/crop"))
    assert not is_work(("GET", "/api/v1/frontal/crop/status/{task_id}"))
    assert not is_work(("POST", "unmatched"))


def test_every_error_and_end_of_the_table_has_a_place(service: Any) -> None:
    """A reason that the table gets anew is shown without anybody having to think of this view."""
    counters = {spec.name: spec.labels for spec in METRICS if spec.kind == "counter"}
    service.scrape()
    for name, label in (("api_rejections_total", "reason"), ("app_worker_exits_total", "reason")):
        for value in counters[name][label]:
            service.count(name, (value,), 1)
    for status in counters["task_completions_total"]["status"]:
        service.count("task_completions_total", (T, status), 1)
    service.scrape()
    figures = sum_up(service)
    assert figures.rejections.keys() == set(counters["api_rejections_total"]["reason"])
    assert figures.worker_exits.keys() == set(counters["app_worker_exits_total"]["reason"])
    tasks = figures.tasks
    assert tasks.succeeded.seen + tasks.failed.seen + tasks.cancelled.seen == 3

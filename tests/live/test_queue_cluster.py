"""Metrics of a NATS cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.tasks.nats_monitoring import read_server_stats

LIMIT_S = 60

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from tests.live.conftest import RunningNats, RunningService


def test_the_leader_is_missed_although_the_queue_does_not_answer(
    run_nats: Callable[..., AbstractContextManager[RunningNats]],
    run_service: Callable[..., AbstractContextManager[RunningService]],
    wait_until: Callable[..., object],
) -> None:
    with run_nats(cluster=3) as servers:
        env = {"NATS_URL": servers.url, "NATS_MONITOR_URL": servers.monitor_url, "NATS_REPLICAS": 3}
        with run_service(**env) as running:

            def tells(name: str, value: float) -> bool:
                return running.scrape().get((name, frozenset())) == value

            wait_until(
                lambda: tells("queue_cluster_has_leader", 1) and tells("queue_up", 1), limit_s=LIMIT_S, what="a leader"
            )
            servers.kill(1)
            servers.kill(2)
            wait_until(
                lambda: tells("queue_cluster_has_leader", 0) and tells("queue_up", 0), limit_s=LIMIT_S, what="no leader"
            )
            assert read_server_stats(servers.monitor_url).memory

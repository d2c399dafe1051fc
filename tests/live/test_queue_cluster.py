"""Metrics of a NATS cluster."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
import nats
import orjson
import pytest

from app.tasks.nats_monitoring import read_server_stats

LIMIT_S = 60
SUBMIT = "/api/v1/frontal/crop/submit"
CLIENTS = 4
PAUSE_S = 0.1

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from tests.conftest import Sample
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


@pytest.mark.timeout(180)
def test_submissions_wait_for_the_election_of_a_leader(
    run_nats: Callable[..., AbstractContextManager[RunningNats]],
    run_service: Callable[..., AbstractContextManager[RunningService]],
    wait_until: Callable[..., object],
    sample: Sample,
) -> None:
    with run_nats(cluster=3) as servers:
        # Twice the default timeout, because elections take longer on a busy machine.
        env = {"NATS_URL": servers.url, "NATS_MONITOR_URL": servers.monitor_url, "NATS_REPLICAS": 3}
        with run_service(**env, NATS_TIMEOUT_S=10) as running:
            wait_until(lambda: running.scrape().get(("queue_up", frozenset())) == 1, limit_s=LIMIT_S, what="the queue")
            statuses, accepted, stop = Counter[int](), list[float](), threading.Event()

            def submit() -> None:
                body, headers = sample.json(), {"Content-Type": "application/json"}
                with httpx.Client(timeout=LIMIT_S) as client:
                    while not stop.wait(PAUSE_S):
                        statuses[client.post(running.api + SUBMIT, content=body, headers=headers).status_code] += 1
                        accepted.append(time.monotonic())

            with ThreadPoolExecutor(CLIENTS) as pool:
                clients = [pool.submit(submit) for _ in range(CLIENTS)]
                try:
                    wait_until(lambda: len(accepted) > 4 * CLIENTS, limit_s=LIMIT_S, what="accepted tasks")
                    name = leader_of(servers, "TASKS")
                    killed_at = time.monotonic()
                    servers.kill(int(name.removeprefix("nats-")))
                    wait_until(
                        lambda: sum(at > killed_at + 1 for at in accepted) > 10 * CLIENTS,
                        limit_s=LIMIT_S,
                        what="tasks accepted by the new leader",
                    )
                finally:
                    stop.set()
                for client in clients:
                    client.result()
            times = sorted(accepted)
            pause_s = max(after - before for before, after in itertools.pairwise(times))
            print(f"{statuses}; at most {pause_s:.1f} s between two accepted tasks")  # noqa: T201 - shown by -rP
            assert set(statuses) == {202}
            assert read_stream(servers, "TASKS")["state"]["messages"] == statuses[202], "none is lost or stored twice"


def read_stream(servers: RunningNats, stream: str) -> dict[str, Any]:
    """Return the state of a stream, from the first server that has its leader's."""

    async def main() -> dict[str, Any]:
        client = await nats.connect(servers.url.split(","))
        try:
            response = await client.request(f"$JS.API.STREAM.INFO.{stream}", timeout=LIMIT_S)
        finally:
            await client.close()
        return orjson.loads(response.data)  # type: ignore[no-any-return]

    return asyncio.run(main())


def leader_of(servers: RunningNats, stream: str) -> str:
    name: str = read_stream(servers, stream)["cluster"]["leader"]
    return name

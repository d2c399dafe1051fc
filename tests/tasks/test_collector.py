"""Metrics of the queue: correct while it responds, and few but without delay while it does not."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from app.tasks.collector import QueueCollector
from app.tasks.dead_letters import DeadLetterQueue
from app.tasks.stream import TASK_TYPE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractAsyncContextManager

    from app.service.crop import CheckedInput
    from app.settings import Settings
    from tests.tasks.conftest import Desk, NatsServer

    OpenDesk = Callable[..., AbstractAsyncContextManager[Desk]]
    Check = Callable[..., CheckedInput]

REPOSITORY = Path(__file__).parents[2]
LIMIT_S = 30.0

FORKING = """
import os, sys
from app.settings import Settings
from app.tasks.collector import QueueCollector

collector = QueueCollector(Settings())

def up():
    for _ in range(20):
        found = {family.name: family.samples[0].value for family in collector.collect()}
        if found["queue_up"]:
            return sorted(found)
    raise SystemExit("the queue never responded")

if "--scraped-before" in sys.argv:
    up()
children = []
for _ in range(2):
    pid = os.fork()
    if not pid:
        assert "task_queue_size" in up(), up()
        sys.stdout.flush()
        os._exit(0)
    children.append(pid)
assert all(os.waitpid(pid, 0)[1] == 0 for pid in children)
assert "task_queue_size" in up()
print("done")
"""


@pytest.fixture
def make_collector() -> Iterator[Callable[[Settings], QueueCollector]]:
    """Return ``make_collector(settings)``; its connection and its thread end with the test."""
    made: list[QueueCollector] = []

    def make(settings: Settings) -> QueueCollector:
        made.append(QueueCollector(settings))
        return made[-1]

    yield make
    for collector in made:
        loop, connection = collector._loop, collector._connection
        if loop is not None and connection is not None:
            asyncio.run_coroutine_threadsafe(connection.close(), loop).result(LIMIT_S)
            asyncio.run_coroutine_threadsafe(loop.shutdown_default_executor(), loop).result(LIMIT_S)
            loop.call_soon_threadsafe(loop.stop)
            end = time.monotonic() + LIMIT_S
            while loop.is_running() and time.monotonic() < end:
                time.sleep(0.01)
            loop.close()


def read(collector: QueueCollector) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in collector.collect()
        for sample in family.samples
    }


def read_until(collector: QueueCollector, is_wanted: Callable[[dict[tuple[str, ...], float]], bool]) -> Any:
    end = time.monotonic() + LIMIT_S
    while not is_wanted(found := read(collector)):
        assert time.monotonic() < end, found
        time.sleep(0.02)
    return found


def is_up(found: dict[tuple[str, ...], float]) -> bool:
    return found["queue_up",] == 1


def test_the_values_are_correct(
    desk: OpenDesk,
    check: Check,
    nats_server: NatsServer,
    make_settings: Callable[..., Settings],
    make_collector: Callable[[Settings], QueueCollector],
) -> None:
    settings = make_settings(nats_monitor_url=f"{nats_server.monitor_url}/", task_queue_max_messages=10)
    collector = make_collector(settings)

    async def main() -> None:
        async with desk() as opened:
            empty = await asyncio.to_thread(read_until, collector, is_up)
            assert empty["queue_up",] == 1
            assert {key: value for key, value in empty.items() if "task" in key[0]} == {
                ("task_queue_size", TASK_TYPE): 0,
                ("active_tasks_count", TASK_TYPE): 0,
                ("task_oldest_age_seconds", TASK_TYPE): 0,
                ("task_dead_kept",): 0,
                ("task_queue_used_ratio",): 0,
            }
            assert empty["result_store_used_ratio",] == 0
            assert empty["queue_storage_bytes",] == 0
            assert empty["queue_writable",] == 1
            assert empty["queue_storage_limit_bytes",] > 0
            assert empty["queue_memory_bytes",] > 1e6
            assert empty["queue_connections",] >= 1  # that of the desk; the collector may connect later
            assert ("queue_cluster_has_leader",) not in empty
            first = await opened.queue.submit(check())
            for _ in range(4):
                await opened.queue.submit(check())
            messages = await opened.fetch(2)
            for number in range(3):
                await DeadLetterQueue(opened.connection, opened.records).dead_letter(
                    f"{number}", b"x", attempts=1, reason="why"
                )
            submitted = time.time() - first.submitted_at
            found = await asyncio.to_thread(read, collector)
            assert found["task_queue_size", TASK_TYPE] == 3
            assert found["active_tasks_count", TASK_TYPE] == 2
            assert found["task_queue_used_ratio",] == 0.5
            assert 0 < found["result_store_used_ratio",] < 1
            assert found["task_dead_kept",] == 3
            assert found["queue_storage_bytes",] > 5 * len(messages[0].data)
            # The clock of the server is the same.
            age_s = found["task_oldest_age_seconds", TASK_TYPE]
            assert 0 < age_s < submitted + LIMIT_S
            await messages[0].ack_sync()
            found = await asyncio.to_thread(read, collector)
            assert (found["task_queue_size", TASK_TYPE], found["active_tasks_count", TASK_TYPE]) == (3, 1)

    asyncio.run(main())


def test_the_age_is_that_of_the_oldest_unfinished_task(
    desk: OpenDesk,
    check: Check,
    make_settings: Callable[..., Settings],
    make_collector: Callable[[Settings], QueueCollector],
) -> None:
    collector = make_collector(make_settings())

    async def main() -> None:
        async with desk() as opened:
            await asyncio.to_thread(read_until, collector, is_up)
            await opened.queue.submit(check())
            (first,) = await opened.fetch()
            await asyncio.to_thread(
                read_until, collector, lambda found: found["task_oldest_age_seconds", TASK_TYPE] > 0.5
            )
            before = time.time()
            await opened.queue.submit(check())
            await first.ack_sync()
            found = await asyncio.to_thread(read, collector)
            assert 0 <= found["task_oldest_age_seconds", TASK_TYPE] <= time.time() - before

    asyncio.run(main())


def test_a_limit_that_the_server_does_not_report_is_left_out(
    make_settings: Callable[..., Settings], make_collector: Callable[[Settings], QueueCollector]
) -> None:
    collector = make_collector(make_settings(nats_monitor_url="http://127.0.0.1:9"))
    found = read_until(collector, is_up)
    unknown = {"queue_storage_limit_bytes", "queue_memory_bytes", "queue_connections", "queue_writable"}
    assert not found.keys() & {(name,) for name in unknown}
    assert ("queue_storage_bytes",) in found


def test_the_limit_of_an_account_has_priority_over_that_of_the_server(
    run_server: Callable[..., NatsServer],
    make_settings: Callable[..., Settings],
    make_collector: Callable[[Settings], QueueCollector],
) -> None:
    account = {"jetstream": {"max_file": 3 * 2**30, "max_mem": 2**20}, "users": [{"user": "u", "password": "p"}]}
    server = run_server(settings={"accounts": {"A": account}})
    url = server.url.replace("//", "//u:p@")
    settings = make_settings(nats_url=url, nats_monitor_url=server.monitor_url)
    assert read_until(make_collector(settings), is_up)["queue_storage_limit_bytes",] == 3 * 2**30


def test_an_unreachable_queue_has_only_up_and_writable(
    make_settings: Callable[..., Settings], make_collector: Callable[[Settings], QueueCollector]
) -> None:
    collector = make_collector(make_settings(nats_url="nats://127.0.0.1:9"))
    for _ in range(3):
        assert read(collector) == {("queue_up",): 0, ("queue_writable",): 0}


def test_a_queue_that_is_restarted(
    run_server: Callable[..., NatsServer],
    make_settings: Callable[..., Settings],
    make_collector: Callable[[Settings], QueueCollector],
) -> None:
    server = run_server()
    collector = make_collector(make_settings(nats_url=server.url))
    read_until(collector, is_up)
    server.stop(is_killed=True)
    assert read(collector) == {("queue_up",): 0, ("queue_writable",): 0}
    server.start()
    assert read_until(collector, is_up)["task_queue_size", TASK_TYPE] == 0


def test_a_queue_that_hangs_does_not_delay_a_scrape(
    run_server: Callable[..., NatsServer],
    make_settings: Callable[..., Settings],
    make_collector: Callable[[Settings], QueueCollector],
) -> None:
    server = run_server()
    # Much longer than a scrape may take, so that the limit of the collector is the one that applies.
    collector = make_collector(make_settings(nats_url=server.url, nats_timeout_s=60))
    read_until(collector, is_up)
    with server.frozen():
        assert read(collector) == {("queue_up",): 0, ("queue_writable",): 0}
        assert read(collector) == {("queue_up",): 0, ("queue_writable",): 0}
    read_until(collector, is_up)


@pytest.mark.parametrize("arguments", [[], ["--scraped-before"]])
def test_it_works_in_forked_processes(
    nats_server: NatsServer, make_settings: Callable[..., Settings], arguments: list[str]
) -> None:
    del make_settings  # for its cleanup
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FORKING, *arguments],
        cwd=REPOSITORY,
        env={"NATS_URL": nats_server.url, "PATH": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "done", "")

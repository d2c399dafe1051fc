"""Workers: results, retries, cancellation, shutdown, crashes and outages."""

from __future__ import annotations

import asyncio
import signal
import struct
import subprocess
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import nats.errors
import orjson
import pytest
from nats.aio.msg import Msg

from app.service.serialization import result_to_json
from app.tasks import worker
from app.tasks.message import VERSION, encode_task
from app.tasks.records import Record, TaskStatus
from app.tasks.stream import DEAD_STREAM, TASK_TYPE, task_subject

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractAsyncContextManager

    from app.service.crop import CheckedInput, CropInput, CropService
    from app.settings import Settings
    from tests.conftest import Sample
    from tests.tasks.conftest import Desk, Gate, NatsServer

    OpenDesk = Callable[..., AbstractAsyncContextManager[Desk]]
    OpenWorker = Callable[[Settings], AbstractAsyncContextManager[asyncio.Event]]
    Check = Callable[..., CheckedInput]
    Scrape = Callable[[], dict[tuple[str, ...], float]]

REPOSITORY = Path(__file__).parents[2]
MIB = 1024 * 1024
# Work on a thread, which can be blocked; light tasks run on the event loop.
HEAVY: dict[str, Any] = {"verify": "pixels"}


def tasks_counted(scrape: Scrape) -> dict[str, float]:
    """Return the counters of tasks that are not 0."""
    names = {
        ("task_submissions_total", TASK_TYPE): "submitted",
        ("task_completions_total", "SUCCESS", TASK_TYPE): "succeeded",
        ("task_completions_total", "FAILURE", TASK_TYPE): "failed",
        ("task_completions_total", "CANCELLED", TASK_TYPE): "cancelled",
        ("task_wait_seconds_count", TASK_TYPE): "waits",
        ("task_processing_duration_seconds_count", TASK_TYPE): "works",
        ("task_redeliveries_total", TASK_TYPE): "redeliveries",
        ("task_dead_total", TASK_TYPE): "dead",
    }
    counted = scrape()
    return {name: counted[key] for key, name in names.items() if counted[key]}


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "RETRY_S", 0.05)


class TestEnds:
    @pytest.mark.parametrize(
        "fields",
        [
            {},
            {"show_labels": True, "show_landmarks": True, "region_opacity": 0.75, "stroke_width": 3, "simplify": 2},
            {"segmentation_map": "labels", "verify": "pixels"},
            {"segmentation_map": {"z": [50, 101, 36, 205], "nose": [168, 129, 2, 358], "a": [61, 0, 291]}},
            {"image": "photo"},
            {"points": 468},
        ],
        ids=["default", "options", "label map", "regions", "large photo", "no irises"],
    )
    def test_the_result_is_that_of_the_synchronous_route(
        self,
        at_work: OpenDesk,
        make_input: Callable[..., CropInput],
        crop_service: CropService,
        sample: Sample,
        scrape: Scrape,
        fields: dict[str, Any],
    ) -> None:
        named = {"labels": sample.labels, "photo": sample.photo, 468: sample.pairs[:468]}
        given = {k: named.get(v, v) if isinstance(v, str | int) else v for k, v in fields.items()}
        request = make_input(**given)

        async def main() -> Record:
            async with at_work() as desk:
                record = await desk.queue.submit(crop_service.check(request))
                ended = await desk.end_of(record.task_id)
                await desk.drained()
                return ended

        ended = asyncio.run(main())
        assert (ended.status, ended.attempts, ended.progress, ended.error) == (TaskStatus.SUCCESS, 1, 1.0, None)
        assert ended.submitted_at <= (ended.started_at or 0) <= (ended.completed_at or 0)
        found, expected = orjson.loads(bytes(ended.result)), orjson.loads(result_to_json(crop_service.process(request)))
        assert ended.processing_time_ms
        assert found.pop("processing_time_ms") == ended.processing_time_ms
        expected.pop("processing_time_ms")
        assert found == expected
        assert tasks_counted(scrape) == {"submitted": 1, "succeeded": 1, "waits": 1, "works": 1}

    def test_bad_pixels_fail_at_once(self, at_work: OpenDesk, bad_pixels: CheckedInput, scrape: Scrape) -> None:
        async def main() -> Record:
            async with at_work() as desk:
                record = await desk.queue.submit(bad_pixels)
                ended = await desk.end_of(record.task_id)
                await desk.drained()
                assert await desk.count(DEAD_STREAM) == 0
                return ended

        ended = asyncio.run(main())
        assert ended.error is not None
        assert (ended.status, ended.error.code, ended.attempts) == (TaskStatus.FAILURE, "image_corrupt", 1)
        assert (bytes(ended.result), ended.processing_time_ms) == (b"null", None)
        assert ended.error.detail.startswith("image: ")
        assert tasks_counted(scrape) == {"submitted": 1, "failed": 1, "waits": 1, "works": 1}
        assert scrape()["errors_total", "tasks", "image_corrupt"] == 1

    def test_many_workers_process_each_task_once(self, at_work: OpenDesk, check: Check, scrape: Scrape) -> None:
        async def main() -> None:
            async with at_work(workers=3) as desk:
                taken = await asyncio.gather(*(desk.queue.submit(check()) for _ in range(60)))
                for record in taken:
                    ended = await desk.end_of(record.task_id)
                    assert (ended.status, ended.attempts) == (TaskStatus.SUCCESS, 1)
                await desk.drained()

        asyncio.run(main())
        assert tasks_counted(scrape) == {"submitted": 60, "succeeded": 60, "waits": 60, "works": 60}

    def test_a_result_is_cached(self, at_work: OpenDesk, check: Check) -> None:
        async def main() -> None:
            async with at_work(result_cache=True) as desk:
                digest = check().digest()
                record = await desk.queue.submit(check(), digest=digest)
                ended = await desk.end_of(record.task_id)

                async def is_found() -> bool:
                    return await desk.queue.find_result(digest) == bytes(ended.result)

                await desk.until(is_found, "the result by its digest")
                again = await desk.queue.submit(check(), digest=digest)
                assert (again.status, bytes(again.result)) == (TaskStatus.SUCCESS, bytes(ended.result))

        asyncio.run(main())


class TestRetries:
    @pytest.mark.parametrize("options", [HEAVY, {}], ids=["heavy", "light"])
    def test_an_unexpected_error_is_retried_and_then_dead_lettered(
        self,
        at_work: OpenDesk,
        check: Check,
        gate: Gate,
        scrape: Scrape,
        caplog: pytest.LogCaptureFixture,
        quick_retries: None,
        options: dict[str, Any],
    ) -> None:
        del quick_retries
        gate.fail(3, times=99)

        async def main() -> None:
            async with at_work(task_max_deliveries=4) as desk:
                record = await desk.queue.submit(check(simplify=3, **options))
                beside = await desk.queue.submit(check())
                ended = await desk.end_of(record.task_id)
                assert ended.error is not None
                assert (ended.status, ended.error.code, ended.attempts) == (TaskStatus.FAILURE, "task_gave_up", 4)
                assert ended.completed_at
                assert (await desk.end_of(beside.task_id)).status is TaskStatus.SUCCESS
                await desk.drained()
                assert await desk.count(DEAD_STREAM) == 1

        asyncio.run(main())
        assert gate.begun.count(3) == 4
        delays = [vars(line)["delay_s"] for line in caplog.records if vars(line).get("event") == "retried"]
        assert delays == [0.05, 0.1, 0.2, 0.4]
        assert tasks_counted(scrape) == {
            "submitted": 2,
            "succeeded": 1,
            "failed": 1,
            "waits": 2,
            "works": 5,
            "redeliveries": 4,
            "dead": 1,
        }
        counted = scrape()
        assert counted["errors_total", "tasks", "internal_error"] == 4
        assert counted["errors_total", "tasks", "task_gave_up"] == 1

    @pytest.mark.parametrize("options", [HEAVY, {}], ids=["heavy", "light"])
    def test_a_temporary_error_is_no_failure(
        self,
        at_work: OpenDesk,
        check: Check,
        gate: Gate,
        scrape: Scrape,
        quick_retries: None,
        options: dict[str, Any],
    ) -> None:
        del quick_retries
        gate.fail(3, times=2)

        async def main() -> None:
            async with at_work(task_max_deliveries=3) as desk:
                record = await desk.queue.submit(check(simplify=3, **options))
                ended = await desk.end_of(record.task_id)
                assert (ended.status, ended.attempts, ended.error) == (TaskStatus.SUCCESS, 3, None)
                await desk.drained()

        asyncio.run(main())
        assert tasks_counted(scrape) == {"submitted": 1, "succeeded": 1, "waits": 1, "works": 3, "redeliveries": 2}

    @pytest.mark.parametrize("data", [b"", b"garbage", struct.pack(">I", 3) + b"\x80\x80\x80"])
    def test_a_message_that_is_no_task_is_dead_lettered(
        self, at_work: OpenDesk, check: Check, data: bytes, scrape: Scrape
    ) -> None:
        async def main() -> None:
            async with at_work() as desk:
                await desk.connection.store(task_subject("b" * 32), data)
                ended = await desk.end_of_unknown("b" * 32)
                assert ended.error is not None
                assert (ended.status, ended.error.code) == (TaskStatus.FAILURE, "task_gave_up")
                await desk.drained()
                assert await desk.count(DEAD_STREAM) == 1
                record = await desk.queue.submit(check())
                assert (await desk.end_of(record.task_id)).status is TaskStatus.SUCCESS

        asyncio.run(main())
        counted = tasks_counted(scrape)
        assert (counted["dead"], counted["works"]) == (1, 1)

    def test_a_task_of_a_later_version_is_left_to_its_workers(
        self, at_work: OpenDesk, check: Check, scrape: Scrape, quick_retries: None
    ) -> None:
        del quick_retries

        async def main() -> None:
            async with at_work() as desk:
                record = Record(task_id="b" * 32, submitted_at=1.0)
                revision = await desk.records.create(record)
                data = encode_task(record, revision, check())
                (length,) = struct.unpack_from(">I", data)
                header = msgspec.msgpack.encode(
                    {**msgspec.msgpack.decode(data[4 : 4 + length]), "version": VERSION + 1, "new": 1}
                )
                newer = struct.pack(">I", len(header)) + header + data[4 + length :]
                sequence = await desk.connection.store(task_subject(record.task_id), newer)

                async def has_come_twice() -> bool:
                    return bool((await desk.consumer()).num_redelivered)

                await desk.until(has_come_twice, "a second delivery")
                assert await desk.count() == 1
                assert await desk.count(DEAD_STREAM) == 0
                assert await desk.records.get(record.task_id) == (record, revision)
                await desk.connection.client.jetstream().delete_msg("TASKS", sequence)

        asyncio.run(main())
        assert "works" not in tasks_counted(scrape)


class TestCancelled:
    def test_a_cancelled_task_is_dropped(self, at_work: OpenDesk, check: Check, scrape: Scrape) -> None:
        async def main() -> None:
            async with at_work() as desk:
                # As if the message was in flight.
                record = Record(task_id="b" * 32, submitted_at=1.0)
                revision = await desk.records.create(record)
                cancelled = record.replace(status=TaskStatus.CANCELLED, completed_at=2.0)
                await desk.records.update(cancelled, revision)
                await desk.connection.store(task_subject(record.task_id), encode_task(record, revision, check()))
                await desk.drained()
                assert await desk.queue.status(record.task_id) == cancelled

        asyncio.run(main())
        assert tasks_counted(scrape) == {}

    def test_a_task_that_is_cancelled_during_an_attempt_stays_cancelled(
        self, at_work: OpenDesk, check: Check, gate: Gate, scrape: Scrape
    ) -> None:
        gate.close(3)

        async def main() -> None:
            async with at_work(task_ack_wait_s=1, result_cache=True) as desk:
                digest = check(simplify=3, **HEAVY).digest()
                record = await desk.queue.submit(check(simplify=3, **HEAVY), digest=digest)
                await desk.until(lambda: gate.begun == [3], "the work")
                cancelled = await desk.queue.cancel(record.task_id)
                # Heartbeats and progress continue until the work ends; none of them revives the task.
                other = await desk.queue.submit(check())
                gate.open(3)
                await desk.end_of(other.task_id)
                await desk.drained()
                assert await desk.queue.status(record.task_id) == cancelled
                assert await desk.queue.find_result(digest) is None

        asyncio.run(main())
        assert tasks_counted(scrape) == {"submitted": 2, "succeeded": 1, "cancelled": 1, "waits": 2, "works": 2}


class TestLongWork:
    def test_neither_started_nor_waiting_tasks_go_to_another_worker(
        self, at_work: OpenDesk, check: Check, scrape: Scrape
    ) -> None:
        async def main() -> None:
            # One worker holds both; the other would receive a task without heartbeats.
            async with at_work(workers=2, task_ack_wait_s=2, fault_work_s=2.4) as desk:
                taken = [await desk.queue.submit(check()) for _ in range(4)]
                for record in taken:
                    ended = await desk.end_of(record.task_id)
                    assert (ended.status, ended.attempts) == (TaskStatus.SUCCESS, 1)
                await desk.drained()

        asyncio.run(main())
        assert tasks_counted(scrape) == {"submitted": 4, "succeeded": 4, "waits": 4, "works": 4}

    def test_progress_is_stored(self, at_work: OpenDesk, check: Check, gate: Gate) -> None:
        gate.close(3, "decode")
        gate.close(4, "svg")

        async def main() -> None:
            async with at_work(task_ack_wait_s=1) as desk:
                for name, progress in ((3, 0.1), (4, 0.8)):
                    record = await desk.queue.submit(check(simplify=name, **HEAVY))

                    async def has_progress(record: Record = record, progress: float = progress) -> bool:
                        shown = await desk.queue.status(record.task_id)
                        return (shown.status, shown.progress) == (TaskStatus.STARTED, progress)

                    await desk.until(has_progress, "progress")
                    gate.open(name)
                    assert (await desk.end_of(record.task_id)).progress == 1.0

        asyncio.run(main())

    def test_a_task_that_waits_for_a_slot_is_not_started(
        self, desk: OpenDesk, open_worker: OpenWorker, check: Check, gate: Gate, scrape: Scrape
    ) -> None:
        gate.close(3)

        async def main() -> None:
            async with desk(task_ack_wait_s=1) as opened:
                await opened.queue.submit(check(simplify=3, **HEAVY))
                behind = await opened.queue.submit(check(**HEAVY))

                async def is_held() -> bool:
                    return (await opened.consumer()).num_ack_pending == 2

                async with open_worker(opened.settings):
                    await opened.until(lambda: gate.begun == [3], "the work")
                    await opened.until(is_held, "the task behind")
                    record = await opened.queue.status(behind.task_id, wait_s=1.5)
                    assert (record.status, record.attempts) == (TaskStatus.PENDING, 0)
                    gate.open(3)
                    assert (await opened.end_of(behind.task_id)).attempts == 1

        asyncio.run(main())
        assert "redeliveries" not in tasks_counted(scrape)


class TestStop:
    def test_started_tasks_finish_and_the_others_are_requeued_at_once(
        self, desk: OpenDesk, open_worker: OpenWorker, check: Check, gate: Gate, scrape: Scrape
    ) -> None:
        gate.close(3)

        async def main() -> None:
            async with AsyncExitStack() as stack:
                opened = await stack.enter_async_context(desk(task_ack_wait_s=300))
                slow = await opened.queue.submit(check(simplify=3, **HEAVY))
                behind = await opened.queue.submit(check(**HEAVY))
                stop = await stack.enter_async_context(open_worker(opened.settings))
                await opened.until(lambda: gate.begun == [3], "the work")

                async def is_held() -> bool:
                    return (await opened.consumer()).num_ack_pending == 2

                await opened.until(is_held, "the task behind")
                stop.set()
                async with open_worker(opened.settings):
                    ended = await opened.end_of(behind.task_id)
                    assert (ended.status, ended.attempts) == (TaskStatus.SUCCESS, 1)
                    assert (await opened.queue.status(slow.task_id)).status is TaskStatus.STARTED
                    gate.open(3)
                    ended = await opened.end_of(slow.task_id)
                    assert (ended.status, ended.attempts) == (TaskStatus.SUCCESS, 1)
                    await opened.drained()

        asyncio.run(main())
        counted = tasks_counted(scrape)
        assert (counted["works"], counted["succeeded"]) == (2, 2)

    def test_a_task_that_does_not_finish_in_time_is_requeued(
        self, desk: OpenDesk, open_worker: OpenWorker, check: Check, gate: Gate
    ) -> None:
        gate.close(3)

        async def main() -> None:
            async with desk(task_ack_wait_s=300, graceful_timeout_s=1) as opened:
                async with open_worker(opened.settings):
                    slow = await opened.queue.submit(check(simplify=3, **HEAVY))
                    await opened.until(lambda: gate.begun == [3], "the work")
                gate.open(3)
                async with open_worker(opened.settings):
                    ended = await opened.end_of(slow.task_id)
                    assert (ended.status, ended.attempts) == (TaskStatus.SUCCESS, 2)
                    await opened.drained()

        asyncio.run(main())

    def test_tasks_that_arrive_while_workers_stop_do_not_wait(
        self, desk: OpenDesk, open_worker: OpenWorker, check: Check, scrape: Scrape
    ) -> None:
        async def main() -> None:
            async with desk(task_ack_wait_s=300) as opened, open_worker(opened.settings):
                taken: list[Record] = []

                async def produce() -> None:
                    while len(taken) < 150:
                        taken.append(await opened.queue.submit(check()))

                producing = asyncio.create_task(produce())
                while not producing.done():
                    async with open_worker(opened.settings):
                        before = len(taken)
                        await opened.until(lambda before=before: len(taken) > before + 3 or producing.done(), "more")  # type: ignore[misc]
                await producing
                for record in taken:
                    assert (await opened.end_of(record.task_id)).status is TaskStatus.SUCCESS
                await opened.drained()

        asyncio.run(main())
        counted = tasks_counted(scrape)
        assert (counted["succeeded"], counted["works"]) == (150, 150)

    @pytest.mark.parametrize("options", [HEAVY, {}], ids=["heavy", "light"])
    def test_a_task_that_was_requeued_without_a_start_loses_no_attempt(
        self, desk: OpenDesk, open_worker: OpenWorker, check: Check, options: dict[str, Any]
    ) -> None:
        async def main() -> None:
            async with desk(task_max_deliveries=1) as opened:
                record = await opened.queue.submit(check(**options))
                (message,) = await opened.fetch()
                await message.nak()
                async with open_worker(opened.settings):
                    assert (await opened.end_of(record.task_id)).status is TaskStatus.SUCCESS

        asyncio.run(main())

    def test_a_worker_that_waits_for_the_queue_can_be_stopped(self, make_settings: Callable[..., Settings]) -> None:
        async def main() -> None:
            stop, is_ready = asyncio.Event(), asyncio.Event()
            settings = make_settings(nats_url="nats://127.0.0.1:9")
            working = asyncio.create_task(worker.work(settings, stop=stop, on_ready=is_ready.set, name="w"))
            await asyncio.sleep(0)
            stop.set()
            async with asyncio.timeout(30):
                await working
            assert not is_ready.is_set()

        asyncio.run(main())


WORKING = """
import asyncio, os, signal, sys, time
from app.service.crop import CropService
from app.settings import Settings
from app.tasks.worker import work

run, deadly = CropService.run, float(sys.argv[1])

def die_of_some(self, checked, on_step):
    if checked.options.simplify == deadly:
        time.sleep(0.3)  # a decoder crashes in the middle of its work
        os.kill(os.getpid(), signal.SIGKILL)
    return run(self, checked, on_step)

CropService.run = die_of_some
asyncio.run(work(Settings(), stop=asyncio.Event(), on_ready=lambda: print("ready", flush=True), name="task-0"))
"""


@pytest.fixture
def start_process() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Return ``start_process(settings, deadly=0)``, which starts a worker process; ``deadly`` tasks kill it."""
    started: list[subprocess.Popen[str]] = []

    def start(settings: Settings, deadly: float = -1) -> subprocess.Popen[str]:
        changed = settings.model_dump(exclude_defaults=True, mode="json")
        process = subprocess.Popen(
            [sys.executable, "-c", WORKING, str(deadly)],
            cwd=REPOSITORY,
            env={"PATH": "", **{name.upper(): str(value) for name, value in changed.items()}},
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


class TestDeath:
    @pytest.mark.parametrize("options", [HEAVY, {}], ids=["heavy", "light"])
    def test_a_task_that_kills_its_process_costs_no_other_task_an_attempt(
        self,
        desk: OpenDesk,
        check: Check,
        start_process: Callable[..., subprocess.Popen[str]],
        options: dict[str, Any],
    ) -> None:
        async def main() -> None:
            async with desk(task_ack_wait_s=1, task_max_deliveries=3) as opened:
                poison = await opened.queue.submit(check(simplify=3, **options))
                # The same process holds it whenever the poisonous task is processed.
                beside = await opened.queue.submit(check(**options))
                deaths = 0
                for _ in range(3):
                    process = await asyncio.to_thread(start_process, opened.settings, 3)
                    deaths += await asyncio.to_thread(process.wait, 60) == -signal.SIGKILL
                assert deaths == 3
                await asyncio.to_thread(start_process, opened.settings, 3)
                ended = await opened.end_of(poison.task_id)
                assert ended.error is not None
                assert (ended.status, ended.error.code, ended.attempts) == (TaskStatus.FAILURE, "task_gave_up", 3)
                assert (await opened.end_of(beside.task_id)).status is TaskStatus.SUCCESS
                await opened.drained()

        asyncio.run(main())

    def test_a_timeout_ends_the_process_and_the_other_tasks_are_requeued_at_once(
        self,
        desk: OpenDesk,
        open_worker: OpenWorker,
        check: Check,
        start_process: Callable[..., subprocess.Popen[str]],
    ) -> None:
        async def main() -> None:
            async with desk(task_ack_wait_s=300, task_timeout_s=0.5, fault_work_s=60) as opened:
                slow = await opened.queue.submit(check(**HEAVY))
                behind = await opened.queue.submit(check(**HEAVY))
                process = await asyncio.to_thread(start_process, opened.settings)
                assert await asyncio.to_thread(process.wait, 60) == worker.EXIT_TIMEOUT
                quick = opened.settings.model_copy(update={"fault_work_s": 0.0})
                async with open_worker(quick):
                    ended = await opened.end_of(behind.task_id)
                    assert (ended.status, ended.attempts) == (TaskStatus.SUCCESS, 1)
                    begun = await opened.queue.status(slow.task_id)
                    assert (begun.status, begun.attempts) == (TaskStatus.STARTED, 1)

        asyncio.run(main())


class TestOutage:
    @pytest.mark.parametrize("is_killed", [False, True])
    def test_an_attempt_survives_a_restart_of_the_server(
        self, at_work: OpenDesk, check: Check, gate: Gate, run_server: Callable[..., NatsServer], *, is_killed: bool
    ) -> None:
        server = run_server()
        gate.close(3)

        async def main() -> None:
            async with at_work(nats_url=server.url, nats_timeout_s=1) as desk:
                record = await desk.queue.submit(check(simplify=3, **HEAVY))
                await desk.until(lambda: gate.begun == [3], "the work")
                await asyncio.to_thread(server.stop, is_killed=is_killed)
                gate.open(3)
                await asyncio.to_thread(server.start)
                await desk.until(lambda: desk.connection.is_up, "the connection")
                ended = await desk.end_of(record.task_id)
                assert (ended.status, ended.attempts) == (TaskStatus.SUCCESS, 1)
                after = await desk.queue.submit(check())
                assert (await desk.end_of(after.task_id)).status is TaskStatus.SUCCESS
                await desk.drained()

        asyncio.run(main())

    def test_workers_continue_with_a_server_that_has_lost_its_store(
        self, at_work: OpenDesk, check: Check, run_server: Callable[..., NatsServer]
    ) -> None:
        server = run_server()

        async def main() -> None:
            async with at_work(nats_url=server.url, nats_timeout_s=1) as desk:
                record = await desk.queue.submit(check())
                await desk.end_of(record.task_id)
                await asyncio.to_thread(server.stop)
                server.lose_store()
                await asyncio.to_thread(server.start)
                await desk.until(lambda: desk.connection.is_up, "the connection")
                after = await desk.queue.submit(check())
                assert (await desk.end_of(after.task_id)).status is TaskStatus.SUCCESS

        asyncio.run(main())

    def test_workers_continue_after_a_stream_was_deleted(self, at_work: OpenDesk, check: Check) -> None:
        async def main() -> None:
            async with at_work(nats_timeout_s=1) as desk:
                await desk.connection.client.jetstream().delete_stream("TASKS")
                desk.connection.recheck_streams()
                await desk.until(lambda: desk.connection.is_up, "the streams")
                record = await desk.queue.submit(check())
                assert (await desk.end_of(record.task_id)).status is TaskStatus.SUCCESS

        asyncio.run(main())

    def test_a_failed_acknowledgement_is_no_internal_error(
        self,
        at_work: OpenDesk,
        check: Check,
        scrape: Scrape,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        acknowledge, failures = Msg.ack, iter([nats.errors.ConnectionClosedError(), OSError()])

        async def fail_first(message: Msg) -> None:
            if (error := next(failures, None)) is not None:
                raise error
            await acknowledge(message)

        monkeypatch.setattr(Msg, "ack", fail_first)

        async def main() -> None:
            async with at_work(task_ack_wait_s=1) as desk:
                record = await desk.queue.submit(check())
                ended = await desk.end_of(record.task_id)
                assert (ended.status, ended.attempts) == (TaskStatus.SUCCESS, 1)
                await desk.drained()  # delivered again, and acknowledged because the record is final

        asyncio.run(main())
        assert not [line for line in caplog.records if line.exc_info or vars(line).get("event") == "retried"]
        assert ("errors_total", "tasks", "internal_error") not in scrape()
        counted = tasks_counted(scrape)
        assert (counted["works"], counted["redeliveries"]) == (1, 2)


class TestTooLarge:
    def test_a_result_that_is_too_large_fails_at_once(
        self, at_work: OpenDesk, check: Check, sample: Sample, run_server: Callable[..., NatsServer], scrape: Scrape
    ) -> None:
        server = run_server(settings={"max_payload": 36 * 1024})

        async def main() -> None:
            async with at_work(nats_url=server.url) as desk:
                large = check(segmentation_map=sample.labels, simplify=0, show_landmarks=True)
                record = await desk.queue.submit(large)
                ended = await desk.end_of(record.task_id)
                assert ended.error is not None
                assert (ended.status, ended.attempts) == (TaskStatus.FAILURE, 1)
                assert ended.error.code == "result_too_large"
                await desk.drained()

        asyncio.run(main())
        assert tasks_counted(scrape)["works"] == 1

    def test_a_task_too_large_for_the_dead_letter_stream_ends(
        self,
        at_work: OpenDesk,
        check: Check,
        gate: Gate,
        pad: Callable[[int], bytes],
        quick_retries: None,
        run_server: Callable[..., NatsServer],
    ) -> None:
        del quick_retries
        gate.fail(3, times=99)
        server = run_server(settings={"max_payload": 4 * MIB})

        async def main() -> None:
            async with at_work(nats_url=server.url, task_max_deliveries=1, task_dead_max_bytes=MIB) as desk:
                record = await desk.queue.submit(check(image=pad(2 * MIB), simplify=3))
                ended = await desk.end_of(record.task_id)
                assert ended.error is not None
                assert (ended.status, ended.error.code) == (TaskStatus.FAILURE, "task_gave_up")
                await desk.drained()

        asyncio.run(main())

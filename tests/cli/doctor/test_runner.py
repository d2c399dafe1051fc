"""Checks side by side: none ends the others, none takes for ever, none tells a secret."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.cli.doctor import runner
from app.cli.doctor.context import Context
from app.cli.doctor.findings import Finding, Status, error, ok
from app.cli.doctor.names import Check
from app.settings import Settings, load_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SECRET = "QX-secret-QX"  # noqa: S105 - stands for one
ROOT = Path("/sys/fs/cgroup")


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    load_settings.cache_clear()
    yield
    load_settings.cache_clear()


@pytest.fixture
def replace(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Give ``replace(check=run, …)``: these checks are done by other functions."""

    def put(**runs: Callable[[Context], Iterator[Finding]]) -> None:
        modules = {Check(name).module: SimpleNamespace(run=run) for name, run in runs.items()}
        monkeypatch.setattr(runner.importlib, "import_module", modules.__getitem__)

    return put


def test_a_check_that_breaks_is_told_and_ends_no_other(replace: Callable[..., None]) -> None:
    def broken(_: Context) -> Iterator[Finding]:
        yield ok("clock.queue", "a", "b")
        raise RuntimeError(SECRET)

    def whole(_: Context) -> Iterator[Finding]:
        yield ok("disk.log-file", "a", "b")

    replace(clock=broken, disk=whole)
    first, second, third = runner.run_checks([Check.DISK, Check.CLOCK], ROOT)
    assert (first.name, first.status) == ("clock.queue", Status.OK)  # what was found before the fault is kept
    assert (second.name, second.status) == ("clock.check", Status.ERROR)
    assert "RuntimeError, test_runner.py:" in second.found
    assert "--skip clock" in second.advice
    assert (third.name, third.status) == ("disk.log-file", Status.OK)
    assert SECRET not in str(second)


def test_a_check_that_hangs_is_left_behind(replace: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def hanging(_: Context) -> Iterator[Finding]:
        release.wait(60)
        yield ok("clock.queue", "a", "b")

    def whole(_: Context) -> Iterator[Finding]:
        yield ok("disk.log-file", "a", "b")

    replace(clock=hanging, disk=whole)
    monkeypatch.setattr(runner, "LIMIT_S", 0.3)
    done: list[Check] = []
    try:
        found = runner.run_checks([Check.CLOCK, Check.DISK], ROOT, done.append)
    finally:
        release.set()
    assert [(finding.name, finding.status) for finding in found] == [
        ("clock.check", Status.ERROR),
        ("disk.log-file", Status.OK),
    ]
    assert "has not ended within 0.3 s" in found[0].found
    assert done == [Check.DISK]


def test_what_is_wrong_is_told_and_the_rest_is_looked_at_with_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKERS", SECRET)
    monkeypatch.setenv("MAX_BODY_BYTES", "1")
    monkeypatch.setenv("PORT", "1234")
    context = runner.make_context(ROOT)
    assert isinstance(context, Context)
    assert {wrong.name for wrong in context.wrong} == {"WORKERS", "MAX_BODY_BYTES"}
    assert context.settings.max_body_bytes == 16 * 2**20
    assert context.settings.port == 1234
    assert SECRET not in str(context.wrong)


def test_of_settings_that_contradict_each_other_only_that_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_secrets_are_known(environment: dict[str, str], secrets: set[str]) -> None:
    assert set(runner.find_secrets(environment)) == secrets


WORDS = st.text("abcdefgh-", min_size=4, max_size=12)


@given(WORDS, st.lists(WORDS))
def test_no_secret_is_told(secret: str, others: list[str]) -> None:
    text = " ".join([*others, secret, f"nats://u:{secret}@host", *others])
    finding = error("queue.access", text, text, expected=text, advice=text)
    hidden = runner.hide(finding, runner.find_secrets({"NATS_TOKEN": secret}))
    for told in (hidden.looked_at, hidden.found, hidden.expected, hidden.advice):
        assert secret not in told
        assert "nats://u:***@host" in told


def test_a_machine_without_a_temporary_folder_is_looked_at_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise FileNotFoundError

    monkeypatch.setattr(runner.tempfile, "gettempdir", none)
    monkeypatch.setattr(runner.tempfile, "tempdir", None)
    found = runner.run_checks([Check.LIMITS, Check.METRIC_FILES], ROOT)
    told = {(finding.name, finding.looked_at): finding.status for finding in found}
    assert told["limits.temporary", "temporary folder"] is Status.ERROR
    assert told["metric-files.folder", "temporary folder"] is Status.SKIPPED
    assert not [finding for finding in found if finding.name.endswith(".check")]


def test_a_folder_that_may_not_be_looked_into_is_not_called_free(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> bool:
        raise PermissionError

    monkeypatch.setattr("app.cli.doctor.holder._is_held", refuse)  # no folder refuses root
    found = [finding for finding in runner.run_checks([Check.QUEUE], ROOT) if finding.name == "queue.holder"]
    assert [finding.status for finding in found] == [Status.SKIPPED]
    assert "service's user" in found[0].found

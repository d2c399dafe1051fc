"""Settings: what each variable may hold, and that a wrong one is told by its name and never by a secret."""

from __future__ import annotations

import re
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from app import settings as module
from app.observability import rich_logging
from app.settings import (
    LOG_COMPONENTS,
    REQUEST_SECONDS,
    STEP_SECONDS,
    Settings,
    count_usable_cores,
    load_settings,
    read_api_keys,
)
from app.task_settings import TASK_SECONDS

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

SECRET = "QXsecretQX"  # noqa: S105 - stands for one


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    load_settings.cache_clear()


def wrong(name: str, text: str) -> AbstractContextManager[Any]:
    def names_it(error: ValidationError) -> bool:
        (problem,) = error.errors(include_url=False, include_input=False)
        return (not name or problem["loc"][0] == name) and text in problem["msg"]

    return pytest.raises(ValidationError, check=names_it)


def test_every_setting_has_a_default_and_a_description() -> None:
    assert Settings()
    for name, field in Settings.model_fields.items():
        assert not field.is_required(), name
        assert field.description, name


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("host", "::", nullcontext("::")),
        ("port", "0", nullcontext(0)),
        ("port", "65535", nullcontext(65535)),
        ("port", "65536", wrong("port", "less than or equal to 65535")),
        ("port", "-1", wrong("port", "greater than or equal to 0")),
        ("port", "tcp://10.0.0.1:8000", wrong("port", "valid integer")),
        ("port", "9000", wrong("", "PORT and METRICS_PORT are both 9000; they need to differ")),
        ("workers", "3", nullcontext(3)),
        ("workers", "0", wrong("workers", "greater than or equal to 1")),
        ("workers", "257", wrong("workers", "less than or equal to 256")),
        ("workers", "1.5", wrong("workers", "valid integer")),
        ("work_threads", "0", wrong("work_threads", "greater than or equal to 1")),
        ("timeout_s", "1", wrong("timeout_s", "greater than or equal to 2")),
        ("max_body_bytes", "1023", wrong("max_body_bytes", "greater than or equal to 1024")),
        ("max_body_bytes", "16MiB", wrong("max_body_bytes", "valid integer")),
        ("max_image_pixels", "100000001", wrong("max_image_pixels", "less than or equal to 100000000")),
        ("max_concurrency", "0", wrong("max_concurrency", "greater than or equal to 1")),
        ("body_timeout_s", "0.5", nullcontext(0.5)),
        ("body_timeout_s", "0", wrong("body_timeout_s", "greater than 0")),
        ("body_timeout_s", "nan", wrong("body_timeout_s", "greater than 0")),
        ("retry_after_s", "0", wrong("retry_after_s", "greater than or equal to 1")),
        ("landmark_margin", "-0.1", wrong("landmark_margin", "greater than or equal to 0")),
        ("landmark_margin", "inf", wrong("landmark_margin", "less than or equal to 10")),
        ("enable_metrics", "false", nullcontext(False)),
        ("enable_metrics", "maybe", wrong("enable_metrics", "valid boolean")),
        ("prometheus_multiproc_dir", "/run/values", nullcontext(Path("/run/values"))),
        ("request_duration_buckets", "0.1, 1,10", nullcontext((0.1, 1.0, 10.0))),
        ("request_duration_buckets", "0.1,", wrong("request_duration_buckets", "valid number")),
        ("request_duration_buckets", "0.1 1", wrong("request_duration_buckets", "valid number")),
        ("image_duration_buckets", "1,1", wrong("image_duration_buckets", "rising")),
        ("image_duration_buckets", "2,1", wrong("image_duration_buckets", "rising")),
        ("request_size_buckets", "0,1", wrong("request_size_buckets", "above 0")),
        ("response_size_buckets", "1,inf", wrong("response_size_buckets", "above 0 and rising")),
        ("response_size_buckets", "nan", wrong("response_size_buckets", "above 0 and rising")),
        ("log_format", "rich", nullcontext("rich")),
        ("log_format", "xml", wrong("log_format", "'auto', 'rich' or 'json'")),
        ("log_level", "debug", nullcontext("DEBUG")),
        ("log_level", "loud", wrong("log_level", "expected one of DEBUG, INFO, WARNING, ERROR, CRITICAL")),
        ("log_levels", "API=debug, images=WARNING,", nullcontext({"api": "DEBUG", "images": "WARNING"})),
        ("log_levels", "api:debug", wrong("log_levels", "name=value pairs separated by commas")),
        ("log_levels", "api=loud", wrong("log_levels", "expected one of")),
        ("log_theme", "component.api=bold blue", nullcontext({"component.api": "bold blue"})),
        ("log_levels", "apis=debug", wrong("log_levels", "expected only the components api, images, tasks, server")),
        ("log_theme", "blue", wrong("log_theme", "name=value pairs separated by commas")),
        ("log_theme", "component.api=blueish", wrong("log_theme", "component.api: expected a style of Rich")),
        ("log_file_backups", "-1", wrong("log_file_backups", "greater than or equal to 0")),
        ("fault_work_s", "61", wrong("fault_work_s", "less than or equal to 60")),
        ("log_levels", "tasks=debug", nullcontext({"tasks": "DEBUG"})),
        ("enable_tasks", "no", nullcontext(False)),
        ("data_dir", "/var/lib/queue", nullcontext(Path("/var/lib/queue"))),
        ("result_ttl", "0", wrong("result_ttl", "greater than or equal to 1")),
        ("result_ttl", "1.5", wrong("result_ttl", "valid integer")),
        ("result_max_bytes", "1048575", wrong("result_max_bytes", "greater than or equal to 1048576")),
        ("result_cache", "on", nullcontext(True)),
        ("task_workers", "0", nullcontext(0)),
        ("task_workers", "257", wrong("task_workers", "less than or equal to 256")),
        ("task_queue_max_messages", "0", wrong("task_queue_max_messages", "greater than or equal to 1")),
        ("task_queue_max_bytes", "1048575", wrong("task_queue_max_bytes", "greater than or equal to 1048576")),
        ("task_dead_max_bytes", "1048575", wrong("task_dead_max_bytes", "greater than or equal to 1048576")),
        ("task_ack_wait_s", "0.9", wrong("task_ack_wait_s", "greater than or equal to 1")),
        ("task_ack_wait_s", "nan", wrong("task_ack_wait_s", "greater than or equal to 1")),
        ("task_max_deliveries", "0", wrong("task_max_deliveries", "greater than or equal to 1")),
        ("task_max_deliveries", "101", wrong("task_max_deliveries", "less than or equal to 100")),
        ("task_timeout_s", "0", wrong("task_timeout_s", "greater than 0")),
        ("task_duration_buckets", "0.5, 5", nullcontext((0.5, 5.0))),
        ("task_duration_buckets", "5,0.5", wrong("task_duration_buckets", "rising")),
        ("task_wait_buckets", "1,inf", wrong("task_wait_buckets", "above 0 and rising")),
        ("nats_url", "nats://a:4222, tls://b", nullcontext("nats://a:4222,tls://b")),
        ("nats_url", "nats://u:p@[::1]:4222", nullcontext("nats://u:p@[::1]:4222")),
        ("nats_url", "a:4222", wrong("nats_url", "expected servers such as nats://host:4222")),
        ("nats_url", "http://a:4222", wrong("nats_url", "expected servers such as nats://host:4222")),
        ("nats_url", "nats://", wrong("nats_url", "expected servers such as nats://host:4222")),
        ("nats_url", f"nats://u:{SECRET}/x@a", wrong("nats_url", "expected servers such as nats://host:4222")),
        ("nats_url", f"nats://u:{SECRET}#x@a", wrong("nats_url", "expected servers such as nats://host:4222")),
        ("nats_url", "nats://a,b", wrong("nats_url", "expected servers such as nats://host:4222")),
        ("nats_replicas", "6", wrong("nats_replicas", "less than or equal to 5")),
        ("nats_timeout_s", "0", wrong("nats_timeout_s", "greater than 0")),
        ("nats_timeout_s", "61", wrong("nats_timeout_s", "less than or equal to 60")),
        ("nats_sync_interval", "always", nullcontext("always")),
        ("nats_sync_interval", "500ms", nullcontext("500ms")),
        ("nats_sync_interval", "0s", wrong("nats_sync_interval", "match pattern")),
        ("nats_sync_interval", "2 minutes", wrong("nats_sync_interval", "match pattern")),
        ("nats_sync_interval", "1s\n", wrong("nats_sync_interval", "match pattern")),
        ("nats_creds_file", "/run/creds", nullcontext(Path("/run/creds"))),
        ("nats_tls_cert_file", "/run/tls.crt", wrong("", "NATS_TLS_CERT_FILE and NATS_TLS_KEY_FILE together")),
        ("nats_tls_key_file", "/run/tls.key", wrong("", "NATS_TLS_CERT_FILE and NATS_TLS_KEY_FILE together")),
    ],
)
def test_variable_is_read_or_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str, expected: AbstractContextManager[Any]
) -> None:
    monkeypatch.setenv(name.upper(), text)
    with expected as value:
        assert getattr(load_settings(), name) == value


@pytest.mark.parametrize(
    ("text", "keys"),
    [("one", ("one",)), (" one , two,", ("one", "two")), ("a:b/d+e==, c:d:e", ("a:b/d+e==", "c:d:e"))],
)
def test_keys_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch, text: str, keys: tuple[str, ...]) -> None:
    monkeypatch.setenv("API_KEYS", text)
    assert tuple(key.get_secret_value() for key in Settings().api_keys) == keys


@pytest.mark.parametrize("text", [",", " ", " , ,"])
def test_keys_without_a_key_are_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("API_KEYS", text)
    with wrong("api_keys", "at least one key"):
        Settings()


def test_empty_variables_are_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = Settings()
    for name in Settings.model_fields:
        monkeypatch.setenv(name.upper(), "")
    assert Settings() == expected


def test_keys_are_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEYS", f"first,{SECRET}")
    shown = Settings()
    for text in (repr(shown), str(shown), str(shown.model_dump()), shown.model_dump_json(), repr(shown.api_keys)):
        assert SECRET not in text
    monkeypatch.setenv("PORT", SECRET)
    with pytest.raises(ValidationError) as caught:
        Settings()
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["nats_password", "nats_token", "nats_nkey_seed", "nats_url"], ids=lambda name: name.upper()
)
def test_secrets_of_the_queue_are_never_in_an_error(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    value = f"http://u:{SECRET}@host" if name == "nats_url" else SECRET
    monkeypatch.setenv(name.upper(), value)
    monkeypatch.setenv("TASK_WORKERS", SECRET)
    with pytest.raises(ValidationError) as caught:
        Settings()
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("name", ["nats_password", "nats_token", "nats_nkey_seed"])
def test_secrets_of_the_queue_are_never_shown(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name.upper(), SECRET)
    if name == "nats_password":
        monkeypatch.setenv("NATS_USER", "somebody")
    shown = Settings()
    for text in (repr(shown), str(shown), str(shown.model_dump()), shown.model_dump_json()):
        assert SECRET not in text
    assert getattr(shown, name).get_secret_value() == SECRET


@pytest.mark.parametrize(
    ("variables", "names"),
    [
        ({"NATS_USER": "u", "NATS_PASSWORD": "p"}, None),
        ({"NATS_USER": "u", "NATS_TOKEN": "t"}, "NATS_USER and NATS_TOKEN"),
        ({"NATS_TOKEN": "t", "NATS_NKEY_SEED": "s"}, "NATS_TOKEN and NATS_NKEY_SEED"),
        ({"NATS_NKEY_SEED": "s", "NATS_CREDS_FILE": "f"}, "NATS_NKEY_SEED and NATS_CREDS_FILE"),
        ({"NATS_TOKEN": "", "NATS_CREDS_FILE": "f"}, None),
        ({"NATS_TLS_CERT_FILE": "c", "NATS_TLS_KEY_FILE": "k", "NATS_TOKEN": "t"}, None),
    ],
)
def test_there_is_one_way_to_be_let_in(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], names: str | None
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with wrong("", f"expected one way to authenticate, got {names}") if names else nullcontext():
        Settings()


@pytest.mark.parametrize(
    ("variables", "servers", "is_embedded"),
    [
        ({}, [], True),
        ({"NATS_URL": "nats://a,nats://b"}, ["nats://a", "nats://b"], False),
        ({"ENABLE_TASKS": "false"}, [], False),
    ],
)
def test_a_queue_is_started_where_none_is_named(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], servers: list[str], *, is_embedded: bool
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert (Settings().nats_servers, Settings().is_queue_embedded) == (servers, is_embedded)


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().port = 1


def test_all_wrong_variables_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKERS", "0")
    monkeypatch.setenv("LOG_LEVEL", "loud")
    with pytest.raises(ValidationError) as caught:
        Settings()
    assert [problem["loc"] for problem in caught.value.errors()] == [("workers",), ("log_level",)]


def test_the_environment_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "1234")
    before = load_settings()
    monkeypatch.setenv("PORT", "4321")
    assert load_settings() is before


def test_two_free_ports_do_not_collide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "0")
    monkeypatch.setenv("METRICS_PORT", "0")
    assert Settings().port == Settings().metrics_port == 0


@pytest.mark.parametrize("bounds", [REQUEST_SECONDS, STEP_SECONDS, TASK_SECONDS])
def test_a_threshold_of_half_a_second_is_a_bound(bounds: tuple[float, ...]) -> None:
    assert 0.5 in bounds  # objectives are read off at bounds


@pytest.mark.parametrize(
    ("cores", "limit", "expected"),
    [
        (8, {}, 8),
        (8, {"cpu.max": "max 100000\n"}, 8),
        (8, {"cpu.max": "200000 100000\n"}, 2),
        (8, {"cpu.max": "150000 100000\n"}, 2),
        (8, {"cpu.max": "10000 100000\n"}, 1),
        (2, {"cpu.max": "400000 100000\n"}, 2),
        (8, {"cpu.max": "garbage"}, 8),
        (8, {"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        (8, {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        (8, {"cpu/cpu.cfs_quota_us": "300000\n"}, 8),
    ],
)
def test_cores_are_those_that_a_container_may_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cores: int, limit: dict[str, str], expected: int
) -> None:
    for name, text in limit.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="ascii")
    root = "/sys/fs/cgroup/"
    monkeypatch.setattr(module, "Path", lambda path: tmp_path / path.removeprefix(root))
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)), raising=False)
    assert count_usable_cores() == expected


def test_log_components_are_those_of_the_loggers() -> None:
    assert rich_logging.COMPONENTS == LOG_COMPONENTS


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("my name:secret1", "key 1: expected a name of 1 to 64 letters"),
        (":secret1", "key 1: expected a name of 1 to 64 letters"),
        ("a=b:secret1", "key 1: expected a name"),
        ("ä:secret1", "key 1: expected a name"),
        (f"{'n' * 65}:secret1", "key 1: expected a name"),
        ("ok:secret1,name:", "key 2: expected 1 to 1024 visible"),
        ("name: secret1", "key 1: expected 1 to 1024 visible"),
        ("one:secret1,two:secret1", "key 2: expected different keys, got one twice"),
        ("secret1,secret1", "key 2: expected different keys"),
        (" , ", "expected at least one key"),
    ],
)
def test_invalid_keys_are_refused_without_repeating_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, problem: str
) -> None:
    monkeypatch.setenv("API_KEYS", text)
    with pytest.raises(ValidationError, match=re.escape(problem)) as caught:
        Settings()
    assert "secret1" not in str(caught.value)
    monkeypatch.delenv("API_KEYS")
    file = tmp_path / "keys"
    file.write_text(text.replace(",", "\n"), encoding="utf-8")
    monkeypatch.setenv("API_KEYS_FILE", str(file))
    with pytest.raises(ValidationError, match=re.escape(problem)) as caught:
        Settings()
    assert "secret1" not in str(caught.value)


def test_a_key_file_has_lines_commas_and_comments(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# callers\nbatch:k1, k2\r\n\n  # old\nbatch:k3\n", encoding="utf-8")
    assert read_api_keys(file) == [("batch", "k1"), ("", "k2"), ("batch", "k3")]


def test_a_key_file_that_does_not_exist_stops_the_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("API_KEYS_FILE", str(tmp_path / "missing"))
    with pytest.raises(ValidationError, match="expected a file that can be read: No such file"):
        Settings()


@pytest.mark.parametrize(
    ("text", "quota"), [("", None), ("1/second", (1, 1)), ("100/minute", (100, 60)), ("5000/hour", (5000, 3600))]
)
def test_rate_limits(monkeypatch: pytest.MonkeyPatch, text: str, quota: tuple[int, int] | None) -> None:
    monkeypatch.setenv("RATE_LIMIT", text)
    assert Settings().rate_quota == quota


@pytest.mark.parametrize("text", ["0/second", "10", "10/day", "-1/second", "1.5/second", "10/ second", "10000000/hour"])
def test_invalid_rate_limits_are_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("RATE_LIMIT", text)
    with pytest.raises(ValidationError, match="rate_limit"):
        Settings()

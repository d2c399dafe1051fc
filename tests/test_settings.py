"""Values that each variable accepts; errors name the variable and never contain a secret."""

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
    TASK_SECONDS,
    Settings,
    count_usable_cores,
    find_invalid_settings,
    load_settings,
    parse_key_file,
)

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

SECRET = "QXsecretQX"  # noqa: S105 - not a real one


@pytest.fixture(autouse=True)
def _unset_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    load_settings.cache_clear()


def rejected(name: str, text: str) -> AbstractContextManager[Any]:
    def is_reported(error: ValidationError) -> bool:
        (setting,) = find_invalid_settings(error)
        return setting.name == name.upper() and text in setting.message

    return pytest.raises(ValidationError, check=is_reported)


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
        ("port", "65536", rejected("port", "at most 65535, got 65536")),
        ("port", "-1", rejected("port", "at least 0, got -1")),
        ("port", "tcp://10.0.0.1:8000", rejected("port", "an integer, got other text")),
        ("port", "9000", rejected("port, metrics_port", "expected different ports, got 9000 for both")),
        ("slo_latency_threshold_s", "0.5", nullcontext(0.5)),
        (
            "slo_latency_threshold_s",
            "0.3",
            rejected("slo_latency_threshold_s", "expected a boundary of REQUEST_DURATION_BUCKETS (0.001, "),
        ),
        ("request_duration_buckets", "0.5,2", rejected("slo_latency_threshold_s", "(0.5, 2), got 1")),
        ("workers", "3", nullcontext(3)),
        ("workers", "0", rejected("workers", "at least 1, got 0")),
        ("workers", "257", rejected("workers", "at most 256, got 257")),
        ("workers", "1.5", rejected("workers", "an integer, got 1.5")),
        ("work_threads", "0", rejected("work_threads", "at least 1, got 0")),
        ("timeout_s", "1", rejected("timeout_s", "at least 2, got 1")),
        ("max_body_bytes", "1023", rejected("max_body_bytes", "at least 1024, got 1023")),
        ("max_body_bytes", "16MiB", rejected("max_body_bytes", "an integer, got other text")),
        ("max_image_pixels", "100000001", rejected("max_image_pixels", "at most 100000000, got 100000001")),
        ("max_concurrency", "0", rejected("max_concurrency", "at least 1, got 0")),
        ("body_timeout_s", "0.5", nullcontext(0.5)),
        ("body_timeout_s", "0", rejected("body_timeout_s", "more than 0, got 0")),
        ("body_timeout_s", "nan", rejected("body_timeout_s", "more than 0, got nan")),
        ("retry_after_s", "0", rejected("retry_after_s", "at least 1, got 0")),
        ("landmark_margin", "-0.1", rejected("landmark_margin", "at least 0, got -0.1")),
        ("landmark_margin", "inf", rejected("landmark_margin", "at most 10, got inf")),
        ("enable_metrics", "false", nullcontext(False)),
        ("enable_metrics", "maybe", rejected("enable_metrics", "true or false, got other text")),
        ("prometheus_multiproc_dir", "/run/values", nullcontext(Path("/run/values"))),
        ("request_duration_buckets", "0.1, 1,10", nullcontext((0.1, 1.0, 10.0))),
        ("request_duration_buckets", "0.1,", rejected("request_duration_buckets", "a number, got other text")),
        ("request_duration_buckets", "0.1 1", rejected("request_duration_buckets", "a number, got other text")),
        ("image_duration_buckets", "1,1", rejected("image_duration_buckets", "increasing")),
        ("image_duration_buckets", "2,1", rejected("image_duration_buckets", "increasing")),
        ("request_size_buckets", "0,1", rejected("request_size_buckets", "above 0")),
        ("response_size_buckets", "1,inf", rejected("response_size_buckets", "above 0 and increasing")),
        ("response_size_buckets", "nan", rejected("response_size_buckets", "above 0 and increasing")),
        ("log_format", "rich", nullcontext("rich")),
        ("log_format", "xml", rejected("log_format", "'auto', 'rich' or 'json'")),
        ("log_level", "debug", nullcontext("DEBUG")),
        ("log_level", "loud", rejected("log_level", "expected one of DEBUG, INFO, WARNING, ERROR, CRITICAL")),
        ("log_levels", "API=debug, images=WARNING,", nullcontext({"api": "DEBUG", "images": "WARNING"})),
        ("log_levels", "api:debug", rejected("log_levels", "name=value pairs separated by commas")),
        ("log_levels", "api=loud", rejected("log_levels", "expected one of")),
        ("log_theme", "component.api=bold blue", nullcontext({"component.api": "bold blue"})),
        ("log_levels", "apis=debug", rejected("log_levels", "expected only the components api, images, tasks, server")),
        ("log_theme", "blue", rejected("log_theme", "name=value pairs separated by commas")),
        ("log_theme", "component.api=blueish", rejected("log_theme", "component.api: expected a style of Rich")),
        ("log_file_backups", "-1", rejected("log_file_backups", "at least 0, got -1")),
        ("fault_work_s", "61", rejected("fault_work_s", "at most 60, got 61")),
        ("log_levels", "tasks=debug", nullcontext({"tasks": "DEBUG"})),
        ("enable_tasks", "no", nullcontext(False)),
        ("data_dir", "/var/lib/queue", nullcontext(Path("/var/lib/queue"))),
        ("result_ttl", "0", rejected("result_ttl", "at least 1, got 0")),
        ("result_ttl", "1.5", rejected("result_ttl", "an integer, got 1.5")),
        ("result_max_bytes", "1048575", rejected("result_max_bytes", "at least 1048576, got 1048575")),
        ("result_cache", "on", nullcontext(True)),
        ("task_workers", "0", nullcontext(0)),
        ("task_workers", "257", rejected("task_workers", "at most 256, got 257")),
        ("task_queue_max_messages", "0", rejected("task_queue_max_messages", "at least 1, got 0")),
        ("task_queue_max_bytes", "1048575", rejected("task_queue_max_bytes", "at least 1048576, got 1048575")),
        ("task_dead_max_bytes", "1048575", rejected("task_dead_max_bytes", "at least 1048576, got 1048575")),
        ("task_ack_wait_s", "0.9", rejected("task_ack_wait_s", "at least 1, got 0.9")),
        ("task_ack_wait_s", "nan", rejected("task_ack_wait_s", "at least 1, got nan")),
        ("task_max_deliveries", "0", rejected("task_max_deliveries", "at least 1, got 0")),
        ("task_max_deliveries", "101", rejected("task_max_deliveries", "at most 100, got 101")),
        ("task_timeout_s", "0", rejected("task_timeout_s", "more than 0, got 0")),
        ("task_duration_buckets", "0.5, 5", nullcontext((0.5, 5.0))),
        ("task_duration_buckets", "5,0.5", rejected("task_duration_buckets", "increasing")),
        ("task_wait_buckets", "1,inf", rejected("task_wait_buckets", "above 0 and increasing")),
        ("nats_url", "nats://a:4222, tls://b", nullcontext("nats://a:4222,tls://b")),
        ("nats_url", "nats://u:p@[::1]:4222", nullcontext("nats://u:p@[::1]:4222")),
        ("nats_url", "a:4222", rejected("nats_url", "expected URLs such as nats://host:4222")),
        ("nats_url", "http://a:4222", rejected("nats_url", "expected URLs such as nats://host:4222")),
        ("nats_url", "nats://", rejected("nats_url", "expected URLs such as nats://host:4222")),
        ("nats_url", f"nats://u:{SECRET}/x@a", rejected("nats_url", "expected URLs such as nats://host:4222")),
        ("nats_url", f"nats://u:{SECRET}#x@a", rejected("nats_url", "expected URLs such as nats://host:4222")),
        ("nats_url", "nats://a,b", rejected("nats_url", "expected URLs such as nats://host:4222")),
        ("nats_replicas", "6", rejected("nats_replicas", "at most 5, got 6")),
        ("nats_timeout_s", "0", rejected("nats_timeout_s", "more than 0, got 0")),
        ("nats_timeout_s", "61", rejected("nats_timeout_s", "at most 60, got 61")),
        ("nats_sync_interval", "always", nullcontext("always")),
        ("nats_sync_interval", "500ms", nullcontext("500ms")),
        ("nats_sync_interval", "0s", rejected("nats_sync_interval", "text such as 10s or always, got other text")),
        (
            "nats_sync_interval",
            "2 minutes",
            rejected("nats_sync_interval", "text such as 10s or always, got other text"),
        ),
        ("nats_sync_interval", "1s\n", rejected("nats_sync_interval", "text such as 10s or always, got other text")),
        ("nats_creds_file", "/run/creds", nullcontext(Path("/run/creds"))),
        (
            "nats_tls_cert_file",
            "/run/tls.crt",
            rejected("nats_tls_cert_file, nats_tls_key_file", "expected both or neither, got only"),
        ),
        (
            "nats_tls_key_file",
            "/run/tls.key",
            rejected("nats_tls_cert_file, nats_tls_key_file", "expected both or neither, got only"),
        ),
    ],
)
def test_variable_is_accepted_or_rejected(
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
def test_a_list_without_a_key_is_rejected(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("API_KEYS", text)
    with rejected("api_keys", "at least one key"):
        Settings()


def test_empty_variables_count_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = Settings()
    for name in Settings.model_fields:
        monkeypatch.setenv(name.upper(), "")
    assert Settings() == expected


def test_metrics_are_only_logged_if_they_are_enabled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOG_METRICS_INTERVAL", "30")
    assert Settings().log_metrics_interval == 30
    monkeypatch.setenv("ENABLE_METRICS", "false")
    with pytest.raises(ValidationError, match="LOG_METRICS_INTERVAL: expected 0 with ENABLE_METRICS=false"):
        Settings()


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
def test_secrets_of_nats_are_never_in_an_error(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    value = f"http://u:{SECRET}@host" if name == "nats_url" else SECRET
    monkeypatch.setenv(name.upper(), value)
    monkeypatch.setenv("TASK_WORKERS", SECRET)
    with pytest.raises(ValidationError) as caught:
        Settings()
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("name", ["nats_password", "nats_token", "nats_nkey_seed"])
def test_secrets_of_nats_are_never_shown(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name.upper(), SECRET)
    if name == "nats_password":
        monkeypatch.setenv("NATS_USER", "user")
    shown = Settings()
    for text in (repr(shown), str(shown), str(shown.model_dump()), shown.model_dump_json()):
        assert SECRET not in text
    assert getattr(shown, name).get_secret_value() == SECRET


@pytest.mark.parametrize(
    ("variables", "names"),
    [
        ({"NATS_USER": "u", "NATS_PASSWORD": "p"}, None),
        ({"NATS_USER": "u", "NATS_TOKEN": "t"}, "NATS_USER, NATS_TOKEN"),
        ({"NATS_TOKEN": "t", "NATS_NKEY_SEED": "s"}, "NATS_TOKEN, NATS_NKEY_SEED"),
        ({"NATS_NKEY_SEED": "s", "NATS_CREDS_FILE": "f"}, "NATS_NKEY_SEED, NATS_CREDS_FILE"),
        ({"NATS_TOKEN": "", "NATS_CREDS_FILE": "f"}, None),
        ({"NATS_TLS_CERT_FILE": "c", "NATS_TLS_KEY_FILE": "k", "NATS_TOKEN": "t"}, None),
    ],
)
def test_only_one_authentication_method_is_accepted(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], names: str | None
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with rejected(names, "expected one authentication method, got 2") if names else nullcontext():
        Settings()


@pytest.mark.parametrize(
    ("variables", "servers", "is_embedded"),
    [
        ({}, [], True),
        ({"NATS_URL": "nats://a,nats://b"}, ["nats://a", "nats://b"], False),
        ({"ENABLE_TASKS": "false"}, [], False),
    ],
)
def test_the_queue_is_embedded_unless_a_server_is_configured(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], servers: list[str], *, is_embedded: bool
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert (Settings().nats_servers, Settings().is_queue_embedded) == (servers, is_embedded)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().port = 1


def test_all_invalid_variables_are_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_half_a_second_is_a_bound(bounds: tuple[float, ...]) -> None:
    assert 0.5 in bounds  # the objectives use it as a threshold


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
def test_usable_cores_respect_affinity_and_cgroup_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cores: int, limit: dict[str, str], expected: int
) -> None:
    for name, text in limit.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="ascii")
    root = "/sys/fs/cgroup/"
    monkeypatch.setattr(module, "Path", lambda path: tmp_path / path.removeprefix(root))
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)), raising=False)
    assert count_usable_cores() == expected


def test_log_components_match_the_loggers() -> None:
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
def test_invalid_keys_are_rejected_without_repeating_them(
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
    assert parse_key_file(file.read_bytes()) == [("batch", "k1"), ("", "k2"), ("batch", "k3")]


def test_a_missing_key_file_is_rejected(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("API_KEYS_FILE", str(tmp_path / "missing"))
    with pytest.raises(ValidationError, match="expected a readable file, got an error: No such file"):
        Settings()


@pytest.mark.parametrize(
    ("text", "quota"), [("", None), ("1/second", (1, 1)), ("100/minute", (100, 60)), ("5000/hour", (5000, 3600))]
)
def test_rate_limits(monkeypatch: pytest.MonkeyPatch, text: str, quota: tuple[int, int] | None) -> None:
    monkeypatch.setenv("RATE_LIMIT", text)
    assert Settings().rate_quota == quota


@pytest.mark.parametrize("text", ["0/second", "10", "10/day", "-1/second", "1.5/second", "10/ second", "10000000/hour"])
def test_invalid_rate_limits_are_rejected(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("RATE_LIMIT", text)
    with pytest.raises(ValidationError, match="rate_limit"):
        Settings()

"""The environment that the chart sets, as the service reads it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.observability import tracing
from app.settings import Settings
from tests.chart.environment import environment, read_settings
from tests.chart.generator import schema, service_settings
from tests.chart.helm import CHART, NAMESPACE, RELEASE, ROOT, Release, Values, template
from tests.chart.pods import find_pods, pod_of

NAME = f"{RELEASE}-facial-service"
SECRETS = {
    "nats-login": {"NATS_USER": "me", "NATS_PASSWORD": "word"},
    "nats-seed": {"NATS_NKEY_SEED": "SUAM"},
    "facial-nats": {"token": "s3cret"},
    "facial-api-keys": {"api-keys": "first,second"},
    "callers": {"keys": "third"},
}
# Environment variables that are not settings: of the chart, and of the scenarios.
BESIDE = {"HTTP_PROXY", "NODE_NAME", "SECRET_NUMBER", "PART"}
# Read by OpenTelemetry itself.
OTEL = {
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_HEADERS",
    "OTEL_RESOURCE_ATTRIBUTES",
    "OTEL_SERVICE_NAME",
    "OTEL_TRACES_SAMPLER",
    "OTEL_TRACES_SAMPLER_ARG",
    "POD_NAME",
}
KNOWN = {name.upper() for name in Settings.model_fields}


def settings_of(release: Release, component: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    # The file is in a volume.
    monkeypatch.setattr("pathlib.Path.read_bytes", lambda _: b"key")
    return read_settings(monkeypatch, environment(release, pod_of(release, component), SECRETS))


def read_both(values: Values, monkeypatch: pytest.MonkeyPatch) -> tuple[Settings, Settings]:
    release = template(values=values)
    return settings_of(release, "api", monkeypatch), settings_of(release, "worker", monkeypatch)


def test_every_name_is_a_setting(release: Release) -> None:
    for pod in find_pods(release.objects):
        if pod.component in {"api", "worker"}:
            assert environment(release, pod, SECRETS).keys() - KNOWN - BESIDE - OTEL == set()


def test_scenarios_start_and_agree(release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    api = settings_of(release, "api", monkeypatch)
    assert (api.host, api.port, api.metrics_port) == ("::", 8000, 9000)
    assert api.prometheus_multiproc_dir == Path("/run/metrics")
    assert api.is_queue_embedded is False
    assert api.log_file is None
    if not api.enable_tasks:
        assert api.nats_url == ""
        return
    worker = settings_of(release, "worker", monkeypatch)
    assert worker.enable_tasks
    assert not worker.is_queue_embedded
    assert (worker.host, worker.metrics_port) == (api.host, 9000)
    assert worker.prometheus_multiproc_dir == Path("/run/metrics")
    shared = {name.lower() for name in service_settings.SHARED_SETTINGS}
    shared |= {name for name in Settings.model_fields if name.startswith("nats_")}
    assert {name: getattr(api, name) for name in shared} == {name: getattr(worker, name) for name in shared}


def test_defaults_are_the_services_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings without a value have the defaults of the service."""
    api, worker = read_both({}, monkeypatch)
    alone = read_settings(monkeypatch, {})
    for settings in (api, worker):
        differing = {name.upper() for name in Settings.model_fields if getattr(settings, name) != getattr(alone, name)}
        assert differing <= service_settings.MANAGED_SETTINGS.keys()


def test_values_of_the_charts_own(monkeypatch: pytest.MonkeyPatch) -> None:
    values: Values = {
        "api": {"workers": 7, "gracefulTimeoutSeconds": 21, "resources": {"limits": {"memory": "9Gi"}}},
        "worker": {"processes": 5, "gracefulTimeoutSeconds": 90, "resources": {"limits": {"memory": "5Gi"}}},
        "apiKeys": {"existingSecret": "facial-api-keys"},
        "nats": {"auth": {"existingSecret": "facial-nats"}},
    }
    api, worker = read_both(values, monkeypatch)
    assert (api.workers, api.graceful_timeout_s) == (7, 21)
    assert (worker.task_workers, worker.graceful_timeout_s) == (5, 90)
    assert api.api_keys_file == Path("/etc/api-keys/keys")
    assert (worker.api_keys, worker.api_keys_file) == ((), None)
    for settings in (api, worker):
        assert settings.nats_token.get_secret_value() == "s3cret"
        assert settings.nats_servers == [f"nats://{NAME}-nats-0.{NAME}-nats:4222"]
        assert settings.nats_monitor_url == f"http://{NAME}-nats:8222"
        assert settings.nats_replicas == 1


TRACING: Values = {
    "endpoint": "https://{{ .Release.Name }}-collector.monitoring",
    "existingSecret": "{{ .Release.Name }}-otel",
    "headersKey": "headers",
}


@pytest.mark.parametrize("component", ["api", "worker"])
def test_tracing_sets_the_standard_variables(component: str) -> None:
    release = template(values={"tracing": TRACING})
    secrets = {f"{RELEASE}-otel": {"headers": "Authorization=Bearer%20token"}}
    found = environment(release, pod_of(release, component), secrets)
    assert {key: value for key, value in found.items() if key.startswith("OTEL_")} == {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"https://{RELEASE}-collector.monitoring",
        "OTEL_EXPORTER_OTLP_HEADERS": "Authorization=Bearer%20token",
        "OTEL_SERVICE_NAME": f"{NAME}-{component}",
        "OTEL_RESOURCE_ATTRIBUTES": f"k8s.namespace.name={NAMESPACE},k8s.pod.name=from metadata.name",
        "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": "0.1",
    }
    assert tracing.is_requested(found)
    assert tracing.find_problem(found) is None


def test_a_sampler_without_a_ratio_has_no_argument() -> None:
    release = template(values={"tracing": {"endpoint": "http://collector:4318", "sampler": "always_on"}})
    found = environment(release, pod_of(release, "api"))
    assert found["OTEL_TRACES_SAMPLER"] == "always_on"
    assert "OTEL_TRACES_SAMPLER_ARG" not in found
    assert "OTEL_EXPORTER_OTLP_HEADERS" not in found


def test_traces_are_off_by_default() -> None:
    release = template()
    for component in ("api", "worker"):
        found = environment(release, pod_of(release, component))
        assert not [name for name in found if name.startswith("OTEL_")]
        assert not tracing.is_requested(found)


def test_api_keys_are_a_file_that_follows_its_secret() -> None:
    release = template(values={"apiKeys": {"existingSecret": "facial-api-keys", "secretKey": "callers"}})
    pod = pod_of(release, "api")
    (volume,) = [volume for volume in pod.spec["volumes"] if volume["name"] == "api-keys"]
    assert volume["secret"] == {
        "secretName": "facial-api-keys",
        "defaultMode": 0o440,
        "items": [{"key": "callers", "path": "keys"}],
    }
    # Without subPath, because the kubelet does not update such files.
    assert {"name": "api-keys", "mountPath": "/etc/api-keys", "readOnly": True} in pod.main["volumeMounts"]
    assert "api-keys" not in {volume["name"] for volume in pod_of(release, "worker").spec["volumes"]}
    assert "api-keys" not in {volume["name"] for volume in pod_of(template(), "api").spec["volumes"]}


@pytest.mark.parametrize("count", [1, 3, 5])
def test_every_server_of_a_cluster_is_named(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    release = template(values={"nats": {"replicas": count}})
    settings = settings_of(release, "api", monkeypatch)
    servers = pod_of(release, "nats").owner
    (name, service) = (servers["metadata"]["name"], servers["spec"]["serviceName"])
    assert settings.nats_servers == [f"nats://{name}-{index}.{service}:4222" for index in range(count)]
    assert settings.nats_replicas == count == servers["spec"]["replicas"]


def test_servers_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    external: Values = {
        "url": "tls://a.example.com:4222,tls://b.example.com",
        "monitorUrl": "https://a.example.com:8222",
        "replicas": 3,
        "credsSecret": "creds",
        "credsKey": "my.creds",
        "tlsSecret": "certificates",
        "tlsClientCertificate": True,
    }
    for settings in read_both({"nats": {"enabled": False}, "externalNats": external}, monkeypatch):
        assert settings.nats_url == external["url"]
        assert settings.nats_monitor_url == external["monitorUrl"]
        assert settings.nats_replicas == 3
        assert settings.nats_creds_file == Path("/etc/nats-access/my.creds")
        assert settings.nats_tls_ca_file == Path("/etc/nats-access/ca.crt")
        assert settings.nats_tls_cert_file == Path("/etc/nats-access/tls.crt")
        assert settings.nats_tls_key_file == Path("/etc/nats-access/tls.key")


@pytest.mark.parametrize("has_certificate", [True, False])
def test_files_of_credentials_are_mounted_where_they_are_looked_for(*, has_certificate: bool) -> None:
    external = {"url": "tls://a", "credsSecret": "c", "tlsSecret": "t", "tlsClientCertificate": has_certificate}
    release = template(values={"nats": {"enabled": False}, "externalNats": external})
    for component in ("api", "worker"):
        pod = pod_of(release, component)
        (volume,) = (volume for volume in pod.spec["volumes"] if volume["name"] == "nats-access")
        (mount,) = (mount for mount in pod.main["volumeMounts"] if mount["name"] == "nats-access")
        assert mount["readOnly"] is True
        items = [item for source in volume["projected"]["sources"] for item in source["secret"]["items"]]
        files = {f"{mount['mountPath']}/{item['path']}" for item in items}
        variables = environment(release, pod)
        assert files == {value for name, value in variables.items() if name.startswith("NATS_") and "/etc/" in value}


@pytest.mark.parametrize(
    ("secret", "expected"),
    [("nats-login", ("me", "word", "")), ("nats-seed", ("", "", "SUAM"))],
)
def test_credentials_come_under_the_names_of_settings(
    secret: str, expected: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"nats": {"enabled": False}, "externalNats": {"url": "nats://a", "existingSecret": secret}}
    for settings in read_both(values, monkeypatch):
        password, seed = settings.nats_password, settings.nats_nkey_seed
        assert (settings.nats_user, password.get_secret_value(), seed.get_secret_value()) == expected


def sample(name: str, *, is_large: bool) -> Any:
    """Return a value of a setting, as a user would write it."""
    special: dict[str, Any] = {
        "LOG_LEVEL": "DEBUG",
        "LOG_LEVELS": "api=DEBUG,images=WARNING",
        "LOG_THEME": "component.api=bold blue",
        "LOG_FORMAT": "rich",
        "RATE_LIMIT": "100/minute",
        "LOG_METRICS_INTERVAL": 2.5 if is_large else 0,  # above 0 only with metrics
    }
    part = schema()["properties"]["settings"]["properties"][name]
    if name in special:
        return special[name]
    if "array" in part["type"]:
        return [0.0001, 1, 2500.5, 16777216] if is_large else "0.25,1,10"
    match part["type"][0]:
        case "boolean":
            return is_large
        case "integer":
            return part.get("maximum", 12_345_678_901) if is_large else max(part.get("minimum", 0), 1)
        case "number":
            return part.get("maximum", 1_000_000) if is_large else max(part.get("minimum", 0), 1) * 1.25
        case "string":
            return 'a "b" #c: $HOME {{ d }} ä'
    raise AssertionError(part)


@pytest.mark.parametrize("is_large", [True, False])
def test_every_setting_arrives_as_it_was_meant(*, is_large: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    names = list(schema()["properties"]["settings"]["properties"])
    assert len(names) > 30
    given = {name: sample(name, is_large=is_large) for name in names}
    values: Values = {"settings": given, "nats": {"persistence": {"size": "900Ti"}}}
    values |= {component: {"resources": {"limits": None}} for component in ("api", "worker")}
    release = template(values=values)
    for component in ("api", "worker"):
        variables = environment(release, pod_of(release, component))
        # Helm reads numbers as floats: a careless template renders 1073741824 as 1.073741824e+09.
        assert [name for name, value in variables.items() if re.fullmatch(r"[\d.]+e[+-]?\d+", value)] == []
        settings = read_settings(monkeypatch, variables)
        plain = {
            name: ",".join(map(str, value)) if isinstance(value, list) else str(value) for name, value in given.items()
        }
        expected = read_settings(monkeypatch, plain)
        for name in names:
            assert getattr(settings, name.lower()) == getattr(expected, name.lower()), name


def test_settings_of_one_component_go_before_those_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    values: Values = {
        "settings": {"LOG_LEVEL": "ERROR", "TIMEOUT_S": 44},
        "env": {"LOG_TIME_FORMAT": "%M", "RETRY_AFTER_S": "5"},
        "api": {"settings": {"LOG_LEVEL": "DEBUG"}, "env": {"RETRY_AFTER_S": "7"}},
        "worker": {"settings": {"LOG_LEVEL": "WARNING"}},
    }
    api, worker = read_both(values, monkeypatch)
    assert (api.log_level, api.timeout_s, api.retry_after_s, api.log_time_format) == ("DEBUG", 44, 7, "%M")
    assert (worker.log_level, worker.timeout_s, worker.retry_after_s) == ("WARNING", 44, 5)


def test_setting_that_is_taken_back_is_not_there() -> None:
    release = template(values={"settings": {"LOG_LEVEL": None}, "env": {"A": None}, "api": {"env": {"B": None}}})
    assert not {"LOG_LEVEL", "A", "B"} & environment(release, pod_of(release, "api")).keys()


def test_variable_may_refer_to_one_from_a_secret() -> None:
    values: Values = {
        "env": {
            "AUTH": "Bearer $(TOKEN)",
            "TOKEN": {"valueFrom": {"secretKeyRef": {"name": "facial-nats", "key": "token"}}},
        }
    }
    release = template(values=values)
    assert environment(release, pod_of(release, "worker"), SECRETS)["AUTH"] == "Bearer s3cret"


def test_chart_and_generator_know_the_same_names() -> None:
    text = (CHART / "templates" / "_checks.tpl").read_text(encoding="utf-8")
    own = re.search(r'define "facial-service\.managedSettings" -\}\}\n(.*?)\{\{- end', text, re.DOTALL)
    shared = re.search(r'define "facial-service\.sharedSettings" -\}\}\n(.*?)\{\{- end', text, re.DOTALL)
    assert own is not None
    assert shared is not None
    instead = {name: set(re.findall(r"\w+\.[\w.]+", said)) for name, said in yaml.safe_load(own[1]).items()}
    documented = service_settings.MANAGED_SETTINGS.items()
    assert instead == {name: set(re.findall(r"`([^`]+)`", said)) for name, said in documented}
    assert set(re.findall(r'"([A-Z_]+)"', shared[1])) == service_settings.SHARED_SETTINGS


def test_defaults_in_templates_are_those_of_the_service() -> None:
    """A template that computes with an unset setting needs the right default."""
    found = 0
    for file in sorted((ROOT / "charts/facial-service/templates").glob("*.tpl")):
        text = re.sub(r"\{\{-? ?/\*.*?\*/", "", file.read_text(encoding="utf-8"), flags=re.DOTALL)
        pairs = re.findall(r'"name" "([A-Z_]+)" "default" ([\w.]+)', text)
        pairs += re.findall(r'"([A-Z]+_[A-Z_]+)" (\d{4,})', text)
        for name, default in pairs:
            assert str(Settings.model_fields[name.lower()].default).lower() == default, name
            found += 1
    assert found >= 4

"""Secrets by name and key, certificates, strings that are templates, and fields of pods."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.chart.environment import environment, read_settings
from tests.chart.helm import CHART, KUBERNETES, NAMESPACE, RELEASE, Release, Values, find_helm, template
from tests.chart.pods import Pod, find_pods, is_selected, pod_of

LOGIN = {"login": {"u": "me", "p": "word", "t": "token", "seed": "SUAM", "NATS_USER": "other"}}


def external(**values: Any) -> Values:
    return {"nats": {"enabled": False}, "externalNats": {"url": "nats://a", **values}}


def files(pod: Pod, mount_path: str) -> dict[str, tuple[str, str, str]]:
    """Return the files of a projected volume: path to kind, object and key."""
    (name,) = (mount["name"] for mount in pod.main["volumeMounts"] if mount["mountPath"] == mount_path)
    (volume,) = (volume for volume in pod.spec["volumes"] if volume["name"] == name)
    return {
        item["path"]: (kind, part["name"], item["key"])
        for source in volume["projected"]["sources"]
        for kind, part in source.items()
        for item in part["items"]
    }


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"userKey": "u", "passwordKey": "p"}, ("me", "word", "", "")),
        ({"tokenKey": "t"}, ("", "", "token", "")),
        ({"nkeySeedKey": "seed"}, ("", "", "", "SUAM")),
        ({}, ("other", "", "", "")),
    ],
)
def test_credentials_of_external_servers_have_keys(
    keys: Values, expected: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    release = template(values=external(existingSecret="login", **keys))
    for component in ("api", "worker"):
        variables = environment(release, pod_of(release, component), LOGIN)
        settings = read_settings(monkeypatch, variables)
        secrets = (settings.nats_password, settings.nats_token, settings.nats_nkey_seed)
        assert (settings.nats_user, *(secret.get_secret_value() for secret in secrets)) == expected
        assert not {"u", "p", "t", "seed"} & variables.keys() or not keys


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"tlsSecret": "s"}, {"ca.crt": ("secret", "s", "ca.crt")}),
        ({"tlsSecret": "s", "caKey": "ca.pem"}, {"ca.crt": ("secret", "s", "ca.pem")}),
        ({"caConfigMap": "m"}, {"ca.crt": ("configMap", "m", "ca.crt")}),
        (
            {"tlsSecret": "s", "caConfigMap": "m", "tlsClientCertificate": True, "certKey": "a", "keyKey": "b"},
            {"ca.crt": ("configMap", "m", "ca.crt"), "tls.crt": ("secret", "s", "a"), "tls.key": ("secret", "s", "b")},
        ),
        (
            {"tlsSecret": "s", "caKey": "", "tlsClientCertificate": True},
            {"tls.crt": ("secret", "s", "tls.crt"), "tls.key": ("secret", "s", "tls.key")},
        ),
    ],
)
def test_certificates_of_external_servers_have_keys(
    values: Values, expected: dict[str, tuple[str, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    release = template(values=external(**values))
    for component in ("api", "worker"):
        pod = pod_of(release, component)
        assert files(pod, "/etc/nats-access") == expected
        settings = read_settings(monkeypatch, environment(release, pod))
        found = {settings.nats_tls_ca_file, settings.nats_tls_cert_file, settings.nats_tls_key_file} - {None}
        assert found == {Path("/etc/nats-access") / name for name in expected}


@pytest.mark.parametrize(
    ("tls", "server", "client"),
    [
        (
            {},
            {name: ("secret", "s", name) for name in ("ca.crt", "tls.crt", "tls.key")},
            {"ca.crt": ("secret", "s", "ca.crt")},
        ),
        (
            {"certKey": "a", "keyKey": "b", "caKey": "c", "caConfigMap": "m"},
            {"ca.crt": ("configMap", "m", "c"), "tls.crt": ("secret", "s", "a"), "tls.key": ("secret", "s", "b")},
            {"ca.crt": ("configMap", "m", "c")},
        ),
    ],
)
def test_servers_of_the_chart_have_certificates(
    tls: Values, server: dict[str, Any], client: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    release = template(values={"nats": {"replicas": 3, "tls": {"existingSecret": "s", **tls}}})
    assert files(pod_of(release, "nats"), "/etc/nats-tls") == server
    for component in ("api", "worker"):
        pod = pod_of(release, component)
        assert files(pod, "/etc/nats-access") == client, "clients do not get the key"
        settings = read_settings(monkeypatch, environment(release, pod))
        # OpenSSL accepts a wildcard only in names with at least two dots.
        name = f"{RELEASE}-facial-service-nats"
        assert settings.nats_servers == [f"tls://{name}-{index}.{name}.{NAMESPACE}.svc:4222" for index in range(3)]
        assert settings.nats_tls_ca_file == Path("/etc/nats-access/ca.crt")
    text = release.named("ConfigMap", "-nats")["data"]["nats.conf"]
    assert text.count('ca_file: "/etc/nats-tls/ca.crt"') == 2, "for clients, and between servers"


def test_system_authorities_need_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    release = template(values={"nats": {"tls": {"existingSecret": "s", "caKey": ""}}})
    assert "ca.crt" not in files(pod_of(release, "nats"), "/etc/nats-tls")
    settings = read_settings(monkeypatch, environment(release, pod_of(release, "api")))
    assert (settings.nats_tls_ca_file, settings.nats_servers[0].partition(":")[0]) == (None, "tls")


def with_token(token: str, **more: Any) -> Values:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "{{ .Release.Name }}-nats"}}
    objects = [secret | {"stringData": {"token": token}}, {"kind": "ConfigMap", "metadata": {"name": "a"}}]
    return {"nats": {"auth": {"existingSecret": "{{ .Release.Name }}-nats"}}, "extraObjects": objects, **more}


def test_secret_that_the_chart_renders_restarts_the_pods_that_read_it() -> None:
    one, same, other = (template(values=with_token(token)) for token in ("a", "a", "b"))
    for component in ("api", "worker", "nats"):
        annotations = [pod_of(release, component).metadata["annotations"] for release in (one, same, other)]
        assert annotations[0] == annotations[1] != annotations[2]
        assert f"checksum/secret-{RELEASE}-nats" in annotations[0]
    unrelated = {**with_token("a"), "nats": {"auth": {"existingSecret": "another"}}}
    assert not any("checksum/secret" in str(pod.metadata) for pod in find_pods(template(values=unrelated).objects))


def test_reloaders_find_their_annotations() -> None:
    note = {"reloader.stakater.com/auto": "true", "a": "{{ .Release.Name }}"}
    release = template(values={name: {"annotations": note} for name in ("api", "worker", "nats")})
    for item in release.all("Deployment", "StatefulSet"):
        assert item["metadata"]["annotations"] == {"reloader.stakater.com/auto": "true", "a": RELEASE}
    for item in template().all("Deployment", "StatefulSet"):
        assert "annotations" not in item["metadata"]


RENDERED: Values = {
    "apiKeys": {"existingSecret": "{{ .Release.Name }}-keys"},
    "nats": {
        "auth": {"existingSecret": "{{ .Release.Name }}-token"},
        "tls": {"existingSecret": "{{ .Release.Name }}-tls", "caConfigMap": "{{ .Release.Name }}-ca"},
        "persistence": {"existingClaim": "{{ .Release.Name }}-claim"},
    },
    "serviceAccount": {"name": "{{ .Release.Name }}-account", "annotations": {"a": "{{ .Release.Name }}"}},
    "imagePullSecrets": [{"name": "{{ .Release.Name }}-pull"}],
    "envFrom": [{"secretRef": {"name": "{{ .Release.Name }}-env"}}],
    "podAnnotations": {"a": "{{ .Release.Name }}"},
    "podLabels": {"a": "{{ .Release.Name }}-pod"},
    "commonLabels": {"b": "{{ .Release.Name }}-common"},
    "env": {"A": {"valueFrom": {"secretKeyRef": {"name": "{{ .Release.Name }}-variable", "key": "a"}}}},
    "api": {"service": {"annotations": {"a": "{{ .Release.Name }}"}, "labels": {"a": "{{ .Release.Name }}-service"}}},
    "ingress": {
        "enabled": True,
        "hosts": ["{{ .Release.Name }}.example.com"],
        "annotations": {"a": "{{ .Release.Name }}"},
        "tls": [{"secretName": "{{ .Release.Name }}-web", "hosts": ["{{ .Release.Name }}.example.com"]}],
    },
}


def test_strings_of_users_are_templates() -> None:
    release = template(values=RENDERED)
    assert "{{" not in release.text
    for end in (
        *("keys", "token", "tls", "ca", "claim", "account", "pull", "env", "web"),
        *("pod", "common", "variable", "service"),
    ):
        assert f"{RELEASE}-{end}" in release.text
    urls: Values = external(url="nats://{{ .Release.Name }}.example.com", monitorUrl="http://{{ .Release.Name }}:8222")
    text = template(values=urls | {"networkPolicy": {"enabled": True}}).text
    assert f"nats://{RELEASE}.example.com" in text
    assert "{{" not in text


def test_pods_have_what_pods_can_have() -> None:
    fields: Values = {
        "runtimeClassName": "gvisor",
        "hostAliases": [{"ip": "192.0.2.1", "hostnames": ["a.example.com"]}],
        "dnsPolicy": "Default",
        "dnsConfig": {"searches": ["example.com"]},
        "hostUsers": False,
        "automountServiceAccountToken": True,
    }
    pods = find_pods(template(values=fields).objects)
    assert len(pods) == 4
    for pod in pods:
        assert {name: pod.spec[name] for name in fields} == fields
    for pod in find_pods(template().objects):
        assert fields.keys() & pod.spec.keys() == {"automountServiceAccountToken"}


@pytest.mark.parametrize("component", ["api", "worker", "nats"])
def test_volumes_of_one_component(component: str) -> None:
    volume, mount = {"name": "more", "emptyDir": {}}, {"name": "more", "mountPath": "/more"}
    release = template(values={component: {"extraVolumes": [volume], "extraVolumeMounts": [mount]}})
    for pod in find_pods(release.objects):
        assert (volume in pod.spec.get("volumes", [])) is (pod.component == component)
        assert (mount in pod.containers[0].get("volumeMounts", [])) is (pod.component == component)


@pytest.mark.parametrize(
    ("hooks", "expected"),
    [
        ({}, {"preStop": {"sleep": {"seconds": 10}}}),
        ({"postStart": {"exec": {"command": ["a"]}}}, {"preStop": {"sleep": {"seconds": 10}}}),
        ({"preStop": {"exec": {"command": ["a"]}}}, {}),
    ],
)
def test_hooks_keep_the_delay_at_shutdown(hooks: Values, expected: Values) -> None:
    assert pod_of(template(values={"api": {"lifecycle": hooks}}), "api").main["lifecycle"] == expected | hooks


def test_strategy_is_that_of_the_values() -> None:
    strategy = {"type": "Recreate"}
    release = template(values={name: {"strategy": strategy} for name in ("api", "worker")})
    assert [item["spec"]["strategy"] for item in release.all("Deployment")] == [strategy, strategy]


def test_list_of_variables_causes_no_warning() -> None:
    """Helm prints one if the default is a map."""
    values = {"env": [{"name": "A", "value": "1"}], "api": {"env": [{"name": "A", "value": "2"}]}}
    command = [find_helm(), "template", "a", str(CHART), "--kube-version", KUBERNETES, "--values", "-"]
    done = subprocess.run(command, input=json.dumps(values), capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_variables_are_a_map_or_a_list() -> None:
    reference = {"valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}
    maps: Values = {"env": {"A": "1", "B": reference}, "api": {"env": {"A": "2"}}}
    lists: Values = {
        "env": [{"name": "A", "value": "1"}, {"name": "B", **reference}],
        "api": {"env": [{"name": "A", "value": "2"}]},
    }
    releases = [template(values=maps), template(values=lists)]
    for component in ("api", "worker"):
        first, second = (pod_of(release, component).main["env"] for release in releases)
        assert first == second
    names = [item["name"] for item in pod_of(releases[1], "api").main["env"]]
    assert len(set(names)) == len(names)


def constraints(release: Release, component: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pod_of(release, component).spec["topologySpreadConstraints"]
    return found


def test_servers_of_a_cluster_run_on_separate_nodes() -> None:
    release = template(values={"nats": {"replicas": 3}})
    (constraint,) = constraints(release, "nats")
    assert (constraint["topologyKey"], constraint["maxSkew"]) == ("kubernetes.io/hostname", 1)
    assert constraint["whenUnsatisfiable"] == "DoNotSchedule"
    assert is_selected(constraint["labelSelector"], pod_of(release, "nats").labels)
    for component in ("api", "worker"):
        assert constraints(release, component)[0]["whenUnsatisfiable"] == "ScheduleAnyway"
    assert constraints(template(), "nats")[0]["whenUnsatisfiable"] == "ScheduleAnyway"


def test_claim_and_its_retention() -> None:
    servers = pod_of(template(), "nats").owner["spec"]
    assert "persistentVolumeClaimRetentionPolicy" not in servers
    policy = {"whenDeleted": "Delete", "whenScaled": "Retain"}
    release = template(values={"nats": {"persistence": {"retentionPolicy": policy}}})
    assert pod_of(release, "nats").owner["spec"]["persistentVolumeClaimRetentionPolicy"] == policy
    pod = pod_of(template(values={"nats": {"persistence": {"existingClaim": "mine"}}}), "nats")
    assert "volumeClaimTemplates" not in pod.owner["spec"]
    assert {"name": "store", "persistentVolumeClaim": {"claimName": "mine"}} in pod.spec["volumes"]


def test_monitor_has_what_an_endpoint_can_have() -> None:
    metrics: Values = {
        "serviceMonitor": {"enabled": True},
        "scheme": "https",
        "honorLabels": True,
        "tlsConfig": {"insecureSkipVerify": True},
        "endpointFields": {"proxyUrl": "http://proxy.example.com"},
        "monitorFields": {"targetLimit": 9},
    }
    (monitor,) = template(values={"metrics": metrics}).all("ServiceMonitor")
    (endpoint,) = monitor["spec"]["endpoints"]
    assert (endpoint["scheme"], endpoint["honorLabels"]) == ("https", True)
    assert endpoint["tlsConfig"] == metrics["tlsConfig"]
    assert endpoint["proxyUrl"] == "http://proxy.example.com"
    assert monitor["spec"]["targetLimit"] == 9

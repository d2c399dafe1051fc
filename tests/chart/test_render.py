"""The chart as a whole: it renders reproducibly, passes lint, and every value has an effect."""

from __future__ import annotations

import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.chart.generator import keys
from tests.chart.helm import CHART, KUBERNETES, RELEASE, HelmError, Release, Values, run_helm, template

if TYPE_CHECKING:
    from pathlib import Path

    from tests.chart.generator import values_file


def test_scenario_lints_strictly(scenario: Path) -> None:
    said = run_helm("lint", "--strict", "--kube-version", KUBERNETES, "--values", scenario, CHART)
    assert "1 chart(s) linted, 0 chart(s) failed" in said


def test_lint_sees_what_is_wrong(tmp_path: Path) -> None:
    copy = tmp_path / "facial-service"
    shutil.copytree(CHART, copy)
    (copy / "templates" / "wrong.yaml").write_text("a: {{ .Values.api }\n", encoding="utf-8")
    with pytest.raises(HelmError, match=r"wrong\.yaml"):
        run_helm("lint", "--strict", "--kube-version", KUBERNETES, copy)


def test_renders_the_same_again(release: Release, scenario: Path) -> None:
    assert template([scenario]).text == release.text


def test_objects_can_be_applied_without_helm(scenario: Path) -> None:
    """Every object names its namespace, and none is a hook."""
    objects = template([scenario], options=["--skip-tests"]).objects
    assert [item for item in objects if "helm.sh/hook" in item["metadata"].get("annotations", {})] == []
    own = [item for item in objects if "app.kubernetes.io/instance" in item["metadata"].get("labels", {})]
    assert len(own) > 5
    assert [item["metadata"]["name"] for item in own if "namespace" not in item["metadata"]] == []


def test_old_kubernetes_is_refused() -> None:
    with pytest.raises(HelmError, match=r"incompatible with Kubernetes v1\.29\.0"):
        template(options=["--kube-version", "1.29.0"])


def test_package_holds_what_it_needs_and_no_more(tmp_path: Path) -> None:
    said = run_helm("package", CHART, "--destination", tmp_path)
    package = said.strip().rpartition(" ")[2]
    shutil.unpack_archive(package, tmp_path / "unpacked", filter="data")
    unpacked = tmp_path / "unpacked" / "facial-service"
    assert template(chart=unpacked, values=EVERYTHING[0]).text == template(values=EVERYTHING[0]).text
    files = {file.relative_to(unpacked).as_posix() for file in unpacked.rglob("*") if file.is_file()}
    assert {"values.schema.json", "README.md", "templates/NOTES.txt"} <= files
    assert [file for file in files if "__pycache__" in file or file.endswith(".pyc")] == []


ON = {"enabled": True}
PEERS: list[Values] = [{"podSelector": {}}]
EVERYTHING: list[Values] = [
    {
        "api": {"autoscaling": ON, "service": {"type": "LoadBalancer"}},
        "worker": {"autoscaling": ON, "replicas": 2},
        "nats": {"replicas": 3, "auth": {"existingSecret": "a"}, "tls": {"existingSecret": "a"}},
        "apiKeys": {"existingSecret": "b"},
        "metrics": {"serviceMonitor": ON, "probe": ON | {"proberUrl": "a:9115"}},
        "ingress": ON,
        "httpRoute": ON | {"parentRefs": [{"name": "a"}]},
        "networkPolicy": ON | {"natsMonitorFrom": PEERS},
        "tracing": {"endpoint": "http://collector:4318", "existingSecret": "a"},
    },
    {
        "api": {"autoscaling": {"minReplicas": 3}},
        "worker": {"keda": ON | {"minReplicas": 2}},
        "nats": {"enabled": False},
        "externalNats": {
            "url": "tls://a.example.com",
            "monitorUrl": "http://a.example.com:8222",
            "credsSecret": "a",
            "tlsSecret": "b",
            "tlsClientCertificate": True,
        },
        "metrics": {"podMonitor": ON},
    },
    {
        "externalNats": {"url": "nats://a.example.com", "existingSecret": "a"},
        "nats": {"enabled": False},
        "prometheusRule": ON,
        "dashboards": ON,
        "serviceAccount": {"create": False},
    },
    {},
]
"""Sets of values such that each value has an effect in one of them."""

SPECIAL: dict[str, Any] = {
    "image.digest": "sha256:" + "a" * 64,
    "settings": {"LOG_LEVEL": "DEBUG"},
    "api.settings": {"LOG_LEVEL": "DEBUG"},
    "worker.settings": {"LOG_LEVEL": "DEBUG"},
    "nats.syncInterval": "always",
    "nats.replicas": 5,
    "nats.persistence.size": "77Gi",
    "externalNats.url": "nats://b.example.com:4333",
    "externalNats.monitorUrl": "http://b.example.com:8333",
    "metrics.interval": "33s",
    "metrics.probe.proberUrl": "b:9116",
    "metrics.probe.url": "https://faces.example.com/openapi.json",
    "metrics.scrapeTimeout": "3s",
    "api.service.nodePort": 30123,
    "api.service.type": "NodePort",
    "api.terminationGracePeriodSeconds": 777,
    "worker.terminationGracePeriodSeconds": 777,
    "httpRoute.timeout": "15s",
    "tracing.endpoint": "http://other:4318",
    "tracing.ratio": 0.5,
    "ipFamilies": ["IPv6"],
    "pathPrefix": "/other",
    "hostUsers": False,
    "api.podDisruptionBudget.minAvailable": 1,
    "worker.podDisruptionBudget.minAvailable": 1,
    "nats.image.digest": "sha256:" + "a" * 64,
    "prometheusRule.overrides": {"FacialServiceDown": ON | {"severity": "info"}},
    "prometheusRule.additionalGroups": [{"name": "a", "rules": [{"record": "a", "expr": "b"}]}],
    "prometheusRule.runbookBaseUrl": "https://git.example.com/a",
    "prometheusRule.dashboardBaseUrl": "https://grafana.example.com",
    "extraObjects": ["kind: A\n"],
    "slo.availability.objective": 0.997,
    "slo.latency.objective": 0.97,
    "slo.latency.threshold": 0.5,
    "slo.taskDeadlineSeconds": 600,
    "podSecurityContext": {"runAsUser": 7},
    "securityContext": {"privileged": True},
}


def another(key: values_file.Key) -> Any:
    """Return another value for a key."""
    choices = [SPECIAL[key.name]] if key.name in SPECIAL else key.tags.get("enum", ())
    for choice in choices:
        if choice != key.default:
            return choice
    match key.default:
        case bool():
            return not key.default
        case int():
            return key.default + 1
        case str():
            return "other"
        case list():
            return (
                ["other"]
                if "string" in key.tags["items"] and "object" not in key.tags["items"]
                else [{"name": "other"}]
            )
        case _:
            return {"other": "other"}


def merged(base: Values, path: tuple[str, ...], value: Any) -> Values:
    first, *rest = path
    below = merged(base.get(first, {}), tuple(rest), value) if rest else value
    return {**base, first: below}


def outcome(values: Values) -> str:
    """Return the rendered text or the error; schema errors fail the test, because the values are valid."""
    try:
        return template(values=values).text
    except HelmError as error:
        if "don't meet the specifications of the schema" in str(error):
            raise
        return str(error)


def test_every_value_does_something() -> None:
    before = [outcome(base) for base in EVERYTHING]
    assert not any(text.startswith("Error") for text in before)

    def is_heard(key: values_file.Key) -> bool:
        # It probably has an effect if its neighbours are set.
        bases = sorted(zip(EVERYTHING, before, strict=True), key=lambda base: key.path[0] not in base[0])
        return any(outcome(merged(base, key.path, another(key))) != text for base, text in bases)

    leaves = [leaf for key in keys() for leaf in key.leaves()]
    with ThreadPoolExecutor(4) as pool:
        unheard = [leaf.name for leaf, heard in zip(leaves, pool.map(is_heard, leaves), strict=True) if not heard]
    assert unheard == []


def test_every_value_that_templates_read_is_one() -> None:
    known = {part for key in keys() for leaf in key.leaves() for part in (".".join(leaf.path[:n]) for n in range(1, 9))}
    read = set()
    for file in (CHART / "templates").rglob("*"):
        if file.is_file():
            read |= set(re.findall(r"\.Values\.([A-Za-z.]+[A-Za-z])", file.read_text(encoding="utf-8")))
    assert len(read) > 40
    assert {name for name in read if name not in known} == set()


@pytest.fixture(scope="module")
def notes_chart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chart with its notes as an object, so that `helm template` prints them."""
    copy = tmp_path_factory.mktemp("notes") / "facial-service"
    shutil.copytree(CHART, copy)
    file = copy / "templates" / "NOTES.txt"
    text = '{{- define "notes" -}}\n' + file.read_text(encoding="utf-8") + "{{- end }}\n"
    (copy / "templates" / "_notes.tpl").write_text(text, encoding="utf-8")
    (copy / "templates" / "notes.yaml").write_text(
        'kind: Notes\nmetadata: {name: notes}\ntext: {{ include "notes" . | toJson }}\n', encoding="utf-8"
    )
    file.unlink()
    return copy


def test_notes_name_what_is_there(scenario: Path, notes_chart: Path) -> None:
    release = template([scenario], chart=notes_chart)
    text: str = release.named("Notes", "notes")["text"]
    assert "<no value>" not in text
    assert "map[" not in text
    assert not re.search(r"\{\{(?! index)", text)
    names = {(item["kind"].lower(), item["metadata"]["name"]) for item in release.objects}
    for kind, name in re.findall(r"\b(service|deployment|servicemonitor|podmonitor|ingress)[ /]([a-z0-9-]+)", text):
        if name.startswith((RELEASE, "faces-")) and name != "faces":
            assert (kind, name) in names
    values = yaml.safe_load(scenario.read_text(encoding="utf-8"))
    for part in ("ingress", "prometheusRule", "dashboards"):
        is_on = values.get(part, {}).get("enabled", False)
        turns_on = f"{part}.enabled=true" in text
        assert not (is_on and turns_on), part


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"ingress": {"enabled": True, "hosts": ["{{ .Release.Name }}.example.com"]}}, "http://trial.example.com"),
        (
            {"pathPrefix": "/faces", "ingress": {"enabled": True, "hosts": [{"host": "a", "paths": [{"path": "/"}]}]}},
            "http://a/faces",
        ),
        (
            {"httpRoute": {"enabled": True, "parentRefs": [{"name": "b"}], "hostnames": ["{{ .Release.Name }}.org"]}},
            "http://trial.org ",
        ),
        (
            {"httpRoute": {"enabled": True, "parentRefs": [{"name": "{{ .Release.Name }}-gateway"}]}},
            "kubectl get gateway trial-gateway ",
        ),
        ({"apiKeys": {"existingSecret": "{{ .Release.Name }}-keys"}}, "kubectl get secret trial-keys "),
    ],
)
def test_notes_have_the_address(values: Values, expected: str, notes_chart: Path) -> None:
    text: str = template(values=values, chart=notes_chart).named("Notes", "notes")["text"]
    assert expected in text
    assert "{{ .Release" not in text


def test_notes_say_what_turns_on_what_is_off(notes_chart: Path) -> None:
    text: str = template(chart=notes_chart).named("Notes", "notes")["text"]
    off = text.partition("Disabled features")[2]
    named = set(re.findall(r"\b[a-zA-Z]+(?:\.[a-zA-Z]+)+", off))
    assert len(named) > 8
    assert named <= {leaf.name for key in keys() for leaf in key.leaves()}

"""Combinations of values that no scenario has: every object is valid, and every pod is admitted."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import pytest

from tests.chart.helm import SCENARIOS, Release, Values, template
from tests.chart.pod_security import policy_violations, restricted_violations
from tests.chart.pods import find_pods
from tests.chart.schemas import VERSIONS, is_custom, violations

if TYPE_CHECKING:
    from pathlib import Path

ON: Values = {"enabled": True}
OFF: Values = {"enabled": False}
MANY: Values = {"replicas": 3, "persistence": {"size": "20Gi"}}
SERVICE_IMAGE: Values = {"repository": ""}
TLS: Values = {"existingSecret": "nats-tls"}
AUTH: Values = {"existingSecret": "nats-token"}
URL = "tls://nats.example.com:4222"
MONITOR = "http://nats.example.com:8222"
PEERS: list[Values] = [{"namespaceSelector": {}}]
GATEWAY: Values = {"enabled": True, "parentRefs": [{"name": "public"}]}
MONITORED: Values = {"serviceMonitor": ON, "labels": {"release": "kube-prometheus-stack"}}
DUAL: Values = {"ipFamilyPolicy": "PreferDualStack", "ipFamilies": ["IPv6", "IPv4"]}


def queue(**values: Any) -> Values:
    return {"nats": values}


def outside(**values: Any) -> Values:
    return {"nats": OFF, "externalNats": {"url": URL, "monitorUrl": MONITOR, **values}}


def service(**values: Any) -> Values:
    return {"api": {"service": values}}


COMBINATIONS: dict[str, Values] = {
    # The queue
    "queue-service-image": queue(image=SERVICE_IMAGE),
    "queue-service-image-auth": queue(image=SERVICE_IMAGE, auth=AUTH),
    "queue-auth": queue(auth=AUTH | {"tokenKey": "password"}),
    "queue-tls": queue(tls=TLS),
    "queue-tls-keys": queue(tls=TLS | {"certKey": "a.crt", "keyKey": "a.key", "caKey": "ca.pem"}),
    "queue-tls-config-map": queue(tls=TLS | {"caConfigMap": "company-ca"}),
    "queue-tls-system-authorities": queue(tls=TLS | {"caKey": ""}),
    "queue-tls-auth": queue(tls=TLS, auth=AUTH),
    "cluster": queue(**MANY),
    "cluster-five": queue(**MANY | {"replicas": 5}),
    "cluster-auth": queue(**MANY, auth=AUTH),
    "cluster-tls": queue(**MANY, tls=TLS),
    "cluster-tls-auth-service-image": queue(**MANY, tls=TLS, auth=AUTH, image=SERVICE_IMAGE),
    "cluster-policies": queue(**MANY) | {"networkPolicy": ON},
    "claim": queue(persistence={"existingClaim": "tasks"}),
    "claim-retention": queue(persistence={"retentionPolicy": {"whenDeleted": "Delete", "whenScaled": "Retain"}}),
    "cluster-retention": queue(**MANY | {"persistence": {"size": "20Gi", "retentionPolicy": {"whenScaled": "Delete"}}}),
    "no-volume": queue(persistence={"enabled": False}),
    "cluster-no-volume": queue(**MANY | {"persistence": {"enabled": False, "size": "20Gi"}}),
    "queue-volumes": queue(
        extraVolumes=[{"name": "a", "emptyDir": {}}], extraVolumeMounts=[{"name": "a", "mountPath": "/a"}]
    ),
    # Servers elsewhere
    "outside": outside(),
    "outside-user": outside(existingSecret="login", userKey="user", passwordKey="password"),
    "outside-token": outside(existingSecret="login", tokenKey="token"),
    "outside-seed": outside(existingSecret="login", nkeySeedKey="seed"),
    "outside-names": outside(existingSecret="login"),
    "outside-creds": outside(credsSecret="creds", credsKey="a.creds"),
    "outside-ca": outside(tlsSecret="tls", caKey="ca.pem"),
    "outside-ca-config-map": outside(caConfigMap="company-ca"),
    "outside-client-certificate": outside(tlsSecret="tls", tlsClientCertificate=True, certKey="a.crt", keyKey="a.key"),
    "outside-all": outside(credsSecret="creds", tlsSecret="tls", caConfigMap="ca", tlsClientCertificate=True),
    "outside-policies": outside(tlsSecret="tls") | {"networkPolicy": ON},
    "outside-keda": outside() | {"worker": {"keda": ON}},
    # Access
    "node-port": service(type="NodePort", nodePort=30080),
    "load-balancer": service(type="LoadBalancer", loadBalancerClass="a.example.com/b", externalTrafficPolicy="Local"),
    "load-balancer-ranges": service(type="LoadBalancer", loadBalancerSourceRanges=["192.0.2.0/24"], exposeMetrics=True),
    "service-ports": service(
        extraPorts=[{"name": "b", "port": 9, "targetPort": 9, "protocol": "TCP"}], labels={"a": "b"}
    ),
    "dual-stack": DUAL,
    "dual-stack-cluster": DUAL | queue(**MANY, tls=TLS) | service(type="LoadBalancer"),
    "ipv6": {"ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv6"], "networkPolicy": ON},
    "ingress": {"ingress": ON | {"className": "nginx", "hosts": ["a.example.com"]}},
    "ingress-every-host": {"ingress": ON | {"hosts": []}},
    "ingress-paths": {"ingress": ON | {"hosts": [{"host": "a", "paths": [{"path": "/api", "pathType": "Exact"}]}]}},
    "ingress-prefix": {"pathPrefix": "/faces", "ingress": ON | {"labels": {"a": "b"}, "annotations": {"c": "d"}}},
    "route": {"httpRoute": GATEWAY},
    "route-prefix": {"pathPrefix": "/v/faces", "httpRoute": GATEWAY | {"labels": {"a": "b"}, "timeout": ""}},
    "route-filters": {
        "httpRoute": GATEWAY
        | {"filters": [{"type": "ResponseHeaderModifier", "responseHeaderModifier": {"remove": ["server"]}}]}
    },
    "both-ways-in": {"httpRoute": GATEWAY, "ingress": ON, "apiKeys": {"existingSecret": "keys"}},
    "policies": {"networkPolicy": ON | {"ingressFrom": PEERS, "metricsFrom": PEERS, "natsMonitorFrom": PEERS}},
    # Pods
    "pods": {
        "runtimeClassName": "gvisor",
        "hostAliases": [{"ip": "192.0.2.1", "hostnames": ["a.example.com"]}],
        "dnsPolicy": "None",
        "dnsConfig": {"nameservers": ["192.0.2.53", "2001:db8::53"], "options": [{"name": "ndots", "value": "2"}]},
        "hostUsers": False,
    },
    "strategy": {"api": {"strategy": {"type": "Recreate"}}, "worker": {"strategy": {"type": "Recreate"}}},
    "lifecycle": {
        "api": {"lifecycle": {"postStart": {"exec": {"command": ["true"]}}}},
        "worker": {"lifecycle": {"preStop": {"sleep": {"seconds": 3}}}},
    },
    "lifecycle-pre-stop": {"api": {"lifecycle": {"preStop": {"exec": {"command": ["sleep", "9"]}}}}},
    "annotations": {
        name: {"annotations": {"reloader.stakater.com/auto": "true"}} for name in ("api", "worker", "nats")
    },
    "volumes": {
        name: {
            "extraVolumes": [{"name": name, "configMap": {"name": "{{ .Release.Name }}"}}],
            "extraVolumeMounts": [{"name": name, "mountPath": "/more"}],
        }
        for name in ("api", "worker")
    },
    "env-list": {"env": [{"name": "A", "value": "b"}], "worker": {"env": [{"name": "A", "value": "c"}]}},
    "mirror": {"global": {"imageRegistry": "mirror.example.com", "imagePullSecrets": ["mirror"]}},
    "long-name": {"fullnameOverride": "x" * 60},
    "rendered": {
        "apiKeys": {"existingSecret": "{{ .Release.Name }}-keys"},
        "nats": {
            "auth": {"existingSecret": "{{ .Release.Name }}-nats"},
            "tls": {"existingSecret": "{{ .Chart.Name }}-tls"},
        },
        "serviceAccount": {"name": "{{ .Release.Namespace }}"},
        "podAnnotations": {"a": "{{ .Release.Name }}"},
    },
    "secret-objects": queue(auth=AUTH)
    | {
        "extraObjects": [
            {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "nats-token"}, "stringData": {"token": "a"}}
        ]
    },
    # Scaling
    "hpa": {"api": {"autoscaling": ON}, "worker": {"autoscaling": ON}},
    "keda": {"worker": {"keda": ON | {"fallback": {"failureThreshold": 3, "replicas": 2}}}},
    "keda-triggers": {
        "worker": {
            "keda": ON | {"triggers": [{"type": "cpu", "metricType": "Utilization", "metadata": {"value": "80"}}]}
        }
    },
    "keda-formula": {
        "worker": {
            "keda": ON
            | {"formula": "lane0 + day", "triggers": [{"type": "cron", "name": "day", "metadata": {"timezone": "UTC"}}]}
        }
    },
    "budgets": {
        "api": {"replicas": 4, "podDisruptionBudget": {"minAvailable": 3}},
        "worker": {"replicas": 2, "podDisruptionBudget": {"minAvailable": "50%"}},
    },
    "vertical": {"verticalPodAutoscaler": ON},
    "vertical-cluster": {"verticalPodAutoscaler": ON, "api": {"autoscaling": ON}} | queue(**MANY),
    "no-workers": {"worker": {"enabled": False}, "verticalPodAutoscaler": ON, "networkPolicy": ON},
    # Monitoring
    "monitor": {"metrics": MONITORED},
    "monitor-tls": {
        "metrics": MONITORED
        | {
            "scheme": "https",
            "honorLabels": True,
            "tlsConfig": {"insecureSkipVerify": True},
            "endpointFields": {"enableHttp2": False},
            "monitorFields": {"targetLimit": 100},
        }
    },
    "pod-monitor": {"metrics": {"podMonitor": ON, "scheme": "https", "tlsConfig": {"serverName": "a.example.com"}}},
    "subchart": {"enabled": True, "global": {"imageRegistry": "localhost:5000", "environment": "test"}},
    "labels-templates": {
        "commonLabels": {"team": "{{ .Release.Name }}"},
        "podLabels": {"a": "{{ .Release.Namespace }}"},
        "metrics": MONITORED | {"labels": {"release": "{{ .Release.Name }}"}},
        "prometheusRule": ON | {"runbookBaseUrl": "https://{{ .Release.Name }}.example.com/"},
        "dashboards": ON | {"annotations": {"grafana_folder": "{{ .Release.Namespace }}"}},
    },
    "probe": {"metrics": {"probe": ON | {"proberUrl": "{{ .Release.Name }}-blackbox:9115"}}},
    "policies-ports": service(extraPorts=[{"name": "mesh", "port": 15, "targetPort": "mesh"}]) | {"networkPolicy": ON},
    "nothing": {
        **dict.fromkeys(("extraVolumes", "extraObjects", "ipFamilies", "pathPrefix")),
        "api": {"lifecycle": None, "extraVolumeMounts": None, "nodeSelector": None},
        "nats": {"persistence": {"accessModes": None}, "auth": {"existingSecret": None}},
    },
    "everything-off": {
        "worker": {"enabled": False},
        "serviceAccount": {"create": False},
        "api": {"podDisruptionBudget": OFF, "preStopSeconds": 0, "replicas": 0},
    },
    "rules-dashboards": {"metrics": MONITORED, "prometheusRule": ON, "dashboards": ON},
}


@cache
def rendered(name: str) -> Release:
    """Render a combination once for all tests."""
    return template(values=COMBINATIONS[name])


@pytest.mark.parametrize("name", COMBINATIONS)
def test_every_object_is_valid_and_every_pod_is_admitted(name: str) -> None:
    release = rendered(name)
    names = [(item["kind"], item["metadata"]["name"]) for item in release.objects]
    assert len(set(names)) == len(names)
    found = {
        f"{item['kind']}/{item['metadata']['name']}": problems
        for item in release.objects
        for version in (VERSIONS[-1:] if is_custom(item) else VERSIONS)
        if (problems := violations(item, version))
    }
    assert found == {}
    for pod in find_pods(release.objects):
        claims = frozenset(claim["metadata"]["name"] for claim in pod.owner["spec"].get("volumeClaimTemplates", ()))
        assert (pod.name, restricted_violations(pod.spec), policy_violations(pod.spec, claims)) == (pod.name, [], [])


def test_there_are_enough_of_them() -> None:
    assert len(COMBINATIONS) >= 60


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda file: file.stem)
@pytest.mark.parametrize("release", ["a", "facial-service", "x" * 53])
def test_scenarios_are_valid_for_every_release_name(scenario: Path, release: str) -> None:
    objects = template([scenario], release=release).objects
    found = {item["metadata"]["name"]: violations(item, VERSIONS[-1]) for item in objects if not is_custom(item)}
    assert {name: problems for name, problems in found.items() if problems} == {}

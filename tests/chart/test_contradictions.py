"""Contradictory values are rejected with a message that names the value to change."""

from __future__ import annotations

import pytest

from tests.chart.helm import HelmError, Values, template

ON = {"enabled": True}
ELSEWHERE: Values = {"nats": {"enabled": False}, "externalNats": {"url": "nats://nats.example.com"}}


def refusal(values: Values) -> str:
    """Return the error message of Helm in one line."""
    with pytest.raises(HelmError) as caught:
        template(values=values)
    return " ".join(str(caught.value).split())


CASES: dict[str, tuple[Values, str]] = {
    "two-scalers": (
        {"worker": {"autoscaling": ON, "keda": ON}},
        "worker.autoscaling.enabled and worker.keda.enabled: only one autoscaler can manage the worker pods",
    ),
    "range-of-the-api": (
        {"api": {"autoscaling": ON | {"minReplicas": 5, "maxReplicas": 4}}},
        "api.autoscaling: minReplicas (5) exceeds maxReplicas (4)",
    ),
    "range-of-keda": (
        {"worker": {"keda": ON | {"minReplicas": 11}}},
        "worker.keda: minReplicas (11) exceeds maxReplicas (10)",
    ),
    "percent-of-nothing": (
        {"worker": {"autoscaling": ON, "resources": {"requests": {"cpu": None}}}},
        "worker.autoscaling: CPU utilization is relative to the CPU request, which is not set; set worker.resources.",
    ),
    "keda-cannot-read": (
        {"worker": {"keda": ON}, "networkPolicy": ON},
        "networkPolicy blocks KEDA from the queue's monitoring port; add KEDA's pods to networkPolicy.natsMonitorFrom",
    ),
    "keda-has-nothing-to-read": (
        ELSEWHERE | {"worker": {"keda": ON}},
        "set externalNats.monitorUrl, or use worker.autoscaling",
    ),
    "traces-with-a-password": (
        {"tracing": {"endpoint": "http://me:word@collector:4318"}},
        "tracing.endpoint: credentials in a URL would be visible in every pod specification",
    ),
    "headers-for-no-collector": (
        {"tracing": {"existingSecret": "otel"}},
        "tracing.existingSecret: it has no effect without a collector; set tracing.endpoint",
    ),
    "keda-takes-no-path": (
        {
            "nats": {"enabled": False},
            "externalNats": {"url": "nats://a", "monitorUrl": "http://a:8222/monitor"},
            "worker": {"keda": ON},
        },
        "expected externalNats.monitorUrl with only scheme, host and port",
    ),
    "grace-of-the-api": (
        {"api": {"terminationGracePeriodSeconds": 30}},
        (
            "api.terminationGracePeriodSeconds: 30 s is too short, because a graceful shutdown takes up to 45 s "
            "(preStopSeconds, gracefulTimeoutSeconds, and 5 s for the master); set 45 or more, or leave it empty"
        ),
    ),
    "grace-of-none": (
        {"api": {"terminationGracePeriodSeconds": 0}},
        "api.terminationGracePeriodSeconds: 0 s is too short",
    ),
    "grace-of-workers": (
        {"worker": {"terminationGracePeriodSeconds": 36}},
        "worker.terminationGracePeriodSeconds: 36 s is too short, because a graceful shutdown takes up to 37 s",
    ),
    "grace-of-a-cluster": (
        {"nats": {"replicas": 3, "terminationGracePeriodSeconds": 30}},
        "nats.terminationGracePeriodSeconds: 30 s is too short for a server of a cluster",
    ),
    "two-queues": (
        {"externalNats": {"url": "nats://nats.example.com"}},
        "externalNats.url: it has no effect while nats.enabled is true",
    ),
    "unused-credentials": (
        {"externalNats": {"credsSecret": "a"}},
        "externalNats.credsSecret: it has no effect while nats.enabled is true",
    ),
    "an-unused-token": (
        {"nats": {"enabled": False, "auth": {"existingSecret": "a"}}, "externalNats": {"url": "nats://a"}},
        "nats.auth.existingSecret: it has no effect while nats.enabled is false; set externalNats.existingSecret",
    ),
    "no-queue": (
        {"nats": {"enabled": False}},
        (
            "nats.enabled: workers need a queue; set it to true, set externalNats.url, "
            "or set worker.enabled to false to run without tasks"
        ),
    ),
    "password-in-the-clear": (
        {"nats": {"enabled": False}, "externalNats": {"url": "nats://user:secret@a"}},
        "externalNats.url: credentials in a URL would be visible in every pod specification; put them into a Secret",
    ),
    "budget-of-none": (
        {"api": {"podDisruptionBudget": {"maxUnavailable": 0}}},
        "api.podDisruptionBudget.maxUnavailable: 0 would block every node drain; set 1 or more",
    ),
    "two-ways-in": (
        {"nats": {"enabled": False}, "externalNats": {"url": "nats://a", "existingSecret": "a", "credsSecret": "b"}},
        "externalNats.existingSecret and externalNats.credsSecret: only one authentication method can be used; set one",
    ),
    "certificate-of-nothing": (
        {"nats": {"enabled": False}, "externalNats": {"url": "nats://a", "tlsClientCertificate": True}},
        "externalNats.tlsClientCertificate: the client certificate needs a Secret; set",
    ),
    "small-volume": (
        {"nats": {"persistence": {"size": "4Gi"}}},
        "nats.persistence.size: 4Gi is too small for TASK_QUEUE_MAX_BYTES, RESULT_MAX_BYTES and TASK_DEAD_MAX_BYTES",
    ),
    "large-queue": (
        {"settings": {"TASK_QUEUE_MAX_BYTES": 8 * 2**30}},
        "nats.persistence.size: 8Gi is too small for TASK_QUEUE_MAX_BYTES",
    ),
    "no-size": (
        {"nats": {"persistence": {"size": "large"}}},
        "expected a quantity of memory or storage such as 512Mi or 8Gi, got large",
    ),
    "little-memory": (
        {"api": {"resources": {"limits": {"memory": "1Gi"}}}},
        "in 2 processes, so the kernel would kill them; set 2526Mi or more, or lower MAX_IMAGE_PIXELS",
    ),
    "many-workers": (
        {"api": {"workers": 3}},
        "api.resources.limits.memory: 2560Mi is too small for the largest images in 3 processes",
    ),
    "many-threads": (
        {"worker": {"processes": 1, "settings": {"WORK_THREADS": 4}}},
        "worker.resources.limits.memory: 2Gi is too small for the largest images in 1 process, so the kernel would",
    ),
    "image-size-as-a-variable": (
        {"api": {"env": {"WORK_THREADS": "4"}}},
        "api.env.WORK_THREADS: ",
    ),
    "twice-scraped": (
        {"metrics": {"serviceMonitor": ON, "podMonitor": ON}},
        "metrics.serviceMonitor.enabled and metrics.podMonitor.enabled: every pod would be scraped twice; enable",
    ),
    "slow-scrape": (
        {"metrics": {"serviceMonitor": ON, "interval": "900ms", "scrapeTimeout": "1s"}},
        "metrics.scrapeTimeout: expected at most metrics.interval (900ms), got 1s",
    ),
    "nothing-to-scrape": (
        {"metrics": {"serviceMonitor": ON}, "settings": {"ENABLE_METRICS": False}},
        "settings.ENABLE_METRICS: without metrics every Prometheus target would be down",
    ),
    "route-to-nowhere": (
        {"httpRoute": ON},
        "httpRoute.enabled: a route needs a Gateway; add one to httpRoute.parentRefs",
    ),
    "port-of-no-node": (
        {"api": {"service": {"nodePort": 30080}}},
        "api.service.nodePort: a Service of type ClusterIP has no node port; set api.service.type",
    ),
    "every-pod-must-stay": (
        {"api": {"podDisruptionBudget": {"minAvailable": 2}}},
        "api.podDisruptionBudget.minAvailable: 2 would block every node drain while 2 pods run; set less",
    ),
    "all-pods-must-stay": (
        {"api": {"podDisruptionBudget": {"minAvailable": "100%"}}},
        "api.podDisruptionBudget.minAvailable: 100% would block every node drain",
    ),
    "tag-without-its-digest": (
        {"nats": {"image": {"tag": "2.14.6-alpine"}}},
        "nats.image.tag: the digest of the default version takes precedence over the tag 2.14.6-alpine; set",
    ),
    "a-defective-server": (
        {"nats": {"image": {"tag": "2.12.8-alpine", "digest": ""}}},
        "nats.image.tag: the service does not support NATS 2.12.8; set a version from 2.11 on, except 2.12.7 to 2.12.9",
    ),
    "an-old-server": (
        {"nats": {"image": {"tag": "2.10.29", "digest": ""}}},
        "nats.image.tag: the service does not support NATS 2.10.29",
    ),
    "an-old-server-without-its-patch-version": (
        {"nats": {"image": {"tag": "2.10-alpine", "digest": ""}}},
        "nats.image.tag: the service does not support NATS 2.10",
    ),
    "no-version-of-the-server": (
        {"nats": {"image": {"tag": "", "digest": ""}}},
        "nats.image.tag: the image needs a version; set nats.image.tag or nats.image.digest",
    ),
    "one-claim-for-many": (
        {"nats": {"replicas": 3, "persistence": {"existingClaim": "a"}}},
        "nats.persistence.existingClaim: several servers cannot share a claim; set nats.replicas to 1",
    ),
    "an-unused-claim": (
        {"nats": {"persistence": {"enabled": False, "existingClaim": "a"}}},
        "nats.persistence.existingClaim: it has no effect while nats.persistence.enabled is false",
    ),
    "an-unused-certificate": (
        ELSEWHERE | {"nats": {"enabled": False, "tls": {"existingSecret": "a"}}},
        "nats.tls.existingSecret: it has no effect while nats.enabled is false; set externalNats.tlsSecret instead",
    ),
    "an-authority-of-no-certificate": (
        {"nats": {"tls": {"caConfigMap": "a"}}},
        "nats.tls.caConfigMap: the servers need a certificate; set nats.tls.existingSecret",
    ),
    "an-authority-without-a-key": (
        {"nats": {"tls": {"existingSecret": "a", "caConfigMap": "b", "caKey": ""}}},
        "nats.tls.caKey: the CA certificate in nats.tls.caConfigMap needs a key; set nats.tls.caKey",
    ),
    "a-user-without-password": (
        {"nats": {"enabled": False}, "externalNats": {"url": "nats://a", "existingSecret": "s", "userKey": "user"}},
        "externalNats.userKey and externalNats.passwordKey: a user needs a password; set both or neither",
    ),
    "keys-of-no-secret": (
        {"nats": {"enabled": False}, "externalNats": {"url": "nats://a", "tokenKey": "token"}},
        "they are keys of a Secret; set externalNats.existingSecret",
    ),
    "two-methods": (
        {
            "nats": {"enabled": False},
            "externalNats": {"url": "nats://a", "existingSecret": "s", "tokenKey": "a", "nkeySeedKey": "b"},
        },
        "externalNats.userKey, tokenKey and nkeySeedKey: only one authentication method can be used; set one of them",
    ),
    "class-of-no-load-balancer": (
        {"api": {"service": {"type": "NodePort", "loadBalancerClass": "a"}}},
        "api.service.loadBalancerClass: it has no effect for the type NodePort; set api.service.type to LoadBalancer",
    ),
    "policy-of-no-traffic": (
        {"api": {"service": {"externalTrafficPolicy": "Local"}}},
        "api.service.externalTrafficPolicy: it has no effect for the type ClusterIP; set api.service.type to NodePort",
    ),
    "two-prefixes": (
        {"pathPrefix": "/a", "settings": {"ROOT_PATH": "/b"}},
        "settings.ROOT_PATH: pathPrefix sets it; remove one of them",
    ),
    "host-without-a-name": (
        {"ingress": {"enabled": True, "hosts": [{"paths": [{"path": "/api"}]}]}},
        "ingress.hosts: a host needs a name; set host in each item",
    ),
    "path-without-a-slash": (
        {"ingress": {"enabled": True, "hosts": [{"host": "a", "paths": [{"path": "api"}]}]}},
        'ingress.hosts: the path "api" must begin with a slash',
    ),
    "no-name-server": (
        {"dnsPolicy": "None"},
        "dnsPolicy: without name servers no name resolves; set dnsConfig.nameservers",
    ),
    "volume-of-the-queue": (
        {"nats": {"extraVolumes": [{"name": "store", "emptyDir": {}}]}},
        "nats.extraVolumes: the name store is reserved for a volume of the chart; choose another name",
    ),
    "trigger-of-the-chart": (
        {"worker": {"keda": ON | {"triggers": [{"name": "lane3", "type": "cron"}]}}},
        "worker.keda.triggers: the name lane3 is reserved for a trigger of the chart; choose another name",
    ),
    "a-template-that-is-not-rendered": (
        {"api": {"nodeSelector": {"pool": "{{ .Release.Name }}"}}},
        "api.nodeSelector.pool: the chart does not render this value as a template",
    ),
    "a-template-that-is-not-rendered-in-a-list": (
        {"nats": {"tolerations": [{"key": "{{ .Release.Name }}"}]}},
        "nats.tolerations: the chart does not render this value as a template",
    ),
    "a-template-that-is-no-url": (
        {"prometheusRule": ON | {"runbookBaseUrl": "{{ .Release.Name }}.example.com"}},
        "prometheusRule.runbookBaseUrl: expected a URL that begins with http:// or https://, got trial.example.com",
    ),
    "metrics-of-an-internal-port": (
        {"api": {"service": {"exposeMetrics": True}}},
        "api.service.exposeMetrics: it has no effect for the type ClusterIP",
    ),
    "a-template-in-a-template": (
        {"apiKeys": {"existingSecret": "{{ `{{ .Release.Name }}` }}"}},
        "apiKeys.existingSecret: {{ .Release.Name }} still contains {{ after it was rendered as a template",
    ),
    "variable-of-the-chart-in-a-list": (
        {"api": {"env": [{"name": "WORKERS", "value": "4"}]}},
        "api.env.WORKERS: the chart manages WORKERS; set api.workers",
    ),
    "two-families-on-one-stack": (
        {"ipFamilies": ["IPv4", "IPv6"]},
        "ipFamilies: two families need a Service with addresses of both; set ipFamilyPolicy to PreferDualStack or",
    ),
    "a-family-twice": (
        {"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6", "IPv6"]},
        "ipFamilies: IPv6, IPv6 has a family twice; list each family once",
    ),
    "volume-of-the-chart": (
        {"extraVolumes": [{"name": "tmp", "emptyDir": {}}]},
        "extraVolumes: the name tmp is reserved for a volume of the chart; choose another name",
    ),
    "container-of-the-chart": (
        {"extraContainers": [{"name": "worker", "image": "a:1"}]},
        "extraContainers: the name worker is reserved for a container of the chart; choose another name",
    ),
    "variable-of-the-chart": (
        {"env": {"WORKERS": "4"}},
        "env.WORKERS: the chart manages WORKERS; set api.workers",
    ),
    "variable-of-the-chart-in-small-letters": (
        {"worker": {"env": {"host": "::"}}},
        "worker.env.host: the chart manages HOST; remove it",
    ),
    "credentials-as-a-variable": (
        {"api": {"env": {"API_KEYS": {"valueFrom": {"secretKeyRef": {"name": "a", "key": "b"}}}}}},
        "api.env.API_KEYS: the chart manages API_KEYS; set apiKeys.existingSecret",
    ),
    "what-both-agree-on-as-a-variable": (
        {"worker": {"env": {"RESULT_TTL": "60"}}},
        "worker.env.RESULT_TTL: ",
    ),
    "what-the-chart-reads-as-a-variable": (
        {"env": {"MAX_BODY_BYTES": "1024"}},
        "env.MAX_BODY_BYTES: ",
    ),
}


@pytest.mark.parametrize(
    "values",
    [
        {
            "settings": {"MAX_IMAGE_PIXELS": 100_000_000},
            "api": {"resources": {"limits": None}},
            "worker": {"resources": {"limits": None}},
        },
        {"api": {"workers": 8, "resources": {"limits": {"memory": "11Gi"}}}},
        {"settings": {"MAX_IMAGE_PIXELS": 16_000_000}, "worker": {"resources": {"limits": {"memory": "893386752"}}}},
        {"worker": {"enabled": False, "resources": {"limits": {"memory": "64Mi"}}}},
    ],
    ids=["no-limit", "much-memory", "small-images", "no-workers"],
)
def test_sufficient_memory_is_accepted(values: Values) -> None:
    assert template(values=values)


@pytest.mark.parametrize("name", CASES)
def test_contradiction_is_refused_in_a_sentence(name: str) -> None:
    values, sentence = CASES[name]
    assert sentence in refusal(values)


@pytest.mark.parametrize(
    "values",
    [
        {"worker": {"enabled": False, "autoscaling": ON, "keda": ON}},
        {"worker": {"enabled": False, "terminationGracePeriodSeconds": 1}},
        {"worker": {"enabled": False}, "nats": {"enabled": False}},
        {"worker": {"keda": ON}, "networkPolicy": {**ON, "natsMonitorFrom": [{"podSelector": {}}]}},
        {"api": {"terminationGracePeriodSeconds": 45}},
        {"worker": {"terminationGracePeriodSeconds": 37}},
        {"nats": {"terminationGracePeriodSeconds": 5}},
        {"nats": {"persistence": {"size": "5121Mi"}}, "settings": {"TASK_QUEUE_MAX_BYTES": 1073741824}},
        {"metrics": {"serviceMonitor": ON, "interval": "10s", "scrapeTimeout": "10s"}},
        {"settings": {"ENABLE_METRICS": False}},
        {"api": {"service": {"type": "NodePort", "nodePort": 30080}}},
        ELSEWHERE,
    ],
)
def test_what_is_no_contradiction_is_taken(values: Values) -> None:
    assert template(values=values).objects


def test_all_that_is_wrong_is_said_at_once() -> None:
    said = refusal(CASES["no-queue"][0] | CASES["grace-of-the-api"][0])
    for name in ("no-queue", "grace-of-the-api"):
        assert CASES[name][1] in said


def test_name_that_a_service_cannot_have_is_refused() -> None:
    """A release name may begin with a digit; the name of a Service must not."""
    with pytest.raises(HelmError, match="the object name 1-facial-service is not valid for a Service"):
        template(release="1")
    assert template(release="1", values={"fullnameOverride": "one"}).objects


def test_a_password_is_not_repeated() -> None:
    url = "nats://me:hunter2@nats.example.com:99999999"
    assert "hunter2" not in refusal({"externalNats": {"url": url}})


def test_the_size_that_is_asked_for_is_taken() -> None:
    """Following the message is enough."""
    said = refusal(CASES["large-queue"][0])
    size = said.partition("; set ")[2].split()[0]
    assert template(values=CASES["large-queue"][0] | {"nats": {"persistence": {"size": size}}}).objects

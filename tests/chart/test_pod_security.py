"""The check of pods finds each single violation."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from tests.chart.pod_security import policy_violations, restricted_violations

GOOD: dict[str, Any] = {
    "automountServiceAccountToken": False,
    "enableServiceLinks": False,
    "securityContext": {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}},
    "volumes": [{"name": "tmp", "emptyDir": {}}],
    "containers": [
        {
            "name": "main",
            "image": "registry.example.com:5000/a/b:1.2.3",
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            },
            "resources": {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"memory": "1Gi"}},
            "env": [{"name": "A", "value": "1"}],
            "volumeMounts": [{"name": "tmp", "mountPath": "/scratch"}],
        }
    ],
}
MAIN = ("containers", 0)
CONTEXT = (*MAIN, "securityContext")


def changed(path: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    """Return the valid pod with one field set or removed."""
    spec = copy.deepcopy(GOOD)
    item: Any = spec
    for step in path[:-1]:
        item = item[step]
    if value is None:
        del item[path[-1]]
    else:
        item[path[-1]] = value
    return spec


def test_good_pod_is_admitted() -> None:
    assert restricted_violations(GOOD) == []
    assert policy_violations(GOOD) == []


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        (("hostNetwork",), True, "hostNetwork"),
        (("hostPID",), True, "hostPID"),
        (("hostIPC",), True, "hostIPC"),
        (("securityContext", "runAsUser"), 0, "pod: runAsUser 0"),
        (("securityContext", "runAsNonRoot"), None, "main: runAsNonRoot"),
        (("securityContext", "runAsNonRoot"), False, "main: runAsNonRoot"),
        (("securityContext", "seccompProfile"), None, "main: seccompProfile"),
        (("securityContext", "sysctls"), [{"name": "kernel.msgmax", "value": "1"}], "sysctl kernel.msgmax"),
        (("securityContext", "seLinuxOptions"), {"type": "spc_t"}, "pod: seLinuxOptions"),
        (("securityContext", "seLinuxOptions"), {"user": "root"}, "pod: seLinuxOptions"),
        (("securityContext", "appArmorProfile"), {"type": "Unconfined"}, "pod: appArmorProfile"),
        (("securityContext", "windowsOptions"), {"hostProcess": True}, "pod: hostProcess"),
        (("volumes", 0), {"name": "tmp", "hostPath": {"path": "/"}}, "volume tmp: hostPath"),
        (("volumes", 0), {"name": "tmp", "nfs": {}}, "volume tmp: nfs"),
        ((*CONTEXT, "privileged"), True, "main: privileged"),
        ((*CONTEXT, "allowPrivilegeEscalation"), None, "main: allowPrivilegeEscalation"),
        ((*CONTEXT, "allowPrivilegeEscalation"), True, "main: allowPrivilegeEscalation"),
        ((*CONTEXT, "capabilities"), None, "main: does not drop all capabilities"),
        ((*CONTEXT, "capabilities"), {"drop": ["NET_RAW"]}, "main: does not drop all capabilities"),
        ((*CONTEXT, "capabilities"), {"drop": ["ALL"], "add": ["SYS_ADMIN"]}, "main: adds capabilities"),
        ((*CONTEXT, "procMount"), "Unmasked", "main: procMount"),
        ((*CONTEXT, "runAsNonRoot"), False, "main: runAsNonRoot"),
        ((*CONTEXT, "runAsUser"), 0, "main: runAsUser 0"),
        ((*CONTEXT, "seccompProfile"), {"type": "Unconfined"}, "main: seccompProfile"),
        ((*MAIN, "ports"), [{"containerPort": 80, "hostPort": 80}], "main: hostPort"),
        ((*MAIN, "livenessProbe"), {"httpGet": {"host": "example.com", "port": 1}}, "main: host of a probe"),
        ((*MAIN, "lifecycle"), {"preStop": {"tcpSocket": {"host": "example.com"}}}, "main: host of a probe"),
        (
            ("initContainers",),
            [{"name": "first", "securityContext": {"capabilities": {"drop": ["ALL"]}}}],
            "first: allowPrivilegeEscalation",
        ),
    ],
)
def test_standard(path: tuple[str | int, ...], value: Any, expected: str) -> None:
    assert expected in restricted_violations(changed(path, value))


@pytest.mark.parametrize(
    "spec",
    [
        changed((*CONTEXT, "capabilities"), {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}),
        changed((*CONTEXT, "seccompProfile"), {"type": "Localhost"}),
        changed(("securityContext", "sysctls"), [{"name": "net.ipv4.tcp_rmem", "value": "1"}]),
        changed(("volumes", 0), {"name": "tmp", "projected": {}}),
    ],
)
def test_standard_admits(spec: dict[str, Any]) -> None:
    assert restricted_violations(spec) == []


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        (("automountServiceAccountToken",), None, "mounts a token"),
        (("enableServiceLinks",), True, "enableServiceLinks"),
        (("securityContext", "runAsUser"), None, "main: no numeric user"),
        ((*CONTEXT, "readOnlyRootFilesystem"), None, "main: its root file system can be written"),
        ((*MAIN, "image"), "a/b", "main: the image a/b may be another tomorrow"),
        ((*MAIN, "image"), "host:5000/b", "main: the image host:5000/b may be another tomorrow"),
        ((*MAIN, "image"), "b:latest", "main: the image b:latest may be another tomorrow"),
        ((*MAIN, "resources"), {"limits": GOOD["containers"][0]["resources"]["requests"]}, "main: no requests.cpu"),
        ((*MAIN, "resources"), {"requests": {"cpu": "1", "memory": "1Gi"}}, "main: no limits.memory"),
        ((*MAIN, "resources"), {"requests": {"cpu": "1"}, "limits": {"memory": "1Gi"}}, "main: no requests.memory"),
        ((*MAIN, "env"), [{"name": "A"}, {"name": "A"}], "main: A is set twice"),
        ((*MAIN, "volumeMounts"), [{"name": "tmp", "mountPath": "/a"}] * 2, "main: /a is mounted twice"),
        (("volumes",), None, "main: no volume tmp"),
    ],
)
def test_rules_of_our_own(path: tuple[str | int, ...], value: Any, expected: str) -> None:
    assert policy_violations(changed(path, value))[0] == expected


def test_digest_is_as_good_as_a_tag() -> None:
    assert policy_violations(changed((*MAIN, "image"), "a/b@sha256:" + "0" * 64)) == []

"""The `restricted` Pod Security Standard, field by field, and additional rules of this project."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

Spec = dict[str, Any]

VOLUME_KINDS = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
SYSCTLS = {
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
}
SELINUX_TYPES = {"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
SECCOMP_TYPES = {"RuntimeDefault", "Localhost"}


def all_containers(spec: Spec) -> list[dict[str, Any]]:
    """Return containers of every kind, which the standard treats alike."""
    return [item for kind in ("initContainers", "containers", "ephemeralContainers") for item in spec.get(kind) or ()]


def restricted_violations(spec: Spec) -> list[str]:
    """Return the fields of a pod's spec that violate the standard."""
    return [
        *_pod_violations(spec),
        *(text for item in all_containers(spec) for text in _container_violations(spec, item)),
    ]


def _pod_violations(spec: Spec) -> Iterator[str]:
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(field):
            yield field
    context = spec.get("securityContext") or {}
    yield from _shared_violations(context, "pod")
    for sysctl in context.get("sysctls") or ():
        if sysctl["name"] not in SYSCTLS:
            yield f"sysctl {sysctl['name']}"
    for volume in spec.get("volumes") or ():
        kinds = volume.keys() - {"name"}
        if not kinds <= VOLUME_KINDS:
            yield f"volume {volume['name']}: {', '.join(sorted(kinds))}"


def _container_violations(spec: Spec, container: dict[str, Any]) -> Iterator[str]:
    name, context = container["name"], container.get("securityContext") or {}
    yield from _shared_violations(context, name)
    if context.get("privileged"):
        yield f"{name}: privileged"
    if context.get("allowPrivilegeEscalation") is not False:
        yield f"{name}: allowPrivilegeEscalation"
    capabilities = context.get("capabilities") or {}
    if "ALL" not in (capabilities.get("drop") or ()):
        yield f"{name}: does not drop all capabilities"
    if set(capabilities.get("add") or ()) - {"NET_BIND_SERVICE"}:
        yield f"{name}: adds capabilities"
    if context.get("procMount", "Default") != "Default":
        yield f"{name}: procMount"
    pod = spec.get("securityContext") or {}
    if context.get("runAsNonRoot", pod.get("runAsNonRoot")) is not True:
        yield f"{name}: runAsNonRoot"
    if (context.get("seccompProfile") or pod.get("seccompProfile") or {}).get("type") not in SECCOMP_TYPES:
        yield f"{name}: seccompProfile"
    for port in container.get("ports") or ():
        if port.get("hostPort"):
            yield f"{name}: hostPort"
    yield from _hook_violations(container)


def _hook_violations(container: dict[str, Any]) -> Iterator[str]:
    """Since Kubernetes 1.34, probes and hooks must not call another host."""
    hooks = [container.get(kind) or {} for kind in ("livenessProbe", "readinessProbe", "startupProbe")]
    hooks += (container.get("lifecycle") or {}).values()
    for hook in hooks:
        if any((hook.get(kind) or {}).get("host") for kind in ("httpGet", "tcpSocket")):
            yield f"{container['name']}: host of a probe"


def _shared_violations(context: dict[str, Any], name: str) -> Iterator[str]:
    """Check the fields that pods and containers share."""
    if context.get("runAsUser") == 0:
        yield f"{name}: runAsUser 0"
    if (context.get("windowsOptions") or {}).get("hostProcess"):
        yield f"{name}: hostProcess"
    selinux = context.get("seLinuxOptions") or {}
    if selinux.get("type", "") not in SELINUX_TYPES or selinux.get("user") or selinux.get("role"):
        yield f"{name}: seLinuxOptions"
    if (context.get("appArmorProfile") or {}).get("type", "RuntimeDefault") == "Unconfined":
        yield f"{name}: appArmorProfile"
    if "seccompProfile" in context and context["seccompProfile"].get("type") not in SECCOMP_TYPES:
        yield f"{name}: seccompProfile"


def policy_violations(spec: Spec, claims: frozenset[str] = frozenset()) -> list[str]:
    """Return the fields of a pod's spec that violate the rules of this project.

    Args:
        spec: the pod's.
        claims: volumes that a StatefulSet adds.
    """
    volumes = claims | {volume["name"] for volume in spec.get("volumes") or ()}
    return [
        *_pod_shortcomings(spec),
        *(text for item in all_containers(spec) for text in _container_shortcomings(spec, item)),
        *(text for item in all_containers(spec) for text in _list_shortcomings(item, volumes)),
    ]


def _pod_shortcomings(spec: Spec) -> Iterator[str]:
    if spec.get("automountServiceAccountToken") is not False:
        yield "mounts a token"
    if spec.get("enableServiceLinks") is not False:
        yield "enableServiceLinks"
    if spec.get("hostUsers") is True:
        yield "hostUsers"


def _container_shortcomings(spec: Spec, container: dict[str, Any]) -> Iterator[str]:
    name, context = container["name"], container.get("securityContext") or {}
    if context.get("readOnlyRootFilesystem") is not True:
        yield f"{name}: its root file system can be written"
    if not isinstance(context.get("runAsUser", (spec.get("securityContext") or {}).get("runAsUser")), int):
        yield f"{name}: no numeric user"
    image = container["image"]
    tag = image.rpartition("/")[2].partition(":")[2]
    if "@sha256:" not in image and tag in {"", "latest"}:
        yield f"{name}: the image {image} may be another tomorrow"
    resources = container.get("resources") or {}
    for word, amount in (("requests", "cpu"), ("requests", "memory"), ("limits", "memory")):
        if amount not in (resources.get(word) or {}):
            yield f"{name}: no {word}.{amount}"


def _list_shortcomings(container: dict[str, Any], volumes: frozenset[str]) -> Iterator[str]:
    name = container["name"]
    variables = [variable["name"] for variable in container.get("env") or ()]
    for variable in sorted({variable for variable in variables if variables.count(variable) > 1}):
        yield f"{name}: {variable} is set twice"
    mounts = container.get("volumeMounts") or []
    paths = [mount["mountPath"] for mount in mounts]
    for path in sorted({path for path in paths if paths.count(path) > 1}):
        yield f"{name}: {path} is mounted twice"
    for mount in mounts:
        if mount["name"] not in volumes:
            yield f"{name}: no volume {mount['name']}"

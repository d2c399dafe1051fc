"""Pods of rendered objects, and the pods that a selector matches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tests.chart.helm import Object, Release

WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet", "Job")
COMPONENT = "app.kubernetes.io/component"


@dataclass(frozen=True)
class Pod:
    """Pod or pod template.

    Attributes:
        owner: the object that creates it, or the pod itself.
        metadata: its labels and annotations.
        spec: the rest.
    """

    owner: Object
    metadata: dict[str, Any]
    spec: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.owner['kind']}/{self.owner['metadata']['name']}"

    @property
    def labels(self) -> dict[str, str]:
        labels: dict[str, str] = self.metadata.get("labels", {})
        return labels

    @property
    def component(self) -> str:
        return self.labels.get(COMPONENT, "")

    @property
    def containers(self) -> list[dict[str, Any]]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    @property
    def main(self) -> dict[str, Any]:
        """Main container of the component."""
        return next(item for item in self.spec["containers"] if item["name"] == self.component)

    @property
    def ports(self) -> dict[str, int]:
        return {port["name"]: port["containerPort"] for item in self.containers for port in item.get("ports", ())}


def find_pods(objects: Iterable[Object]) -> list[Pod]:
    pods = []
    for item in objects:
        if item["kind"] in WORKLOADS:
            pods.append(Pod(item, item["spec"]["template"]["metadata"], item["spec"]["template"]["spec"]))
        elif item["kind"] == "Pod":
            pods.append(Pod(item, item["metadata"], item["spec"]))
    return pods


def pod_of(release: Release, component: str) -> Pod:
    found = [pod for pod in find_pods(release.objects) if pod.component == component]
    assert len(found) == 1, component
    return found[0]


def is_selected(selector: Mapping[str, Any] | None, labels: Mapping[str, str]) -> bool:
    """Return whether a label selector matches labels; an empty one matches everything, None nothing."""
    if selector is None:
        return False
    assert selector.keys() <= {"matchLabels", "matchExpressions"}, selector
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items()) and all(
        _holds(expression, labels) for expression in selector.get("matchExpressions", ())
    )


def _holds(expression: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    key, values = expression["key"], expression.get("values", [])
    match expression["operator"]:
        case "In":
            return labels.get(key) in values
        case "NotIn":
            return labels.get(key) not in values
        case "Exists":
            return key in labels
        case "DoesNotExist":
            return key not in labels
    raise AssertionError(expression)


def selected(release: Release, selector: Mapping[str, Any] | None) -> set[str]:
    """Return the names of the pods that a selector matches."""
    return {pod.name for pod in find_pods(release.objects) if is_selected(selector, pod.labels)}


def owners(release: Release, *components: str) -> set[str]:
    """Return the names of the pods of components."""
    return {pod.name for pod in find_pods(release.objects) if pod.component in components}

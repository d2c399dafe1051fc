"""The chart as a dependency of another one, twice under different names, and two releases in one namespace."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest

from tests.chart.helm import CHART, Object, Release, Values, template
from tests.chart.pods import find_pods, is_selected
from tests.chart.schemas import VERSIONS, violations

if TYPE_CHECKING:
    from pathlib import Path

ON: Values = {"enabled": True}
VALUES: Values = {
    "global": {"imageRegistry": "mirror.example.com", "imagePullSecrets": ["mirror"], "team": "vision"},
    "faces": ON | {"commonLabels": {"release": "{{ .Release.Name }}"}, "dashboards": ON, "prometheusRule": ON},
    "others": ON | {"api": {"lifecycle": None, "extraVolumes": None}, "worker": {"keda": ON}, "nats": {"replicas": 3}},
}


def names(release: Release) -> list[tuple[str, str]]:
    return [(item["kind"], item["metadata"]["name"]) for item in release.objects]


def selectors(objects: list[Object]) -> list[Any]:
    """Return the selector of each Service and workload."""
    found = [item["spec"]["selector"] for item in objects if item["kind"] in {"Service", "Deployment", "StatefulSet"}]
    return [selector if "matchLabels" in selector else {"matchLabels": selector} for selector in found]


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    """Chart that depends on this one twice."""
    fields = 'name: facial-service, version: "*", repository: ""'
    dependencies = "".join(
        f"\n  - {{{fields}, alias: {alias}, condition: {alias}.enabled}}" for alias in ("faces", "others")
    )
    text = f"apiVersion: v2\nname: parent\nversion: 1.0.0\ndependencies:{dependencies}\n"
    (tmp_path / "Chart.yaml").write_text(text, encoding="utf-8")
    shutil.copytree(CHART, tmp_path / "charts" / "facial-service")
    return tmp_path


def test_dependency_is_valid_under_two_names(parent: Path) -> None:
    release = template(values=VALUES, chart=parent)
    assert len(set(names(release))) == len(release.objects)
    found = {str(item["metadata"]["name"]): violations(item, VERSIONS[-1]) for item in release.objects}
    assert {name: problems for name, problems in found.items() if problems} == {}
    pods = find_pods(release.objects)
    for pod in pods:
        assert all(container["image"].startswith("mirror.example.com/") for container in pod.containers)
        assert pod.spec["imagePullSecrets"] == [{"name": "mirror"}]
    for selector in selectors(release.objects):
        assert len({pod.name for pod in pods if is_selected(selector, pod.labels)}) == 1


def test_dependency_can_be_disabled(parent: Path) -> None:
    values = VALUES | {"others": {"enabled": False}}
    assert {name.split("-")[1] for _, name in names(template(values=values, chart=parent))} == {"faces"}


def test_releases_in_one_namespace_share_nothing() -> None:
    first, second = (template(values={"nats": {"replicas": 3}}, release=name) for name in ("a", "a-b"))
    assert not set(names(first)) & set(names(second))
    for one, other in ((first, second), (second, first)):
        pods = find_pods(other.objects)
        assert not [
            pod.name for selector in selectors(one.objects) for pod in pods if is_selected(selector, pod.labels)
        ]

"""The API server accepts what the chart renders, with every file of values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.e2e.cluster import Json, Namespace, run
from tests.e2e.conftest import leave_out

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
CHART = Path(__file__).parents[2] / "charts" / "facial-service"
VALUES = sorted(path.name for path in (CHART / "ci").glob("*-values.yaml"))


@pytest.fixture(scope="module")
def space(make_namespace: Callable[..., Namespace]) -> Namespace:
    """Return a namespace with the restricted standard."""
    return make_namespace()


@pytest.fixture(scope="module")
def known_kinds(cluster: None) -> set[tuple[str, str]]:
    """Return every group version and kind of the cluster."""
    lines = run("kubectl", "api-resources", "--no-headers").splitlines()
    return {(words[-3], words[-1]) for words in (line.split() for line in lines)}


def render(values: str, namespace: str) -> list[Json]:
    """Render the chart."""
    version = json.loads(run("kubectl", "version", "--output=json"))["serverVersion"]["gitVersion"]
    arguments = ["template", "facial", str(CHART), "--namespace", namespace, "--kube-version", version]
    arguments += ["--values", str(CHART / "ci" / values)]
    return [document for document in yaml.safe_load_all(run("helm", *arguments)) if document]


def pods_of(documents: list[Json]) -> Iterator[Json]:
    """Return every pod and template as a pod, because a Deployment is admitted regardless of its pods."""
    for document in documents:
        found: dict[str, Any] = {"Pod": document}.get(document["kind"]) or document.get("spec", {}).get("template", {})
        if found.get("spec", {}).get("containers"):
            claims = document["spec"].get("volumeClaimTemplates", [])
            volumes = [
                {"name": claim["metadata"]["name"], "emptyDir": {}} for claim in claims
            ]  # as if they were bound already
            spec = {**found["spec"], "volumes": [*found["spec"].get("volumes", []), *volumes]}
            # The release's service account does not exist; the standard does not check it.
            spec = {**spec, "serviceAccountName": "default", "priorityClassName": ""}
            metadata = {"name": document["metadata"]["name"], "labels": found["metadata"].get("labels", {})}
            yield {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


@pytest.mark.parametrize("values", VALUES)
def test_every_object_is_accepted(space: Namespace, known_kinds: set[tuple[str, str]], values: str) -> None:
    documents = render(values, space.name)
    missing = {(item["apiVersion"], item["kind"]) for item in documents} - known_kinds
    if missing:
        leave_out(f"the cluster does not know {sorted(missing)}; install the definitions of these kinds")
    # Pods are checked below, because their service account must exist first.
    there = [item for item in documents if item["kind"] != "Pod"]
    here = [item for item in there if item["metadata"].get("namespace", space.name) == space.name]
    space.kubectl("apply", "--dry-run=server", "--filename=-", stdin=yaml.safe_dump_all(here))


@pytest.mark.parametrize("values", VALUES)
def test_every_pod_is_admitted_by_the_restricted_standard(space: Namespace, values: str) -> None:
    pods = list(pods_of(render(values, space.name)))
    assert pods
    for pod in pods:
        space.kubectl("create", "--dry-run=server", "--filename=-", stdin=json.dumps(pod))

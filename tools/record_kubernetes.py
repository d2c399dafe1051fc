#!/usr/bin/env python3
"""Record what Kubernetes tells of a release, for tests of dashboards and rules where no cluster is.

Writes `tests/kubernetes.prom`: of the kubelet, of its cAdvisor and of kube-state-metrics, the families that panels and
rules name, in the namespace `faces`. The cluster of KUBECONFIG is to have there a release `faces` of the chart with an
autoscaler, something else beside it, and a pod that is killed for want of memory again and again: a run on a cluster
where all is well would record no series of what is not.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
NAMESPACE = "faces"
EXAMPLE = "example: kube-state-metrics --kubeconfig $KUBECONFIG --port 8081 & tools/record_kubernetes.py http://127.0.0.1:8081"
USED = re.compile(r"\b(?:kube|kubelet|container)_[a-z_]+\b")
SAMPLE = re.compile(r"(?P<name>\w+)\{(?P<labels>.*)\} (?P<value>\S+)(?: \d+)?")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


def main() -> None:
    """Read the three, keep what is used, write the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("state_metrics", help="address of kube-state-metrics")
    address = parser.parse_args().state_metrics
    with urllib.request.urlopen(f"{address}/metrics", timeout=60) as answer:  # noqa: S310 - the caller's own
        texts = [answer.read().decode()]
    names = names_of_containers()
    for node in items("nodes"):
        name = node["metadata"]["name"]
        texts += [kubectl("get", "--raw", f"/api/v1/nodes/{name}/proxy/metrics{part}") for part in ("", "/cadvisor")]
    families = used_families()
    kept = [line for text in texts for line in keep(text, families, names)]
    missing = families - {line.split()[2] for line in kept if line.startswith("# TYPE")}
    if missing:
        raise SystemExit(f"expected every family that is used, got none of {', '.join(sorted(missing))}")
    (ROOT / "tests" / "kubernetes.prom").write_text("\n".join([*kept, ""]), encoding="utf-8")
    print(f"{len(families)} families, {sum(not line.startswith('#') for line in kept)} series")


def kubectl(*arguments: str) -> str:
    """Run kubectl and return what it printed."""
    return subprocess.run(["kubectl", *arguments], check=True, capture_output=True, text=True).stdout  # noqa: S603, S607


def items(kind: str) -> list[dict[str, Any]]:
    """Read all objects of a kind."""
    found: list[dict[str, Any]] = json.loads(kubectl("get", kind, "--all-namespaces", "--output=json"))["items"]
    return found


def used_families() -> set[str]:
    """Find what the rules and the dashboards name."""
    folders = (ROOT / "prometheus" / "rules", ROOT / "grafana" / "dashboards")
    texts = [path.read_text(encoding="utf-8") for folder in folders for path in folder.iterdir()]
    return {name for text in texts for name in USED.findall(text)}


def names_of_containers() -> dict[str, dict[str, str]]:
    """Map the id of each container to its labels: a cAdvisor that cannot ask the runtime leaves them out."""
    found: dict[str, dict[str, str]] = {}
    for pod in items("pods"):
        metadata, status = pod["metadata"], pod["status"]
        for container in status.get("containerStatuses", []):
            identifier = container.get("containerID", "").rpartition("/")[2]
            found[identifier] = {
                "namespace": metadata["namespace"],
                "pod": metadata["name"],
                "container": container["name"],
                "image": container["image"].rpartition("/")[2],
                "name": identifier,
            }
    return found


def keep(text: str, families: set[str], names: dict[str, dict[str, str]]) -> Iterator[str]:
    """Yield the lines of an exposition that are of a family that is used and of the namespace, without their times."""
    for family in re.split(r"^(?=# HELP )", text, flags=re.MULTILINE)[1:]:
        lines = family.splitlines()
        name = lines[0].split()[2]
        if name in families and (samples := list(keep_samples(lines, names))):
            yield f"# HELP {name} {lines[0].split(' ', 3)[3].removeprefix('[STABLE] ')}"
            yield from (line for line in lines if line.startswith("# TYPE"))
            yield from sorted(samples)


def keep_samples(lines: list[str], names: dict[str, dict[str, str]]) -> Iterator[str]:
    """Yield the samples of the namespace."""
    for match in filter(None, map(SAMPLE.fullmatch, lines)):
        labels = dict(LABEL.findall(match["labels"]))
        if match["name"].startswith("container_") and not labels["container"]:
            labels.update(names.get(labels["id"].rpartition("/")[2], {}))
        if labels.get("namespace") == NAMESPACE:
            told = ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()))
            yield f"{match['name']}{{{told}}} {match['value']}"


if __name__ == "__main__":
    main()

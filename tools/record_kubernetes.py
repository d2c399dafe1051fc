#!/usr/bin/env python3
"""Record the metrics of a release in Kubernetes, for tests of dashboards and rules without a cluster.

Writes `tests/kubernetes.prom`: the metric families of the kubelet, cAdvisor and kube-state-metrics that panels and
rules use, for the namespace `faces`. In the cluster of KUBECONFIG, that namespace must have a release `faces` of the
chart with an autoscaler, another workload, and a pod that is repeatedly killed for its memory, because a healthy
cluster has no series of failures.
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
    """Scrape the three sources, and write the used families to the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("state_metrics", help="base URL of kube-state-metrics")
    address = parser.parse_args().state_metrics
    with urllib.request.urlopen(f"{address}/metrics", timeout=60) as response:  # noqa: S310 - the caller's URL
        texts = [response.read().decode()]
    names = names_of_containers()
    for node in items("nodes"):
        name = node["metadata"]["name"]
        texts += [kubectl("get", "--raw", f"/api/v1/nodes/{name}/proxy/metrics{part}") for part in ("", "/cadvisor")]
    families = used_families()
    kept = [line for text in texts for line in keep(text, families, names)]
    missing = families - {line.split()[2] for line in kept if line.startswith("# TYPE")}
    if missing:
        raise SystemExit(f"expected every used family, got none of {', '.join(sorted(missing))}")
    (ROOT / "tests" / "kubernetes.prom").write_text("\n".join([*kept, ""]), encoding="utf-8")
    print(f"{len(families)} families, {sum(not line.startswith('#') for line in kept)} series")


def kubectl(*arguments: str) -> str:
    """Run kubectl and return its output."""
    return subprocess.run(["kubectl", *arguments], check=True, capture_output=True, text=True).stdout  # noqa: S603, S607


def items(kind: str) -> list[dict[str, Any]]:
    """Read all objects of a kind."""
    found: list[dict[str, Any]] = json.loads(kubectl("get", kind, "--all-namespaces", "--output=json"))["items"]
    return found


def used_families() -> set[str]:
    """Return the metric families that the rules and the dashboards use."""
    folders = (ROOT / "prometheus" / "rules", ROOT / "grafana" / "dashboards")
    texts = [path.read_text(encoding="utf-8") for folder in folders for path in folder.iterdir()]
    return {name for text in texts for name in USED.findall(text)}


def names_of_containers() -> dict[str, dict[str, str]]:
    """Return the labels of each container by its id, because a cAdvisor without access to the runtime omits them."""
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
    """Yield the lines of an exposition for the used families in the namespace, without timestamps."""
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
            text = ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()))
            yield f"{match['name']}{{{text}}} {match['value']}"


if __name__ == "__main__":
    main()

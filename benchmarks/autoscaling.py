"""Autoscaling of the task workers: the values of the chart, and the defaults of Kubernetes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Sequence

VALUES = Path(__file__).parents[1] / "charts" / "facial-service" / "values.yaml"
# Defaults of kube-controller-manager and of autoscaling/v2.
SYNC_S = 15.0
TOLERANCE = 0.1
METRICS_WINDOW_S = 30.0
DEFAULT_BEHAVIOR: dict[str, Any] = {
    "scaleUp": {
        "stabilizationWindowSeconds": 0,
        "policies": [
            {"type": "Percent", "value": 100, "periodSeconds": 15},
            {"type": "Pods", "value": 4, "periodSeconds": 15},
        ],
    },
    "scaleDown": {
        "stabilizationWindowSeconds": 300,
        "policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}],
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """How the number of pods is determined: values of the chart.

    Attributes:
        kind: `fixed`, `keda` or `hpa`.
        min_pods: smallest number of pods; that of `fixed`.
        max_pods: largest number of pods.
        target: unfinished tasks per pod (`keda`), or CPU usage per pod in cores (`hpa`).
        polling_s: interval at which KEDA checks whether to start the first pod.
        cooldown_s: time without tasks before KEDA stops the last pod.
        behavior: policies and windows, as in autoscaling/v2.
    """

    kind: str
    min_pods: int
    max_pods: int
    target: float = 1.0
    polling_s: float = SYNC_S
    cooldown_s: float = 0.0
    behavior: dict[str, Any] = field(default_factory=dict)


def read_values(changes: Sequence[str] = (), path: Path = VALUES) -> dict[str, Any]:
    """Return the values of the chart, changed as by `--set NAME=VALUE`.

    Raises:
        KeyError: a name is not a value of the chart.
    """
    values: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    for change in changes:
        name, _, text = change.partition("=")
        *parents, last = name.split(".")
        place = values
        for parent in parents:
            place = place[parent]
        if last not in place:
            raise KeyError(name)
        place[last] = yaml.safe_load(text)
    return values


def scaling_of(values: dict[str, Any]) -> Scaling:
    """Return the scaling of the workers in the values of the chart."""
    worker = values["worker"]
    if worker["keda"]["enabled"]:
        keda = worker["keda"]
        return Scaling(
            kind="keda",
            min_pods=keda["minReplicas"],
            max_pods=keda["maxReplicas"],
            target=keda["lagThreshold"],
            polling_s=keda["pollingInterval"],
            cooldown_s=keda["cooldownPeriod"],
            behavior=_behavior(keda["behavior"]),
        )
    if worker["autoscaling"]["enabled"]:
        hpa = worker["autoscaling"]
        request = cores_of(worker["resources"]["requests"]["cpu"])
        return Scaling(
            kind="hpa",
            min_pods=hpa["minReplicas"],
            max_pods=hpa["maxReplicas"],
            target=request * hpa["targetCPUUtilizationPercentage"] / 100,
            behavior=_behavior(hpa["behavior"]),
        )
    return Scaling(kind="fixed", min_pods=worker["replicas"], max_pods=worker["replicas"])


def _behavior(given: dict[str, Any]) -> dict[str, Any]:
    return {direction: {**rules, **given.get(direction, {})} for direction, rules in DEFAULT_BEHAVIOR.items()}


def cores_of(quantity: str | float) -> float:
    """Return a quantity of CPU in cores.

    >>> cores_of("250m"), cores_of(2)
    (0.25, 2.0)
    """
    text = str(quantity)
    return float(text[:-1]) / 1000 if text.endswith("m") else float(text)

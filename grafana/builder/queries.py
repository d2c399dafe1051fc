"""PromQL builders. Every query selects by the dashboard variables, and rates use `$__rate_interval`."""

from __future__ import annotations

from typing import Final

from prometheus.source.kubernetes import AUTOSCALER, CLAIM, DEPLOYED_POD, DEPLOYMENT, POD, STATEFUL_SET
from prometheus.source.model import JOB, LABELS
from prometheus.source.model import by as by_release


def _selector(labels: tuple[str, ...]) -> str:
    return ", ".join(f'{label}=~"${label}"' for label in labels)


SELECTOR: Final = _selector((*LABELS, "pod", "instance"))
"""Label matchers for metrics of the service.

Targets outside Kubernetes have only the labels job and instance. By default the variables of the other labels expand to
``.*``, which also matches missing labels.
"""

RECORDED_SELECTOR: Final = _selector(LABELS)
"""Label matchers for recorded series, which cover all pods of a release."""

ALERT_SELECTOR: Final = _selector(tuple(label for label in LABELS if label != "job"))
"""Label matchers for alerts."""

WINDOW: Final = "[$__rate_interval]"

# Pattern of the object name, by the label that contains it. The group matches the fullname of the release.
_NAME_PATTERNS: Final = {
    "pod": POD,
    "deployment": DEPLOYMENT,
    "statefulset": STATEFUL_SET,
    "horizontalpodautoscaler": AUTOSCALER,
    "persistentvolumeclaim": CLAIM,
}


def series(metric: str, *matchers: str) -> str:
    """Return a selector for a metric of the service or of its scrapes.

    Example:
        >>> series("queue_up")
        'queue_up{cluster=~"$cluster", namespace=~"$namespace", release=~"$release", job=~"$job", pod=~"$pod", \
instance=~"$instance"}'
    """
    return f"{metric}{{{', '.join((*matchers, SELECTOR))}}}"


def with_selector(selector: str) -> str:
    """Replace the job matcher of a rule's selector by the dashboard variables, so that panels and alerts match.

    Example:
        >>> with_selector('queue_up{job="facial-service"}') == series("queue_up")
        True
    """
    return selector.replace(f'job="{JOB}"', SELECTOR)


def recorded(name: str, *matchers: str) -> str:
    """Return a selector for a recorded series."""
    return f"{name}{{{', '.join((*matchers, RECORDED_SELECTOR))}}}"


def aggregate(operator: str, vector: str, by: str = "") -> str:
    """Aggregate a vector, grouped by the labels ``by`` if given.

    Example:
        >>> aggregate("max", "a", by="pod")
        'max by (pod) (a)'
    """
    return f"{operator} by ({by}) ({vector})" if by else f"{operator}({vector})"


def rate(vector: str, by: str = "") -> str:
    """Return the summed per-second rate of a counter."""
    return aggregate("sum", f"rate({vector}{WINDOW})", by)


def increase(vector: str, by: str = "") -> str:
    """Return the summed increase of a counter over the rate interval."""
    return aggregate("sum", f"increase({vector}{WINDOW})", by)


def ratio(part: str, whole: str) -> str:
    """Return the ratio of two sums: 0 if the part has no series yet, no value if there is no traffic.

    Example:
        >>> ratio("sum(a)", "sum(b)")
        '(sum(a) or 0 * sum(b)) / (sum(b) > 0)'
    """
    return f"({part} or 0 * {whole}) / ({whole} > 0)"


def quantile(q: float, histogram: str, *matchers: str, by: str = "") -> str:
    """Return a quantile of a histogram, merged over all instances."""
    buckets = series(f"{histogram}_bucket", *matchers)
    return f"histogram_quantile({q}, {rate(buckets, by=f'le, {by}' if by else 'le')})"


def mean(histogram: str, *matchers: str, by: str = "") -> str:
    """Return the mean of a histogram."""
    total, count = (series(f"{histogram}_{suffix}", *matchers) for suffix in ("sum", "count"))
    return f"{rate(total, by)} / ({rate(count, by)} > 0)"


def buckets(histogram: str, *matchers: str) -> str:
    """Return the observations of a histogram by bucket, for a heatmap."""
    return increase(series(f"{histogram}_bucket", *matchers), by="le")


def queue_gauge(metric: str) -> str:
    """Return a gauge of the queue. All instances export the same queue, so it counts once per release."""
    return f"sum(max {by_release()} ({series(metric)}))"


def with_place(vector: str) -> str:
    """Add the label ``place``: the pod, or the instance outside Kubernetes."""
    by_instance = f'label_replace({vector}, "place", "$1", "instance", "(.+)")'
    return f'label_replace({by_instance}, "place", "$1", "pod", "(.+)")'


def own_objects(metric: str, label: str, *matchers: str, over: str = "") -> str:
    """Return a Kubernetes metric for the objects of the selected releases.

    These metrics have no labels of the service. As in the rules, they are joined by the fullname, which is the
    prefix of the names of the scraped pods.

    Args:
        metric: metric of kube-state-metrics, cAdvisor or the kubelet.
        label: label with the object name, such as pod or deployment.
        matchers: additional label matchers.
        over: PromQL function to apply to the metric's range vector, such as ``rate``.
    """
    pattern = _NAME_PATTERNS[label]
    pod_matchers = ['pod=~"$pod"'] if label == "pod" else []
    joined = ", ".join([*matchers, f'{label}=~"{pattern}"', _selector(("cluster", "namespace")), *pod_matchers])
    vector = f"{over}({metric}{{{joined}}}{WINDOW})" if over else f"{metric}{{{joined}}}"
    targets = series("up", f'pod=~"{DEPLOYED_POD}"')
    return (
        f'label_replace({vector}, "fullname", "$1", "{label}", "{pattern}") and on (cluster, namespace, fullname) '
        f'label_replace(last_over_time({targets}[1h]), "fullname", "$1", "pod", "{DEPLOYED_POD}")'
    )

"""PromQL as the panels need it: every query selects by the dashboard's variables and rates over Grafana's interval."""

from __future__ import annotations

from typing import Final

from prometheus.source.kubernetes import AUTOSCALER, CLAIM, DEPLOYED_POD, DEPLOYMENT, POD, STATEFUL_SET
from prometheus.source.model import JOB

SELECTOR: Final = 'namespace=~"$namespace", job=~"$job", pod=~"$pod", instance=~"$instance"'
"""What every query of the service's own series selects by.

A target outside Kubernetes has neither namespace nor pod; these two variables stand for ``.*`` unless somebody picks
one, and that matches a label that is not there.
"""

RECORDED_SELECTOR: Final = 'namespace=~"$namespace", job=~"$job"'
"""What queries of recorded series select by: these are about all of a namespace's pods."""

WINDOW: Final = "[$__rate_interval]"

# By the label that carries an object's name: what that name is like, and what of it all names of a release share.
_NAMES: Final = {
    "pod": POD,
    "deployment": DEPLOYMENT,
    "statefulset": STATEFUL_SET,
    "horizontalpodautoscaler": AUTOSCALER,
    "persistentvolumeclaim": CLAIM,
}


def series(metric: str, *matchers: str) -> str:
    """Select a metric of the service, or of the scrape of it.

    Example:
        >>> series("queue_up")
        'queue_up{namespace=~"$namespace", job=~"$job", pod=~"$pod", instance=~"$instance"}'
    """
    return f"{metric}{{{', '.join((*matchers, SELECTOR))}}}"


def chosen(selector: str) -> str:
    """Take over what a rule selects, so that panel and alert cannot mean different things by the same words.

    Example:
        >>> chosen('queue_up{job="facial-service"}') == series("queue_up")
        True
    """
    return selector.replace(f'job="{JOB}"', SELECTOR)


def recorded(name: str, *matchers: str) -> str:
    """Select what a recording rule wrote."""
    return f"{name}{{{', '.join((*matchers, RECORDED_SELECTOR))}}}"


def combine(operator: str, vector: str, by: str = "") -> str:
    """Aggregate a vector, for each value of the labels ``by`` or whole.

    Example:
        >>> combine("max", "a", by="pod")
        'max by (pod) (a)'
    """
    return f"{operator} by ({by}) ({vector})" if by else f"{operator}({vector})"


def rate(vector: str, by: str = "") -> str:
    """Sum a counter's rate per second."""
    return combine("sum", f"rate({vector}{WINDOW})", by)


def increase(vector: str, by: str = "") -> str:
    """Sum by how much a counter grew from one point of the graph to the next, or a little more."""
    return combine("sum", f"increase({vector}{WINDOW})", by)


def share(part: str, whole: str) -> str:
    """Divide two sums; 0 where the part has no series yet, nothing where there is no traffic.

    Example:
        >>> share("sum(a)", "sum(b)")
        '(sum(a) or 0 * sum(b)) / (sum(b) > 0)'
    """
    return f"({part} or 0 * {whole}) / ({whole} > 0)"


def quantile(q: float, histogram: str, *matchers: str, by: str = "") -> str:
    """Estimate a quantile from a histogram's buckets, merged over all instances first."""
    buckets = series(f"{histogram}_bucket", *matchers)
    return f"histogram_quantile({q}, {rate(buckets, by=f'le, {by}' if by else 'le')})"


def mean(histogram: str, *matchers: str, by: str = "") -> str:
    """Divide what a histogram summed by what it counted."""
    total, count = (series(f"{histogram}_{end}", *matchers) for end in ("sum", "count"))
    return f"{rate(total, by)} / ({rate(count, by)} > 0)"


def buckets(histogram: str, *matchers: str) -> str:
    """Count a histogram's observations by bucket, as a heatmap takes them."""
    return increase(series(f"{histogram}_bucket", *matchers), by="le")


def shared(metric: str) -> str:
    """Add up a gauge of the queue: every instance tells of the same one, so it counts once a namespace and job."""
    return f"sum(max by (namespace, job) ({series(metric)}))"


def placed(vector: str) -> str:
    """Give each series the label ``place``: its pod, or its instance where there are no pods."""
    by_instance = f'label_replace({vector}, "place", "$1", "instance", "(.+)")'
    return f'label_replace({by_instance}, "place", "$1", "pod", "(.+)")'


def ours(metric: str, label: str, *matchers: str, over: str = "") -> str:
    """Select a metric of Kubernetes for the objects of the releases that the variables stand for.

    Its series know nothing of this service, so they are chosen by their names, as the rules do it: by the fullname that
    the names of the scraped pods begin with.

    Args:
        metric: as kube-state-metrics, cAdvisor or the kubelet has it.
        label: the label with the name: pod, deployment and so on.
        matchers: further ones.
        over: the function of PromQL that is put over the metric's window, such as ``rate``.
    """
    pattern = _NAMES[label]
    more = ['pod=~"$pod"'] if label == "pod" else []
    inside = ", ".join([*matchers, f'{label}=~"{pattern}"', 'namespace=~"$namespace"', *more])
    named = f"{over}({metric}{{{inside}}}{WINDOW})" if over else f"{metric}{{{inside}}}"
    targets = series("up", f'pod=~"{DEPLOYED_POD}"')
    return (
        f'label_replace({named}, "fullname", "$1", "{label}", "{pattern}") and on (namespace, fullname) '
        f'label_replace(last_over_time({targets}[1h]), "fullname", "$1", "pod", "{DEPLOYED_POD}")'
    )

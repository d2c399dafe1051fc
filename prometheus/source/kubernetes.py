"""Rules on metrics of kube-state-metrics, cAdvisor and the kubelet. All other rules work without Kubernetes.

These metrics cover the objects of all applications. The chart names its objects ``<fullname>-api``,
``<fullname>-worker`` and ``<fullname>-nats``. The rules join each expression with the fullnames of the releases, and
the join adds the labels of the release. The chart knows its fullname; other rules derive it from the scraped pods, and
remember it while an outage lasts. The alerts on pods and workloads are optional with kube-prometheus-stack, which has
similar alerts for all workloads.
"""

from __future__ import annotations

from textwrap import dedent, indent
from typing import TYPE_CHECKING

from prometheus.source.api import SCALED_TO_ZERO
from prometheus.source.model import CLUSTER, COUNT, JOB, PERCENT, Alert, Group, Recording, by, level, series

if TYPE_CHECKING:
    from prometheus.source.model import Scope

SCRAPED_FULLNAMES = f"{level('fullname')}:up:group"
FULLNAMES = f"{level('fullname')}:up:last"

# Patterns that extract the fullname from object names. Objects without a match drop out of the join. Kubernetes
# truncates the name of a pod whose prefix has more than 58 characters, so that the last hyphen may be missing.
DEPLOYED_POD = "(.+)-(?:api|worker)-[^-]+(?:-[^-]+)?"
POD = "(.+)-(?:(?:api|worker)-[^-]+(?:-[^-]+)?|nats-[0-9]+)"
DEPLOYMENT = "(.+)-(?:api|worker)"
STATEFUL_SET = "(.+)-nats"
AUTOSCALER = "(?:keda-hpa-)?(.+)-(?:api|worker)"  # KEDA adds a prefix to the ScaledObject's name
CLAIM = "(?:cluster-)?store-(.+)-nats-[0-9]+"

IN_NAMESPACE = f"in namespace {{{{ $labels.namespace }}}}{CLUSTER}"
CONTAINER = f"{{{{ $labels.container }}}} of {{{{ $labels.pod }}}} {IN_NAMESPACE}"

# Deduplicate, because two instances of kube-state-metrics may run during a rollout.
BY_CONTAINER = "by (cluster, namespace, pod, container)"
BY_DEPLOYMENT = "by (cluster, namespace, deployment)"
BY_STATEFUL_SET = "by (cluster, namespace, statefulset)"
BY_AUTOSCALER = "by (cluster, namespace, horizontalpodautoscaler)"
BY_CLAIM = "by (cluster, namespace, persistentvolumeclaim)"

# Matchers that only reduce the number of series to join.
IN_POD = 'pod=~".+-(api|worker|nats)-.+"'
IN_CONTAINER = f'container!="", {IN_POD}'
IN_DEPLOYMENT = 'deployment=~".+-(api|worker)"'
IN_API = 'deployment=~".+-api"'
IN_STATEFUL_SET = 'statefulset=~".+-nats"'
IN_AUTOSCALER = 'horizontalpodautoscaler=~".+-(api|worker)"'
IN_CLAIM = 'persistentvolumeclaim=~".+-nats-[0-9]+"'

MEMORY = f"{level('fullname', 'pod', 'container')}:memory_working_set_bytes_per_limit:ratio"
FREE = f"{level('fullname', 'persistentvolumeclaim')}:available_bytes_per_capacity:ratio"


def own_objects(expr: str, label: str, pattern: str) -> str:
    """Filter an expression by objects of the service, and add the fullname and the labels of their release.

    Args:
        expr: PromQL for objects of all applications.
        label: label with the object name.
        pattern: regular expression for the object name, with the fullname as its group.
    """
    return (
        f'label_replace(\n{indent(expr, "  ")},\n  "fullname", "$1", "{label}", "{pattern}"\n)\n'
        f"  * on (cluster, namespace, fullname) group_left (release, job)\n{series(FULLNAMES)}"
    )


def _scraped_fullnames() -> Recording:
    return Recording(
        name=SCRAPED_FULLNAMES,
        expr=dedent(f"""\
            group {by("fullname")} (
              label_replace(
                {series("up", f'pod=~"{DEPLOYED_POD}"')},
                "fullname", "$1", "pod", "{DEPLOYED_POD}"
              )
            )"""),
    )


def _fullnames(scope: Scope | None) -> Recording:
    """Return the rule for the fullnames of the releases.

    Without a scope, they are those of the scraped pods, or of the pods of the last week, so that alerts do not resolve
    during an outage. The release of a fullname must be unique, although the label may have been added since.
    """
    if scope is None:
        return Recording(
            name=FULLNAMES,
            expr=dedent(f"""\
                {series(SCRAPED_FULLNAMES)}
                  or on (cluster, namespace, fullname)
                topk by (cluster, namespace, fullname) (1, last_over_time({series(SCRAPED_FULLNAMES)}[7d]))"""),
        )
    own = f'namespace="{scope.namespace}", deployment=~"{scope.fullname}-(api|worker)"{scope.cluster}'
    expr = f"group by (cluster, namespace) (kube_deployment_spec_replicas{{{own}}})"
    for label, value in (("release", scope.release), ("fullname", scope.fullname), ("job", JOB)):
        expr = f'label_replace(\n{indent(expr, "  ")},\n  "{label}", "{value}", "", ""\n)'
    return Recording(name=FULLNAMES, expr=expr)


RECORDINGS = (
    Recording(
        name=MEMORY,
        expr=own_objects(
            dedent(f"""\
                max {BY_CONTAINER} (container_memory_working_set_bytes{{{IN_CONTAINER}}})
                  /
                max {BY_CONTAINER} (kube_pod_container_resource_limits{{resource="memory", {IN_POD}}})"""),
            "pod",
            POD,
        ),
    ),
    Recording(
        name=SCALED_TO_ZERO,
        expr=f"group {by('fullname')} (\n"
        + indent(
            own_objects(
                f"max {BY_DEPLOYMENT} (kube_deployment_spec_replicas{{{IN_API}}}) == 0", "deployment", DEPLOYMENT
            ),
            "  ",
        )
        + "\n)",
    ),
    Recording(
        name=FREE,
        expr=own_objects(
            dedent(f"""\
                max {BY_CLAIM} (kubelet_volume_stats_available_bytes{{{IN_CLAIM}}})
                  /
                max {BY_CLAIM} (kubelet_volume_stats_capacity_bytes{{{IN_CLAIM}}})"""),
            "persistentvolumeclaim",
            CLAIM,
        ),
    ),
)

AVAILABLE_ALERTS = (
    Alert(
        name="FacialServiceUnavailable",
        expr=own_objects(
            dedent(f"""\
                max {BY_DEPLOYMENT} (kube_deployment_spec_replicas{{{IN_API}}}) > 0
                  and
                max {BY_DEPLOYMENT} (kube_deployment_status_replicas_available{{{IN_API}}}) == 0"""),
            "deployment",
            DEPLOYMENT,
        ),
        hold="5m",
        severity="critical",
        summary="No API pod is available.",
        description=f"None of the {COUNT} pods of {{{{ $labels.deployment }}}} {IN_NAMESPACE} is available.",
        dashboard="facial-service-resources",
    ),
)

POD_ALERTS = (
    Alert(
        name="FacialServiceMemoryNearLimit",
        expr=f"{series(MEMORY)} > 0.9",
        hold="10m",
        severity="warning",
        summary="A container is close to its memory limit.",
        description=(
            f"Container {CONTAINER} uses {PERCENT} of its memory limit. If it reaches the limit, the kernel kills one "
            "of its processes."
        ),
        dashboard="facial-service-resources",
    ),
    Alert(
        name="FacialServiceOomKilled",
        # If the kernel kills a child process, the container keeps running, and only cAdvisor reports it.
        expr=own_objects(
            dedent(f"""\
                max {BY_CONTAINER} (increase(container_oom_events_total{{{IN_CONTAINER}}}[15m])) > 0
                  or
                (
                    max {BY_CONTAINER} (
                      kube_pod_container_status_last_terminated_reason{{reason="OOMKilled", {IN_POD}}}
                    ) > 0
                  and
                    max {BY_CONTAINER} (increase(kube_pod_container_status_restarts_total{{{IN_POD}}}[15m])) > 0
                )"""),
            "pod",
            POD,
        ),
        hold="1m",
        severity="warning",
        summary="The kernel killed a process because the container was out of memory.",
        description=(
            f"In container {CONTAINER}, the kernel killed a process in the last 15 minutes because the container was "
            "out of memory."
        ),
        dashboard="facial-service-resources",
    ),
    Alert(
        name="FacialServiceCpuThrottled",
        expr=own_objects(
            dedent(f"""\
                sum {BY_CONTAINER} (increase(container_cpu_cfs_throttled_periods_total{{{IN_CONTAINER}}}[5m]))
                  /
                sum {BY_CONTAINER} (increase(container_cpu_cfs_periods_total{{{IN_CONTAINER}}}[5m]))
                  > 0.25"""),
            "pod",
            POD,
        ),
        hold="15m",
        severity="info",
        summary="A container is throttled by its CPU limit.",
        description=(f"Container {CONTAINER} was throttled by its CPU limit in {PERCENT} of its CPU periods."),
        dashboard="facial-service-resources",
    ),
    Alert(
        name="FacialServiceCrashLooping",
        expr=own_objects(
            f"max {BY_CONTAINER} (\n  max_over_time(\n"
            f'    kube_pod_container_status_waiting_reason{{reason="CrashLoopBackOff", {IN_POD}}}[5m]\n  )\n) > 0',
            "pod",
            POD,
        ),
        hold="10m",
        severity="warning",
        summary="A container is crash-looping.",
        description=(
            f"Container {CONTAINER} exits soon after each start. Kubernetes restarts it with an increasing delay."
        ),
        dashboard="facial-service-resources",
    ),
)

WORKLOAD_ALERTS = (
    Alert(
        name="FacialServiceReplicasMismatch",
        # The alert does not fire during a rollout.
        expr=own_objects(
            dedent(f"""\
                max {BY_DEPLOYMENT} (kube_deployment_spec_replicas{{{IN_DEPLOYMENT}}})
                  -
                max {BY_DEPLOYMENT} (kube_deployment_status_replicas_available{{{IN_DEPLOYMENT}}})
                  > 0
                  and
                max {BY_DEPLOYMENT} (
                  changes(kube_deployment_status_replicas_updated{{{IN_DEPLOYMENT}}}[10m])
                ) == 0"""),
            "deployment",
            DEPLOYMENT,
        )
        + "\n  or\n"
        + own_objects(
            dedent(f"""\
                max {BY_STATEFUL_SET} (kube_statefulset_replicas{{{IN_STATEFUL_SET}}})
                  -
                max {BY_STATEFUL_SET} (kube_statefulset_status_replicas_ready{{{IN_STATEFUL_SET}}})
                  > 0
                  and
                max {BY_STATEFUL_SET} (
                  changes(kube_statefulset_status_replicas_updated{{{IN_STATEFUL_SET}}}[10m])
                ) == 0"""),
            "statefulset",
            STATEFUL_SET,
        ),
        hold="15m",
        severity="warning",
        summary="A workload has fewer available pods than desired.",
        description=(
            f"{{{{ $labels.deployment }}}}{{{{ $labels.statefulset }}}} {IN_NAMESPACE} has {COUNT} fewer "
            "available pods than desired, and no rollout is in progress."
        ),
        dashboard="facial-service-resources",
    ),
    Alert(
        name="FacialServiceHpaAtMaximum",
        expr=own_objects(
            dedent(f"""\
                max {BY_AUTOSCALER} (kube_horizontalpodautoscaler_status_current_replicas{{{IN_AUTOSCALER}}})
                  >=
                max {BY_AUTOSCALER} (kube_horizontalpodautoscaler_spec_max_replicas{{{IN_AUTOSCALER}}})
                  >
                max {BY_AUTOSCALER} (kube_horizontalpodautoscaler_spec_min_replicas{{{IN_AUTOSCALER}}})"""),
            "horizontalpodautoscaler",
            AUTOSCALER,
        ),
        hold="15m",
        severity="warning",
        summary="An autoscaler has reached its maximum.",
        description=(
            f"{{{{ $labels.horizontalpodautoscaler }}}} {IN_NAMESPACE} runs its maximum of {COUNT} pods. It "
            "cannot scale up if the load increases."
        ),
        dashboard="facial-service-resources",
    ),
    Alert(
        name="FacialServiceVolumeFilling",
        expr=dedent(f"""\
            {series(FREE)} < 0.05
              or
            (
                {series(FREE)} < 0.2
              and
                predict_linear({series(FREE)}[6h], 86400) < 0
            )"""),
        hold="15m",
        severity="warning",
        summary="The queue's volume is filling up.",
        description=(
            f"The volume of {{{{ $labels.persistentvolumeclaim }}}} {IN_NAMESPACE} has {PERCENT} free space. That is "
            "less than 5%, or the volume will be full within a day at the rate of the last 6 hours."
        ),
        dashboard="facial-service-tasks",
    ),
)


def groups(scope: Scope | None) -> tuple[Group, ...]:
    """Return the groups for a release, or for all releases."""
    return (
        Group(name="facial-service-kubernetes.rules", rules=(_scraped_fullnames(), _fullnames(scope), *RECORDINGS)),
        Group(name="facial-service-kubernetes-availability", rules=AVAILABLE_ALERTS),
        Group(name="facial-service-kubernetes", rules=POD_ALERTS + WORKLOAD_ALERTS),
    )

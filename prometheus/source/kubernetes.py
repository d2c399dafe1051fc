"""Rules on what kube-state-metrics, cAdvisor and the kubelet know of the pods; the rest works without Kubernetes.

Those are of everybody's objects. Ours are called ``<fullname>-api``, ``<fullname>-worker`` and ``<fullname>-nats`` by
the chart, and the fullname is known from the pods that are scraped, whatever the release is called: each rule is joined
with that. kube-prometheus-stack has rules of its own for every workload; who has those may leave these out.
"""

from __future__ import annotations

from textwrap import dedent, indent

from prometheus.source.model import COUNT, PERCENT, Alert, Group, Recording, series

FULLNAMES = "namespace_fullname:up:last_over_time1h"

# How the fullname is found in the names of our objects. What is called otherwise finds none, and has no part in a join.
DEPLOYED_POD = "(.+)-(?:api|worker)-[^-]+-[^-]+"
POD = "(.+)-(?:(?:api|worker)-[^-]+-[^-]+|nats-[0-9]+)"
DEPLOYMENT = "(.+)-(?:api|worker)"
STATEFUL_SET = "(.+)-nats"
AUTOSCALER = "(?:keda-hpa-)?(.+)-(?:api|worker)"  # KEDA puts its name before that of the ScaledObject
CLAIM = "(?:cluster-)?store-(.+)-nats-[0-9]+"

IN_NAMESPACE = "in namespace {{ $labels.namespace }}"
CONTAINER = f"{{{{ $labels.container }}}} of {{{{ $labels.pod }}}} {IN_NAMESPACE}"

# kube-state-metrics may run twice for a moment: one value an object.
BY_CONTAINER = "by (namespace, pod, container)"
BY_DEPLOYMENT = "by (namespace, deployment)"
BY_STATEFUL_SET = "by (namespace, statefulset)"
BY_AUTOSCALER = "by (namespace, horizontalpodautoscaler)"
BY_CLAIM = "by (namespace, persistentvolumeclaim)"

# These only keep what is joined small.
IN_POD = 'pod=~".+-(api|worker|nats)-.+"'
IN_CONTAINER = f'container!="", {IN_POD}'
IN_DEPLOYMENT = 'deployment=~".+-(api|worker)"'
IN_STATEFUL_SET = 'statefulset=~".+-nats"'
IN_AUTOSCALER = 'horizontalpodautoscaler=~".+-(api|worker)"'
IN_CLAIM = 'persistentvolumeclaim=~".+-nats-[0-9]+"'

MEMORY = "namespace_fullname_pod_container:memory_working_set_bytes_per_limit:ratio"
FREE = "namespace_fullname_persistentvolumeclaim:available_bytes_per_capacity:ratio"


def ours(expr: str, label: str, pattern: str) -> str:
    """Keep what is about our own objects, and say under which fullname.

    Args:
        expr: PromQL for anybody's objects.
        label: the label with their name.
        pattern: what the name has to match, with the fullname in its group.
    """
    return (
        f'label_replace(\n{indent(expr, "  ")},\n  "fullname", "$1", "{label}", "{pattern}"\n)\n'
        f"  and on (namespace, fullname)\n{FULLNAMES}"
    )


RECORDINGS = (
    Recording(
        name=FULLNAMES,
        expr=dedent(f"""\
            group by (namespace, fullname) (
              label_replace(
                last_over_time({series("up", f'pod=~"{DEPLOYED_POD}"')}[1h]),
                "fullname", "$1", "pod", "{DEPLOYED_POD}"
              )
            )"""),
    ),
    Recording(
        name=MEMORY,
        expr=ours(
            dedent(f"""\
                max {BY_CONTAINER} (container_memory_working_set_bytes{{{IN_CONTAINER}}})
                  /
                max {BY_CONTAINER} (kube_pod_container_resource_limits{{resource="memory", {IN_POD}}})"""),
            "pod",
            POD,
        ),
    ),
    Recording(
        name=FREE,
        expr=ours(
            dedent(f"""\
                max {BY_CLAIM} (kubelet_volume_stats_available_bytes{{{IN_CLAIM}}})
                  /
                max {BY_CLAIM} (kubelet_volume_stats_capacity_bytes{{{IN_CLAIM}}})"""),
            "persistentvolumeclaim",
            CLAIM,
        ),
    ),
)

PODS = (
    Alert(
        name="FacialServiceMemoryNearLimit",
        expr=f"{MEMORY} > 0.9",
        hold="10m",
        severity="warning",
        summary="A container is close to its memory limit.",
        description=(
            f"The container {CONTAINER} uses {PERCENT} of its memory limit; at the limit, the kernel kills one of its "
            "processes."
        ),
        dashboard="facial-service-resources",
    ),
    Alert(
        name="FacialServiceOomKilled",
        # Where one process of several is killed the container goes on, and only cAdvisor knows.
        expr=ours(
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
        summary="The kernel killed a process for want of memory.",
        description=(
            f"In the container {CONTAINER}, the kernel killed a process for want of memory in the last 15 minutes."
        ),
        dashboard="facial-service-resources",
    ),
    Alert(
        name="FacialServiceCpuThrottled",
        expr=ours(
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
        summary="A container is held back by its CPU limit.",
        description=(
            f"The container {CONTAINER} was stopped by its CPU limit in {PERCENT} of the periods in which it ran."
        ),
        dashboard="facial-service-resources",
    ),
    Alert(
        name="FacialServiceCrashLooping",
        expr=ours(
            f"max {BY_CONTAINER} (\n  max_over_time(\n"
            f'    kube_pod_container_status_waiting_reason{{reason="CrashLoopBackOff", {IN_POD}}}[5m]\n  )\n) > 0',
            "pod",
            POD,
        ),
        hold="10m",
        severity="warning",
        summary="A container ends again and again.",
        description=(
            f"The container {CONTAINER} ends soon after each start, and Kubernetes waits longer and longer before the "
            "next."
        ),
        dashboard="facial-service-resources",
    ),
)

WORKLOADS = (
    Alert(
        name="FacialServiceReplicasMismatch",
        # Quiet while something is being rolled out.
        expr=ours(
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
        + ours(
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
        summary="A workload has fewer pods than it should.",
        description=(
            f"{{{{ $labels.deployment }}}}{{{{ $labels.statefulset }}}} {IN_NAMESPACE} lacks {COUNT} of its pods, and "
            "no rollout is under way."
        ),
        dashboard="facial-service-resources",
    ),
    Alert(
        name="FacialServiceHpaAtMaximum",
        expr=ours(
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
        summary="An autoscaler has no more pods to give.",
        description=(
            f"{{{{ $labels.horizontalpodautoscaler }}}} {IN_NAMESPACE} runs the {COUNT} pods that are its maximum; "
            "more load will not be met by more pods."
        ),
        dashboard="facial-service-resources",
    ),
    Alert(
        name="FacialServiceVolumeFilling",
        expr=dedent(f"""\
            {FREE} < 0.05
              or
            (
                {FREE} < 0.2
              and
                predict_linear({FREE}[6h], 86400) < 0
            )"""),
        hold="15m",
        severity="warning",
        summary="The queue's volume is filling up.",
        description=(
            f"The volume of {{{{ $labels.persistentvolumeclaim }}}} {IN_NAMESPACE} has {PERCENT} left: less than 5%, "
            "or what will be used up within a day at the pace of the last 6 hours."
        ),
        dashboard="facial-service-tasks",
    ),
)

GROUPS = (
    Group(name="facial-service-kubernetes.rules", rules=RECORDINGS),
    Group(name="facial-service-kubernetes", rules=PODS + WORKLOADS),
)

"""What Kubernetes knows of the service's pods and workloads: panels that need more exporters than the service's own."""

from __future__ import annotations

from typing import Final

from grafana.builder.colours import GREEN, GREY, ORANGE, RED
from grafana.builder.layout import row, section
from grafana.builder.limits import fires
from grafana.builder.panels import Query, Scale, graph
from grafana.builder.queries import combine, ours

IN_CONTAINER: Final = 'container!=""'
POD: Final = "namespace, pod"
CONTAINER: Final = "namespace, pod, container"


def _container(metric: str, *matchers: str, over: str = "", by: str = CONTAINER, operator: str = "sum") -> str:
    return combine(operator, ours(metric, "pod", *matchers, over=over), by)


def _pod_resource(kind: str, resource: str) -> str:
    # kube-state-metrics may run twice for a moment, so its figures are never simply added up.
    each = _container(f"kube_pod_container_resource_{kind}", f'resource="{resource}"', operator="max")
    return combine("sum", each, POD)


WORKING_SET: Final = _container("container_memory_working_set_bytes", IN_CONTAINER, operator="max")
MEMORY_LIMIT: Final = _container("kube_pod_container_resource_limits", 'resource="memory"', operator="max")
THROTTLED: Final = _container("container_cpu_cfs_throttled_periods_total", IN_CONTAINER, over="increase")
PERIODS: Final = _container("container_cpu_cfs_periods_total", IN_CONTAINER, over="increase")
USED_CPU: Final = _container("container_cpu_usage_seconds_total", IN_CONTAINER, over="rate", by=POD)
USED_MEMORY: Final = _container("container_memory_working_set_bytes", IN_CONTAINER, by=POD)

UNREADY: Final = _container(
    "kube_pod_status_ready", 'condition!="true"', by="namespace, fullname, pod, condition", operator="max"
)

PODS: Final = section(
    "Pods (Kubernetes)",
    row(
        graph(
            "CPU by pod",
            "Cores that each pod uses, and what it has asked for and may use at most.",
            Scale("short"),
            Query(expr=USED_CPU, legend="{{pod}}"),
            Query(expr=_pod_resource("requests", "cpu"), legend="{{pod}} request", colour=ORANGE, is_dashed=True),
            Query(expr=_pod_resource("limits", "cpu"), legend="{{pod}} limit", colour=RED, is_dashed=True),
        ),
        graph(
            "Memory by pod",
            "Memory that each pod uses and cannot give back, and what it has asked for and may use at most. Metric "
            "files are kept in memory and count.",
            Scale("bytes"),
            Query(expr=USED_MEMORY, legend="{{pod}}"),
            Query(
                expr=_pod_resource("requests", "memory"),
                legend="{{pod}} request",
                colour=ORANGE,
                is_dashed=True,
            ),
            Query(expr=_pod_resource("limits", "memory"), legend="{{pod}} limit", colour=RED, is_dashed=True),
        ),
        graph(
            "Memory of the limit",
            "Share of its limit that a container uses. At the limit the kernel kills one of its processes.",
            Scale("percentunit", (fires("FacialServiceMemoryNearLimit"),), most=1),
            Query(expr=f"{WORKING_SET} / {MEMORY_LIMIT}", legend="{{pod}} {{container}}"),
        ),
    ),
    row(
        graph(
            "Held back by the CPU limit",
            "Share of the periods in which a container was stopped by its CPU limit. Good: none.",
            Scale("percentunit", (fires("FacialServiceCpuThrottled"),)),
            Query(expr=f"{THROTTLED} / ({PERIODS} > 0)", legend="{{pod}} {{container}}"),
        ),
        graph(
            "Restarts and kills for want of memory",
            "Containers that were started anew, and processes that the kernel killed at the memory limit. Good: none.",
            Scale("short"),
            Query(
                expr=_container("kube_pod_container_status_restarts_total", over="increase", operator="max"),
                legend="{{pod}} {{container}} restarted",
            ),
            Query(
                expr=_container("container_oom_events_total", IN_CONTAINER, over="increase"),
                legend="{{pod}} {{container}} killed",
                colour=RED,
            ),
        ),
        graph(
            "Pods that are not ready",
            "Pods that take no work: starting, draining, or in trouble. Good: none, but for moments.",
            Scale("short"),
            Query(
                expr=combine("sum", UNREADY, "namespace, fullname"),
                legend="{{fullname}}",
                colour=ORANGE,
            ),
        ),
    ),
)


def _workload(label: str, metric: str) -> str:
    return combine("max", ours(metric, label), f"namespace, {label}")


WORKLOADS: Final = section(
    "Workloads (Kubernetes)",
    row(
        graph(
            "Replicas",
            "Pods that each workload should have, and those that it has. Good: the lines go together.",
            Scale("short"),
            Query(
                expr=_workload("deployment", "kube_deployment_spec_replicas"),
                legend="{{deployment}} wanted",
                colour=GREY,
                is_dashed=True,
            ),
            Query(
                expr=_workload("deployment", "kube_deployment_status_replicas_available"),
                legend="{{deployment}}",
            ),
            Query(
                expr=_workload("statefulset", "kube_statefulset_replicas"),
                legend="{{statefulset}} wanted",
                colour=GREY,
                is_dashed=True,
            ),
            Query(
                expr=_workload("statefulset", "kube_statefulset_status_replicas_ready"),
                legend="{{statefulset}}",
            ),
        ),
        graph(
            "Autoscaling",
            "Pods that an autoscaler has, wants, and may have. At its maximum more load is not met by more pods "
            "(FacialServiceHpaAtMaximum).",
            Scale("short"),
            *(
                Query(
                    expr=_workload("horizontalpodautoscaler", f"kube_horizontalpodautoscaler_{metric}"),
                    legend=f"{{{{horizontalpodautoscaler}}}} {name}",
                    colour=colour,
                    is_dashed=colour is not None,
                )
                for metric, name, colour in (
                    ("status_current_replicas", "has", None),
                    ("status_desired_replicas", "wants", None),
                    ("spec_min_replicas", "minimum", GREEN),
                    ("spec_max_replicas", "maximum", RED),
                )
            ),
        ),
        graph(
            "Volume of the queue: free",
            "Share of the queue's volume that is left. The alert also looks at how fast it goes down.",
            Scale("percentunit", (fires("FacialServiceVolumeFilling"),), most=1),
            Query(
                expr=f"{_workload('persistentvolumeclaim', 'kubelet_volume_stats_available_bytes')} / "
                f"{_workload('persistentvolumeclaim', 'kubelet_volume_stats_capacity_bytes')}",
                legend="{{persistentvolumeclaim}}",
            ),
        ),
    ),
)

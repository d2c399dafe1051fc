"""Panels for pods and workloads, from metrics of Kubernetes exporters."""

from __future__ import annotations

from typing import Final

from grafana.builder.colours import GREEN, GREY, ORANGE, RED
from grafana.builder.layout import panel_row, section
from grafana.builder.panels import Query, Scale, timeseries_panel
from grafana.builder.queries import aggregate, own_objects
from grafana.builder.thresholds import alert_threshold

IN_CONTAINER: Final = 'container!=""'
POD: Final = "cluster, namespace, pod"
CONTAINER: Final = "cluster, namespace, pod, container"


def _container(metric: str, *matchers: str, over: str = "", by: str = CONTAINER, operator: str = "sum") -> str:
    return aggregate(operator, own_objects(metric, "pod", *matchers, over=over), by)


def _pod_resource(kind: str, resource: str) -> str:
    # Deduplicate, because two instances of kube-state-metrics may run during a rollout.
    by_container = _container(f"kube_pod_container_resource_{kind}", f'resource="{resource}"', operator="max")
    return aggregate("sum", by_container, POD)


WORKING_SET: Final = _container("container_memory_working_set_bytes", IN_CONTAINER, operator="max")
MEMORY_LIMIT: Final = _container("kube_pod_container_resource_limits", 'resource="memory"', operator="max")
THROTTLED: Final = _container("container_cpu_cfs_throttled_periods_total", IN_CONTAINER, over="increase")
PERIODS: Final = _container("container_cpu_cfs_periods_total", IN_CONTAINER, over="increase")
USED_CPU: Final = _container("container_cpu_usage_seconds_total", IN_CONTAINER, over="rate", by=POD)
USED_MEMORY: Final = _container("container_memory_working_set_bytes", IN_CONTAINER, by=POD)

UNREADY: Final = _container(
    "kube_pod_status_ready", 'condition!="true"', by="cluster, namespace, fullname, pod, condition", operator="max"
)

PODS: Final = section(
    "Pods (Kubernetes)",
    panel_row(
        timeseries_panel(
            "CPU by pod",
            "CPU usage of each pod, in cores. Dashed: requests (orange) and limits (red).",
            Scale("short"),
            Query(expr=USED_CPU, legend="{{pod}}"),
            Query(
                expr=_pod_resource("requests", "cpu"),
                legend="{{pod}} request",
                colour=ORANGE,
                is_dashed=True,
                is_in_legend=False,
            ),
            Query(
                expr=_pod_resource("limits", "cpu"),
                legend="{{pod}} limit",
                colour=RED,
                is_dashed=True,
                is_in_legend=False,
            ),
        ),
        timeseries_panel(
            "Memory by pod",
            "Working set of each pod, with the in-memory metric files. Dashed: requests (orange) and limits (red).",
            Scale("bytes"),
            Query(expr=USED_MEMORY, legend="{{pod}}"),
            Query(
                expr=_pod_resource("requests", "memory"),
                legend="{{pod}} request",
                colour=ORANGE,
                is_dashed=True,
                is_in_legend=False,
            ),
            Query(
                expr=_pod_resource("limits", "memory"),
                legend="{{pod}} limit",
                colour=RED,
                is_dashed=True,
                is_in_legend=False,
            ),
        ),
        timeseries_panel(
            "Memory usage relative to the limit",
            "Memory usage of each container, relative to its limit. At the limit, the kernel kills a process.",
            Scale("percentunit", (alert_threshold("FacialServiceMemoryNearLimit"),), maximum=1),
            Query(expr=f"{WORKING_SET} / {MEMORY_LIMIT}", legend="{{pod}} {{container}}"),
        ),
    ),
    panel_row(
        timeseries_panel(
            "CPU throttling",
            "Ratio of CPU periods in which the container was throttled by its limit. Normal: none.",
            Scale("percentunit", (alert_threshold("FacialServiceCpuThrottled"),)),
            Query(expr=f"{THROTTLED} / ({PERIODS} > 0)", legend="{{pod}} {{container}}"),
        ),
        timeseries_panel(
            "Restarts and OOM kills",
            "Container restarts, and processes that the kernel killed because of a lack of memory. Normal: none.",
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
        timeseries_panel(
            "Pods that are not ready",
            "Number of pods that are starting, terminating or failing. Normal: only briefly more than 0.",
            Scale("short"),
            Query(
                expr=aggregate("sum", UNREADY, "cluster, namespace, fullname"),
                legend="{{fullname}}",
                colour=ORANGE,
            ),
        ),
    ),
)


def _workload(label: str, metric: str) -> str:
    return aggregate("max", own_objects(metric, label), f"cluster, namespace, {label}")


WORKLOADS: Final = section(
    "Workloads (Kubernetes)",
    panel_row(
        timeseries_panel(
            "Replicas",
            "Available pods of each workload. Dashed: desired pods. Normal: both are equal.",
            Scale("short"),
            Query(
                expr=_workload("deployment", "kube_deployment_spec_replicas"),
                legend="{{deployment}} desired",
                colour=GREY,
                is_dashed=True,
                is_in_legend=False,
            ),
            Query(
                expr=_workload("deployment", "kube_deployment_status_replicas_available"),
                legend="{{deployment}}",
            ),
            Query(
                expr=_workload("statefulset", "kube_statefulset_replicas"),
                legend="{{statefulset}} desired",
                colour=GREY,
                is_dashed=True,
                is_in_legend=False,
            ),
            Query(
                expr=_workload("statefulset", "kube_statefulset_status_replicas_ready"),
                legend="{{statefulset}}",
            ),
        ),
        timeseries_panel(
            "Autoscaling",
            "Current and desired pods of each autoscaler. Dashed: minimum (green) and maximum (red). At the maximum, "
            "FacialServiceHpaAtMaximum fires.",
            Scale("short"),
            *(
                Query(
                    expr=_workload("horizontalpodautoscaler", f"kube_horizontalpodautoscaler_{metric}"),
                    legend=f"{{{{horizontalpodautoscaler}}}} {name}",
                    colour=colour,
                    is_dashed=colour is not None,
                    is_in_legend=colour is None,
                )
                for metric, name, colour in (
                    ("status_current_replicas", "current", None),
                    ("status_desired_replicas", "desired", None),
                    ("spec_min_replicas", "minimum", GREEN),
                    ("spec_max_replicas", "maximum", RED),
                )
            ),
        ),
        timeseries_panel(
            "Free space of the queue's volume",
            "Ratio of free space on each volume. The alert also considers the rate of change.",
            Scale("percentunit", (alert_threshold("FacialServiceVolumeFilling"),), maximum=1),
            Query(
                expr=f"{_workload('persistentvolumeclaim', 'kubelet_volume_stats_available_bytes')} / "
                f"{_workload('persistentvolumeclaim', 'kubelet_volume_stats_capacity_bytes')}",
                legend="{{persistentvolumeclaim}}",
            ),
        ),
    ),
)

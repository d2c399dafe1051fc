"""Links of each panel: to the runbooks of its alerts, and to the panel with more detail."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from grafana_foundation_sdk.builders.dashboard import DashboardLink
from grafana_foundation_sdk.models.dashboard import DashboardLinkType

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from grafana_foundation_sdk.models import dashboard as models

    from prometheus.source.render import Links

OVERVIEW: Final = {
    "Alerts firing": "overview/Burn rate",
    "Instances": "resources/Instances that are not ready, FacialServiceDown, FacialServiceInstanceDown",
    "Success": "overview/Burn rate by window: availability, FacialServiceErrorBudgetBurn",
    "Budget": "overview/Error budget left over time, FacialServiceErrorBudgetBurn, FacialServiceLatencyBudgetBurn",
    "Burn rate (1h)": "overview/Burn rate, FacialServiceLatencyBudgetBurn",
    "Requests": "overview/Requests by route",
    "Duration (p95)": "overview/Request duration: quantiles",
    "Oldest task": "tasks/Age of the oldest task",
    "Requests by route": "overview/Requests in progress by route, FacialServiceSaturated",
    "Errors by route": "overview/Errors by component and code, FacialServiceErrorBudgetBurn",
    "Request duration by route (95th percentile)": "overview/Request duration",
    "Burn rate": "overview/Burn rate by window: availability, FacialServiceLatencyBudgetBurn",
    "Responses by status": "overview/Errors by component and code, FacialServiceAllRequestsFail",
    "Tasks": "tasks/Waiting and active tasks",
    "Error budget left over time": "FacialServiceErrorBudgetBurn, FacialServiceLatencyBudgetBurn",
    "Request duration": "FacialServiceLatencyHigh",
    "Request duration: quantiles": "FacialServiceLatencyHigh",
    "Requests in progress by route": "FacialServiceSaturated",
    "Rejections by reason": "FacialServiceSaturated, FacialServiceQueueFull",
    "Errors by component and code": "FacialServiceErrorSurge",
    "Upload time by route (95th percentile)": "overview/Request body size by route (95th percentile)",
    "Request body size by route (95th percentile)": "images/Request body size",
    "Instances by version": "overview/Version of each instance",
    "Version of each instance": "resources/Time since process start",
}

TASKS: Final = {
    "Queue": "tasks/Availability, FacialServiceQueueUnreachable, FacialServiceQueueUnreachableFromInstance",
    "Waiting": "tasks/Waiting and active tasks",
    "Active": "tasks/Worker utilization",
    "Oldest task": "tasks/Age of the oldest task",
    "Workers": "tasks/Workers by instance, FacialServiceNoTaskWorkers",
    "Failure ratio": "tasks/Failure ratio over time",
    "Dead letters": "tasks/Dead-lettered tasks",
    "Storage used": "tasks/Storage",
    "Submissions and completions": "tasks/Rejected submissions, FacialServiceQueueBacklogGrowing",
    "Age of the oldest task": "FacialServiceNoTaskWorkers",
    "Wait time": "tasks/Wait time distribution, FacialServiceQueueBacklogGrowing",
    "Processing time": "tasks/Processing time distribution",
    "Failure ratio over time": "tasks/Failures by code",
    "Redelivery ratio": "tasks/Redeliveries",
    "Repairs": "FacialServiceTaskRepairs",
    "Failures by code": "FacialServiceTaskFailureRatioHigh",
    "Redeliveries": "FacialServiceRedeliveries",
    "Workers by instance": "FacialServiceNoTaskWorkers",
    "Worker utilization": "FacialServiceQueueBacklogGrowing",
    "Worker exits by reason": "FacialServiceWorkerExits",
    "Wait time distribution": "FacialServiceQueueBacklogGrowing",
    "Processing time distribution": "images/Processing time by step",
    "Storage": "FacialServiceQueueStorageNearlyFull",
    "Availability": "FacialServiceQueueUnreachable, FacialServiceQueueNotWritable",
    "NATS server memory": "resources/Memory by pod",
    "NATS server connections": "FacialServiceQueueUnreachableFromInstance",
}

IMAGES: Final = {
    "Results": "images/Processing time by step",
    "Time per result": "images/Step duration (mean)",
    "Decoding (p95)": "images/Step duration: decode",
    "Decode failures": "images/Decode failure ratio",
    "Regions per result": "images/Regions by name",
    "Cache hit ratio": "images/Cache hit ratio over time",
    "Processing time by step": "images/Step duration (mean)",
    "Step duration (95th percentile)": "images/Step duration (mean)",
    "Decode failure ratio": "images/Input errors by code",
    "Input errors by code": "FacialServiceErrorSurge, FacialServiceDecodeFailures",
    "Regions by name": "images/Landmarks",
    "Face detection": "images/Step duration: detect",
    "Step duration": "FacialServiceLatencyHigh",
    "Request body size": "overview/Request body size by route (95th percentile)",
    "Response body size": "images/Throughput",
    "Throughput": "resources/CPU by process",
    "Image formats": "FacialServiceDecodeFailures",
    "Cache lookups": "images/Cache hit ratio over time",
    "Cache hit ratio over time": "images/Cache lookups",
    "Landmarks": "images/Face detection",
}

RESOURCES: Final = {
    "Instances": "resources/Instances that are not ready, FacialServiceDown, FacialServiceInstanceDown",
    "Processes": "resources/Processes by type",
    "CPU": "resources/CPU by process",
    "CPU per API worker": "resources/CPU by process",
    "Memory": "resources/Memory by process",
    "Slowest scrape": "resources/Scrape duration",
    "Memory by process": "resources/Memory relative to the container's limit, FacialServiceMemoryNearLimit",
    "Processes by type": "resources/Worker exits by reason",
    "Worker exits by reason": "FacialServiceWorkerExits",
    "File descriptors exhausted": "FacialServiceFileDescriptorsExhausted",
    "Metric files per process": "resources/Metric files",
    "Scrape duration": "resources/Samples per scrape",
    "CPU by pod": "resources/CPU throttling",
    "Memory by pod": "resources/Memory usage relative to the limit",
    "Restarts and OOM kills": "FacialServiceOomKilled, FacialServiceCrashLooping",
    "Pods that are not ready": "FacialServiceNotReady, FacialServiceUnavailable",
    "Replicas": "FacialServiceReplicasMismatch, FacialServiceUnavailable",
    "Autoscaling": "FacialServiceHpaAtMaximum",
    "Time since process start": "FacialServiceWorkerExits",
    "Memory relative to the container's limit": "FacialServiceMemoryNearLimit",
    "Instances that are not ready": "FacialServiceNotReady",
    "Child process exits": "FacialServiceChildExits",
    "Metric files": "FacialServiceMetricFilesGrowing",
    "Metric storage failures": "FacialServiceMetricsLost",
    "Spans dropped": "resources/CPU by process",
    "Samples per scrape": "FacialServiceScrapeSlow",
}

MORE: Final[Mapping[str, Mapping[str, str]]] = {
    "facial-service-overview": OVERVIEW,
    "facial-service-tasks": TASKS,
    "facial-service-images": IMAGES,
    "facial-service-resources": RESOURCES,
}
"""Targets by dashboard and panel: panels with more detail, and alerts in addition to those of the thresholds.

A key that is only the beginning of a title, up to `` (`` or ``:``, covers all titles with that beginning.
"""


class PanelLinks:
    """Links of the panels of all dashboards.

    Args:
        panels: panels by the UID of their dashboard.
        links: base URLs; without that of the runbooks, only links to panels exist.
    """

    def __init__(self, panels: Mapping[str, Iterable[models.Panel]], links: Links) -> None:
        self._ids = {(uid, panel.title): panel.id_val for uid, each in panels.items() for panel in each}
        self._links = links

    def of(self, uid: str, title: str, alerts: Iterable[str]) -> list[models.DashboardLink]:
        """Return the links of a panel.

        Args:
            uid: UID of its dashboard.
            title: its title.
            alerts: alerts of its thresholds.
        """
        named = [target for target in _targets(uid, title) if "/" not in target]
        return [*self._details(uid, title), *self._runbooks(dict.fromkeys([*alerts, *named]))]

    def _details(self, uid: str, title: str) -> Iterator[models.DashboardLink]:
        for target in _targets(uid, title):
            name, _, other = target.partition("/")
            if other:
                there = f"facial-service-{name}"
                url = f"/d/{there}?viewPanel={self._ids[there, other]}&${{__all_variables}}&${{__url_time_range}}"
                yield _link(f"Details: {other}", url)

    def _runbooks(self, alerts: Iterable[str]) -> Iterator[models.DashboardLink]:
        if self._links.runbooks is not None:
            for alert in alerts:
                yield _link(f"Runbook: {alert}", self._links.runbook_url(alert))


def _targets(uid: str, title: str) -> list[str]:
    table, keys = MORE[uid], (title, title.partition(" (")[0], title.partition(":")[0])
    found = next((table[key] for key in keys if key in table), "")
    return found.split(", ") if found else []


def _link(title: str, url: str) -> models.DashboardLink:
    return DashboardLink(title).type(DashboardLinkType.LINK).url(url).build()

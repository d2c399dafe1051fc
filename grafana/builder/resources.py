"""Resources dashboard: processes, and pods and workloads in Kubernetes."""

from __future__ import annotations

from typing import Final

from grafana.builder.colours import BLUE, GREY, ORANGE, PURPLE, RED
from grafana.builder.kubernetes import PODS, WORKLOADS
from grafana.builder.layout import DashboardSpec, collapsed_section, panel_row, section, stat_row
from grafana.builder.panels import Query, Scale, stat_panel, timeseries_panel
from grafana.builder.queries import aggregate, increase, series, with_place, with_selector
from grafana.builder.thresholds import METRIC_FILE_BYTES, METRIC_FILES, Threshold, alert_threshold
from prometheus.source import processes

MEMORY: Final = series("memory_usage_bytes")
CPU: Final = series("cpu_usage_percent")
API_CPU: Final = aggregate("avg", with_selector(processes.CPU))
RUNNING: Final = aggregate("count", with_place(MEMORY), "place")
# Process type without its number: worker-0, worker-1 → worker.
MEMORY_BY_KIND: Final = f'label_replace({MEMORY}, "kind", "$1", "process", "(.+?)(?:-[0-9]+)?")'

STATS: Final = stat_row(
    stat_panel(
        "Instances",
        "Number of targets that are up and down. Normal: none is down.",
        Scale("none"),
        Query(expr=f"sum({series('up')})", legend="up", thresholds=()),
        Query(expr=f"count({series('up')} == 0) or vector(0)", legend="down", thresholds=(Threshold(1, RED),)),
        no_value="no targets",
    ),
    stat_panel(
        "Processes",
        "Number of processes of the service, including masters and exporters.",
        Scale("short", base=BLUE),
        Query(expr=aggregate("count", MEMORY)),
    ),
    stat_panel(
        "CPU",
        "CPU usage of all processes, in cores.",
        Scale("short", base=BLUE, decimals=2),
        Query(expr=f"sum({CPU}) / 100"),
    ),
    stat_panel(
        "CPU per API worker",
        "Mean CPU usage of the API worker processes, in percent of one core. At 100 %, requests wait.",
        Scale("percent", (alert_threshold("FacialServiceCpuSaturated"),), decimals=0),
        Query(expr=API_CPU),
    ),
    stat_panel(
        "Memory",
        "Resident memory of all processes. Shared pages count for each process.",
        Scale("bytes", base=BLUE),
        Query(expr=aggregate("sum", MEMORY)),
    ),
    stat_panel(
        "Slowest scrape",
        "Duration of the slowest scrape. Normal: well below one second.",
        Scale("s", (alert_threshold("FacialServiceScrapeSlow"),)),
        Query(expr=aggregate("max", series("scrape_duration_seconds"))),
    ),
)

PROCESSES: Final = panel_row(
    timeseries_panel(
        "CPU by process",
        "CPU usage of each process, in percent of one core. The alert uses the mean of the API workers.",
        Scale("percent", (alert_threshold("FacialServiceCpuSaturated"),)),
        Query(expr=aggregate("sum", with_place(CPU), "place, process"), legend="{{place}} {{process}}"),
    ),
    timeseries_panel(
        "Memory by process",
        "Resident memory of each process. Normal: constant after the first minutes.",
        Scale("bytes"),
        Query(expr=aggregate("sum", with_place(MEMORY), "place, process"), legend="{{place}} {{process}}"),
    ),
    timeseries_panel(
        "Processes by type",
        "Number of running processes, by type. Normal: the configured number.",
        Scale("short"),
        Query(expr=aggregate("count", MEMORY_BY_KIND, "kind"), legend="{{kind}}"),
        is_stacked=True,
    ),
)

METRICS: Final = panel_row(
    timeseries_panel(
        "Worker exits by reason",
        "Exits of worker processes. Reasons: stopped (requested), killed (SIGKILL, usually out of memory), timeout (no "
        "heartbeat), crashed (defect). Normal: only `stopped`. The alert FacialServiceWorkerExits covers 15 minutes.",
        Scale("short"),
        Query(expr=increase(series("app_worker_exits_total"), "reason"), legend="{{reason}}"),
        colours={"stopped": GREY, "killed": RED, "timeout": ORANGE, "crashed": PURPLE},
    ),
    timeseries_panel(
        "File descriptors exhausted",
        "Number of processes that have no free file descriptors and cannot accept connections. Normal: 0.",
        Scale("short"),
        Query(
            expr=aggregate("sum", with_place(series("file_descriptors_exhausted")), "place, process"),
            legend="{{place}} {{process}}",
        ),
    ),
    timeseries_panel(
        "Metric files per process",
        "Number of multi-process metric files per running process. Normal: constant, and below the threshold.",
        Scale("short", (METRIC_FILES,)),
        Query(
            expr=f"{aggregate('sum', with_place(series('multiprocess_files')), 'place')} / on (place) {RUNNING}",
            legend="{{place}}",
        ),
    ),
    timeseries_panel(
        "Scrape duration",
        "Scrape duration of each instance. Normal: well below one second.",
        Scale("s", (alert_threshold("FacialServiceScrapeSlow"),)),
        Query(expr=aggregate("max", with_place(series("scrape_duration_seconds")), "place"), legend="{{place}}"),
    ),
)

METRIC_STORAGE: Final = collapsed_section(
    "Metrics, scrapes and traces",
    panel_row(
        timeseries_panel(
            "Metric file size per process",
            "Total size of the multi-process metric files, per running process.",
            Scale("bytes", (METRIC_FILE_BYTES,)),
            Query(
                expr=f"{aggregate('sum', with_place(series('multiprocess_bytes')), 'place')} / on (place) {RUNNING}",
                legend="{{place}}",
            ),
        ),
        timeseries_panel(
            "Metric files",
            "Number of multi-process metric files of each instance. Growth indicates a leak.",
            Scale("short"),
            Query(expr=aggregate("max", with_place(series("multiprocess_files")), "place"), legend="{{place}}"),
        ),
        timeseries_panel(
            "Metric storage failures",
            "Number of processes that cannot write metrics, and of files that cannot be read. Normal: none.",
            Scale("short"),
            Query(
                expr=aggregate("max", with_place(series("multiprocess_failing_processes")), "place"),
                legend="{{place}} processes",
            ),
            Query(
                expr=aggregate("max", with_place(series("multiprocess_unreadable_files")), "place"),
                legend="{{place}} files",
            ),
        ),
    ),
    panel_row(
        timeseries_panel(
            "Samples per scrape",
            "Number of samples per scrape. Normal: constant after the first minutes.",
            Scale("short"),
            Query(expr=aggregate("max", with_place(series("scrape_samples_scraped")), "place"), legend="{{place}}"),
        ),
        timeseries_panel(
            "Spans dropped",
            "Number of spans of traces that were not exported, by reason. Normal: none. If an export fails, check the "
            "collector; if a queue is full, sample less.",
            Scale("short"),
            Query(expr=increase(series("trace_spans_dropped_total"), "reason"), legend="{{reason}}"),
        ),
    ),
)

PROCESS_DETAILS: Final = collapsed_section(
    "Process details",
    panel_row(
        timeseries_panel(
            "Time since process start",
            "Time since each process started. A drop shows that the process was replaced.",
            Scale("s"),
            Query(
                expr=aggregate("max", f"time() - {with_place(series('process_start_time_seconds'))}", "place, process"),
                legend="{{place}} {{process}}",
            ),
        ),
        timeseries_panel(
            "Memory relative to the container's limit",
            "Resident memory of all processes of an instance, relative to the memory limit of its container; 0 if "
            "there is no limit.",
            Scale("percentunit", maximum=1),
            Query(
                expr=f"{aggregate('sum', with_place(MEMORY), 'place')} / on (place) "
                f"{aggregate('max', with_place(series('memory_limit_bytes')), 'place')} or 0 * "
                f"{aggregate('sum', with_place(MEMORY), 'place')}",
                legend="{{place}}",
            ),
        ),
        timeseries_panel(
            "Instances that are not ready",
            "Instances that are up but not ready: they are starting, stopping or failing. Normal: only briefly.",
            Scale("short"),
            Query(
                expr=f"{aggregate('max', with_place(series('service_ready')), 'place')} == bool 0",
                legend="{{place}}",
            ),
        ),
        timeseries_panel(
            "Child process exits",
            "Unexpected exits of processes that are not workers; the master restarts them. Normal: none.",
            Scale("short"),
            Query(expr=increase(series("app_child_exits_total"), "process"), legend="{{process}}"),
        ),
    ),
)

DASHBOARD: Final = DashboardSpec(
    "facial-service-resources",
    "Resources",
    "Resource usage: CPU, memory and processes; in Kubernetes also pods, limits, restarts and autoscaling.",
    (section("", STATS, PROCESSES, METRICS), PODS, WORKLOADS, PROCESS_DETAILS, METRIC_STORAGE),
)

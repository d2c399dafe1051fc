"""Rules for the service's own processes: their ends, their CPU, their metrics."""

from __future__ import annotations

from textwrap import dedent

from prometheus.source.model import BY, COUNT, DURATION, INSTANCE, NUMBER, PLACE, Alert, Group, series

ENDS = series("app_worker_exits_total", 'reason!="stopped"')
CPU = series("cpu_usage_percent", 'process=~"worker-[0-9]+"')

# Each process has a file of counters, one of histograms and, where it answers requests, one of gauges. With every
# route and method there is, the largest takes 2 MiB.
FILES_A_PROCESS = 3
BYTES_A_PROCESS = 4 * 1024 * 1024
PROCESSES = f"count without (process) ({series('memory_usage_bytes')})"

GROUPS = (
    Group(
        name="facial-service-processes",
        rules=(
            Alert(
                name="FacialServiceWorkerExits",
                expr=f"sum by (namespace, job, reason) (increase({ENDS}[15m])) >= 3",
                hold="1m",
                severity="warning",
                summary="Worker processes end without being told to.",
                description=(
                    f"About {COUNT} worker processes{PLACE} ended in the last 15 minutes with the reason "
                    "{{ $labels.reason }}: killed is mostly want of memory, timeout is silence, crashed is a fault."
                ),
                dashboard="facial-service-resources",
            ),
            Alert(
                name="FacialServiceCpuSaturated",
                expr=f"avg {BY} (avg_over_time({CPU}[5m])) > 90",
                hold="15m",
                severity="warning",
                summary="The API's worker processes have no CPU time to spare.",
                description=(
                    f"On average, the API's worker processes{PLACE} use {NUMBER} % of a core each. A "
                    "process can use one core; beyond that requests wait, and then are turned away."
                ),
                dashboard="facial-service-resources",
            ),
            Alert(
                name="FacialServiceMetricFilesGrowing",
                expr=dedent(f"""\
                    {series("multiprocess_files")} > {FILES_A_PROCESS} * {PROCESSES}
                      or
                    {series("multiprocess_bytes")} > {BYTES_A_PROCESS} * {PROCESSES}"""),
                hold="15m",
                severity="warning",
                summary="The folder of the metric files has more in it than the processes account for.",
                description=(
                    f"The folder of {INSTANCE}{PLACE} has more than {FILES_A_PROCESS} files, or more than "
                    f"{BYTES_A_PROCESS // 1024**2} MiB, for each process that runs. Scrapes become slower with each "
                    "file, and a full folder in memory ends processes."
                ),
                dashboard="facial-service-resources",
            ),
            Alert(
                name="FacialServiceScrapeSlow",
                expr=f"avg_over_time({series('scrape_duration_seconds')}[5m]) > 2",
                hold="10m",
                severity="warning",
                summary="Scrapes of an instance take long.",
                description=(
                    f"A scrape of {INSTANCE}{PLACE} takes {DURATION}; it is "
                    "made to take less than a second. Scrapes that take longer than their limit are lost."
                ),
                dashboard="facial-service-resources",
            ),
        ),
    ),
)

"""Rules for the service's processes: exits, CPU usage and metric files."""

from __future__ import annotations

from textwrap import dedent

from prometheus.source.model import BY, COUNT, DURATION, INSTANCE, LOCATION, NUMBER, Alert, Group, series

EXITS = series("app_worker_exits_total", 'reason!="stopped"')
CPU = series("cpu_usage_percent", 'process=~"worker-[0-9]+"')

# Each process has one file for counters, one for histograms and, if it serves requests, one for gauges. If every route
# and method is in use, the largest file has 2 MiB.
FILES_PER_PROCESS = 3
BYTES_PER_PROCESS = 4 * 1024 * 1024
PROCESSES = f"count without (process) ({series('memory_usage_bytes')})"

GROUPS = (
    Group(
        name="facial-service-processes",
        rules=(
            Alert(
                name="FacialServiceWorkerExits",
                expr=f"sum by (namespace, job, reason) (increase({EXITS}[15m])) >= 3",
                hold="1m",
                severity="warning",
                summary="Worker processes exit unexpectedly.",
                description=(
                    f"About {COUNT} worker processes{LOCATION} exited in the last 15 minutes with the reason "
                    "{{ $labels.reason }}. Usual causes: lack of memory (killed), no heartbeat (timeout), a defect "
                    "(crashed)."
                ),
                dashboard="facial-service-resources",
            ),
            Alert(
                name="FacialServiceCpuSaturated",
                expr=f"avg {BY} (avg_over_time({CPU}[5m])) > 90",
                hold="15m",
                severity="warning",
                summary="The API worker processes are CPU-bound.",
                description=(
                    f"On average, each API worker process{LOCATION} uses {NUMBER} % of a core. A process can use one "
                    "core. Beyond that, requests wait, and then the API rejects them."
                ),
                dashboard="facial-service-resources",
            ),
            Alert(
                name="FacialServiceMetricFilesGrowing",
                expr=dedent(f"""\
                    {series("multiprocess_files")} > {FILES_PER_PROCESS} * {PROCESSES}
                      or
                    {series("multiprocess_bytes")} > {BYTES_PER_PROCESS} * {PROCESSES}"""),
                hold="15m",
                severity="warning",
                summary="The metric file directory contains more files or bytes than expected.",
                description=(
                    f"The metric file directory of {INSTANCE}{LOCATION} has more than {FILES_PER_PROCESS} files, or "
                    f"more than {BYTES_PER_PROCESS // 1024**2} MiB, per running process. Each file slows down scrapes. "
                    "If an in-memory directory is full, metrics are lost."
                ),
                dashboard="facial-service-resources",
            ),
            Alert(
                name="FacialServiceScrapeSlow",
                expr=f"avg_over_time({series('scrape_duration_seconds')}[5m]) > 2",
                hold="10m",
                severity="warning",
                summary="Scrapes of an instance are slow.",
                description=(
                    f"A scrape of {INSTANCE}{LOCATION} takes {DURATION}; less than one second is normal. Scrapes that "
                    "exceed the scrape timeout are lost."
                ),
                dashboard="facial-service-resources",
            ),
        ),
    ),
)

"""Rules for the service's processes: exits, CPU usage and metric files."""

from __future__ import annotations

from textwrap import dedent

from prometheus.source.model import BY, COUNT, DURATION, INSTANCE, LOCATION, NUMBER, Alert, Group, by, series

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
                expr=f"sum {by('reason')} (increase({EXITS}[15m])) >= 3",
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
                name="FacialServiceChildExits",
                expr=f"sum {by('process')} (increase({series('app_child_exits_total')}[15m])) >= 3",
                hold="1m",
                severity="warning",
                summary="A child process exits unexpectedly.",
                description=(
                    f"{{{{ $labels.process }}}}{LOCATION} exited about {COUNT} times in the last 15 minutes. The "
                    "master restarts it. Without nats-server there is no queue, and without the exporter no metrics."
                ),
                dashboard="facial-service-resources",
            ),
            Alert(
                name="FacialServiceFileDescriptorsExhausted",
                expr=f"{series('file_descriptors_exhausted')} == 1",
                hold="5m",
                severity="warning",
                summary="A process has no free file descriptors.",
                description=(
                    f"{{{{ $labels.process }}}} of {INSTANCE}{LOCATION} cannot accept connections, because it has no "
                    "free file descriptors. The instance is not ready."
                ),
                dashboard="facial-service-resources",
            ),
            Alert(
                name="FacialServiceMetricsLost",
                expr=dedent(f"""\
                    {series("multiprocess_failing_processes")} > 0
                      or
                    {series("multiprocess_unreadable_files")} > 0"""),
                hold="10m",
                severity="warning",
                summary="Metrics of an instance are incomplete.",
                description=(
                    f"{INSTANCE}{LOCATION} has processes that cannot write their metrics, or metric files with invalid "
                    f"content: {COUNT}. Its counters and histograms are too low."
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
                # The scrapes of an instance that is down take as long as the scrape timeout.
                expr=dedent(f"""\
                    avg_over_time({series("scrape_duration_seconds")}[5m]) > 2
                      and
                    {series("up")} == 1"""),
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

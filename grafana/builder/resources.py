"""The dashboard of what the service uses: processes everywhere, pods and workloads in Kubernetes."""

from __future__ import annotations

from typing import Final

from grafana.builder.colours import BLUE, GREY, ORANGE, PURPLE, RED
from grafana.builder.kubernetes import PODS, WORKLOADS
from grafana.builder.layout import Page, folded, headline, row, section
from grafana.builder.limits import BYTES, FILES, Step, fires
from grafana.builder.panels import Query, Scale, graph, number
from grafana.builder.queries import chosen, combine, increase, placed, series
from prometheus.source import processes

MEMORY: Final = series("memory_usage_bytes")
CPU: Final = series("cpu_usage_percent")
API_CPU: Final = combine("avg", chosen(processes.CPU))
RUNNING: Final = combine("count", placed(MEMORY), "place")
# worker-0, worker-1 → worker: what a process is, without its number.
KIND: Final = f'label_replace({MEMORY}, "kind", "$1", "process", "(.+?)(?:-[0-9]+)?")'

WELL: Final = headline(
    number(
        "Instances",
        "Targets that answer Prometheus, and those that do not. Good: none is down.",
        Scale("none"),
        Query(expr=f"sum({series('up')})", legend="up", steps=()),
        Query(expr=f"count({series('up')} == 0) or vector(0)", legend="down", steps=(Step(1, RED),)),
        none="no target",
    ),
    number(
        "Processes",
        "Processes of the service, those beside API and task workers included.",
        Scale("short", base=BLUE),
        Query(expr=combine("count", MEMORY)),
    ),
    number(
        "CPU",
        "Cores that all processes use together.",
        Scale("short", base=BLUE, decimals=2),
        Query(expr=f"sum({CPU}) / 100"),
    ),
    number(
        "CPU of an API worker",
        "What the API's worker processes use of a core, on average. At 100 % requests wait.",
        Scale("percent", (fires("FacialServiceCpuSaturated"),), decimals=0),
        Query(expr=API_CPU),
    ),
    number(
        "Memory",
        "Resident memory of all processes; pages that they share count in each.",
        Scale("bytes", base=BLUE),
        Query(expr=combine("sum", MEMORY)),
    ),
    number(
        "Slowest scrape",
        "Time that the slowest scrape takes. Good: well below a second.",
        Scale("s", (fires("FacialServiceScrapeSlow"),)),
        Query(expr=combine("max", series("scrape_duration_seconds"))),
    ),
)

PROCESSES: Final = row(
    graph(
        "CPU by process",
        "What each process uses of a core. A worker can use one core; the alert is on the mean of the API's workers.",
        Scale("percent", (fires("FacialServiceCpuSaturated"),)),
        Query(expr=combine("sum", placed(CPU), "place, process"), legend="{{place}} {{process}}"),
    ),
    graph(
        "Memory by process",
        "Resident memory of each process. Good: flat after the first minutes.",
        Scale("bytes"),
        Query(expr=combine("sum", placed(MEMORY), "place, process"), legend="{{place}} {{process}}"),
    ),
    graph(
        "Processes by kind",
        "Processes that run: API workers, task workers, and what is beside them. Good: as many as were asked for.",
        Scale("short"),
        Query(expr=combine("count", KIND, "kind"), legend="{{kind}}"),
        is_stacked=True,
    ),
)

METRICS: Final = row(
    graph(
        "Worker processes ended",
        "Processes that ended, by reason: told to, by SIGKILL (mostly for want of memory), for silence, by a fault. "
        "Good: none but `stopped`. FacialServiceWorkerExits counts a quarter of an hour.",
        Scale("short"),
        Query(expr=increase(series("app_worker_exits_total"), "reason"), legend="{{reason}}"),
        colours={"stopped": GREY, "killed": RED, "timeout": ORANGE, "crashed": PURPLE},
    ),
    graph(
        "Processes without file descriptors",
        "Processes that cannot open more files, and so accept no connections. Good: 0.",
        Scale("short"),
        Query(
            expr=combine("sum", placed(series("file_descriptors_exhausted")), "place, process"),
            legend="{{place}} {{process}}",
        ),
    ),
    graph(
        "Metric files per process",
        "Files of the multi-process metrics for each process that runs. Good: flat, and below the line.",
        Scale("short", (FILES,)),
        Query(
            expr=f"{combine('sum', placed(series('multiprocess_files')), 'place')} / on (place) {RUNNING}",
            legend="{{place}}",
        ),
    ),
    graph(
        "Time of a scrape",
        "Time that Prometheus waits for the metrics of an instance. Good: well below a second.",
        Scale("s", (fires("FacialServiceScrapeSlow"),)),
        Query(expr=combine("max", placed(series("scrape_duration_seconds")), "place"), legend="{{place}}"),
    ),
)

FOLDER: Final = folded(
    "Metrics and scrapes",
    row(
        graph(
            "Bytes of metric files per process",
            "What the files of the multi-process metrics take for each process that runs.",
            Scale("bytes", (BYTES,)),
            Query(
                expr=f"{combine('sum', placed(series('multiprocess_bytes')), 'place')} / on (place) {RUNNING}",
                legend="{{place}}",
            ),
        ),
        graph(
            "Metric files",
            "Files of the multi-process metrics, of each instance: a number that grows is a leak.",
            Scale("short"),
            Query(expr=combine("max", placed(series("multiprocess_files")), "place"), legend="{{place}}"),
        ),
        graph(
            "Metric storage failing",
            "Processes that cannot write their metric files, and files that cannot be read. Good: none.",
            Scale("short"),
            Query(
                expr=combine("max", placed(series("multiprocess_failing_processes")), "place"),
                legend="{{place}} processes",
            ),
            Query(
                expr=combine("max", placed(series("multiprocess_unreadable_files")), "place"), legend="{{place}} files"
            ),
        ),
        graph(
            "Samples of a scrape",
            "Samples that a scrape of an instance brings. Good: flat after the first minutes.",
            Scale("short"),
            Query(expr=combine("max", placed(series("scrape_samples_scraped")), "place"), legend="{{place}}"),
        ),
    ),
)


PAGE: Final = Page(
    "facial-service-resources",
    "Resources",
    "What the service uses: CPU, memory and processes everywhere; in Kubernetes pods, limits, restarts, autoscaling.",
    (section("", WELL, PROCESSES, METRICS), PODS, WORKLOADS, FOLDER),
)

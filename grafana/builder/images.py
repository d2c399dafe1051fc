"""Images dashboard: cost of each processing step, and errors in inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from app.observability.metrics import METRICS
from grafana.builder.colours import BLUE, GREEN, GREY, RED
from grafana.builder.layout import DashboardSpec, PanelRow, Section, collapsed_section, panel_row, section, stat_row
from grafana.builder.panels import Query, Scale, heatmap_panel, stat_panel, timeseries_panel
from grafana.builder.queries import buckets, mean, quantile, rate, ratio, series, with_selector
from grafana.builder.thresholds import alert_threshold
from prometheus.source import api
from prometheus.source.model import WORK

if TYPE_CHECKING:
    from grafana.builder.panels import AnyPanel

STEP_DURATION: Final = "image_processing_duration_seconds"
REQUEST_SIZE: Final = "api_request_size_bytes"
RESPONSE_SIZE: Final = "api_response_size_bytes"
OPERATION_DESCRIPTIONS: Final = {
    "parse": "Parse the body: JSON or form, base64, landmarks.",
    "sniff": "Detect the image format, and verify the file without decoding pixels.",
    "decode": "Decode pixels, if the request needs them; by far the most expensive step.",
    "detect": "Detect faces, if the request contains no landmarks.",
    "mesh": "Compute the face mesh, twice.",
    "iris": "Add the iris landmarks to the mesh.",
    "warp": "Warp the image to the result frame, if it is the background.",
    "encode": "Encode the background image.",
    "segmentation": "Extract the regions of the label map.",
    "contours": "Compute the contours of the regions.",
    "svg": "Render the SVG.",
    "document": "Serialize the response.",
}

# Every result includes one SVG.
RESULTS: Final = rate(series(f"{STEP_DURATION}_count", 'operation="svg"'))
REGIONS: Final = rate(series("regions_generated_total"))
CACHE_LOOKUPS: Final = series("cache_lookups_total")
HIT_RATIO: Final = ratio(rate(series("cache_lookups_total", 'result="hit"')), rate(CACHE_LOOKUPS))
DECODE_ERROR_RATIO: Final = ratio(rate(with_selector(api.DECODE_ERRORS)), rate(with_selector(api.WORK_REQUESTS)))
OPERATIONS: Final = next(spec.labels["operation"] for spec in METRICS if spec.name == STEP_DURATION)

STATS: Final = stat_row(
    stat_panel(
        "Results",
        "Results per second, of synchronous requests and tasks.",
        Scale("ops", base=BLUE),
        Query(expr=RESULTS),
    ),
    stat_panel(
        "Time per result",
        "Total time of all processing steps per result.",
        Scale("s", base=BLUE),
        Query(expr=f"{rate(series(f'{STEP_DURATION}_sum'))} / ({RESULTS} > 0)"),
        no_value="no traffic",
    ),
    stat_panel(
        "Decoding (p95)",
        "95th percentile of the pixel decoding time.",
        Scale("s", base=BLUE),
        Query(expr=quantile(0.95, STEP_DURATION, 'operation="decode"')),
        no_value="no decoding",
    ),
    stat_panel(
        "Decode failures",
        "Ratio of processing requests with an image that is corrupt, truncated or in an unsupported format.",
        Scale("percentunit", (alert_threshold("FacialServiceDecodeFailures"),), decimals=1),
        Query(expr=DECODE_ERROR_RATIO),
        no_value="no traffic",
    ),
    stat_panel(
        "Regions per result",
        "Mean number of regions per result.",
        Scale("short", base=BLUE, decimals=1),
        Query(expr=f"{REGIONS} / ({RESULTS} > 0)"),
        no_value="no traffic",
    ),
    stat_panel(
        "Cache hit ratio",
        "Ratio of result-cache lookups that found a result (RESULT_CACHE).",
        Scale("percentunit", base=BLUE, decimals=1),
        Query(expr=HIT_RATIO),
        no_value="no lookups",
    ),
)

COST: Final = panel_row(
    timeseries_panel(
        "Processing time by step",
        "Processing seconds per second, by step. The thickest band is the most expensive step.",
        Scale("s"),
        Query(expr=rate(series(f"{STEP_DURATION}_sum"), "operation"), legend="{{operation}}"),
        is_stacked=True,
    ),
    timeseries_panel(
        "Step duration (95th percentile)",
        "95th percentile of the duration of each step.",
        Scale("s"),
        Query(expr=quantile(0.95, STEP_DURATION, by="operation"), legend="{{operation}}"),
    ),
    timeseries_panel(
        "Decode failure ratio",
        "Ratio of processing requests with an image that is corrupt, truncated or in an unsupported format.",
        Scale("percentunit", (alert_threshold("FacialServiceDecodeFailures"),)),
        Query(expr=DECODE_ERROR_RATIO, legend="failures", colour=RED),
    ),
)

INPUTS: Final = panel_row(
    timeseries_panel(
        "Input errors by code",
        "Errors per second in images, landmarks and label maps, by error code.",
        Scale("ops"),
        Query(expr=rate(series("errors_total", 'component="images"'), "type"), legend="{{type}}"),
    ),
    timeseries_panel(
        "Regions by name",
        "Regions per second, by name. `custom` stands for names that clients define.",
        Scale("ops"),
        Query(expr=rate(series("regions_generated_total"), "type"), legend="{{type}}"),
        is_stacked=True,
    ),
    timeseries_panel(
        "Face detection",
        "Images scanned for faces per second, by outcome.",
        Scale("ops"),
        Query(expr=rate(series("faces_detected_total"), "result"), legend="{{result}}"),
        is_stacked=True,
    ),
)


def _heatmap(operation: str) -> AnyPanel:
    description = f"{OPERATION_DESCRIPTIONS[operation]} Runs of this step by duration."
    return heatmap_panel(
        f"Step duration: {operation}", description, "s", Query(expr=buckets(STEP_DURATION, f'operation="{operation}"'))
    )


def _operations() -> Section:
    """Create one heatmap per step of the metrics table, and a graph of their means."""
    panels = [_heatmap(operation) for operation in OPERATIONS]
    means = timeseries_panel(
        "Step duration (mean)",
        "Mean duration of each processing step.",
        Scale("s"),
        Query(expr=mean(STEP_DURATION, by="operation"), legend="{{operation}}"),
    )
    panels.append(means)
    return Section("Step durations", [PanelRow(8, panels[at : at + 4]) for at in range(0, len(panels), 4)])


SIZES: Final = collapsed_section(
    "Formats and sizes",
    panel_row(
        heatmap_panel(
            "Request body size",
            "Bodies of processing requests (POST) by size, with image, landmarks and label map.",
            "bytes",
            Query(expr=buckets(REQUEST_SIZE, WORK)),
        ),
        heatmap_panel(
            "Response body size",
            "Response bodies of processing requests (POST) by size.",
            "bytes",
            Query(expr=buckets(RESPONSE_SIZE, WORK)),
        ),
        timeseries_panel(
            "Throughput",
            "Bytes per second in processing requests (POST) and their responses.",
            Scale("binBps"),
            Query(expr=rate(series(f"{REQUEST_SIZE}_sum", WORK)), legend="in", colour=BLUE),
            Query(expr=rate(series(f"{RESPONSE_SIZE}_sum", WORK)), legend="out", colour=GREEN),
        ),
        timeseries_panel(
            "Image formats",
            "Results per second, by the format of the image.",
            Scale("ops"),
            Query(expr=rate(series("images_processed_total"), "format"), legend="{{format}}"),
            is_stacked=True,
        ),
    ),
)

CACHE: Final = collapsed_section(
    "Cache and landmarks",
    panel_row(
        timeseries_panel(
            "Cache lookups",
            "Result-cache lookups per second, by outcome. Unavailable: the task store was unreachable.",
            Scale("ops"),
            Query(expr=rate(CACHE_LOOKUPS, "result"), legend="{{result}}"),
            colours={"hit": GREEN, "miss": GREY, "unavailable": RED},
            is_stacked=True,
        ),
        timeseries_panel(
            "Cache hit ratio over time",
            "Ratio of result-cache lookups that found a result.",
            Scale("percentunit", maximum=1),
            Query(expr=HIT_RATIO, legend="hits"),
        ),
        timeseries_panel(
            "Landmarks",
            "Landmarks per second in results. A face has 468 or 478 landmarks.",
            Scale("ops"),
            Query(expr=rate(series("landmarks_processed_total")), legend="landmarks"),
        ),
    ),
)

DASHBOARD: Final = DashboardSpec(
    "facial-service-images",
    "Images",
    "Image processing: cost of each step, regions, formats, and errors in inputs.",
    (section("", STATS, COST, INPUTS), _operations(), SIZES, CACHE),
)

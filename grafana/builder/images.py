"""The dashboard of images: what each step of the work costs, and what is wrong with what callers send."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from app.observability.metrics import METRICS
from grafana.builder.colours import BLUE, GREEN, GREY, RED
from grafana.builder.layout import Line, Page, Section, folded, headline, row, section
from grafana.builder.limits import fires
from grafana.builder.panels import Query, Scale, graph, heat, number
from grafana.builder.queries import buckets, chosen, mean, quantile, rate, series, share
from prometheus.source import api
from prometheus.source.model import WORK

if TYPE_CHECKING:
    from grafana.builder.panels import AnyPanel

STEP: Final = "image_processing_duration_seconds"
REQUEST: Final = "api_request_size_bytes"
ANSWER: Final = "api_response_size_bytes"
ABOUT: Final = {
    "parse": "Reading the body: JSON or form, base64, landmarks.",
    "sniff": "Finding out what file it is, and proving it whole without decoding its pixels.",
    "decode": "Decoding pixels; only where a request needs them, and the dearest step by far.",
    "detect": "Looking for faces; only where landmarks are left out.",
    "mesh": "From a face to its mesh, twice.",
    "iris": "Adding the irises to a mesh.",
    "warp": "Drawing the photo in the frame of the result; only where it is its background.",
    "encode": "Writing that background as a file.",
    "segmentation": "From a label map to the regions it marks.",
    "contours": "From regions to contours.",
    "svg": "Writing the overlay.",
    "document": "Writing the answer.",
}

# Every result has one SVG, whatever else was asked for.
DONE: Final = rate(series(f"{STEP}_count", 'operation="svg"'))
REGIONS: Final = rate(series("regions_generated_total"))
LOOKUPS: Final = series("cache_lookups_total")
HIT_SHARE: Final = share(rate(series("cache_lookups_total", 'result="hit"')), rate(LOOKUPS))
UNREADABLE_SHARE: Final = share(rate(chosen(api.UNREADABLE)), rate(chosen(api.ASKED)))
OPERATIONS: Final = next(spec.labels["operation"] for spec in METRICS if spec.name == STEP)

WELL: Final = headline(
    number(
        "Results",
        "Photos a second that became a result, for callers who wait and in tasks.",
        Scale("ops", base=BLUE),
        Query(expr=DONE),
    ),
    number(
        "Work for a result",
        "Time of all steps together for each result.",
        Scale("s", base=BLUE),
        Query(expr=f"{rate(series(f'{STEP}_sum'))} / ({DONE} > 0)"),
        none="no traffic",
    ),
    number(
        "Decoding, 95th percentile",
        "95th percentile of the time that decoding pixels takes.",
        Scale("s", base=BLUE),
        Query(expr=quantile(0.95, STEP, 'operation="decode"')),
        none="none decoded",
    ),
    number(
        "Unreadable",
        "Share of requests for work with a picture that is damaged, cut short or of an unknown format.",
        Scale("percentunit", (fires("FacialServiceDecodeFailures"),), decimals=1),
        Query(expr=UNREADABLE_SHARE),
        none="no traffic",
    ),
    number(
        "Regions a result",
        "Regions found in a photo on average.",
        Scale("short", base=BLUE, decimals=1),
        Query(expr=f"{REGIONS} / ({DONE} > 0)"),
        none="no traffic",
    ),
    number(
        "Found in the cache",
        "Share of requests that were answered with a result that was there already (RESULT_CACHE).",
        Scale("percentunit", base=BLUE, decimals=1),
        Query(expr=HIT_SHARE),
        none="not asked",
    ),
)

COST: Final = row(
    graph(
        "Where the time goes",
        "Seconds of work a second, by step: what is thick is worth making faster.",
        Scale("s"),
        Query(expr=rate(series(f"{STEP}_sum"), "operation"), legend="{{operation}}"),
        is_stacked=True,
    ),
    graph(
        "Time of a step (95th percentile)",
        "Time that 95 of 100 runs of a step stay below.",
        Scale("s"),
        Query(expr=quantile(0.95, STEP, by="operation"), legend="{{operation}}"),
    ),
    graph(
        "Unreadable pictures",
        "Share of requests for work with a picture that is damaged, cut short or of an unknown format.",
        Scale("percentunit", (fires("FacialServiceDecodeFailures"),)),
        Query(expr=UNREADABLE_SHARE, legend="unreadable", colour=RED),
    ),
)

INPUTS: Final = row(
    graph(
        "What is wrong with inputs",
        "Errors a second by code: of the photo, of the landmarks, of the label map.",
        Scale("ops"),
        Query(expr=rate(series("errors_total", 'component="images"'), "type"), legend="{{type}}"),
    ),
    graph(
        "Regions by name",
        "Regions found a second; `custom` is a name that the caller gave.",
        Scale("ops"),
        Query(expr=rate(series("regions_generated_total"), "type"), legend="{{type}}"),
        is_stacked=True,
    ),
    graph(
        "Looks for faces",
        "Photos without landmarks a second, by what was found in them.",
        Scale("ops"),
        Query(expr=rate(series("faces_detected_total"), "result"), legend="{{result}}"),
        is_stacked=True,
    ),
)


def _heatmap(operation: str) -> AnyPanel:
    about = f"{ABOUT[operation]} Runs of the step by how long they took."
    return heat(f"Time: {operation}", about, "s", Query(expr=buckets(STEP, f'operation="{operation}"')))


def _operations() -> Section:
    """Draw a heatmap for each step that the metrics table knows, and their means beside them."""
    panels = [_heatmap(operation) for operation in OPERATIONS]
    means = graph(
        "Time of a step (mean)",
        "Time that a run of a step takes on average.",
        Scale("s"),
        Query(expr=mean(STEP, by="operation"), legend="{{operation}}"),
    )
    panels.append(means)
    return Section("Time of each step", [Line(8, panels[at : at + 4]) for at in range(0, len(panels), 4)])


SIZES: Final = folded(
    "Formats and sizes",
    row(
        heat(
            "Request bodies",
            "Bodies of requests for work (POST) by size: photo, landmarks and label map together.",
            "bytes",
            Query(expr=buckets(REQUEST, WORK)),
        ),
        heat(
            "Answers",
            "Bodies of the answers to requests for work (POST) by size.",
            "bytes",
            Query(expr=buckets(ANSWER, WORK)),
        ),
        graph(
            "Bytes in and out",
            "Bytes a second that requests for work (POST) and their answers carry.",
            Scale("binBps"),
            Query(expr=rate(series(f"{REQUEST}_sum", WORK)), legend="in", colour=BLUE),
            Query(expr=rate(series(f"{ANSWER}_sum", WORK)), legend="out", colour=GREEN),
        ),
        graph(
            "Formats",
            "Photos a second that became a result, by the format of their file.",
            Scale("ops"),
            Query(expr=rate(series("images_processed_total"), "format"), legend="{{format}}"),
            is_stacked=True,
        ),
    ),
)

CACHE: Final = folded(
    "Cache and landmarks",
    row(
        graph(
            "Looks into the cache",
            "Looks a second for a result that is there already. Unavailable: the queue's store gave no answer.",
            Scale("ops"),
            Query(expr=rate(LOOKUPS, "result"), legend="{{result}}"),
            colours={"hit": GREEN, "miss": GREY, "unavailable": RED},
            is_stacked=True,
        ),
        graph(
            "Share found in the cache",
            "Share of looks that found a result.",
            Scale("percentunit", most=1),
            Query(expr=HIT_SHARE, legend="found"),
        ),
        graph(
            "Landmarks",
            "Landmarks a second that went into a result; a face has 468 or 478.",
            Scale("ops"),
            Query(expr=rate(series("landmarks_processed_total")), legend="landmarks"),
        ),
    ),
)

PAGE: Final = Page(
    "facial-service-images",
    "Images",
    "The work on images: what each step costs, what is found, and what is wrong with inputs.",
    (section("", WELL, COST, INPUTS), _operations(), SIZES, CACHE),
)

"""Rules for what callers meet: the API's presence, its refusals, its slowness, its errors."""

from __future__ import annotations

from textwrap import dedent

from prometheus.source.model import (
    API,
    BY,
    DURATION,
    INSTANCE,
    PERCENT,
    PLACE,
    SUBMIT,
    WORK,
    Alert,
    Group,
    Recording,
    series,
)

# Where API and workers are scraped apart, `role` tells them apart; where one target has both, it is absent.
UP = series("up", 'role!="worker"')

REJECTED = series("api_rejections_total", 'reason="saturated"')
REFUSED = series("api_rejections_total", 'reason="queue_full"')
ASKED = series("api_requests_total", WORK)
SUBMITTED = series("api_requests_total", 'method="POST"', f'endpoint="{SUBMIT}"')
REQUESTS = series("api_requests_total", API)
TIME = "api_request_duration_seconds"
ENDED = series("task_completions_total")

# What a scan for open doors leaves behind is nobody's error.
ERRORS = series("errors_total", 'type!~"not_found|method_not_allowed|http_invalid|head_too_large|head_timeout"')
UNREADABLE = series("errors_total", 'type=~"image_(corrupt|empty|encoding|truncated|unsupported_format)"')
ERROR_RATIO = "namespace_job_component:errors_per_work:ratio_rate"


def _error_ratio(window: str) -> Recording:
    return Recording(
        name=ERROR_RATIO + window,
        expr=dedent(f"""\
            sum by (namespace, job, component) (rate({ERRORS}[{window}]))
              / on (namespace, job) group_left ()
            (
                sum {BY} (rate({REQUESTS}[{window}]))
              +
                sum {BY} (rate({ENDED}[{window}]))
            )"""),
    )


PRESENCE = (
    Alert(
        name="FacialServiceDown",
        expr=f"sum {BY} ({UP}) == 0",
        hold="2m",
        severity="critical",
        summary="No instance of the API answers.",
        description=f"None of the API's instances{PLACE} answers Prometheus; most likely, none answers callers either.",
        dashboard="facial-service-overview",
    ),
    Alert(
        name="FacialServiceAbsent",
        # The second part is for a Prometheus that has never seen it, or not for an hour; it can name no namespace.
        expr=dedent(f"""\
            (
                group {BY} (last_over_time({UP}[1h]))
              unless
                group {BY} ({UP})
            )
              or on (job)
            absent({UP})"""),
        hold="5m",
        severity="critical",
        summary="Prometheus knows of no instance of the API.",
        description=(
            f"There is no target of the API{PLACE} any more: its pods are gone, or whatever finds them for Prometheus "
            "no longer does. Most other alerts cannot fire meanwhile."
        ),
        dashboard="facial-service-overview",
    ),
    Alert(
        name="FacialServiceInstanceDown",
        expr=f"{series('up')} == 0",
        hold="10m",
        severity="warning",
        summary="An instance does not answer.",
        description=f"{INSTANCE}{PLACE} does not answer Prometheus.",
        dashboard="facial-service-resources",
    ),
)

REFUSALS = (
    Alert(
        name="FacialServiceSaturated",
        expr=dedent(f"""\
            sum {BY} (rate({REJECTED}[5m]))
              /
            sum {BY} (rate({ASKED}[5m]))
              > 0.05
              and
            sum {BY} (increase({REJECTED}[5m])) >= 10"""),
        hold="5m",
        severity="warning",
        summary="The API turns requests away because it is busy.",
        description=(
            f"{PERCENT} of the requests for work{PLACE} are answered with 503 saturated: every "
            "place of the process that got them was taken."
        ),
        dashboard="facial-service-overview",
    ),
    Alert(
        name="FacialServiceQueueFull",
        expr=dedent(f"""\
            sum {BY} (rate({REFUSED}[5m]))
              /
            sum {BY} (rate({SUBMITTED}[5m]))
              > 0.05
              and
            sum {BY} (increase({REFUSED}[5m])) >= 10"""),
        hold="5m",
        severity="warning",
        summary="Submissions are refused because the queue or the store of results is full.",
        description=(
            f"{PERCENT} of the submissions{PLACE} are answered with 503 queue_full. "
            "Tasks that were taken are not affected."
        ),
        dashboard="facial-service-tasks",
    ),
)

SLOWNESS = (
    Alert(
        name="FacialServiceLatencyHigh",
        expr=dedent(f"""\
            histogram_quantile(
              0.95,
              sum by (namespace, job, endpoint, le) (rate({series(TIME + "_bucket", WORK)}[5m]))
            )
              > 1
              and
            sum by (namespace, job, endpoint) (increase({series(TIME + "_count", WORK)}[5m])) >= 20"""),
        hold="10m",
        severity="warning",
        summary="A route of the API is slow.",
        description=(
            f"One in twenty requests to {{{{ $labels.endpoint }}}}{PLACE} takes longer than "
            f"{DURATION}, the sending of its body included."
        ),
        dashboard="facial-service-overview",
    ),
)

ERRORED = (
    Alert(
        name="FacialServiceErrorSurge",
        # A share that is always high is known; more than half is too much in any case.
        expr=dedent(f"""\
            (
                {ERROR_RATIO}10m > 0.1
              unless
                (
                    {ERROR_RATIO}10m <= 0.5
                  and
                    {ERROR_RATIO}10m <= 3 * {ERROR_RATIO}1d
                )
            )
              and
            sum by (namespace, job, component) (increase({ERRORS}[10m])) >= 30"""),
        hold="10m",
        severity="warning",
        summary="A component has far more errors than usual.",
        description=(
            f"The errors of the component {{{{ $labels.component }}}}{PLACE} come to {PERCENT} of all requests and "
            "tasks: more than half, or three times the share of the last day. They may be the callers' or the "
            "service's."
        ),
        dashboard="facial-service-overview",
    ),
    Alert(
        name="FacialServiceDecodeFailures",
        expr=dedent(f"""\
            sum {BY} (rate({UNREADABLE}[10m]))
              /
            sum {BY} (rate({ASKED}[10m]))
              > 0.2
              and
            sum {BY} (increase({UNREADABLE}[10m])) >= 20"""),
        hold="10m",
        severity="warning",
        summary="Many of the pictures that callers send cannot be read.",
        description=(
            f"{PERCENT} of the requests for work{PLACE} come with a picture that is damaged, "
            "cut short or of an unknown format."
        ),
        dashboard="facial-service-images",
    ),
)

GROUPS = (
    Group(name="facial-service-api.rules", rules=(_error_ratio("10m"), _error_ratio("1d"))),
    Group(name="facial-service-api", rules=PRESENCE + REFUSALS + SLOWNESS + ERRORED),
)

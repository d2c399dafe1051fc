"""Rules for the API: availability, rejections, latency and errors."""

from __future__ import annotations

from textwrap import dedent

from prometheus.source.model import (
    API,
    BY,
    COUNT,
    DURATION,
    INSTANCE,
    LOCATION,
    ON,
    PERCENT,
    SUBMIT,
    WORK,
    Alert,
    Group,
    Recording,
    by,
    level,
    series,
)

# API instances. `role` is absent if API and workers run in one instance.
UP = series("up", 'role!="worker"')
ON_INSTANCE = ON.replace(")", ", instance, pod)")
READY = series("service_ready", 'role!="worker"')

SATURATED = series("api_rejections_total", 'reason="saturated"')
QUEUE_FULL = series("api_rejections_total", 'reason="queue_full"')
WORK_REQUESTS = series("api_requests_total", WORK)
FAILED_WORK = series("api_requests_total", WORK, 'status=~"5.."')
ANSWERED_WORK = series("api_requests_total", WORK, 'status!~"5.."')
SUBMISSIONS = series("api_requests_total", 'method="POST"', f'endpoint="{SUBMIT}"')
REQUESTS = series("api_requests_total", API)
DURATION_METRIC = "api_request_duration_seconds"
COMPLETIONS = series("task_completions_total")

# Exclude responses to port scans, clients that disconnect, and health checks during a rollout.
_NO_ERRORS = "not_found|method_not_allowed|http_invalid|head_too_large|head_timeout|client_disconnected|not_ready"
ERRORS = series("errors_total", f'type!~"{_NO_ERRORS}"')
DECODE_ERRORS = series("errors_total", 'type=~"image_(corrupt|empty|encoding|truncated|unsupported_format)"')
ERROR_RATIO = f"{level('component')}:errors_per_work:ratio_rate"
# Exists if a blackbox exporter requests the API as its clients do; see the Probe of the chart.
PROBES = series("probe_success")
# Exists as soon as there are targets, even if no request has arrived yet.
TARGETS_UP = f"{level()}:up:sum"
# Recorded where kube-state-metrics exists: the API was scaled to zero on purpose.
SCALED_TO_ZERO = f"{level('fullname')}:api_scaled_to_zero:group"


def _error_ratio(window: str) -> Recording:
    return Recording(
        name=ERROR_RATIO + window,
        expr=dedent(f"""\
            sum {by("component")} (rate({ERRORS}[{window}]))
              / {ON} group_left ()
            (
                sum {BY} (rate({REQUESTS}[{window}]))
              +
                sum {BY} (rate({COMPLETIONS}[{window}]))
            )"""),
    )


AVAILABILITY_ALERTS = (
    Alert(
        name="FacialServiceDown",
        expr=f"sum {BY} ({UP}) == 0",
        hold="2m",
        severity="critical",
        summary="All API instances are down.",
        description=f"Prometheus cannot scrape any API instance{LOCATION}. Clients probably get no responses either.",
        dashboard="facial-service-overview",
    ),
    Alert(
        name="FacialServiceNotReady",
        # All instances drain at once only if the API is being removed, which takes less than this. Instances of another
        # version may not have the metric; then it is not known whether one of them is ready.
        expr=dedent(f"""\
            sum {BY} ({READY}) == 0
              unless
            group {BY} (
              {UP} == 1
                unless {ON_INSTANCE}
              {READY}
            )"""),
        hold="5m",
        severity="critical",
        summary="No API instance is ready.",
        description=(
            f"Prometheus can scrape API instances{LOCATION}, but none of them is ready, so requests do not reach them."
        ),
        dashboard="facial-service-overview",
    ),
    Alert(
        name="FacialServiceAbsent",
        # Only a rule that knows its release can distinguish one without targets from one that was uninstalled. So the
        # rules of the chart select their own release; these fire only if there is no target at all.
        expr=dedent(f"""\
            absent({UP})
              unless on (job)
            group by (job) ({series(SCALED_TO_ZERO)})"""),
        hold="5m",
        severity="critical",
        summary="Prometheus has no API targets.",
        description=(
            f"Prometheus has no API targets{LOCATION}: the pods do not exist, or service discovery does not find them. "
            "Most other alerts cannot fire in this state."
        ),
        dashboard="facial-service-overview",
    ),
    Alert(
        name="FacialServiceProbeFailing",
        # One lost request of five, at an interval of a minute, is not yet an outage.
        expr=dedent(f"""\
            avg {BY} (avg_over_time({PROBES}[5m])) < 0.75
              unless {ON}
            {series(SCALED_TO_ZERO)}"""),
        hold="5m",
        severity="critical",
        summary="Requests of the blackbox exporter to the API fail.",
        description=(
            f"Only {PERCENT} of the requests of the blackbox exporter to the API{LOCATION} in the last 5 minutes "
            "succeeded. Clients that use the same address probably get no responses either."
        ),
        dashboard="facial-service-overview",
    ),
    Alert(
        name="FacialServiceInstanceDown",
        expr=f"{series('up')} == 0",
        hold="10m",
        severity="warning",
        summary="An instance is down.",
        description=f"Prometheus cannot scrape {INSTANCE}{LOCATION}.",
        dashboard="facial-service-resources",
    ),
)

REJECTION_ALERTS = (
    Alert(
        name="FacialServiceAllRequestsFail",
        # Unlike the alerts on the error budget, it includes requests that were rejected because of load. A series that
        # begins with its first response has not increased.
        expr=dedent(f"""\
            sum {BY} (increase({FAILED_WORK}[10m])) >= 10
              unless
            sum {BY} (increase({ANSWERED_WORK}[10m])) > 0
              unless
            group {BY} (
              {ANSWERED_WORK}
                unless
              last_over_time({ANSWERED_WORK}[10m] offset 10m)
            )"""),
        hold="5m",
        severity="critical",
        summary="Every processing request fails.",
        description=(
            f"All of about {COUNT} processing requests{LOCATION} in the last 10 minutes failed with a 5xx status."
        ),
        dashboard="facial-service-overview",
    ),
    Alert(
        name="FacialServiceSaturated",
        expr=dedent(f"""\
            sum {BY} (rate({SATURATED}[5m]))
              /
            sum {BY} (rate({WORK_REQUESTS}[5m]))
              > 0.05
              and
            sum {BY} (increase({SATURATED}[5m])) >= 10"""),
        hold="5m",
        severity="warning",
        summary="The API rejects requests because it is saturated.",
        description=(
            f"The API rejects {PERCENT} of the processing requests{LOCATION} with 503 saturated, because the receiving "
            "worker processes are at capacity."
        ),
        dashboard="facial-service-overview",
    ),
    Alert(
        name="FacialServiceQueueFull",
        expr=dedent(f"""\
            sum {BY} (rate({QUEUE_FULL}[5m]))
              /
            sum {BY} (rate({SUBMISSIONS}[5m]))
              > 0.05
              and
            sum {BY} (increase({QUEUE_FULL}[5m])) >= 10"""),
        hold="5m",
        severity="warning",
        summary="The API rejects task submissions because the queue or the result store is full.",
        description=(
            f"The API rejects {PERCENT} of the task submissions{LOCATION} with 503 queue_full. "
            "Accepted tasks are not affected."
        ),
        dashboard="facial-service-tasks",
    ),
)

LATENCY_ALERTS = (
    Alert(
        name="FacialServiceLatencyHigh",
        expr=dedent(f"""\
            histogram_quantile(
              0.95,
              sum {by("endpoint", "le")} (rate({series(DURATION_METRIC + "_bucket", WORK)}[5m]))
            )
              > 1
              and
            sum {by("endpoint")} (increase({series(DURATION_METRIC + "_count", WORK)}[5m])) >= 20"""),
        hold="10m",
        severity="warning",
        summary="An API endpoint is slow.",
        description=(
            f"The 95th percentile of the request duration of {{{{ $labels.endpoint }}}}{LOCATION} is {DURATION}. "
            "The time to receive the body does not count."
        ),
        dashboard="facial-service-overview",
    ),
)

ERROR_ALERTS = (
    Alert(
        name="FacialServiceErrorSurge",
        # A ratio that is always high is accepted, unless it exceeds one half.
        expr=dedent(f"""\
            (
                {series(ERROR_RATIO + "10m")} > 0.1
              unless
                (
                    {series(ERROR_RATIO + "10m")} <= 0.5
                  and
                    {series(ERROR_RATIO + "10m")} <= 3 * {series(ERROR_RATIO + "1d")}
                )
            )
              and
            sum {by("component")} (increase({ERRORS}[10m])) >= 30"""),
        hold="10m",
        severity="warning",
        summary="The error ratio of a component is unusually high.",
        description=(
            f"The errors of component {{{{ $labels.component }}}}{LOCATION} amount to {PERCENT} of all requests and "
            "tasks. This is more than 50%, or three times the ratio of the last day. Client and server errors count."
        ),
        dashboard="facial-service-overview",
    ),
    Alert(
        name="FacialServiceDecodeFailures",
        expr=dedent(f"""\
            sum {BY} (rate({DECODE_ERRORS}[10m]))
              /
            sum {BY} (rate({WORK_REQUESTS}[10m]))
              > 0.2
              and
            sum {BY} (increase({DECODE_ERRORS}[10m])) >= 20"""),
        hold="10m",
        severity="warning",
        summary="Many images sent by clients cannot be decoded.",
        description=(
            f"{PERCENT} of the processing requests{LOCATION} contain an image that is corrupt, truncated or in an "
            "unsupported format."
        ),
        dashboard="facial-service-images",
    ),
)

GROUPS = (
    Group(
        name="facial-service-api.rules",
        rules=(
            Recording(name=TARGETS_UP, expr=f"sum {BY} ({series('up')})"),
            _error_ratio("10m"),
            _error_ratio("1d"),
        ),
    ),
    Group(name="facial-service-api", rules=AVAILABILITY_ALERTS + REJECTION_ALERTS + LATENCY_ALERTS + ERROR_ALERTS),
)

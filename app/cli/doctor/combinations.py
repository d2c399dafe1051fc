"""Settings that are legal and doubtful: one undoes another, or does not do what it looks like where it is used."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from app.cli.doctor.findings import Finding, mebibytes, note, warning

if TYPE_CHECKING:
    from collections.abc import Iterator

    from app.cli.doctor.context import Context
    from app.settings import Settings

PART = "settings.combinations"
LONGEST_POLL_S = 60  # the most that `?wait=` takes
USUAL_PROXY_S = 60  # nginx's and most load balancers' idle timeout


def find_doubts(context: Context) -> Iterator[Finding]:
    """Yield what is doubtful."""
    settings = context.settings
    yield from _of_rehearsals(settings)
    yield from _of_the_queue(settings)
    yield from _of_bounds(settings)
    yield from _of_the_network(context)
    yield from _of_metrics_and_logs(context)


def _of_rehearsals(settings: Settings) -> Iterator[Finding]:
    for name, is_on in (
        ("FAULT_WORK_S", settings.fault_work_s > 0),
        ("FAULT_POISON_REGION", bool(settings.fault_poison_region)),
    ):
        if is_on:
            yield warning(
                PART,
                name,
                "faults are being rehearsed",
                expected="no such variable where callers are served",
                advice=f"unset {name} and start the service again (chart: `settings.{name}`)",
            )


def _of_the_queue(settings: Settings) -> Iterator[Finding]:
    given = {name.upper() for name in settings.model_fields_set}
    ours = sorted(name for name in given if name.startswith(("NATS_", "TASK_")) and not name.endswith("_BUCKETS"))
    if not settings.enable_tasks and ours:
        advice = "set ENABLE_TASKS=true, or unset them"
        yield note(PART, "ENABLE_TASKS=false", f"{', '.join(ours)} have no effect on the API", advice)
        return
    remote = sorted(set(ours) & _OF_A_NAMED_SERVER)
    if not settings.nats_url and remote:
        yield warning(
            PART,
            ", ".join(remote),
            "set, and NATS_URL is empty: `serve` starts a queue of its own, and these have no effect",
            expected="NATS_URL with the server that they are about",
            advice="set NATS_URL (chart: `externalNats.url`), or unset them",
        )
    has_both = settings.nats_user or settings.nats_token.get_secret_value() or settings.nats_creds_file
    if has_both and any(urlsplit(server).username for server in settings.nats_servers):
        yield warning(
            PART,
            "NATS_URL",
            "credentials in the address, and in variables beside it; those in the address are not used",
            expected="credentials in one place",
            advice="take them out of NATS_URL",
        )
    if settings.nats_url and settings.nats_replicas in {2, 4}:
        yield warning(
            PART,
            "NATS_REPLICAS",
            f"{settings.nats_replicas}: it stands no more losses than {settings.nats_replicas - 1}",
            expected="1, 3 or 5",
            advice="set NATS_REPLICAS to 3 or 5 (chart: `nats.replicas`, `externalNats.replicas`)",
        )


_OF_A_NAMED_SERVER = {
    "NATS_REPLICAS",
    "NATS_USER",
    "NATS_PASSWORD",
    "NATS_TOKEN",
    "NATS_NKEY_SEED",
    "NATS_CREDS_FILE",
    "NATS_MONITOR_URL",
    "NATS_TLS_CA_FILE",
    "NATS_TLS_CERT_FILE",
    "NATS_TLS_KEY_FILE",
}


def _of_bounds(settings: Settings) -> Iterator[Finding]:
    if not settings.enable_tasks:
        return
    for name, bound in (
        ("TASK_QUEUE_MAX_BYTES", settings.task_queue_max_bytes),
        ("RESULT_MAX_BYTES", settings.result_max_bytes),
        ("TASK_DEAD_MAX_BYTES", settings.task_dead_max_bytes),
    ):
        if bound < settings.max_body_bytes:
            yield warning(
                PART,
                name,
                f"{mebibytes(bound)}, less than one request may have (MAX_BODY_BYTES, "
                f"{mebibytes(settings.max_body_bytes)})",
                expected="room for many of the largest requests",
                advice=f"raise {name}, or lower MAX_BODY_BYTES (chart: `settings`)",
            )
    if settings.result_ttl < LONGEST_POLL_S:
        yield note(
            PART,
            "RESULT_TTL",
            f"{settings.result_ttl} s: a caller may wait {LONGEST_POLL_S} s for a task, and find its result gone",
            "raise RESULT_TTL",
        )


def _of_the_network(context: Context) -> Iterator[Finding]:
    settings = context.settings
    is_local = _is_loopback(settings.host)
    if is_local and context.is_in_container:
        yield warning(
            PART,
            "HOST",
            f"{settings.host} in a container: nobody outside it reaches the API, metrics or probes",
            expected="HOST=0.0.0.0, or :: for IPv6",
            advice="set HOST=0.0.0.0; the image and the chart do",
        )
    if not is_local and not (settings.api_keys or settings.api_keys_file):
        advice = "set API_KEYS (chart: `apiKeys.existingSecret`) unless something in front asks who calls"
        yield note(PART, "API_KEYS", "empty: the API is open to whoever reaches the port", advice)
    if settings.forwarded_allow_ips.strip() == "*" and not is_local:
        advice = "name the proxies, unless nothing else can reach the port"
        yield note(PART, "FORWARDED_ALLOW_IPS", "`*`: whoever calls may claim to come from any address", advice)
    if "keep_alive_s" in settings.model_fields_set and settings.keep_alive_s <= USUAL_PROXY_S:
        advice = "set KEEP_ALIVE_S above the idle timeout of the proxy in front, or callers get 502 now and then"
        yield note(PART, "KEEP_ALIVE_S", f"{settings.keep_alive_s} s, and most proxies keep 60 s", advice)


def _of_metrics_and_logs(context: Context) -> Iterator[Finding]:
    settings = context.settings
    if not settings.enable_metrics:
        advice = "set ENABLE_METRICS=true, or take the alerts and the monitor of the chart away too"
        yield note(PART, "ENABLE_METRICS=false", "no metrics: dashboards are empty, and alerts say it is down", advice)
    if settings.log_format == "rich" and context.is_in_container:
        advice = "set LOG_FORMAT=json; it is a fraction of the cost"
        yield note(PART, "LOG_FORMAT=rich", "coloured lines in a container: each costs 2.8 ms of CPU", advice)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

"""The check of settings: invalid values, misspelt names, and combinations that are probably mistakes."""

from __future__ import annotations

import difflib
import ipaddress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from app.cli.doctor.findings import Finding, invalid_value, note, ok, warning
from app.observability.log_text import size_of
from app.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from app.cli.doctor.context import Context

NAMES = {name.upper() for name in Settings.model_fields}
# At 0.85, about one character in seven may differ. Less similar names belong to other programs.
MIN_SIMILARITY = 0.85
# HOST and PORT are too short to distinguish a typing error from a variable of another program.
MIN_LENGTH = 6
# Prefixes that users add by habit; the settings have none.
PREFIXES = ("FACIAL_SERVICE_", "FACIAL_")
COMBINATIONS = "settings.combinations"
MAX_POLL_S = 60  # the limit of `?wait=`
PROXY_IDLE_TIMEOUT_S = 60  # of nginx and most load balancers
_EXTERNAL_SERVER_ONLY = {
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


def check_settings(context: Context) -> Iterator[Finding]:
    """Check the environment variables."""
    yield from map(invalid_value, context.invalid)
    if not context.invalid:
        count = sum(name.upper() in NAMES for name, value in context.environment.items() if value)
        yield ok("settings.values", "environment variables", f"{count} set, all valid")
    yield from _check_names(context)
    doubtful = list(_check_combinations(context))
    yield from doubtful or [ok(COMBINATIONS, "all settings", "no conflicts")]


def _check_names(context: Context) -> Iterator[Finding]:
    part = "settings.names"
    variables = {name.upper() for name, value in context.environment.items() if value}
    matches = {name: setting for name in sorted(variables) if (setting := nearest_setting(name)) is not None}
    for name, setting in matches.items():
        if setting in variables:
            yield note(part, name, f"not a setting; {setting} is set as well", f"unset {name}")
        else:
            advice = f"rename it to {setting}, or unset it if it belongs to another program"
            yield warning(part, name, "set, but not a setting", expected=setting, advice=advice)
    if not matches:
        yield ok(part, "environment variables", "no misspelt settings")


def nearest_setting(name: str) -> str | None:
    """Return the setting that a variable is probably meant to be; None if it is a setting or resembles none.

    Example:
        >>> nearest_setting("WORKER"), nearest_setting("MAX_BODY_BYTE"), nearest_setting("FACIAL_NATS_URL")
        ('WORKERS', 'MAX_BODY_BYTES', 'NATS_URL')
        >>> nearest_setting("HOSTNAME"), nearest_setting("FACIAL_PORT"), nearest_setting("WORKERS")
        (None, None, None)
    """
    if name in NAMES:
        return None
    for prefix in PREFIXES:
        bare = name.removeprefix(prefix)
        # Kubernetes sets FACIAL_SERVICE_HOST and FACIAL_SERVICE_PORT for a Service of that name.
        if bare != name and bare in NAMES and "_" in bare:
            return bare
    if len(name) < MIN_LENGTH:
        return None
    return next(iter(difflib.get_close_matches(name, NAMES, n=1, cutoff=MIN_SIMILARITY)), None)


def _check_combinations(context: Context) -> Iterator[Finding]:
    yield from _check_fault_injection(context.settings)
    yield from _check_queue_settings(context.settings)
    yield from _check_sizes(context.settings)
    yield from _check_network(context)
    yield from _check_observability(context)


def _check_fault_injection(settings: Settings) -> Iterator[Finding]:
    for name, is_enabled in (
        ("FAULT_WORK_S", settings.fault_work_s > 0),
        ("FAULT_POISON_REGION", bool(settings.fault_poison_region)),
    ):
        if is_enabled:
            found, expected = "fault injection is enabled", "not set in production"
            advice = f"unset {name} and restart the service (chart: `settings.{name}`)"
            yield warning(COMBINATIONS, name, found, expected=expected, advice=advice)


def _check_queue_settings(settings: Settings) -> Iterator[Finding]:
    names = {name.upper() for name in settings.model_fields_set}
    names = {name for name in names if name.startswith(("NATS_", "TASK_")) and not name.endswith("_BUCKETS")}
    if not settings.enable_tasks and names:
        advice = "set ENABLE_TASKS=true, or unset them"
        yield note(COMBINATIONS, "ENABLE_TASKS=false", f"{', '.join(sorted(names))} have no effect on the API", advice)
        return
    unused = sorted(names & _EXTERNAL_SERVER_ONLY)
    if not settings.nats_url and unused:
        found = "no effect, because NATS_URL is empty and `serve` starts its own NATS server"
        expected = "NATS_URL with the address of the server"
        advice = "set NATS_URL (chart: `externalNats.url`), or unset them"
        yield warning(COMBINATIONS, ", ".join(unused), found, expected=expected, advice=advice)
    has_credentials = settings.nats_user or settings.nats_token.get_secret_value() or settings.nats_creds_file
    if has_credentials and any(urlsplit(server).username for server in settings.nats_servers):
        found = "credentials both in the URL and in other settings; those in the URL are ignored"
        expected, advice = "credentials in one place", "remove them from NATS_URL"
        yield warning(COMBINATIONS, "NATS_URL", found, expected=expected, advice=advice)
    if settings.nats_url and settings.nats_replicas in {2, 4}:
        found = f"{settings.nats_replicas}: tolerates no more failures than {settings.nats_replicas - 1}"
        advice = "set NATS_REPLICAS to 3 or 5 (chart: `nats.replicas`, `externalNats.replicas`)"
        yield warning(COMBINATIONS, "NATS_REPLICAS", found, expected="1, 3 or 5", advice=advice)


def _check_sizes(settings: Settings) -> Iterator[Finding]:
    if not settings.enable_tasks:
        return
    for name, limit in (
        ("TASK_QUEUE_MAX_BYTES", settings.task_queue_max_bytes),
        ("RESULT_MAX_BYTES", settings.result_max_bytes),
        ("TASK_DEAD_MAX_BYTES", settings.task_dead_max_bytes),
    ):
        if limit < settings.max_body_bytes:
            size, expected = size_of(settings.max_body_bytes), "enough for many requests of the maximum size"
            found = f"{size_of(limit)}: less than one request may have (MAX_BODY_BYTES, {size})"
            advice = f"raise {name}, or lower MAX_BODY_BYTES (chart: `settings`)"
            yield warning(COMBINATIONS, name, found, expected=expected, advice=advice)
    if settings.result_ttl < MAX_POLL_S:
        found = f"{settings.result_ttl} s: a result can expire during a long poll, which takes up to {MAX_POLL_S} s"
        yield note(COMBINATIONS, "RESULT_TTL", found, "raise RESULT_TTL")


def _check_network(context: Context) -> Iterator[Finding]:
    settings = context.settings
    is_local = _is_loopback(settings.host)
    if is_local and context.is_in_container:
        found = f"{settings.host}: the API, metrics and probes are unreachable from outside the container"
        advice = "set HOST=::, as the image and the chart do"
        yield warning(
            COMBINATIONS,
            "HOST",
            found,
            expected="HOST=:: for all addresses, or 0.0.0.0 for those of IPv4",
            advice=advice,
        )
    if not is_local and not (settings.api_keys or settings.api_keys_file):
        advice = "set API_KEYS (chart: `apiKeys.existingSecret`), unless a proxy authenticates clients"
        yield note(COMBINATIONS, "API_KEYS", "empty: every client that reaches the port can use the API", advice)
    if settings.forwarded_allow_ips.strip() == "*" and not is_local:
        advice = "list the addresses of the proxies, unless only they can reach the port"
        yield note(COMBINATIONS, "FORWARDED_ALLOW_IPS", "*: every client can forge its address", advice)
    if "keep_alive_s" in settings.model_fields_set and settings.keep_alive_s <= PROXY_IDLE_TIMEOUT_S:
        advice = "set KEEP_ALIVE_S above the idle timeout of the proxy, to avoid occasional responses with status 502"
        found = f"{settings.keep_alive_s} s: not above the idle timeout of most proxies, {PROXY_IDLE_TIMEOUT_S} s"
        yield note(COMBINATIONS, "KEEP_ALIVE_S", found, advice)


def _check_observability(context: Context) -> Iterator[Finding]:
    settings = context.settings
    if not settings.enable_metrics:
        advice = "set ENABLE_METRICS=true, or disable the alerts and the ServiceMonitor of the chart as well"
        found = "no metrics: dashboards are empty, and an alert reports the service as down"
        yield note(COMBINATIONS, "ENABLE_METRICS=false", found, advice)
    if settings.log_format == "rich" and context.is_in_container:
        found = "coloured logs in a container: each line takes 2.8 ms of CPU time"
        yield note(COMBINATIONS, "LOG_FORMAT=rich", found, "set LOG_FORMAT=json, which takes a fraction of that")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

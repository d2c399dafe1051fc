"""Service settings that a release may set, and their JSON schemas."""

from __future__ import annotations

from typing import Any

from app.settings import CommaList, Settings

MANAGED_SETTINGS = {
    "HOST": "",
    "PORT": "",
    "METRICS_PORT": "",
    "METRICS_ON_API_PORT": "`api.service.exposeMetrics`",
    "PROMETHEUS_MULTIPROC_DIR": "",
    "DATA_DIR": "",
    "LOG_FILE": "",
    "MODELS_DIR": "",
    "SLO_LATENCY_THRESHOLD_S": "`slo.latency.threshold`",
    "WORKERS": "`api.workers`",
    "TASK_WORKERS": "`worker.processes`",
    "GRACEFUL_TIMEOUT_S": "`api.gracefulTimeoutSeconds`, `worker.gracefulTimeoutSeconds`",
    "ENABLE_TASKS": "`worker.enabled`",
    "API_KEYS": "`apiKeys.existingSecret`",
    "API_KEYS_FILE": "`apiKeys.existingSecret`",
    "NATS_URL": "`nats.enabled`, `externalNats.url`",
    "NATS_MONITOR_URL": "`externalNats.monitorUrl`",
    "NATS_REPLICAS": "`nats.replicas`, `externalNats.replicas`",
    "NATS_SYNC_INTERVAL": "`nats.syncInterval`",
    "NATS_TOKEN": "`nats.auth.existingSecret`, `externalNats.existingSecret`",
    "NATS_USER": "`externalNats.existingSecret`",
    "NATS_PASSWORD": "`externalNats.existingSecret`",
    "NATS_NKEY_SEED": "`externalNats.existingSecret`",
    "NATS_CREDS_FILE": "`externalNats.credsSecret`",
    "NATS_TLS_CA_FILE": "`externalNats.tlsSecret`",
    "NATS_TLS_CERT_FILE": "`externalNats.tlsSecret`",
    "NATS_TLS_KEY_FILE": "`externalNats.tlsSecret`",
}
"""Settings that the chart manages, with the values that control them. An empty string means that there is none.

`templates/_checks.tpl` contains the same names to check `env`; a test compares them.
"""

SHARED_SETTINGS = frozenset(
    {
        "TASK_QUEUE_MAX_MESSAGES",
        "TASK_QUEUE_MAX_BYTES",
        "TASK_DEAD_MAX_BYTES",
        "TASK_ACK_WAIT_S",
        "TASK_DURATION_BUCKETS",
        "TASK_WAIT_BUCKETS",
        "RESULT_TTL",
        "RESULT_MAX_BYTES",
        "RESULT_CACHE",
        "MAX_IMAGE_PIXELS",
        "LANDMARK_MARGIN",
    }
)
"""Settings that must be equal for the API and the workers.

Both configure the streams and write the same records, and the worker validates again what the API has accepted.
"""

# Keywords of pydantic's schema that only document a field or describe its Python type.
_OMITTED_KEYWORDS = frozenset({"title", "default", "format", "writeOnly"})


def settings_schema(*, is_one_component: bool) -> dict[str, Any]:
    """Return the schema of a mapping of settings.

    Args:
        is_one_component: whether the mapping is for one component only, so that shared settings are excluded.
    """
    excluded = MANAGED_SETTINGS.keys() | (SHARED_SETTINGS if is_one_component else frozenset())
    known = {name.upper() for name in Settings.model_fields}
    if unknown := excluded - known:
        raise KeyError(f"unknown settings: {', '.join(sorted(unknown))}")
    fields = Settings.model_json_schema()["properties"]
    properties = {
        name.upper(): _setting_schema(fields[name], is_comma_list=CommaList in field.metadata)
        for name, field in Settings.model_fields.items()
        if name.upper() not in excluded
    }
    return {"type": "object", "additionalProperties": False, "properties": dict(sorted(properties.items()))}


def _setting_schema(field: dict[str, Any], *, is_comma_list: bool) -> dict[str, Any]:
    schema = {keyword: value for keyword, value in field.items() if keyword not in _OMITTED_KEYWORDS}
    if "anyOf" in schema:  # an optional file; the chart manages these
        raise KeyError(f"{field['title']}: unsupported type")
    if is_comma_list:
        items = {"items": {"type": schema["items"]["type"]}} if schema["type"] == "array" else {}
        types = ["string", "array"] if items else ["string"]
        schema = {"description": schema["description"], "type": types, **items}
    else:
        schema["type"] = [schema["type"]]
    # With null, one values file resets what another has set.
    schema["type"].append("null")
    if "enum" in schema:
        schema["enum"] = [*schema["enum"], None]
    return schema

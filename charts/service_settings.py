"""Which of the service's settings a release may set, and the JSON schema of each."""

from __future__ import annotations

from typing import Any

from app.settings import Settings
from app.task_settings import CommaList

OWN_SETTINGS = {
    "HOST": "",
    "PORT": "",
    "METRICS_PORT": "",
    "PROMETHEUS_MULTIPROC_DIR": "",
    "DATA_DIR": "",
    "LOG_FILE": "",
    "MODELS_DIR": "",
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
"""Settings that the chart sets itself, and the values it makes them of; of the others it leaves no choice.

`templates/_checks.tpl` has the same names, for variables of `env`; a test compares them.
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
"""Settings that API and workers have to agree on: both keep the streams in line with theirs and write the same records,
and what one accepts the other checks again."""

# What documents a schema of pydantic's, or says how Python sees a text.
_NOT_NEEDED = frozenset({"title", "default", "format", "writeOnly"})


def settings_schema(*, is_one_component: bool) -> dict[str, Any]:
    """Describe a mapping of settings by their names.

    Args:
        is_one_component: whether it is for the API or for workers alone, and so without what both have to agree on.
    """
    left_out = OWN_SETTINGS.keys() | (SHARED_SETTINGS if is_one_component else frozenset())
    known = {name.upper() for name in Settings.model_fields}
    if unknown := left_out - known:
        raise KeyError(f"the service has no settings {', '.join(sorted(unknown))}")
    fields = Settings.model_json_schema()["properties"]
    properties = {
        name.upper(): _setting_schema(fields[name], is_comma_list=CommaList in field.metadata)
        for name, field in Settings.model_fields.items()
        if name.upper() not in left_out
    }
    return {"type": "object", "additionalProperties": False, "properties": dict(sorted(properties.items()))}


def _setting_schema(field: dict[str, Any], *, is_comma_list: bool) -> dict[str, Any]:
    schema = {word: value for word, value in field.items() if word not in _NOT_NEEDED}
    if "anyOf" in schema:  # a file or nothing; nothing is what is left out
        raise KeyError(f"no form in values is known for {field['title']}")
    if is_comma_list:
        items = {"items": {"type": schema["items"]["type"]}} if schema["type"] == "array" else {}
        types = ["string", "array"] if items else ["string"]
        schema = {"description": schema["description"], "type": types, **items}
    else:
        schema["type"] = [schema["type"]]
    # One file of values takes back by null what another has set.
    schema["type"].append("null")
    if "enum" in schema:
        schema["enum"] = [*schema["enum"], None]
    return schema

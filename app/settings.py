"""Settings of the service in one frozen model; the only module that reads the environment.

The environment variable of a field has its name in capitals: ``MAX_BODY_BYTES`` sets ``max_body_bytes``. The tables in
the documentation and the schema of the chart are generated from the descriptions.
"""

from __future__ import annotations

import itertools
import math
import os
import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NamedTuple, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MIB: Final = 1024 * 1024

CommaList = NoDecode
"""Marker of fields whose variable is a comma-separated list instead of JSON."""


def _check_buckets(value: tuple[float, ...]) -> tuple[float, ...]:
    is_increasing = all(low < high for low, high in itertools.pairwise(value))
    if not value or not is_increasing or not all(math.isfinite(bound) and bound > 0 for bound in value):
        bounds = ",".join(f"{bound:g}" for bound in value)
        raise ValueError(f"expected at least one bound, all above 0 and increasing, got {bounds or 'none'}")
    return value


Buckets = Annotated[
    tuple[float, ...],
    CommaList,
    BeforeValidator(lambda value: tuple(value.split(",")) if isinstance(value, str) else value),
    AfterValidator(_check_buckets),
]

LOG_COMPONENTS: Final = ("api", "images", "tasks", "server")

# A request that reads only an image's header takes 2 to 5 ms, and one that decodes 64 Mpx up to some seconds.
REQUEST_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
# A processing step takes from 0.1 ms (a few contours) to some seconds (decoding 64 Mpx).
STEP_SECONDS: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
# From a response with landmarks only to the largest body that is accepted by default.
BODY_BYTES: Final = (1024.0, 4096.0, 16384.0, 65536.0, 262144.0, 1048576.0, 4194304.0, 16777216.0)
# A task takes as long as a request, or longer if the image is large or the attempt has to be repeated.
TASK_SECONDS: Final = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
# From an idle queue, which adds two network hops, to a backlog of an hour.
WAIT_SECONDS: Final = (0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 2.5, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)

_KEY: Final = re.compile(r"[!-~]{1,1024}")  # the characters that every HTTP client can send in a header
_KEY_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LOG_LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_SERVER_SCHEMES: Final = {"nats", "tls"}

# What is expected, by pydantic's type of the error.
_EXPECTED: Final[Mapping[str, str]] = {
    "bool_parsing": "true or false",
    "float_parsing": "a number",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "int_parsing": "an integer",
    "less_than_equal": "at most {le}",
    "literal_error": "{expected}",
    "string_pattern_mismatch": "text such as {examples}",
}


def count_usable_cores() -> int:
    """Return the number of CPU cores of this process: its affinity, reduced to a cgroup's CPU limit (v2 or v1)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_cpu_limit()
    return max(1, min(cores, math.ceil(quota)) if quota else cores)


def _cgroup_cpu_limit() -> float | None:
    candidates = (
        ("/sys/fs/cgroup/cpu.max", None),
        ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/cpu.cfs_period_us"),
    )
    for quota_path, period_path in candidates:
        try:
            quota, *rest = Path(quota_path).read_text(encoding="ascii").split()
            period = rest[0] if period_path is None else Path(period_path).read_text(encoding="ascii").strip()
            if quota not in {"max", "-1"}:
                return int(quota) / int(period)
        except (OSError, ValueError, IndexError):
            continue
    return None


def _parse_level(value: str) -> str:
    if value.upper() not in _LOG_LEVELS:
        raise ValueError(f"expected one of {', '.join(_LOG_LEVELS)}, got other text")
    return value.upper()


class Settings(BaseSettings):
    """Settings of one instance, validated at startup."""

    # Compose files pass on variables that are not set as empty ones, and an empty path would be the current folder.
    model_config = SettingsConfigDict(
        frozen=True, extra="ignore", validate_default=True, hide_input_in_errors=True, env_ignore_empty=True
    )

    # Server
    host: str = Field("127.0.0.1", description="Listening address of the API and of metrics; `::` for all addresses.")
    port: int = Field(8000, ge=0, le=65535, description="API port; 0 selects a free one.")
    workers: int = Field(
        default_factory=count_usable_cores,
        ge=1,
        le=256,
        description="API worker processes; by default, one per usable core.",
    )
    work_threads: int = Field(1, ge=1, le=32, description="Image-processing threads per worker process.")
    timeout_s: int = Field(
        30, ge=2, description="Worker heartbeat timeout, in seconds; a worker that exceeds it is replaced."
    )
    graceful_timeout_s: int = Field(
        30, ge=1, description="Shutdown timeout of requests in flight, in seconds; requests that exceed it get 503."
    )
    keep_alive_s: int = Field(
        75,
        ge=1,
        description="Idle timeout of connections, in seconds; should be longer than that of a reverse proxy.",
    )
    connection_max_age_s: float = Field(
        30,
        ge=0,
        description="Maximum age of a connection, in seconds; it ends with the first response after 80 to 100 % of "
        "this time, so that callers who keep connections open reach new pods. 0 turns the limit off.",
    )
    backlog: int = Field(2048, ge=64, description="Maximum length of the listen backlog, in connections.")
    forwarded_allow_ips: str = Field(
        "127.0.0.1", description="Trusted proxies (X-Forwarded-For), separated by commas; `*` trusts every client."
    )
    root_path: str = Field(
        "",
        description="Path prefix that a reverse proxy may remove, such as `/faces`; links in /docs contain it.",
    )
    enable_page: bool = Field(default=True, description="Page at `/`; false disables it and its assets.")

    # Limits
    max_body_bytes: int = Field(
        16 * MIB, ge=1024, le=1024 * MIB, description="Maximum request body size, in bytes; larger ones get 413."
    )
    max_image_pixels: int = Field(
        64_000_000,
        ge=1,
        le=100_000_000,
        description="Maximum size of an image or label map, in pixels; checked in the header, before decoding.",
    )
    max_concurrency: int = Field(
        16,
        ge=1,
        description="Maximum concurrent requests per worker process, including requests that wait for a thread; "
        "more get 503.",
    )
    body_timeout_s: float = Field(
        30.0, gt=0, description="Maximum pause while a request body is received, in seconds; longer ones get 408."
    )
    body_min_rate: float = Field(
        8192,
        ge=0,
        description="Minimum transfer rate of a request body, in bytes per second, averaged over BODY_TIMEOUT_S; "
        "slower ones get 408.",
    )
    retry_after_s: int = Field(1, ge=1, description="`Retry-After` of responses with status 503, in seconds.")
    landmark_margin: float = Field(
        0.25,
        ge=0,
        le=10,
        description="Maximum distance of a landmark outside the image, as a fraction of the image's side.",
    )

    # Face detection
    models_dir: Path | None = Field(
        None, description="Folder of the face-detection models; by default, `models` in the package."
    )

    # Access
    api_keys: Annotated[tuple[SecretStr, ...], CommaList] = Field(
        (),
        description="Keys required for /api/ (X-API-Key or bearer token), separated by commas, each `key` or "
        "`name:key`; without keys, access is open.",
    )
    api_keys_file: Path | None = Field(
        None, description="File with more keys, one per line or separated by commas; reloaded when it changes."
    )
    rate_limit: str = Field(
        "",
        pattern=r"^([1-9][0-9]{0,6}/(second|minute|hour))?$",
        examples=["100/second", "1000/minute"],
        description="Maximum rate of POST requests per caller, such as `100/second` or `1000/minute`; more get 429. "
        "If empty, there is no limit.",
    )

    # Metrics
    enable_metrics: bool = Field(default=True, description="Prometheus metrics; false disables them.")
    metrics_on_api_port: bool = Field(default=True, description="Whether the API port serves /metrics too.")
    metrics_port: int = Field(
        9000, ge=0, le=65535, description="Port of the process that serves metrics and probes; 0 selects a free one."
    )
    prometheus_multiproc_dir: Path | None = Field(
        None, description="Folder of the metric files, emptied at startup; by default, a new temporary folder."
    )
    request_duration_buckets: Buckets = Field(
        REQUEST_SECONDS, description="Histogram buckets of request durations, in seconds."
    )
    slo_latency_threshold_s: float = Field(
        1.0,
        gt=0,
        description="Longest duration that the latency objective allows, in seconds; must be a boundary of "
        "REQUEST_DURATION_BUCKETS.",
    )
    image_duration_buckets: Buckets = Field(
        STEP_SECONDS, description="Histogram buckets of image-processing steps, in seconds."
    )
    request_size_buckets: Buckets = Field(BODY_BYTES, description="Histogram buckets of request bodies, in bytes.")
    response_size_buckets: Buckets = Field(BODY_BYTES, description="Histogram buckets of response bodies, in bytes.")

    # Logs
    log_format: Literal["auto", "rich", "json"] = Field(
        "auto", description="Log format; `auto` is `rich` on a terminal and `json` otherwise."
    )
    log_level: Annotated[str, AfterValidator(_parse_level)] = Field(
        "INFO",
        description="Log level of components without an entry in LOG_LEVELS; with JSON and INFO, `images` logs from "
        "WARNING.",
    )
    log_levels: Annotated[dict[str, str], CommaList] = Field(
        default_factory=dict,
        description="Log levels by component (api, images, tasks, server), such as `api=DEBUG,images=WARNING`.",
    )
    log_access: bool = Field(default=True, description="Access log, one line per request.")
    log_metrics_interval: float = Field(
        0,
        ge=0,
        le=86400,
        description="Interval of log lines with the changes of the main counters, in seconds; without changes, "
        "nothing is logged. 0 turns them off.",
    )
    log_theme: Annotated[dict[str, str], CommaList] = Field(
        default_factory=dict,
        description="Rich styles that override the defaults, such as "
        "`logging.level.info=cyan,component.api=bold blue`.",
    )
    log_time_format: str = Field("%H:%M:%S", description="Time format on a terminal, as for `strftime`.")
    log_file: Path | None = Field(None, description="Additional log file, in JSON lines.")
    log_file_max_bytes: int = Field(10 * MIB, ge=1024, description="Size at which the log file is rotated, in bytes.")
    log_file_backups: int = Field(5, ge=0, description="Number of rotated log files to keep.")

    # Tasks
    enable_tasks: bool = Field(
        default=True, description="Task API and task processing; false disables both and the embedded queue."
    )
    data_dir: Path = Field(
        Path("data"),
        description="Storage folder of the embedded NATS server, which `serve` starts if NATS_URL is empty.",
    )
    result_ttl: int = Field(
        3600, ge=1, le=31_536_000, description="Retention time of a task's record after the task has ended, in seconds."
    )
    result_max_bytes: int = Field(
        1024 * MIB, ge=MIB, description="Maximum size of all task records, in bytes; at the limit, new tasks get 503."
    )
    result_cache: bool = Field(default=False, description="Reuse of results for identical requests.")
    task_workers: int = Field(0, ge=0, le=256, description="Task worker processes; 0 means one per usable core.")
    task_queue_max_messages: int = Field(
        10_000, ge=1, description="Maximum number of queued and running tasks; more get 503."
    )
    task_queue_max_bytes: int = Field(
        1024 * MIB, ge=MIB, description="Maximum size of queued and running tasks, in bytes; more get 503."
    )
    task_dead_max_bytes: int = Field(
        256 * MIB,
        ge=MIB,
        description="Maximum size of dead-lettered tasks, in bytes; at the limit, the oldest are deleted.",
    )
    task_ack_wait_s: float = Field(
        10.0,
        ge=1,
        description="Heartbeat timeout of a running task, in seconds; after it, the task is delivered to another "
        "worker.",
    )
    task_max_deliveries: int = Field(5, ge=1, le=100, description="Maximum attempts per task.")
    task_timeout_s: float = Field(
        60.0, gt=0, description="Maximum duration of an attempt, in seconds; a process that exceeds it is replaced."
    )
    task_duration_buckets: Buckets = Field(TASK_SECONDS, description="Histogram buckets of task durations, in seconds.")
    task_wait_buckets: Buckets = Field(
        WAIT_SECONDS, description="Histogram buckets of the time tasks wait in the queue, in seconds."
    )

    # NATS
    nats_url: str = Field(
        "",
        description="URL of the NATS server, or URLs separated by commas (`nats://`, `tls://`); if empty, `serve` "
        "starts a server.",
    )
    nats_replicas: int = Field(1, ge=1, le=5, description="Replicas of tasks and records in a NATS cluster.")
    nats_timeout_s: float = Field(5.0, gt=0, le=60, description="Timeout of requests to the NATS server, in seconds.")
    nats_monitor_url: str = Field(
        "",
        description="Monitoring URL of an external NATS server, such as `http://nats:8222`; enables its metrics.",
    )
    nats_sync_interval: str = Field(
        "10s",
        pattern=r"^(always|[1-9][0-9]*(ms|s|m|h))$",
        examples=["10s", "always"],
        description="Flush and compaction interval of the embedded NATS server; `always` flushes before each "
        "acknowledgement.",
    )
    nats_user: str = Field("", description="NATS user name.")
    nats_password: SecretStr = Field(SecretStr(""), description="Password of NATS_USER.")
    nats_token: SecretStr = Field(SecretStr(""), description="NATS token, instead of user and password.")
    nats_nkey_seed: SecretStr = Field(SecretStr(""), description="NKey seed, instead of user and password.")
    nats_creds_file: Path | None = Field(
        None, description="NATS credentials file (JWT and NKey), instead of user and password."
    )
    nats_tls_ca_file: Path | None = Field(None, description="CA certificates that verify the NATS server.")
    nats_tls_cert_file: Path | None = Field(None, description="Client certificate for the NATS server.")
    nats_tls_key_file: Path | None = Field(None, description="Private key of the client certificate.")

    # Fault injection
    fault_work_s: float = Field(
        0.0,
        ge=0,
        le=60,
        description="Additional CPU time per request, in seconds, to simulate overload; never set it in production.",
    )
    fault_poison_region: str = Field(
        "",
        description="Name of a custom region that kills the task process, to simulate crashes; never set it in "
        "production.",
    )

    @field_validator("api_keys", mode="before")
    @classmethod
    def _split_keys(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        keys = tuple(part.strip() for part in value.split(",") if part.strip())
        if not keys:  # an operator who sets the variable wants keys to be required
            raise ValueError("expected at least one key, got none")
        parse_api_keys(keys)
        return keys

    @field_validator("api_keys_file")
    @classmethod
    def _check_keys_file(cls, value: Path | None) -> Path | None:
        if value is not None:
            try:
                parse_key_file(value.read_bytes())
            except OSError as error:
                raise ValueError(f"expected a readable file, got an error: {error.strerror}") from None
        return value

    @field_validator("log_levels", "log_theme", mode="before")
    @classmethod
    def _split_pairs(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        pairs = [part.partition("=") for part in value.split(",") if part.strip()]
        if any(not sign for _, sign, _ in pairs):
            raise ValueError("expected name=value pairs separated by commas, got other text")
        return {name.strip(): text.strip() for name, _, text in pairs}

    @field_validator("log_levels")
    @classmethod
    def _check_levels(cls, value: dict[str, str]) -> dict[str, str]:
        unknown = {component.lower() for component in value} - set(LOG_COMPONENTS)
        if unknown:
            raise ValueError(f"expected only the components {', '.join(LOG_COMPONENTS)}, got another")
        return {component.lower(): _parse_level(level) for component, level in value.items()}

    @field_validator("log_theme")
    @classmethod
    def _check_theme(cls, value: dict[str, str]) -> dict[str, str]:
        if value:
            # Imported here, because Rich is large and a theme is rarely set.
            from rich.errors import StyleSyntaxError  # noqa: PLC0415
            from rich.style import Style  # noqa: PLC0415

            for name, style in value.items():
                try:
                    Style.parse(style)
                except StyleSyntaxError:
                    raise ValueError(f"{name}: expected a style of Rich, such as `bold cyan`, got other text") from None
        return value

    @field_validator("nats_url")
    @classmethod
    def _check_servers(cls, value: str) -> str:
        servers = [part.strip() for part in value.split(",") if part.strip()]
        # The message does not repeat the URL, because it may contain a password.
        if not all(_is_server(server) for server in servers):
            raise ValueError("expected URLs such as nats://host:4222, separated by commas, got other text")
        return ",".join(servers)

    @field_validator("nats_monitor_url")
    @classmethod
    def _check_monitor(cls, value: str) -> str:
        if value and urlsplit(value).scheme not in {"http", "https"}:
            raise ValueError("expected a URL such as http://nats:8222, got other text")
        return value

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if self.port and self.port == self.metrics_port:
            raise ValueError(f"PORT, METRICS_PORT: expected different ports, got {self.port} for both")
        if self.log_metrics_interval and not self.enable_metrics:
            raise ValueError("LOG_METRICS_INTERVAL: expected 0 with ENABLE_METRICS=false, got another value")
        if self.slo_latency_threshold_s not in self.request_duration_buckets:
            bounds = ", ".join(f"{bound:g}" for bound in self.request_duration_buckets)
            raise ValueError(
                f"SLO_LATENCY_THRESHOLD_S: expected a boundary of REQUEST_DURATION_BUCKETS ({bounds}), "
                f"got {self.slo_latency_threshold_s:g}"
            )
        credentials = {
            "NATS_USER": self.nats_user,
            "NATS_TOKEN": self.nats_token.get_secret_value(),
            "NATS_NKEY_SEED": self.nats_nkey_seed.get_secret_value(),
            "NATS_CREDS_FILE": self.nats_creds_file,
        }
        names = [name for name, value in credentials.items() if value]
        if len(names) > 1:
            raise ValueError(f"{', '.join(names)}: expected one authentication method, got {len(names)}")
        if self.nats_password.get_secret_value() and not self.nats_user:
            raise ValueError("NATS_USER, NATS_PASSWORD: expected both or neither, got only the password")
        if bool(self.nats_tls_cert_file) != bool(self.nats_tls_key_file):
            got = "certificate" if self.nats_tls_cert_file else "key"
            raise ValueError(f"NATS_TLS_CERT_FILE, NATS_TLS_KEY_FILE: expected both or neither, got only the {got}")
        return self

    @property
    def rate_quota(self) -> tuple[int, int] | None:
        """Requests and seconds of ``rate_limit``; None without a limit."""
        if not self.rate_limit:
            return None
        quota, _, unit = self.rate_limit.partition("/")
        return int(quota), {"second": 1, "minute": 60, "hour": 3600}[unit]

    @property
    def nats_servers(self) -> list[str]:
        """URLs of ``nats_url``."""
        return self.nats_url.split(",") if self.nats_url else []

    @property
    def is_queue_embedded(self) -> bool:
        """Whether `serve` starts its own NATS server."""
        return self.enable_tasks and not self.nats_url


class CallerSettings(BaseSettings):
    """Settings of commands that call a running service."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    facial_service_api_key: SecretStr = Field(SecretStr(""), description="API key for the service.")

    @field_validator("facial_service_api_key")
    @classmethod
    def _check_key(cls, value: SecretStr) -> SecretStr:
        # HTTP libraries include an invalid header in their error message, which would reveal the key.
        text = value.get_secret_value()
        if not (text.isascii() and text.isprintable()) or " " in text:
            raise ValueError("expected visible ASCII characters, got others")
        return value


@lru_cache(maxsize=1)
def load_settings() -> Settings:
    """Read the settings from the environment, once.

    Raises:
        pydantic.ValidationError: a variable has an invalid value; see `find_invalid_settings`.
    """
    return Settings()


def read_environment() -> dict[str, str]:
    """Return all environment variables, including those that are not settings."""
    return dict(os.environ)


class InvalidSetting(NamedTuple):
    """Variable with an invalid value, or variables that contradict each other, separated by commas."""

    name: str
    message: str


def find_invalid_settings(error: ValidationError) -> tuple[InvalidSetting, ...]:
    """Return the invalid variables of a validation error, with messages such as ``expected at least 1, got 0``.

    Messages repeat numbers only, because any other value may be a secret in the wrong variable.
    """
    return tuple(_to_invalid_setting(problem) for problem in error.errors(include_url=False))


def _to_invalid_setting(problem: Mapping[str, Any]) -> InvalidSetting:
    context = problem.get("ctx", {})
    if problem["type"] == "value_error":
        message = str(context["error"])
        if not problem["loc"]:  # a combination, whose message begins with the names
            return InvalidSetting(*message.split(": ", 1))
    elif problem["type"] in _EXPECTED:
        field = Settings.model_fields[problem["loc"][0]]
        # Bounds of float fields are floats: write 60 instead of 60.0.
        bounds = {
            name: int(value) if isinstance(value, float) and value.is_integer() else value
            for name, value in context.items()
        }
        examples = " or ".join(map(str, field.examples or ()))
        expected = _EXPECTED[problem["type"]].format(**bounds, examples=examples)
        message = f"expected {expected}, got {_describe_value(problem['input'])}"
    else:
        message = str(problem["msg"])
    return InvalidSetting(str(problem["loc"][0]).upper(), message)


def _describe_value(value: Any) -> str:
    try:
        float(value)
    except (TypeError, ValueError):
        return "other text"
    return str(value).strip()


def parse_api_keys(entries: Iterable[str]) -> list[tuple[str, str]]:
    """Split entries of the form ``key`` or ``name:key`` into name and key.

    Several keys may have the same name, so that a key can be replaced while both are in use.

    Raises:
        ValueError: an entry is invalid, or a key occurs twice; the message does not contain the key.

    Example:
        >>> parse_api_keys(["batch:k1", "k2"])
        [('batch', 'k1'), ('', 'k2')]
    """
    found: dict[str, str] = {}
    for number, entry in enumerate(entries, start=1):
        name, colon, key = entry.partition(":")
        if not colon:
            name, key = "", name
        elif not _KEY_NAME.fullmatch(name):
            expected = "a name of 1 to 64 letters, digits, '.', '_' or '-' before ':'"
            raise ValueError(f"key {number}: expected {expected}, got other text")
        if not _KEY.fullmatch(key):
            expected = "1 to 1024 visible ASCII characters without spaces"
            raise ValueError(f"key {number}: expected {expected}, got other text")
        if key in found:
            raise ValueError(f"key {number}: expected different keys, got one twice")
        found[key] = name
    return [(name, key) for key, name in found.items()]


def parse_key_file(content: bytes) -> list[tuple[str, str]]:
    """Parse a file of API keys: one or more per line, separated by commas; lines that start with ``#`` are comments.

    Raises:
        ValueError: it contains no key, or an invalid one.
    """
    lines = [line for line in content.decode().splitlines() if not line.lstrip().startswith("#")]
    keys = parse_api_keys(part.strip() for line in lines for part in line.split(",") if part.strip())
    if not keys:  # an empty file must not open the API to every caller
        raise ValueError("expected at least one key, got none")
    return keys


def _is_server(text: str) -> bool:
    try:
        parts = urlsplit(text)
        has_address = bool(parts.hostname) and parts.port != 0
    except ValueError:  # the port is invalid; its message may contain a part of a password
        return False
    return (
        parts.scheme in _SERVER_SCHEMES
        and has_address
        and parts.path in {"", "/"}
        and not (parts.query or parts.fragment)
    )

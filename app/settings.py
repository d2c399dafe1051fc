"""Every setting of the service, in one frozen object; the only module that reads the environment.

Each field is set by the environment variable of the same name in capitals (``max_body_bytes`` by ``MAX_BODY_BYTES``).
The tables in the README are made from the descriptions here, so units stand in them and in the names.
"""

from __future__ import annotations

import itertools
import math
import os
import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.task_settings import MIB, Buckets, CommaList, TaskSettings

if TYPE_CHECKING:
    from collections.abc import Iterable

_KEY: Final = re.compile(r"[!-~]{1,1024}")  # a header has no other characters in common for all clients
_KEY_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")

LOG_COMPONENTS = ("api", "images", "tasks", "server")

# A request that only needs its header read ends in 2 to 5 ms and one that decodes 24 Mpx in under a second, so the
# bounds are dense around the first and still tell apart what goes wrong beyond the second.
REQUEST_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
# A step of the image work takes from 0.1 ms (a few contours) to a good part of a second (24 Mpx decoded).
STEP_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
# From a landmark-only answer to the largest body that is accepted by default.
BODY_BYTES = (1024.0, 4096.0, 16384.0, 65536.0, 262144.0, 1048576.0, 4194304.0, 16777216.0)


def count_usable_cores() -> int:
    """Count the processors this process may use: its affinity, lessened by a cgroup CPU limit (v2 or v1)."""
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


class Settings(TaskSettings):
    """How one instance runs. Values are checked at start, and a wrong one stops the service with its name."""

    # An empty variable is one that is not set: compose files pass on what they were not given, and an empty path would
    # be the current folder.
    model_config = SettingsConfigDict(
        frozen=True, extra="ignore", validate_default=True, hide_input_in_errors=True, env_ignore_empty=True
    )

    # Serving
    host: str = Field("127.0.0.1", description="Address to listen on, for the API and for metrics")
    port: int = Field(8000, ge=0, le=65535, description="Port of the API; 0 takes a free one")
    workers: int = Field(
        default_factory=count_usable_cores, ge=1, le=256, description="API worker processes; default: usable cores"
    )
    work_threads: int = Field(1, ge=1, le=32, description="Threads a worker process does image work on")
    timeout_s: int = Field(30, ge=2, description="Seconds without a sign of life after which a worker is replaced")
    graceful_timeout_s: int = Field(
        30, ge=1, description="Seconds that requests in flight get to end on stop; beyond it 503"
    )
    keep_alive_s: int = Field(
        75, ge=1, description="Seconds an idle connection is kept; longer than the idle timeout of a proxy in front"
    )
    backlog: int = Field(2048, ge=64, description="Connections that may wait to be accepted")
    forwarded_allow_ips: str = Field(
        "127.0.0.1", description="Proxies whose X-Forwarded-For is believed, separated by commas; `*` for any"
    )
    root_path: str = Field("", description="Path prefix that a proxy in front strips, for the links of /docs")
    enable_page: bool = Field(default=True, description="Serve the page at `/`; false leaves it out, and its assets")

    # Limits
    max_body_bytes: int = Field(
        16 * MIB, ge=1024, le=1024 * MIB, description="Largest request body, in bytes; beyond it 413"
    )
    max_image_pixels: int = Field(
        24_000_000, ge=1, le=100_000_000, description="Largest photo or label map, in pixels, read from its header"
    )
    max_concurrency: int = Field(
        16,
        ge=1,
        description="Concurrent requests per worker process, including those that wait for a thread; beyond it 503",
    )
    body_timeout_s: float = Field(
        30.0, gt=0, description="Seconds that the sender of a request body may be silent; beyond it 408"
    )
    body_min_rate: float = Field(
        8192,
        ge=0,
        description="Minimum rate of a request body, in bytes per second, averaged over BODY_TIMEOUT_S; below it 408",
    )
    retry_after_s: int = Field(1, ge=1, description="Seconds that a 503 asks the caller to wait")
    landmark_margin: float = Field(
        0.25, ge=0, le=10, description="How far outside the photo a landmark may lie, as a fraction of its side"
    )

    # Faces
    models_dir: Path | None = Field(
        None, description="Folder of the models that find faces; default: `models` inside the package"
    )

    # Access
    api_keys: Annotated[tuple[SecretStr, ...], CommaList] = Field(
        (),
        description="Keys that /api/ requires (X-API-Key or bearer), separated by commas, each `key` or `name:key`; "
        "without keys, anyone may call",
    )
    api_keys_file: Path | None = Field(
        None, description="File with more keys, one per line or separated by commas; read again when it changes"
    )
    rate_limit: str = Field(
        "",
        pattern=r"^([1-9][0-9]{0,6}/(second|minute|hour))?$",
        description="POST requests per caller, as in `100/second` or `1000/minute`, beyond which the response is 429; "
        "empty: no limit",
    )

    # Metrics
    enable_metrics: bool = Field(default=True, description="Record and serve Prometheus metrics")
    metrics_port: int = Field(
        9000, ge=0, le=65535, description="Port of the process that serves metrics and probes; 0 takes a free one"
    )
    prometheus_multiproc_dir: Path | None = Field(
        None, description="Folder of the metric files, wiped at start; default: a new one under the temporary folder"
    )
    request_duration_buckets: Buckets = Field(REQUEST_SECONDS, description="Histogram bounds of requests, in seconds")
    image_duration_buckets: Buckets = Field(STEP_SECONDS, description="Histogram bounds of image steps, in seconds")
    request_size_buckets: Buckets = Field(BODY_BYTES, description="Histogram bounds of request bodies, in bytes")
    response_size_buckets: Buckets = Field(BODY_BYTES, description="Histogram bounds of answers, in bytes")

    # Logs
    log_format: Literal["auto", "rich", "json"] = Field("auto", description="auto: Rich on a terminal, else JSON")
    log_level: str = Field(
        "INFO", description="Level of every component that LOG_LEVELS does not name; `images` starts at WARNING in JSON"
    )
    log_levels: Annotated[dict[str, str], CommaList] = Field(
        default_factory=dict,
        description="Level a component (api, images, tasks, server), as in `api=DEBUG,images=WARNING`",
    )
    log_access: bool = Field(default=True, description="One line a request")
    log_theme: Annotated[dict[str, str], CommaList] = Field(
        default_factory=dict,
        description="Rich styles over the default ones, as in `logging.level.info=cyan,component.api=bold blue`",
    )
    log_time_format: str = Field("%H:%M:%S", description="Time on a terminal, in strftime's letters")
    log_file: Path | None = Field(None, description="File that gets JSON lines as well, rotated")
    log_file_max_bytes: int = Field(10 * MIB, ge=1024, description="Size at which the log file is rotated, in bytes")
    log_file_backups: int = Field(5, ge=0, description="Rotated log files that are kept")

    # Fault injection
    fault_work_s: float = Field(
        0.0, ge=0, le=60, description="Seconds of CPU that each request burns extra; to rehearse overload, never to run"
    )

    @field_validator("api_keys", mode="before")
    @classmethod
    def _split_keys(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        keys = tuple(part.strip() for part in value.split(",") if part.strip())
        if not keys:  # an operator who sets the variable wants keys to be required
            raise ValueError("expected at least one key")
        parse_api_keys(keys)
        return keys

    @field_validator("api_keys_file")
    @classmethod
    def _check_keys_file(cls, value: Path | None) -> Path | None:
        if value is not None:
            try:
                read_api_keys(value)
            except OSError as error:
                raise ValueError(f"expected a file that can be read: {error.strerror}") from None
        return value

    @field_validator(
        "request_duration_buckets",
        "image_duration_buckets",
        "request_size_buckets",
        "response_size_buckets",
        mode="before",
    )
    @classmethod
    def _split_buckets(cls, value: Any) -> Any:
        return tuple(value.split(",")) if isinstance(value, str) else value

    @field_validator(
        "request_duration_buckets",
        "image_duration_buckets",
        "request_size_buckets",
        "response_size_buckets",
        "task_duration_buckets",
        "task_wait_buckets",
    )
    @classmethod
    def _check_buckets(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        is_rising = all(low < high for low, high in itertools.pairwise(value))
        if not value or not is_rising or not all(math.isfinite(bound) and bound > 0 for bound in value):
            raise ValueError("expected at least one bound, all above 0 and rising")
        return value

    @field_validator("log_levels", "log_theme", mode="before")
    @classmethod
    def _split_pairs(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        pairs = [part.partition("=") for part in value.split(",") if part.strip()]
        if any(not sign for _, sign, _ in pairs):
            raise ValueError("expected name=value pairs separated by commas")
        return {name.strip(): text.strip() for name, _, text in pairs}

    @field_validator("log_level")
    @classmethod
    def _check_level(cls, value: str) -> str:
        return _level_name(value)

    @field_validator("log_levels")
    @classmethod
    def _check_levels(cls, value: dict[str, str]) -> dict[str, str]:
        unknown = {component.lower() for component in value} - set(LOG_COMPONENTS)
        if unknown:
            raise ValueError(f"expected only the components {', '.join(LOG_COMPONENTS)}")
        return {component.lower(): _level_name(level) for component, level in value.items()}

    @field_validator("log_theme")
    @classmethod
    def _check_theme(cls, value: dict[str, str]) -> dict[str, str]:
        if value:
            # Imported here: few set a theme, and the renderer is large.
            from rich.errors import StyleSyntaxError  # noqa: PLC0415
            from rich.style import Style  # noqa: PLC0415

            for name, style in value.items():
                try:
                    Style.parse(style)
                except StyleSyntaxError:
                    raise ValueError(f"{name}: expected a style of Rich, such as `bold cyan`") from None
        return value

    @property
    def rate_quota(self) -> tuple[int, int] | None:
        """Requests and seconds of ``rate_limit``; None without a limit."""
        if not self.rate_limit:
            return None
        quota, _, unit = self.rate_limit.partition("/")
        return int(quota), {"second": 1, "minute": 60, "hour": 3600}[unit]

    @model_validator(mode="after")
    def _check_ports(self) -> Self:
        if self.port and self.port == self.metrics_port:
            raise ValueError(f"PORT and METRICS_PORT are both {self.port}; they need to differ")
        return self


def parse_api_keys(entries: Iterable[str]) -> list[tuple[str, str]]:
    """Split entries of the form ``key`` or ``name:key`` into name and key.

    Several keys may have one name, so that a key can be replaced while both are in use.

    Raises:
        ValueError: an entry has neither form, or a key occurs twice; the text does not repeat it.

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
            raise ValueError(f"key {number}: expected a name of 1 to 64 letters, digits, '.', '_' or '-' before ':'")
        if not _KEY.fullmatch(key):
            raise ValueError(f"key {number}: expected 1 to 1024 visible ASCII characters without spaces")
        if key in found:
            raise ValueError(f"key {number}: expected different keys, got one twice")
        found[key] = name
    return [(name, key) for key, name in found.items()]


def read_api_keys(file: Path) -> list[tuple[str, str]]:
    """Read a file of API keys: one or more per line, separated by commas; lines that begin with ``#`` are comments.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds no key, or one that is invalid.
    """
    return parse_key_file(file.read_bytes())


def parse_key_file(content: bytes) -> list[tuple[str, str]]:
    """Return the keys in the content of a file of API keys; see `read_api_keys`.

    Raises:
        ValueError: it holds no key, or one that is invalid.
    """
    lines = [line for line in content.decode().splitlines() if not line.lstrip().startswith("#")]
    keys = parse_api_keys(part.strip() for line in lines for part in line.split(",") if part.strip())
    if not keys:  # an empty file must not let everyone in
        raise ValueError("expected at least one key, got none")
    return keys


def _level_name(value: str) -> str:
    levels = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
    if value.upper() not in levels:
        raise ValueError(f"expected one of {', '.join(levels)}")
    return value.upper()


def read_environment() -> dict[str, str]:
    """Return all variables, for whoever looks at those that are no setting."""
    return dict(os.environ)


class CallerSettings(BaseSettings):
    """What commands that call a running service are told by the environment; the service itself reads none of it."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    facial_service_api_key: SecretStr = Field(SecretStr(""), description="Key that is shown to the service")

    @field_validator("facial_service_api_key")
    @classmethod
    def _check_key(cls, value: SecretStr) -> SecretStr:
        # In a header; a library that is given anything else would repeat it in its error.
        text = value.get_secret_value()
        if not (text.isascii() and text.isprintable()) or " " in text:
            raise ValueError("expected visible ASCII characters")
        return value


def load_caller_settings() -> CallerSettings:
    """Read what the environment says to those that call a service."""
    return CallerSettings()


@lru_cache(maxsize=1)
def load_settings() -> Settings:
    """Read the environment once.

    Raises:
        pydantic.ValidationError: a variable has a value that its setting does not take.
    """
    return Settings()

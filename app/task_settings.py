"""The settings of tasks and of the queue that carries them; a part of `app.settings.Settings`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode

CommaList = NoDecode
"""Marks a field that is written as a comma-separated list instead of as JSON."""

Buckets = Annotated[tuple[float, ...], CommaList]

MIB = 1024 * 1024

# The work of a task takes what a request's does, and as much longer as its pixels and its faults make it.
TASK_SECONDS = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
# From an idle queue, where a task waits for two hops over the network, to a backlog of an hour.
WAIT_SECONDS = (0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 2.5, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)

_SCHEMES = {"nats", "tls"}


class TaskSettings(BaseSettings):
    """How tasks are queued, worked on and kept."""

    enable_tasks: bool = Field(
        default=True, description="Take tasks; false leaves their paths out, and starts nothing for them"
    )
    data_dir: Path = Field(Path("data"), description="Folder of the queue that `serve` starts where NATS_URL is empty")
    result_ttl: int = Field(3600, ge=1, le=31_536_000, description="Seconds that the record of an ended task is kept")
    result_max_bytes: int = Field(
        1024 * MIB, ge=MIB, description="Bytes of records from which on no new task is taken (503)"
    )
    result_cache: bool = Field(
        default=False, description="Answer what was asked before from the record of the task that answered it"
    )
    task_workers: int = Field(0, ge=0, le=256, description="Processes that work on tasks; 0: one a usable core")
    task_queue_max_messages: int = Field(10_000, ge=1, description="Tasks that may wait or be worked on; beyond it 503")
    task_queue_max_bytes: int = Field(1024 * MIB, ge=MIB, description="Bytes that these may take; beyond it 503")
    task_dead_max_bytes: int = Field(
        256 * MIB, ge=MIB, description="Bytes of tasks that were given up on; beyond it the oldest go"
    )
    task_ack_wait_s: float = Field(
        10.0, ge=1, description="Seconds without a sign of life of its worker after which a task goes to another"
    )
    task_max_deliveries: int = Field(5, ge=1, le=100, description="Times that work on a task is begun at most")
    task_timeout_s: float = Field(
        60.0, gt=0, description="Seconds that work on a task may take; beyond it the process is replaced"
    )
    task_duration_buckets: Buckets = Field(TASK_SECONDS, description="Histogram bounds of work on a task, in seconds")
    task_wait_buckets: Buckets = Field(
        WAIT_SECONDS, description="Histogram bounds of a task's wait for work, in seconds"
    )

    nats_url: str = Field(
        "", description="NATS server, or servers separated by commas (`nats://`, `tls://`); empty: `serve` starts one"
    )
    nats_replicas: int = Field(1, ge=1, le=5, description="Servers that keep each task and record, in a NATS cluster")
    nats_timeout_s: float = Field(5.0, gt=0, le=60, description="Seconds that the queue may take to answer")
    nats_monitor_url: str = Field(
        "", description="Monitoring address of the NATS server, for its storage limit; as in `http://nats:8222`"
    )
    nats_sync_interval: str = Field(
        "10s",
        pattern=r"^(always|[1-9][0-9]*(ms|s|m|h))$",
        description="Interval of flushes and compaction of the embedded server; `always`: a flush before it confirms",
    )
    nats_user: str = Field("", description="User name")
    nats_password: SecretStr = Field(SecretStr(""), description="The user's password")
    nats_token: SecretStr = Field(SecretStr(""), description="Token, instead of user and password")
    nats_nkey_seed: SecretStr = Field(SecretStr(""), description="Seed of an NKey, instead")
    nats_creds_file: Path | None = Field(None, description="Credentials file (JWT and NKey), instead")
    nats_tls_ca_file: Path | None = Field(None, description="Authorities that the server's certificate is checked by")
    nats_tls_cert_file: Path | None = Field(None, description="Certificate that is shown to the server")
    nats_tls_key_file: Path | None = Field(None, description="Key of that certificate")

    fault_poison_region: str = Field(
        "", description="Name of a caller's region that kills the task process; to rehearse faults, never to run"
    )

    @field_validator("task_duration_buckets", "task_wait_buckets", mode="before")
    @classmethod
    def _split_task_buckets(cls, value: Any) -> Any:
        return tuple(value.split(",")) if isinstance(value, str) else value

    @field_validator("nats_url")
    @classmethod
    def _check_servers(cls, value: str) -> str:
        servers = [part.strip() for part in value.split(",") if part.strip()]
        # Not echoed: a user's password may stand in it.
        if not all(_is_server(server) for server in servers):
            raise ValueError("expected servers such as nats://host:4222, separated by commas")
        return ",".join(servers)

    @field_validator("nats_monitor_url")
    @classmethod
    def _check_monitor(cls, value: str) -> str:
        if value and urlsplit(value).scheme not in {"http", "https"}:
            raise ValueError("expected an address such as http://nats:8222")
        return value

    @model_validator(mode="after")
    def _check_credentials(self) -> Self:
        given = {
            "NATS_USER": self.nats_user,
            "NATS_TOKEN": self.nats_token.get_secret_value(),
            "NATS_NKEY_SEED": self.nats_nkey_seed.get_secret_value(),
            "NATS_CREDS_FILE": self.nats_creds_file,
        }
        names = [name for name, value in given.items() if value]
        if len(names) > 1:
            raise ValueError(f"expected one way to authenticate, got {' and '.join(names)}")
        if self.nats_password.get_secret_value() and not self.nats_user:
            raise ValueError("expected NATS_USER with NATS_PASSWORD, got the password alone")
        if bool(self.nats_tls_cert_file) != bool(self.nats_tls_key_file):
            raise ValueError("expected NATS_TLS_CERT_FILE and NATS_TLS_KEY_FILE together, got one of them")
        return self

    @property
    def nats_servers(self) -> list[str]:
        """The servers of ``nats_url``."""
        return self.nats_url.split(",") if self.nats_url else []

    @property
    def is_queue_embedded(self) -> bool:
        """Whether `serve` starts a NATS server of its own."""
        return self.enable_tasks and not self.nats_url


def _is_server(text: str) -> bool:
    try:
        parts = urlsplit(text)
        has_place = bool(parts.hostname) and parts.port != 0
    except ValueError:  # it quotes what stands in the place of the port, which may be a part of a password
        return False
    return parts.scheme in _SCHEMES and has_place and parts.path in {"", "/"} and not (parts.query or parts.fragment)

"""Connections to the NATS servers: a probe of each address, and one authenticated connection for JetStream requests.

A NATS server sends its version and capabilities before authentication, so the probe works without credentials.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec
import nats.errors
import orjson

from app.cli.doctor.findings import Finding, error, ok, warning
from app.tasks.nats_client import ServiceClient, connect_options, find_missing_credentials
from app.tasks.stream import CONSUMER, DEAD_STREAM, RECORDS_STREAM, STREAM

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future

    from nats.aio.client import Client

    from app.settings import Settings

DEFAULT_PORT = 4222
PROBE_TIMEOUT_S = 2.0
MAX_INFO_BYTES = 64 << 10
CONNECT_TIMEOUT_S = 2.0
REQUEST_TIMEOUT_S = 2.0
TOTAL_TIMEOUT_S = 6.0
# Workers renew their pull requests, so for a moment the server may have none.
PULL_RETRY_S = 0.3
ACCOUNT_INFO = "INFO"
STREAMS = (STREAM, RECORDS_STREAM, DEAD_STREAM)
CONSUMER_INFO = f"CONSUMER.INFO.{STREAM}.{CONSUMER}"
TLS_ADVICE = "check NATS_TLS_CA_FILE, NATS_TLS_CERT_FILE and NATS_TLS_KEY_FILE (chart: `externalNats.tlsSecret`)"


def stream_info(name: str) -> str:
    """Return the JetStream API request for a stream."""
    return f"STREAM.INFO.{name}"


class ServerInfo(msgspec.Struct, frozen=True):
    """The ``INFO`` message of a server; the names are those of the NATS protocol."""

    version: str = ""
    jetstream: bool = False
    max_payload: int = 0
    cluster: str = ""
    connect_urls: tuple[str, ...] = ()


@dataclass(frozen=True)
class JetStreamResponses:
    """Responses of the JetStream API."""

    documents: dict[str, dict[str, Any] | str]  # response by request, or the reason why there is none

    def get(self, request: str) -> dict[str, Any]:
        """Return a response; empty if there is none, or if it is an error."""
        document = self.documents.get(request, {})
        return {} if isinstance(document, str) or "error" in document else document

    def is_not_found(self, request: str) -> bool:
        """Whether the server has reported that the stream or consumer does not exist."""
        document = self.documents.get(request, "")
        return not isinstance(document, str) and document.get("error", {}).get("code") == HTTPStatus.NOT_FOUND

    def problem(self, request: str) -> str:
        """Return why there is no response; empty if there is one."""
        document = self.documents.get(request, "not requested")
        if isinstance(document, str):
            return document
        failure = document.get("error", {})
        return str(failure.get("description", "an error without a description")) if failure else ""


def probe_servers(settings: Settings) -> Iterator[tuple[Finding, ServerInfo | None]]:
    """Probe all servers of `NATS_URL` concurrently, and yield a finding and the ``INFO`` message of each."""
    part = "queue.address"
    servers = [urlsplit(server) for server in settings.nats_servers]
    # In threads, because a DNS lookup has no timeout.
    pool = ThreadPoolExecutor(len(servers), thread_name_prefix="doctor-probe")
    probes = [pool.submit(_read_info, server.hostname or "", server.port or DEFAULT_PORT) for server in servers]
    pool.shutdown(wait=False)
    results = list(map(_finish_probe, probes))
    report = warning if any(isinstance(result, ServerInfo) for result in results) else error
    for server, result in zip(servers, results, strict=True):
        subject = f"{server.hostname}:{server.port or DEFAULT_PORT}"
        if isinstance(result, ServerInfo):
            yield ok(part, subject, f"NATS server {result.version}"), result
        else:
            yield report(part, subject, result, expected="a reachable NATS server"), None


def _finish_probe(probe: Future[ServerInfo]) -> ServerInfo | str:
    try:
        return probe.result(timeout=2 * PROBE_TIMEOUT_S + 0.5)
    except socket.gaierror as failure:
        return f"the name cannot be resolved ({failure.strerror})"
    except TimeoutError:
        return f"no response within {PROBE_TIMEOUT_S:g} s"
    except ValueError as failure:
        return str(failure)
    except OSError as failure:
        return os.strerror(failure.errno).lower() if failure.errno else type(failure).__name__


def _read_info(host: str, port: int) -> ServerInfo:
    with (
        socket.create_connection((host, port), timeout=PROBE_TIMEOUT_S) as connection,
        connection.makefile("rb") as file,
    ):
        try:
            line = file.readline(MAX_INFO_BYTES)
        except TimeoutError:
            raise ValueError("the port is open, but sends nothing: the server hangs or is not NATS") from None
    if not line.startswith(b"INFO "):
        raise ValueError("the server does not use the NATS protocol")
    try:
        return msgspec.json.decode(line.removeprefix(b"INFO "), type=ServerInfo)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise ValueError("the server sends an invalid NATS INFO message") from None


def check_files(settings: Settings) -> Iterator[Finding]:
    """Check that the files with credentials and certificates are readable and complete. Yield only problems."""
    for name in ("nats_creds_file", "nats_tls_ca_file", "nats_tls_cert_file", "nats_tls_key_file"):
        path = getattr(settings, name)
        if path is not None and not os.access(path, os.R_OK):
            found = "cannot be read" if path.exists() else "does not exist"
            chart = "`externalNats.credsSecret`, `externalNats.tlsSecret`"
            advice = f"correct {name.upper()} or the mode of the file (chart: {chart})"
            subject = f"{name.upper()} {path}"
            yield error("queue.access", subject, found, expected="a readable file", advice=advice)
    if settings.nats_creds_file is not None and (missing := find_missing_credentials(settings.nats_creds_file)):
        subject, found = f"NATS_CREDS_FILE {settings.nats_creds_file}", f"contains no {' and no '.join(missing)}"
        expected, advice = "a JWT and an NKey seed", "use the file that `nsc generate creds` writes"
        yield error("queue.access", subject, found, expected=expected, advice=advice)


def query_jetstream(settings: Settings) -> tuple[Finding, JetStreamResponses | None]:
    """Connect with the options of the service, and request the state of JetStream."""
    return asyncio.run(_query(settings))


async def _query(settings: Settings) -> tuple[Finding, JetStreamResponses | None]:
    client, failures = ServiceClient(), list[Exception]()

    async def on_error(failure: Exception) -> None:
        failures.append(failure)

    try:
        async with asyncio.timeout(TOTAL_TIMEOUT_S):
            await client.connect(servers=settings.nats_servers, error_cb=on_error, **_client_options(settings))
            return ok("queue.access", "credentials", "accepted by the server"), await _send_requests(client)
    except Exception as failure:  # noqa: BLE001 - an invalid seed, for example, raises errors of other libraries
        return _explain([*failures, failure]), None
    finally:
        with contextlib.suppress(Exception):  # because a client that never connected may fail to close
            async with asyncio.timeout(1):
                await client.close()


def _client_options(settings: Settings) -> dict[str, Any]:
    return {
        "name": "facial-service doctor",
        "allow_reconnect": False,
        "max_reconnect_attempts": 1,
        "reconnect_time_wait": 0.1,
        "connect_timeout": CONNECT_TIMEOUT_S,
        **connect_options(settings),
    }


async def _send_requests(client: Client) -> JetStreamResponses:
    documents: dict[str, dict[str, Any] | str] = {}

    async def send(request: str) -> None:
        try:
            response = await client.request(f"$JS.API.{request}", timeout=REQUEST_TIMEOUT_S)
            documents[request] = orjson.loads(response.data)
        except nats.errors.NoRespondersError:
            documents[request] = "JetStream is disabled"
        except TimeoutError:
            documents[request] = f"no response within {REQUEST_TIMEOUT_S:g} s"
        except (nats.errors.Error, OSError, orjson.JSONDecodeError) as failure:
            documents[request] = type(failure).__name__

    await asyncio.gather(*map(send, (ACCOUNT_INFO, *map(stream_info, STREAMS), CONSUMER_INFO)))
    responses = JetStreamResponses(documents)
    if not responses.get(CONSUMER_INFO).get("num_waiting", 1):
        await asyncio.sleep(PULL_RETRY_S)
        await send(CONSUMER_INFO)
    return responses


def _explain(failures: list[Exception]) -> Finding:
    """Return a finding for a failed connection, from the errors that the client library has reported."""
    for failure in failures:
        if isinstance(failure, nats.errors.SecureConnWantedError):
            advice = "configure a certificate on the server (`tls {}`), or remove tls:// and NATS_TLS_*"
            return _no_access("TLS is required by the settings, but not supported by the server", advice)
        if isinstance(failure, ssl.SSLError):
            reason = getattr(failure, "verify_message", "") or failure.reason or "handshake failed"
            return _no_access(f"TLS: {reason}", TLS_ADVICE)
    texts = " ".join(f"{type(failure).__name__} {failure}".lower() for failure in failures)
    if any(word in texts for word in ("authorization", "authentication", "nkeysnot")):
        return _no_access("the server rejects the credentials")
    if "ssl" in texts or "tls" in texts:
        return _no_access("the server requires TLS", "use tls:// in NATS_URL, or set NATS_TLS_CA_FILE")
    if any(word in texts for word in ("nkey", "seed", "base32")):
        return _no_access("the NKey seed is invalid")
    return _no_access(f"connection failed ({type(failures[-1]).__name__})", "see the log of the server")


def _no_access(found: str, advice: str | None = None) -> Finding:
    return error("queue.access", "credentials", found, expected="an authenticated connection", advice=advice)

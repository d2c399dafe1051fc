"""Whether the queue's server lets this instance in; and what it then says, asked once and judged elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import nats.errors
import orjson

from app.cli.doctor.findings import Finding, error, ok
from app.tasks.access import CarefulClient, access_options
from app.tasks.stream import CONSUMER, DEAD_STREAM, RECORDS_STREAM, STREAM

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nats.aio.client import Client

    from app.settings import Settings

PART = "queue.access"
CONNECT_S = 2.0
ASK_S = 2.0
TOGETHER_S = 6.0
# Workers renew what they ask for; in between, for a moment, the server may know of none.
SECOND_LOOK_S = 0.3
INFO = "INFO"
STREAMS = (STREAM, RECORDS_STREAM, DEAD_STREAM)
WORKERS = f"CONSUMER.INFO.{STREAM}.{CONSUMER}"


def stream_info(name: str) -> str:
    """Return the question about a stream."""
    return f"STREAM.INFO.{name}"


@dataclass(frozen=True)
class Answers:
    """What JetStream said, by what it was asked; a text in place of an answer says why there is none.

    Attributes:
        said: the answers.
        asked_at: when the asking began, by this machine's clock.
        answered_at: when the last answer was there.
    """

    said: dict[str, dict[str, Any] | str]
    asked_at: float
    answered_at: float

    def of(self, question: str) -> dict[str, Any]:
        """Return an answer; nothing where there is none, or where it is an error."""
        answer = self.said.get(question, {})
        return {} if isinstance(answer, str) or "error" in answer else answer

    def is_missing(self, question: str) -> bool:
        """Tell whether the server says that there is no such thing."""
        answer = self.said.get(question, "")
        return not isinstance(answer, str) and answer.get("error", {}).get("code") == HTTPStatus.NOT_FOUND

    def trouble(self, question: str) -> str:
        """Say why there is no answer; empty where there is one."""
        answer = self.said.get(question, "it was not asked")
        if isinstance(answer, str):
            return answer
        fault = answer.get("error", {})
        return str(fault.get("description", "an error without a description")) if fault else ""


def files_of_access(settings: Settings) -> Iterator[Finding]:
    """Look whether the files of credentials and TLS can be read."""
    for name in ("nats_creds_file", "nats_tls_ca_file", "nats_tls_cert_file", "nats_tls_key_file"):
        path = getattr(settings, name)
        if path is None or os.access(path, os.R_OK):
            continue
        yield error(
            PART,
            f"{name.upper()} {path}",
            "cannot be read" if path.exists() else "is not there",
            expected="a file that the service's user can read",
            advice=f"mend {name.upper()}, or the file's mode (chart: `externalNats.credsSecret`, "
            "`externalNats.tlsSecret`)",
        )


def ask_server(settings: Settings) -> tuple[Finding, Answers | None]:
    """Connect as the service does, and ask JetStream all there is to ask."""
    try:
        return asyncio.run(_ask(settings))
    except (ssl.SSLError, OSError) as fault:
        reason = getattr(fault, "verify_message", "") or getattr(fault, "reason", "") or os.strerror(fault.errno or 0)
        return _refused(f"TLS: {reason}", "see NATS_TLS_CA_FILE, NATS_TLS_CERT_FILE and NATS_TLS_KEY_FILE"), None


async def _ask(settings: Settings) -> tuple[Finding, Answers | None]:
    client, faults = CarefulClient(), list[Exception]()

    async def note_fault(fault: Exception) -> None:
        faults.append(fault)

    try:
        async with asyncio.timeout(TOGETHER_S):
            await client.connect(servers=settings.nats_servers, error_cb=note_fault, **_options(settings))
            answers = await _question(client)
        return ok(PART, "credentials", "the server lets this instance in"), answers
    except Exception as fault:  # noqa: BLE001 - a seed that is none, say: the libraries below have errors of their own
        return _judge([*faults, fault]), None
    finally:
        with contextlib.suppress(Exception):  # what was never open cannot be closed, and is no matter
            async with asyncio.timeout(1):
                await client.close()


def _options(settings: Settings) -> dict[str, Any]:
    return {
        "name": "facial-service doctor",
        "allow_reconnect": False,
        "max_reconnect_attempts": 1,
        "reconnect_time_wait": 0.1,
        "connect_timeout": CONNECT_S,
        **access_options(settings),
    }


async def _question(client: Client) -> Answers:
    said: dict[str, dict[str, Any] | str] = {}

    async def ask(question: str) -> None:
        try:
            answer = await client.request(f"$JS.API.{question}", timeout=ASK_S)
            said[question] = orjson.loads(answer.data)
        except nats.errors.NoRespondersError:
            said[question] = "JetStream is off"
        except (nats.errors.Error, OSError, TimeoutError, orjson.JSONDecodeError) as fault:
            said[question] = (
                f"no answer within {ASK_S:g} s" if isinstance(fault, TimeoutError) else type(fault).__name__
            )

    asked_at = time.time()
    await asyncio.gather(*map(ask, (INFO, *map(stream_info, STREAMS), WORKERS)))
    answers = Answers(said, asked_at, time.time())
    if not answers.of(WORKERS).get("num_waiting", 1):
        await asyncio.sleep(SECOND_LOOK_S)
        await ask(WORKERS)
    return answers


def _judge(faults: list[Exception]) -> Finding:
    texts = [f"{type(fault).__name__} {fault}".lower() for fault in faults]
    for fault in faults:
        if isinstance(fault, nats.errors.SecureConnWantedError):
            where = "give the server a certificate (`tls {}` in its configuration), or take tls:// and NATS_TLS_* away"
            return _refused("TLS is asked for, and the server does without", where)
        if isinstance(fault, ssl.SSLError):
            reason = getattr(fault, "verify_message", "") or fault.reason or "the handshake failed"
            return _refused(f"TLS: {reason}", "see NATS_TLS_CA_FILE, NATS_TLS_CERT_FILE and NATS_TLS_KEY_FILE")
    if any("authorization" in text or "authentication" in text or "nkeysnot" in text for text in texts):
        return _refused("the server refuses these credentials", "see NATS_USER, NATS_PASSWORD, NATS_TOKEN and the like")
    if any("ssl" in text or "tls" in text for text in texts):
        return _refused("the server asks for TLS", "write tls:// in NATS_URL, or set NATS_TLS_CA_FILE")
    if any("nkey" in text or "seed" in text or "base32" in text for text in texts):
        return _refused("the NKey or its seed cannot be read", "see NATS_NKEY_SEED and NATS_CREDS_FILE")
    return _refused(f"no connection ({type(faults[-1]).__name__})", "look at the server's own log")


def _refused(found: str, where: str) -> Finding:
    return error(
        PART,
        "credentials",
        found,
        expected="to be let in",
        advice=f"{where} (chart: `nats.auth.existingSecret`, `externalNats.existingSecret`, `externalNats.tlsSecret`)",
    )

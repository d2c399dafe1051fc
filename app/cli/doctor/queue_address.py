"""The servers of NATS_URL, one by one: their names, their ports, and how they greet.

A NATS server says who it is before it asks anything, in plain text: its version, whether it has JetStream, how large a
message it takes, how many of it there are. So this much is known even where it lets nobody in.
"""

from __future__ import annotations

import os
import socket
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit

import msgspec

from app.cli.doctor.findings import Finding, error, ok, warning

if TYPE_CHECKING:
    from collections.abc import Iterator

    from app.settings import Settings

PART = "queue.address"
LOOK_S = 2.0
PORT = 4222
LONGEST_GREETING = 64 << 10


class Greeting(msgspec.Struct, frozen=True):
    """What a server says of itself; the names are the protocol's."""

    version: str = ""
    jetstream: bool = False
    max_payload: int = 0
    tls_required: bool = False
    tls_available: bool = False
    auth_required: bool = False
    cluster: str = ""
    connect_urls: tuple[str, ...] = ()


class _GreetingError(Exception):
    """It does not greet as a NATS server does; the message says how."""


def look_at_addresses(settings: Settings) -> Iterator[tuple[Finding, Greeting | None]]:
    """Look at all servers at once, and yield a finding for each, with its greeting."""
    servers = [urlsplit(server) for server in settings.nats_servers]
    looks = [_begin(server) for server in servers]
    greetings = [_end(look) for look in looks]
    is_any = any(isinstance(greeting, Greeting) for greeting in greetings)
    for server, greeting in zip(servers, greetings, strict=True):
        place = f"{server.hostname}:{server.port or PORT}"
        if isinstance(greeting, Greeting):
            yield ok(PART, place, f"a NATS server, {greeting.version}"), greeting
            continue
        judge = warning if is_any else error
        yield (
            judge(
                PART,
                place,
                greeting,
                expected="a NATS server that can be reached from here",
                advice="start it, or mend NATS_URL, or the way to it: DNS, firewall, NetworkPolicy (chart: "
                "`externalNats.url`; `kubectl get pods -l app.kubernetes.io/component=nats`)",
            ),
            None,
        )


def _begin(server: SplitResult) -> Future[Greeting]:
    """Look in a thread of its own, for nothing bounds the time that a name's lookup takes."""
    found: Future[Greeting] = Future()

    def look() -> None:
        try:
            found.set_result(_greet(server.hostname or "", server.port or PORT))
        except Exception as fault:  # noqa: BLE001 - told as what was found
            found.set_exception(fault)

    threading.Thread(target=look, name="doctor-address", daemon=True).start()
    return found


def _end(look: Future[Greeting]) -> Greeting | str:
    try:
        return look.result(timeout=2 * LOOK_S + 0.5)
    except socket.gaierror as fault:
        return f"its name cannot be resolved ({fault.strerror})"
    except TimeoutError:
        return f"no answer within {LOOK_S:g} s"
    except _GreetingError as fault:
        return str(fault)
    except OSError as fault:
        return os.strerror(fault.errno).lower() if fault.errno else type(fault).__name__


def _greet(host: str, port: int) -> Greeting:
    with socket.create_connection((host, port), timeout=LOOK_S) as connection:
        line = b""
        while not line.endswith(b"\n") and len(line) < LONGEST_GREETING:
            try:
                piece = connection.recv(4096)
            except TimeoutError:
                raise _GreetingError("something listens, and says nothing: it hangs, or is no NATS server") from None
            if not piece:
                break
            line += piece.partition(b"\n")[0] + (b"\n" if b"\n" in piece else b"")
    if not line.startswith(b"INFO "):
        raise _GreetingError("something listens, and does not greet as a NATS server does")
    try:
        return msgspec.json.decode(line.removeprefix(b"INFO "), type=Greeting)
    except msgspec.DecodeError:
        raise _GreetingError("it greets as no NATS server known here does") from None

"""Adapter for nats-py: a stricter client, and connection options from the settings.

This is the only module that relies on internals of nats-py. ``tests/contracts/test_nats_internals.py`` fails if an
upgrade changes one of them.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlsplit

import nats.errors
from nats.aio.client import Client

if TYPE_CHECKING:
    from pathlib import Path

    from nats.aio.client import Srv
    from nats.aio.msg import Msg

    from app.settings import Settings

REPEAT_S = 1.0  # how long a small request has no response until it is sent again; doubled each time
LARGE_BYTES = 1024 * 1024  # a request of this size is repeated half as often, because its copies take memory
# Lines that begin the parts of a credentials file.
_CREDENTIALS: Final = {"JWT": b"BEGIN NATS USER JWT", "NKey seed": b"BEGIN USER NKEY SEED"}


class CredentialsError(OSError):
    """The credentials file is incomplete; the message contains the remedy."""


class ServiceClient(Client):
    """A client that sends no credentials without TLS if TLS is configured, leaks no socket and repeats lost requests.

    nats-py lets the server decide whether to use TLS, so an impostor could ask for the credentials in plain text. It
    also leaks the socket if a handshake fails during a reconnect or is interrupted. And if the connection is lost, it
    lets requests in flight wait for their whole timeout, although no response can arrive.
    """

    async def request(
        self,
        subject: str,
        payload: bytes = b"",
        timeout: float = REPEAT_S,  # noqa: ASYNC109 - as in the base class
        old_style: bool = False,
        headers: dict[str, Any] | None = None,
    ) -> Msg:
        """Send a request until it has a response; a cluster loses requests while it elects a leader.

        An earlier copy may still get its response after a later one was sent. So a request must have the same effect
        if it is sent twice.

        Raises:
            nats.errors.Error: there is no response within the timeout, the connection is lost, or no client listens.
        """
        loop = asyncio.get_running_loop()
        end, pause_s = loop.time() + timeout, REPEAT_S * (1 + len(payload) / LARGE_BYTES)
        copies: set[asyncio.Task[Msg]] = set()
        try:
            while (left_s := end - loop.time()) > 0:
                send = super().request(subject, payload, timeout=left_s, old_style=old_style, headers=headers)
                copy = asyncio.create_task(send)
                # asyncio logs an exception that is not read. A copy may fail even after it has been cancelled.
                copy.add_done_callback(lambda copy: copy.cancelled() or copy.exception())
                copies.add(copy)
                done, _ = await asyncio.wait(copies, timeout=min(pause_s, left_s), return_when=asyncio.FIRST_COMPLETED)
                if done:
                    return done.pop().result()
                pause_s *= 2
            raise nats.errors.TimeoutError
        finally:
            for copy in copies:
                copy.cancel()

    def fail_requests(self) -> None:
        """Fail the requests in flight with `nats.errors.ConnectionReconnectingError`."""
        for response in list(self._resp_map.values()):
            if not response.done():
                response.set_exception(nats.errors.ConnectionReconnectingError())
                response.exception()  # asyncio would log it if the task that awaits the response has been cancelled

    def close_transport(self) -> None:
        """Close the socket, regardless of the state of the connection."""
        if self._transport:
            self._transport.close()  # type: ignore[no-untyped-call]

    async def _connect_to_server(self, s: Srv) -> None:
        self.close_transport()
        await super()._connect_to_server(s)

    async def _flush_pending(self, force_flush: bool = False) -> Any:
        try:
            return await super()._flush_pending(force_flush)
        except RuntimeError as error:  # raised by uvloop if the socket was closed after the last check
            raise nats.errors.ConnectionClosedError from error

    def _connect_command(self) -> bytes:
        # The client sends nothing before this command.
        if self.options.get("tls") is not None and not self._server_info.get("tls_required"):
            raise nats.errors.SecureConnWantedError
        return super()._connect_command()


def find_missing_credentials(file: Path) -> list[str]:
    """Return the parts that a credentials file lacks; nothing if it cannot be read, which every connection reports."""
    try:
        content = file.read_bytes()
    except OSError:
        return []
    return [name for name, line in _CREDENTIALS.items() if line not in content]


def require_credentials(file: Path) -> None:
    """Check that a credentials file is complete, because nats-py would retry without a helpful error.

    Raises:
        CredentialsError: it lacks a part.
    """
    if missing := find_missing_credentials(file):
        raise CredentialsError(
            f"NATS_CREDS_FILE {file}: expected a JWT and an NKey seed, as `nsc generate creds` writes them, "
            f"got no {' and no '.join(missing)}"
        )


def connect_options(settings: Settings) -> dict[str, Any]:
    """Return the options of `Client.connect` for authentication and TLS."""
    credentials: dict[str, Any] = {
        "user": settings.nats_user,
        "password": settings.nats_password.get_secret_value(),
        "token": settings.nats_token.get_secret_value(),
        "nkeys_seed_str": settings.nats_nkey_seed.get_secret_value(),
        "user_credentials": str(settings.nats_creds_file or ""),
    }
    options = {name: value for name, value in credentials.items() if value}
    options = options or _credentials_in_addresses(settings.nats_servers)
    is_tls = settings.nats_tls_ca_file or settings.nats_tls_cert_file
    if is_tls or any(server.startswith("tls://") for server in settings.nats_servers):
        authorities = settings.nats_tls_ca_file
        context = ssl.create_default_context(cafile=str(authorities) if authorities else None)
        if settings.nats_tls_cert_file and settings.nats_tls_key_file:
            context.load_cert_chain(settings.nats_tls_cert_file, settings.nats_tls_key_file)
        options["tls"] = context
    return options


def _credentials_in_addresses(servers: list[str]) -> dict[str, Any]:
    """Return the credentials that all addresses share, decoded; nats-py would send ``%40`` as it is."""
    found = {(parts.username, parts.password) for parts in map(urlsplit, servers) if parts.username}
    if len(found) != 1:
        return {}
    ((user, password),) = found
    if password is None:
        return {"token": unquote(user or "")}
    return {"user": unquote(user or ""), "password": unquote(password)}

"""How the queue's server is told who asks, and how it is checked to be the right one."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import nats.errors
from nats.aio.client import Client

if TYPE_CHECKING:
    from nats.aio.client import Srv

    from app.settings import Settings


class StrictTlsClient(Client):
    """The library's client, which tells nothing in the clear where TLS was asked for, and leaves no socket behind.

    The library leaves it to the server whether a connection is encrypted; whoever stands in a server's place would be
    told the credentials. And it forgets a socket whose handshake failed while it reconnected, or was interrupted.
    """

    def close_transport(self) -> None:
        """Close the socket, whatever the library takes the connection for."""
        if self._transport:
            self._transport.close()  # type: ignore[no-untyped-call]

    async def _connect_to_server(self, s: Srv) -> None:
        self.close_transport()
        await super()._connect_to_server(s)

    async def _flush_pending(self, force_flush: bool = False) -> Any:
        try:
            return await super()._flush_pending(force_flush)
        except RuntimeError as error:  # of uvloop, for a socket that was closed since the connection was last checked
            raise nats.errors.ConnectionClosedError from error

    def _connect_command(self) -> bytes:
        # What it returns is the first thing that is sent, so nothing has been told yet.
        if self.options.get("tls") is not None and not self._server_info.get("tls_required"):
            raise nats.errors.SecureConnWantedError
        return super()._connect_command()


def connect_options(settings: Settings) -> dict[str, Any]:
    """Return what the client library is to be given for the settings' way to authenticate, and for TLS."""
    given: dict[str, Any] = {
        "user": settings.nats_user,
        "password": settings.nats_password.get_secret_value(),
        "token": settings.nats_token.get_secret_value(),
        "nkeys_seed_str": settings.nats_nkey_seed.get_secret_value(),
        "user_credentials": str(settings.nats_creds_file or ""),
    }
    options = {name: value for name, value in given.items() if value} or _read_addresses(settings.nats_servers)
    is_tls = settings.nats_tls_ca_file or settings.nats_tls_cert_file
    if is_tls or any(server.startswith("tls://") for server in settings.nats_servers):
        authorities = settings.nats_tls_ca_file
        context = ssl.create_default_context(cafile=str(authorities) if authorities else None)
        if settings.nats_tls_cert_file and settings.nats_tls_key_file:
            context.load_cert_chain(settings.nats_tls_cert_file, settings.nats_tls_key_file)
        options["tls"] = context
    return options


def _read_addresses(servers: list[str]) -> dict[str, Any]:
    """Return the credentials that all addresses share; the library would send them with their escapes (``%40``)."""
    found = {(parts.username, parts.password) for parts in map(urlsplit, servers) if parts.username}
    if len(found) != 1:
        return {}
    ((user, password),) = found
    if password is None:
        return {"token": unquote(user or "")}
    return {"user": unquote(user or ""), "password": unquote(password)}

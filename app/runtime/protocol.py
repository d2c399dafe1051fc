"""HTTP as uvicorn reads it, with a bound on a request's head, and with offers of other protocols passed over."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from app.observability.recording import record_error
from app.web.problems import PROBLEMS, problem_response

if TYPE_CHECKING:
    from collections.abc import Iterator

# Proxies send on 8 to 32 KiB. The parser joins a header's pieces anew with each one that comes, so that without a
# bound one long header keeps a worker busy until it is taken for dead.
MAX_HEAD_BYTES = 65_536

_UPGRADE_HEADERS = {b"upgrade", b"http2-settings"}


class ServiceProtocol(HttpToolsProtocol):
    """One connection.

    A client that offers to go on in another protocol (Java's offers HTTP/2 with each request) is answered in this one,
    as RFC 9110 has it; the parser alone would drop the request's body.
    """

    _is_in_head = True
    _is_offer = False
    _head_bytes = 0

    def data_received(self, data: bytes) -> None:
        """Read what came."""
        self._unset_keepalive_if_required()
        was_in_head = self._is_in_head
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            self._pass_over_offer(data[offer.args[0] :])
        except httptools.HttpParserError:
            self._refuse("http_invalid", "expected a request in HTTP/1.1")
        else:
            # The bytes in which a head begins may hold the end of a body too, so they do not count.
            self._head_bytes += len(data) if was_in_head else 0
            if self._is_in_head and self._head_bytes > MAX_HEAD_BYTES:
                self._refuse("head_too_large", f"expected at most {MAX_HEAD_BYTES} bytes of headers, got more")

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._is_in_head, self._is_offer, self._head_bytes = True, False, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Start the request, unless it is to be read again without its offer."""
        self._is_in_head = False
        self._is_offer = self.parser.should_upgrade()
        if not self._is_offer:
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        """End the request's body."""
        if not self._is_offer:
            super().on_message_complete()

    def _pass_over_offer(self, rest: bytes) -> None:
        method = self.parser.get_method()
        if method == b"CONNECT":
            self._refuse("http_invalid", "expected a request, not a tunnel")
            return
        version = self.parser.get_http_version().encode()
        head = [method, b" ", self.url, b" HTTP/", version, b"\r\n", *self._other_headers(), b"\r\n"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as the base class does
        self.data_received(b"".join(head) + rest)

    def _other_headers(self) -> Iterator[bytes]:
        for name, value in self.headers:
            if name == b"connection":
                tokens = [token for token in value.split(b",") if token.strip().lower() not in _UPGRADE_HEADERS]
                yield b"connection: " + b",".join(tokens) + b"\r\n" if tokens else b""
            elif name not in _UPGRADE_HEADERS:
                yield name + b": " + value + b"\r\n"

    def _refuse(self, code: str, detail: str) -> None:
        record_error(code, "api")
        status, title = PROBLEMS[code]
        response = problem_response(code, status, title, detail, headers={"Connection": "close"})
        head = b"".join(name + b": " + value + b"\r\n" for name, value in response.raw_headers)
        self.transport.write(STATUS_LINE[status] + head + b"\r\n" + response.body)
        self.transport.close()

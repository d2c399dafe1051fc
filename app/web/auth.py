"""Authentication: API keys, and the identity of callers.

API keys come from ``API_KEYS`` and from ``API_KEYS_FILE``, which is reloaded when it changes, so that a rotated
Kubernetes Secret takes effect without a restart. A caller is identified by the name of its key, or by the hash of a key
without a name. If no keys are configured, a caller is identified by its address.
"""

from __future__ import annotations

import hmac
import ipaddress
import time
from dataclasses import dataclass, field, replace
from functools import lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from app.observability.log_text import count_of
from app.observability.rich_logging import get_logger
from app.settings import parse_api_keys, parse_key_file
from app.web.problems import ProblemError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from fastapi import Request

    from app.web.rate_limit import RateLimiter

log = get_logger("api")

BEARER: Final = "bearer "
RELOAD_S: Final = 1.0
OWNER_DIGITS: Final = 16
LABEL_DIGITS: Final = 8
# A host is usually assigned a whole network of this size and can use any address in it.
_IPV6_PREFIX: Final = 64


@dataclass(frozen=True, slots=True)
class Caller:
    """The sender of a request."""

    identity: str  # for capacity and rate limits
    owner: str = ""  # owns tasks; empty if no keys are configured
    label: str = ""  # name or short hash of the key, for logs; empty if no keys are configured
    # Short hash of the key, for logs: keys that are being rotated can have the same name and belong to one caller.
    key_hash: str = field(default="", compare=False)
    number: int = 0  # determines the queue lane; up to eight keys or neighbouring addresses have different lanes


ANONYMOUS: Final = Caller(identity="")


class KeyRing:
    """The accepted API keys, those of the settings and of a file, which is read at most once per second."""

    def __init__(self, entries: Sequence[str] = (), file: Path | None = None) -> None:
        self._fixed = parse_api_keys(entries)
        self._file = file
        self._content: bytes | None = None  # last valid content of the file
        self._checked_at = 0.0
        self._is_failing = False
        self._keys = _identify_keys(self._fixed)
        self._reload()

    def __bool__(self) -> bool:
        """Return whether a key is required. A key file requires one even if it is unreadable."""
        return bool(self._fixed) or self._file is not None

    def find(self, given: bytes) -> Caller | None:
        """Return the caller of a key, or None if the key is unknown.

        Every key is compared in constant time, so that the response time reveals nothing about the keys.
        """
        if self._file is not None and time.monotonic() - self._checked_at >= RELOAD_S:
            self._reload()
        matches = [caller for key, caller in self._keys if hmac.compare_digest(given, key)]
        return matches[0] if matches else None

    def _reload(self) -> None:
        """Load the file if it has changed; keep the previous keys if it is missing or invalid."""
        if self._file is None:
            return
        self._checked_at = time.monotonic()
        try:
            # The content is compared, because an edit can leave size, modification time and inode unchanged.
            content = self._file.read_bytes()
            if content != self._content:
                self._keys = _identify_keys([*self._fixed, *parse_key_file(content)])
        except (OSError, ValueError) as error:
            if not self._is_failing:
                problem = error.strerror if isinstance(error, OSError) else str(error)
                log.error("API_KEYS_FILE cannot be used: %s; the previous keys stay valid", problem)  # noqa: TRY400
            self._is_failing = True
            return
        if self._content not in {None, content}:
            log.info("API_KEYS_FILE was reloaded: %s", count_of(len(self._keys), "key"))
        self._content, self._is_failing = content, False


def _identify_keys(entries: Iterable[tuple[str, str]]) -> list[tuple[bytes, Caller]]:
    """Return each key with its caller, numbered in order; keys with the same name belong to the same caller."""
    callers: dict[str, Caller] = {}
    keys: list[tuple[bytes, Caller]] = []
    for name, key in entries:
        # Different prefixes, so that a key without a name cannot have the identity of a name.
        identity = sha256(f"name:{name}".encode() if name else f"key:{key}".encode()).hexdigest()
        key_hash = sha256(f"key:{key}".encode()).hexdigest()[:LABEL_DIGITS]
        new = Caller(identity, identity[:OWNER_DIGITS], name or key_hash, number=len(callers))
        keys.append((key.encode(), replace(callers.setdefault(identity, new), key_hash=key_hash)))
    return keys


def require_caller(request: Request, keys: KeyRing, limiter: RateLimiter | None = None) -> Caller:
    """Identify the caller of a request, and count the request against the caller's rate limit.

    Raises:
        ProblemError: ``unauthorized`` or ``rate_limited``.
    """
    host = request.client.host if request.client else ""
    caller = _require_key(request, keys) if keys else _caller_at(host)
    request.state.caller = caller
    if limiter is not None:
        request.state.rate_limit = limiter.require(caller.identity)
    return caller


def _require_key(request: Request, keys: KeyRing) -> Caller:
    if any(len(request.headers.getlist(name)) > 1 for name in ("x-api-key", "authorization")):
        raise _unauthorized("a repeated header")  # a proxy and the service could read different keys
    authorization = request.headers.get("authorization", "")
    token = authorization[len(BEARER) :] if authorization[: len(BEARER)].lower() == BEARER else ""
    # Starlette decodes headers as latin-1, so this restores the bytes that were sent.
    given = (request.headers.get("x-api-key") or token).encode("latin-1").strip(b" \t")
    caller = keys.find(given) if given else None
    if caller is None:
        raise _unauthorized("an unknown key" if given else "none")
    return caller


def _unauthorized(received: str) -> ProblemError:
    detail = f"API key: expected a valid key in X-API-Key or as a bearer token, got {received}"
    return ProblemError("unauthorized", detail, headers={"WWW-Authenticate": 'Bearer realm="facial-service"'})


def scope_digest(caller: Caller, digest: str | None) -> str | None:
    """Restrict the digest of a request to its caller, so that cached results reveal nothing about other callers."""
    if digest is None or not caller.owner:
        return digest
    return sha256(f"{caller.owner}:{digest}".encode()).hexdigest()


@lru_cache(maxsize=1024)
def _caller_at(host: str) -> Caller:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:  # no address, or text from a proxy header
        return ANONYMOUS
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        else:
            network = ipaddress.ip_network((address, _IPV6_PREFIX), strict=False)
            return Caller(str(network), number=int(network.network_address) >> _IPV6_PREFIX)
    return Caller(str(address), number=int(address))

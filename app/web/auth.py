"""Callers: who may use ``/api/``, what identifies them, and how many requests they may send.

API keys come from ``API_KEYS`` and from the file ``API_KEYS_FILE``, which is read again when it changes, so that a
rotated Kubernetes Secret takes effect without a restart. A caller is identified by the name of its key, or by the key's
hash if it has no name; without keys, by its address.
"""

from __future__ import annotations

import hmac
import ipaddress
import time
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from app.observability.rich_logging import get_logger
from app.settings import parse_api_keys, parse_key_file
from app.web.problem_codes import ProblemError

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
# A host is usually given a whole network of this size, of which it can use any address.
_IPV6_PREFIX: Final = 64


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request.

    Attributes:
        identity: what capacity and rate limits are counted by.
        number: what queue lanes are assigned by. Up to eight keys, or neighbouring addresses, have different lanes.
        owner: identity that tasks belong to; empty if no keys are set.
        label: name or short hash of the key, for logs; empty if no keys are set.
    """

    identity: str
    owner: str = ""
    label: str = ""
    number: int = 0


ANONYMOUS: Final = Caller(identity="")


@dataclass(frozen=True, slots=True)
class _Key:
    secret: bytes
    caller: Caller


class KeyRing:
    """The keys that are accepted at the moment; the file is read once a second while requests come.

    Args:
        entries: keys of the settings, each ``key`` or ``name:key``.
        file: file with more of them, or None.
    """

    def __init__(self, entries: Sequence[str] = (), file: Path | None = None) -> None:
        self._fixed = _number(map(_make_key, parse_api_keys(entries)))
        self._file = file
        self._content: bytes | None = None  # of the file, when it was last valid
        self._checked_at = 0.0
        self._is_failing = False
        self._keys = self._fixed
        self._reload()

    def __bool__(self) -> bool:
        """Whether a key is required; a key file requires one even if it cannot be read."""
        return bool(self._fixed) or self._file is not None

    def find(self, given: bytes) -> Caller | None:
        """Return the caller of a key; None if it is not accepted.

        Every key is compared, each in constant time, so that the time taken does not reveal which came close.
        """
        if self._file is not None and time.monotonic() - self._checked_at >= RELOAD_S:
            self._reload()
        matches = [key.caller for key in self._keys if hmac.compare_digest(given, key.secret)]
        return matches[0] if matches else None

    def _reload(self) -> None:
        """Read the file if it has changed; keep the keys that were read last if it is missing or invalid."""
        if self._file is None:
            return
        self._checked_at = time.monotonic()
        try:
            # An edit within a tick of the clock can leave size, times and inode as they were.
            content = self._file.read_bytes()
            if content != self._content:
                self._keys = _number([*self._fixed, *map(_make_key, parse_key_file(content))])
        except (OSError, ValueError) as error:
            if not self._is_failing:
                problem = error.strerror if isinstance(error, OSError) else str(error)
                log.error("API_KEYS_FILE cannot be read, the previous keys stay valid: %s", problem)  # noqa: TRY400
            self._is_failing = True
            return
        if self._content not in {None, content}:
            log.info("API_KEYS_FILE was read again: %d keys", len(self._keys))
        self._content, self._is_failing = content, False


def _make_key(entry: tuple[str, str]) -> _Key:
    name, secret = entry
    # The prefixes keep a key from having the identity of a name.
    identity = sha256(f"name:{name}".encode() if name else f"key:{secret}".encode()).hexdigest()
    return _Key(secret.encode(), Caller(identity, identity[:OWNER_DIGITS], name or identity[:LABEL_DIGITS]))


def _number(keys: Iterable[_Key]) -> tuple[_Key, ...]:
    """Number the callers by their position; keys of one name are one caller."""
    numbers: dict[str, int] = {}
    return tuple(
        replace(key, caller=replace(key.caller, number=numbers.setdefault(key.caller.identity, len(numbers))))
        for key in keys
    )


def require_caller(request: Request, keys: KeyRing, limiter: RateLimiter | None = None) -> Caller:
    """Identify the caller of a request, and count the request against its rate limit.

    Args:
        request: carries a key in ``X-API-Key`` or as a bearer token, if keys are set.
        keys: the keys that are accepted.
        limiter: rate limit of the route; None if it has none.

    Raises:
        ProblemError: ``unauthorized`` or ``rate_limited``.
    """
    caller = _require_key(request, keys) if keys else _identify(request)
    request.state.caller = caller
    if limiter is not None:
        request.state.rate_limit = limiter.require(caller.identity)
    return caller


def _require_key(request: Request, keys: KeyRing) -> Caller:
    if any(len(request.headers.getlist(name)) > 1 for name in ("x-api-key", "authorization")):
        raise _unauthorized("a header twice")  # whose key counts, proxies and the service could see differently
    authorization = request.headers.get("authorization", "")
    token = authorization[len(BEARER) :] if authorization[: len(BEARER)].lower() == BEARER else ""
    # Headers are bytes, which the framework decodes as latin-1: encoding them again gives what was sent.
    given = (request.headers.get("x-api-key") or token).encode("latin-1").strip(b" \t")
    caller = keys.find(given) if given else None
    if caller is None:
        raise _unauthorized("a key that is not known" if given else "none")
    return caller


def _unauthorized(came: str) -> ProblemError:
    detail = f"expected a key in X-API-Key or as a bearer token, got {came}"
    return ProblemError("unauthorized", detail, headers={"WWW-Authenticate": 'Bearer realm="facial-service"'})


def scope_digest(caller: Caller, digest: str | None) -> str | None:
    """Return the digest of a request as its caller's: a cached result must not reveal what another caller has sent."""
    if digest is None or not caller.owner:
        return digest
    return sha256(f"{caller.owner}:{digest}".encode()).hexdigest()


def _identify(request: Request) -> Caller:
    return _caller_at(request.client.host) if request.client else ANONYMOUS


@lru_cache(maxsize=1024)
def _caller_at(host: str) -> Caller:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:  # text that a proxy header held
        return ANONYMOUS
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        else:
            network = ipaddress.ip_network((address, _IPV6_PREFIX), strict=False)
            return Caller(str(network), number=int(network.network_address) >> _IPV6_PREFIX)
    return Caller(str(address), number=int(address))

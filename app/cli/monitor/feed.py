"""Asking instances over HTTP: addresses as users write them, one round of scrapes, and why one failed."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

import httpx

from app.cli.monitor.health import HealthError, parse_health
from app.cli.monitor.instance import Instance, Scrape
from app.cli.monitor.samples import ExpositionError, Samples, parse_exposition

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from types import TracebackType

MAX_ANSWER_BYTES: Final = 32 << 20  # a scrape has some 100 kB; this keeps a wrong address from filling the memory
MAX_PORT: Final = 65_535
NOT_FOUND: Final = 404
_PAGES: Final = ("/metrics", "/health/ready", "/health/live", "/health")
# The text format, whatever else the exporter could write; and not packed, for that costs it more than the scrape.
_HEADERS: Final = {"Accept": "text/plain; version=0.0.4", "Accept-Encoding": "identity"}


# A machine that slept has a service that went on; the clock of `time.monotonic` stands still meanwhile, on Linux.
_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def clock() -> float:
    """Return seconds that only go on, and do so while the machine sleeps."""
    return time.clock_gettime(_CLOCK)


class AddressError(ValueError):
    """A URL that cannot be asked."""


class ScrapeError(Exception):
    """An instance that did not answer as it should; the text says why, in a few words."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where an instance is asked.

    Attributes:
        name: host and port, without what else a URL may carry.
        url: base of its paths, without a slash at the end.
    """

    name: str
    url: httpx.URL


def parse_target(text: str) -> Target:
    """Read an address: a URL with or without scheme, of the port itself or of ``/metrics`` or ``/health`` on it.

    Raises:
        AddressError: it is none.

    Example:
        >>> [parse_target(text).name for text in ("localhost:9000", "http://api:8000/metrics")]
        ['localhost:9000', 'api:8000']
        >>> parse_target("ftp://host")
        Traceback (most recent call last):
        app.cli.monitor.feed.AddressError: expected http://HOST:PORT, got scheme 'ftp'
    """
    try:
        url = httpx.URL(text if "://" in text else f"http://{text}")
    except httpx.InvalidURL as error:
        raise AddressError("expected http://HOST:PORT, got no URL") from error
    if url.scheme not in {"http", "https"}:
        raise AddressError(f"expected http://HOST:PORT, got scheme {url.scheme!r}")
    if not url.host:
        raise AddressError("expected http://HOST:PORT, got no host")
    if url.port is not None and not 0 < url.port <= MAX_PORT:
        raise AddressError(f"expected a port of 1 to {MAX_PORT}, got {url.port}")
    path = url.path.rstrip("/")
    page = next((page for page in _PAGES if path.endswith(page)), "")
    host = f"[{url.host}]" if ":" in url.host else url.host
    name = host if url.port is None else f"{host}:{url.port}"
    return Target(name, url.copy_with(path=path.removesuffix(page) or "/", query=None, fragment=None))


def parse_targets(texts: Iterable[str]) -> list[Target]:
    """Read several addresses, each of another instance.

    Raises:
        AddressError: one is none, or is there twice: its figures would be added to themselves.
    """
    targets: list[Target] = []
    for text in texts:
        target = parse_target(text)
        if any(target.url == other.url for other in targets):
            raise AddressError(f"expected each instance once, got {target.name} twice")
        targets.append(target)
    return targets


class Feed:
    """The instances that are watched, and the connections to them.

    Args:
        targets: where they are.
        timeout_s: how long a whole answer may take.
        window_s: how far back their rates look.
    """

    def __init__(self, targets: Sequence[Target], *, timeout_s: float, window_s: float) -> None:
        self.instances = [Instance(target.name, window_s) for target in targets]
        self._targets = targets
        self._timeout_s = timeout_s
        # Of this network: an HTTP_PROXY is for what is outside, and a port that is forwarded is on this machine.
        self._client = httpx.AsyncClient(timeout=timeout_s, headers=_HEADERS, trust_env=False)

    async def __aenter__(self) -> Self:
        """Open nothing yet."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def scrape(self) -> None:
        """Ask all of them once, side by side, and let each remember what it said or that it did not."""
        await asyncio.gather(*map(self._scrape_into, self.instances, self._targets))

    async def _scrape_into(self, instance: Instance, target: Target) -> None:
        at = clock()
        try:
            async with asyncio.timeout(self._timeout_s):
                scrape = await self._scrape_one(target)
        except ScrapeError as error:
            instance.miss(at, str(error))
        except (TimeoutError, httpx.TimeoutException):
            instance.miss(at, f"no answer within {self._timeout_s:g} s")
        except (httpx.HTTPError, OSError, UnicodeError) as error:  # the last of a name that no resolver takes
            instance.miss(at, _reason(error))
        else:
            instance.take(scrape)

    async def _scrape_one(self, target: Target) -> Scrape:
        at = clock()
        health, exposition = await asyncio.gather(self._get(target, "/health"), self._get(target, "/metrics"))
        took_s = clock() - at
        try:
            return Scrape(at, took_s, parse_health(health[1]), _samples(*exposition))
        except (HealthError, ExpositionError) as error:
            raise ScrapeError(str(error)) from error

    async def _get(self, target: Target, path: str) -> tuple[int, bytes]:
        url = target.url.copy_with(path=target.url.path.rstrip("/") + path)
        body = bytearray()
        async with self._client.stream("GET", url) as answer:
            async for part in answer.aiter_bytes():
                body += part
                if len(body) > MAX_ANSWER_BYTES:
                    raise ScrapeError(f"{path}: expected some 100 kB, got more than {MAX_ANSWER_BYTES >> 20} MiB")
        # Health is answered with 503 where it is bad, and the body says so.
        if answer.is_success or path == "/health" or answer.status_code == NOT_FOUND:
            return answer.status_code, bytes(body)
        raise ScrapeError(f"{path}: expected 200, got {answer.status_code}")


def _samples(status: int, body: bytes) -> Samples | None:
    """Read the metrics; an instance with ``ENABLE_METRICS=false`` has no such page."""
    return None if status == NOT_FOUND else parse_exposition(body.decode("utf-8", "replace"))


def _reason(error: Exception) -> str:
    """Say in a few words why a request failed, and nothing of what it carried."""
    for cause in _causes(error):
        if isinstance(cause, socket.gaierror | UnicodeError):
            return "its name is not known"
        if isinstance(cause, OSError) and cause.errno:
            return os.strerror(cause.errno).lower()
    if isinstance(error, httpx.RemoteProtocolError | httpx.ReadError | httpx.WriteError):
        return "the connection broke"
    return "no connection" if isinstance(error, httpx.ConnectError) else type(error).__name__


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        cause = waiting.pop()
        if cause is not None and id(cause) not in seen:
            seen.add(id(cause))
            yield cause
            waiting += [cause.__context__, cause.__cause__]
            if isinstance(cause, BaseExceptionGroup):
                waiting += cause.exceptions

"""HTTP scraper: parses instance addresses, fetches ``/health`` and ``/metrics``, and describes failures."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import httpx

from app.cli.monitor.instance import ResponseError, Scrape, TrackedInstance, parse_health, parse_metrics

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

MAX_RESPONSE_BYTES: Final = 32 << 20  # a scrape has about 100 kB; a wrong URL must not exhaust the memory
MAX_PORT: Final = 65_535
_PATHS: Final = ("/metrics", "/health/ready", "/health/live", "/health")
# Plain text, because that is what the parser reads; uncompressed, because compression costs more than the scrape.
_HEADERS: Final = {"Accept": "text/plain; version=0.0.4", "Accept-Encoding": "identity"}
# On Linux, time.monotonic() stops while the machine sleeps, but a remote service does not.
_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def clock() -> float:
    """Return the time of a monotonic clock that includes suspends, in seconds."""
    return time.clock_gettime(_CLOCK)


class AddressError(ValueError):
    """An invalid address of an instance."""


@dataclass(frozen=True, slots=True)
class Target:
    """Address of an instance."""

    name: str  # host and port; never credentials
    url: httpx.URL


def parse_target(text: str) -> Target:
    """Parse the address of an instance: HOST:PORT, or a URL with or without the path of its metrics or health.

    Raises:
        AddressError: the address is invalid.

    Example:
        >>> [parse_target(text).name for text in ("localhost:9000", "http://api:8000/metrics")]
        ['localhost:9000', 'api:8000']
        >>> parse_target("ftp://host")
        Traceback (most recent call last):
        app.cli.monitor.scraper.AddressError: expected http://HOST:PORT, got scheme 'ftp'
    """
    try:
        url = httpx.URL(text if "://" in text else f"http://{text}")
    except httpx.InvalidURL as error:
        raise AddressError("expected http://HOST:PORT, got an invalid URL") from error
    if url.scheme not in {"http", "https"}:
        raise AddressError(f"expected http://HOST:PORT, got scheme {url.scheme!r}")
    if not url.host:
        raise AddressError("expected http://HOST:PORT, got no host")
    if url.port is not None and not 0 < url.port <= MAX_PORT:
        raise AddressError(f"expected a port from 1 to {MAX_PORT}, got {url.port}")
    path = url.path.rstrip("/")
    suffix = next((suffix for suffix in _PATHS if path.endswith(suffix)), "")
    host = f"[{url.host}]" if ":" in url.host else url.host
    name = host if url.port is None else f"{host}:{url.port}"
    return Target(name, url.copy_with(path=path.removesuffix(suffix) or "/", query=None, fragment=None))


def parse_targets(texts: Iterable[str]) -> list[Target]:
    """Parse the addresses of several instances.

    Raises:
        AddressError: an address is invalid or repeated. A repeated instance would be counted twice.
    """
    targets: list[Target] = []
    for text in texts:
        target = parse_target(text)
        if any(target.url == other.url for other in targets):
            raise AddressError(f"expected each instance once, got {target.name} twice")
        targets.append(target)
    return targets


class Scraper:
    """Scrapes instances over HTTP; the timeout covers a scrape from connecting to the last byte."""

    def __init__(self, targets: Sequence[Target], *, timeout_s: float, window_s: float) -> None:
        self.instances = [TrackedInstance(target.name, window_s) for target in targets]  # in the same order
        self._targets = targets
        self._timeout_s = timeout_s
        # Ignore HTTP_PROXY: instances are in this network, or on this machine behind a forwarded port.
        self._client = httpx.AsyncClient(timeout=timeout_s, headers=_HEADERS, trust_env=False)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def scrape(self) -> None:
        """Scrape all instances concurrently, and record each result in its instance."""
        await asyncio.gather(*map(self._scrape_instance, self.instances, self._targets))

    async def _scrape_instance(self, instance: TrackedInstance, target: Target) -> None:
        at = clock()
        try:
            async with asyncio.timeout(self._timeout_s):
                scrape = await self._fetch(target)
        except ResponseError as error:
            instance.record_failure(at, str(error))
        except (TimeoutError, httpx.TimeoutException):
            instance.record_failure(at, f"no response within {self._timeout_s:g} s")
        except (httpx.HTTPError, OSError, UnicodeError) as error:
            instance.record_failure(at, _describe(error))
        else:
            instance.record_scrape(scrape)

    async def _fetch(self, target: Target) -> Scrape:
        at, time_s = clock(), time.time()
        (_, health), (status, metrics) = await asyncio.gather(
            self._get(target, "/health"), self._get(target, "/metrics")
        )
        took_s = clock() - at
        report = parse_health(health)
        has_metrics = status != httpx.codes.NOT_FOUND  # ENABLE_METRICS=false
        samples = parse_metrics(metrics.decode("utf-8", "replace")) if has_metrics else None
        return Scrape(at, took_s, report, samples, time_s)

    async def _get(self, target: Target, path: str) -> tuple[int, bytes]:
        url = target.url.copy_with(path=target.url.path.rstrip("/") + path)
        body = bytearray()
        async with self._client.stream("GET", url) as response:
            async for part in response.aiter_bytes():
                body += part
                if len(body) > MAX_RESPONSE_BYTES:
                    raise ResponseError(f"{path}: expected at most {MAX_RESPONSE_BYTES >> 20} MiB, got more")
        # /health responds with 503 if the service is not ready; its body contains the reason.
        if response.is_success or path == "/health" or response.status_code == httpx.codes.NOT_FOUND:
            return response.status_code, bytes(body)
        raise ResponseError(f"{path}: expected status 200, got {response.status_code}")


def _describe(error: Exception) -> str:
    """Return a short reason why a request failed, without any content of the request."""
    for cause in _causes(error):
        if isinstance(cause, socket.gaierror | UnicodeError):  # UnicodeError: a name too long for IDNA
            return "host name cannot be resolved"
        if isinstance(cause, OSError) and cause.errno:
            return os.strerror(cause.errno).lower()
    if isinstance(error, httpx.RemoteProtocolError | httpx.ReadError | httpx.WriteError):
        return "connection lost"
    return "connection failed" if isinstance(error, httpx.ConnectError) else type(error).__name__


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and the errors that caused it; connecting to several addresses raises an exception group."""
    yield error
    for inner in error.exceptions if isinstance(error, BaseExceptionGroup) else ():
        yield from _causes(inner)
    if (cause := error.__cause__ or error.__context__) is not None:
        yield from _causes(cause)

"""Rate limits per caller, shared by all worker processes of an instance.

The limit uses the generic cell rate algorithm (ITU-T I.371). Each caller has one number, the theoretical arrival time,
which every request advances by the interval between two requests. It may be one period ahead of the clock, so a caller
can use its quota in a burst.

The table is in shared memory, without a lock, because a process can be killed while it holds one. If two processes
count requests of one caller at the same moment, one count may be lost. Rate-limit libraries share counters through a
Redis or memcached server, which this service does not otherwise need.
"""

from __future__ import annotations

import mmap
import secrets
import struct
import time
from dataclasses import dataclass
from hashlib import blake2b
from math import ceil
from typing import Final

from app.web.problems import ProblemError

# Rows are located by hash. If all candidate rows are in use, a caller shares the row of another caller.
ROWS: Final = 65_536
NEIGHBOURS: Final = 8
_ROW: Final = struct.Struct("<Qd")  # hash of the caller, theoretical arrival time; the row is free if it is past


@dataclass(frozen=True, slots=True)
class RateLimitState:
    """Remaining quota of a caller."""

    quota: int  # requests per period
    period_s: int
    remaining: int  # requests that would be accepted now
    reset_s: int  # until the whole quota is available again

    def headers(self) -> dict[str, str]:
        """Return the header fields of draft-ietf-httpapi-ratelimit-headers-10."""
        return {
            "RateLimit-Policy": f'"default";q={self.quota};w={self.period_s}',
            "RateLimit": f'"default";r={self.remaining};t={self.reset_s}',
        }


class RateLimiter:
    """A rate limit per caller; must be created before the worker processes are forked."""

    def __init__(self, quota: int, period_s: int) -> None:
        self._quota = quota
        self._period_s = period_s
        self._interval_s = period_s / quota
        # Keyed, so that a caller with many addresses cannot choose those that share the row of another caller.
        self._secret = secrets.token_bytes(16)
        self._table = mmap.mmap(-1, ROWS * _ROW.size)

    def require(self, caller: str) -> RateLimitState:
        """Count a request, and return the remaining quota.

        Raises:
            ProblemError: ``rate_limited``; the request is not counted.
        """
        now = time.monotonic()  # the same clock in all processes of a machine
        offset, key, arrival = self._find(caller, now)
        arrival = max(arrival, now) + self._interval_s
        # Rounded, because intervals do not add up to exactly one period in binary floating point.
        wait_s = round(arrival - now - self._period_s, 6)
        if wait_s > 0:
            state = self._describe(arrival - self._interval_s - now)
            limit = f"{self._quota} requests in {self._period_s} s"
            detail = f"requests: expected at most {limit}, got more; retry after the time in Retry-After"
            # The connection is closed, because the body is still unread.
            headers = {"Retry-After": str(max(1, ceil(wait_s))), "Connection": "close", **state.headers()}
            raise ProblemError("rate_limited", detail, headers=headers)
        _ROW.pack_into(self._table, offset, key, arrival)
        return self._describe(arrival - now)

    def _describe(self, ahead_s: float) -> RateLimitState:
        remaining = int((self._period_s - ahead_s) / self._interval_s + 1e-6)
        return RateLimitState(self._quota, self._period_s, max(0, remaining), ceil(max(0.0, ahead_s)))

    def _find(self, caller: str, now: float) -> tuple[int, int, float]:
        """Return the offset, key and theoretical arrival time of a caller's row."""
        key = int.from_bytes(blake2b(caller.encode(), digest_size=8, key=self._secret).digest())
        free = None
        for step in range(NEIGHBOURS):
            offset = (key + step) % ROWS * _ROW.size
            found, arrival = _ROW.unpack_from(self._table, offset)
            if found == key:
                return offset, key, arrival
            if free is None and arrival <= now:
                free = offset
        if free is not None:
            return free, key, 0.0
        offset = key % ROWS * _ROW.size
        return offset, *_ROW.unpack_from(self._table, offset)

"""Rate limits per caller, counted over processes that share a table."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.web import rate_limit
from app.web.problems import ProblemError
from app.web.rate_limit import RateLimiter

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx
    from fastapi import FastAPI

    Call = Callable[..., httpx.Response]
    MakeApp = Callable[..., FastAPI]


class Clock:
    """A fake clock."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(rate_limit, "time", made)
    return made


def is_accepted(limiter: RateLimiter, caller: str) -> bool:
    try:
        limiter.require(caller)
    except ProblemError:
        return False
    return True


@pytest.mark.parametrize(("quota", "period_s"), [(1, 1), (3, 1), (7, 60), (100, 1), (1000, 3600)])
def test_a_quota_can_be_used_in_a_burst_and_refills_evenly(clock: Clock, quota: int, period_s: int) -> None:
    limiter = RateLimiter(quota, period_s)
    assert [is_accepted(limiter, "a") for _ in range(quota + 3)] == [True] * quota + [False] * 3
    assert is_accepted(limiter, "b"), "another caller has a quota of its own"
    for _ in range(3):
        clock.now += period_s / quota
        assert [is_accepted(limiter, "a"), is_accepted(limiter, "a")] == [True, False]
    clock.now += 2 * period_s
    assert sum(is_accepted(limiter, "a") for _ in range(3 * quota)) == quota


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 50), st.integers(1, 60), st.lists(st.floats(0, 20), min_size=1, max_size=200))
def test_no_period_has_more_than_two_quotas(quota: int, period_s: int, gaps: list[float]) -> None:
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rate_limit, "time", clock)
        limiter = RateLimiter(quota, period_s)
        accepted = []
        for gap in gaps:
            clock.now += gap
            if is_accepted(limiter, "a"):
                accepted.append(clock.now)
    for start in accepted:
        assert sum(start <= at < start + period_s for at in accepted) <= 2 * quota


def test_the_response_reports_the_remaining_quota(clock: Clock) -> None:
    limiter = RateLimiter(4, 2)
    states = [limiter.require("a") for _ in range(4)]
    assert [state.remaining for state in states] == [3, 2, 1, 0]
    assert states[-1].headers() == {"RateLimit-Policy": '"default";q=4;w=2', "RateLimit": '"default";r=0;t=2'}
    with pytest.raises(ProblemError) as caught:
        limiter.require("a")
    headers = dict(caught.value.headers or {})
    assert headers["Retry-After"] == "1"
    assert headers["RateLimit"] == '"default";r=0;t=2'
    clock.now += int(headers["Retry-After"])
    assert is_accepted(limiter, "a"), "Retry-After is long enough"


def test_more_callers_than_rows_are_limited_and_none_is_locked_out(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate_limit, "ROWS", 16)
    limiter = RateLimiter(2, 1)
    accepted = sum(is_accepted(limiter, f"caller-{number}") for number in range(1000))
    assert 16 <= accepted <= 2 * 16
    clock.now += 2
    assert is_accepted(limiter, "late"), "expired rows are reused"


def test_processes_share_the_limit() -> None:
    limiter = RateLimiter(200, 3600)
    children = []
    for _ in range(4):
        child = os.fork()
        if not child:
            accepted = 0
            for _ in range(100):
                accepted += is_accepted(limiter, "a")
                time.sleep(0)
            os._exit(accepted)
        children.append(child)
    accepted = sum(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)
    assert 200 <= accepted <= 220


def test_a_limited_route_responds_before_it_reads_the_body(make_app: MakeApp, call: Call) -> None:
    app = make_app(rate_limit="2/hour", api_keys="a:one,b:two")
    headers = {"content-type": "application/json", "x-api-key": "one"}
    first = call(app, content=b"{}", headers=headers)
    assert (first.status_code, first.headers["ratelimit"][:14]) == (422, '"default";r=1;')
    call(app, content=b"{}", headers=headers)
    limited = call(app, content=b"{}", headers=headers)
    assert (limited.status_code, limited.json()["code"]) == (429, "rate_limited")
    assert 1700 < int(limited.headers["retry-after"]) <= 1800
    assert limited.headers["ratelimit-policy"] == '"default";q=2;w=3600'
    assert len(limited.headers.get_list("ratelimit")) == 1
    other = {**headers, "x-api-key": "two"}
    assert call(app, content=b"{}", headers=other).status_code == 422
    unknown = {**headers, "x-api-key": "three"}
    assert call(app, content=b"{}", headers=unknown).status_code == 401


def test_without_a_limit_there_are_no_rate_limit_headers(make_app: MakeApp, call: Call) -> None:
    response = call(make_app(), content=b"{}", headers={"content-type": "application/json"})
    assert not {name for name in response.headers if name.startswith("ratelimit")}

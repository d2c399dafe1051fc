"""API keys: who is let in, and where keys are asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx
    from fastapi import FastAPI

    Call = Callable[..., httpx.Response]
    MakeApp = Callable[..., FastAPI]

KEYS = "first-key, schlüssel-zwei,à"


@pytest.mark.parametrize(
    "headers",
    [
        {"x-api-key": "first-key"},
        {"X-API-KEY": "  first-key "},
        {"x-api-key": "schlüssel-zwei".encode()},
        {"x-api-key": "à".encode()},  # whose last byte latin-1 takes for a space
        {"authorization": "Bearer first-key"},
        {"authorization": "bearer first-key"},
        {"authorization": "BEARER   first-key"},
        {"authorization": "Bearer schlüssel-zwei".encode()},
    ],
)
def test_a_key_lets_in(make_app: MakeApp, call: Call, headers: dict[str, Any]) -> None:
    answer = call(make_app(api_keys=KEYS), content=b"{}", headers={"content-type": "application/json", **headers})
    assert answer.json()["code"] == "field_missing"


@pytest.mark.parametrize(
    ("headers", "came"),
    [
        ({}, "none"),
        ({"x-api-key": ""}, "none"),
        ({"authorization": "Basic first-key"}, "none"),
        ({"authorization": "first-key"}, "none"),
        ({"authorization": "Bearer "}, "none"),
        ({"x-api-key": "first-ke"}, "not known"),
        ({"x-api-key": "first-key2"}, "not known"),
        ({"x-api-key": "FIRST-KEY"}, "not known"),
        ({"x-api-key": "first-key,schlüssel-zwei".encode()}, "not known"),
        ({"x-api-key": "schlüssel-zwei".encode("latin-1")}, "not known"),
        ({"x-api-key": b"\xff\xfe"}, "not known"),
        ({"x-api-key": "wrong", "authorization": "Bearer first-key"}, "not known"),
        ({"authorization": "Bearer wrong"}, "not known"),
    ],
)
def test_without_a_key_nobody_gets_in(make_app: MakeApp, call: Call, headers: dict[str, Any], came: str) -> None:
    answer = call(make_app(api_keys=KEYS), content=b"{}", headers={"content-type": "application/json", **headers})
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
    assert came in answer.json()["detail"]
    assert answer.headers["www-authenticate"] == 'Bearer realm="facial-service"'
    assert "first-key" not in answer.text


def test_a_key_is_asked_for_before_anything_else_is_looked_at(make_app: MakeApp, call: Call) -> None:
    answer = call(make_app(api_keys=KEYS), content=b"x", headers={"content-type": "text/plain", "accept": "image/png"})
    assert answer.status_code == 401


@pytest.mark.parametrize("path", ["/health", "/health/live", "/version", "/openapi.json", "/docs"])
def test_no_key_is_asked_for_outside_the_api(make_app: MakeApp, call: Call, path: str) -> None:
    assert call(make_app(api_keys=KEYS), "GET", path).status_code in {200, 503}


def test_without_keys_everybody_gets_in(make_app: MakeApp, call: Call) -> None:
    headers = {"content-type": "application/json", "x-api-key": "any"}
    assert call(make_app(), content=b"{}", headers=headers).json()["code"] == "field_missing"

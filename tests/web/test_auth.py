"""Authentication: accepted keys, protected routes and the key file."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from app.web import auth
from app.web.auth import KeyRing

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import httpx
    from fastapi import FastAPI

    Call = Callable[..., httpx.Response]
    MakeApp = Callable[..., FastAPI]

KEYS = "first-key, second:key:two,third-key"


@pytest.mark.parametrize(
    "headers",
    [
        {"x-api-key": "first-key"},
        {"X-API-KEY": "  first-key "},
        {"x-api-key": "key:two"},
        {"x-api-key": "third-key"},
        {"x-api-key": "first-key", "authorization": "Bearer token-of-a-proxy"},
        {"authorization": "Bearer first-key"},
        {"authorization": "bearer first-key"},
        {"authorization": "BEARER   first-key"},
        {"authorization": "Bearer key:two"},
    ],
)
def test_a_valid_key_is_accepted(make_app: MakeApp, call: Call, headers: dict[str, Any]) -> None:
    response = call(make_app(api_keys=KEYS), content=b"{}", headers={"content-type": "application/json", **headers})
    assert response.json()["code"] == "field_missing"


@pytest.mark.parametrize(
    ("headers", "received"),
    [
        ({}, "none"),
        ({"x-api-key": ""}, "none"),
        ({"authorization": "Basic first-key"}, "none"),
        ({"authorization": "first-key"}, "none"),
        ({"authorization": "Bearer "}, "none"),
        ({"x-api-key": "first-ke"}, "unknown"),
        ({"x-api-key": "first-key2"}, "unknown"),
        ({"x-api-key": "FIRST-KEY"}, "unknown"),
        ({"x-api-key": "first-key,third-key"}, "unknown"),
        ({"x-api-key": "schlüssel".encode()}, "unknown"),
        ({"x-api-key": "k" * 60_000}, "unknown"),
        ({"x-api-key": b"\xff\xfe"}, "unknown"),
        ({"x-api-key": "wrong", "authorization": "Bearer first-key"}, "unknown"),
        ({"authorization": "Bearer wrong"}, "unknown"),
    ],
)
def test_a_missing_or_unknown_key_is_rejected(
    make_app: MakeApp, call: Call, headers: dict[str, Any], received: str
) -> None:
    response = call(make_app(api_keys=KEYS), content=b"{}", headers={"content-type": "application/json", **headers})
    assert (response.status_code, response.json()["code"]) == (401, "unauthorized")
    assert received in response.json()["detail"]
    assert response.headers["www-authenticate"] == 'Bearer realm="facial-service"'
    assert "first-key" not in response.text


def test_the_key_is_checked_first(make_app: MakeApp, call: Call) -> None:
    response = call(
        make_app(api_keys=KEYS), content=b"x", headers={"content-type": "text/plain", "accept": "image/png"}
    )
    assert response.status_code == 401


@pytest.mark.parametrize("path", ["/health", "/health/live", "/version", "/openapi.json", "/docs"])
def test_no_key_is_required_outside_the_api(make_app: MakeApp, call: Call, path: str) -> None:
    assert call(make_app(api_keys=KEYS), "GET", path).status_code in {200, 503}


def test_without_keys_every_request_is_accepted(make_app: MakeApp, call: Call) -> None:
    headers = {"content-type": "application/json", "x-api-key": "any"}
    assert call(make_app(), content=b"{}", headers=headers).json()["code"] == "field_missing"


def test_the_name_of_a_key_is_not_part_of_it(make_app: MakeApp, call: Call) -> None:
    app = make_app(api_keys="batch:one:two,batch:three")
    for key, status in (("one:two", 422), ("three", 422), ("batch:one:two", 401), ("batch", 401), ("one", 401)):
        headers = {"content-type": "application/json", "x-api-key": key}
        assert call(app, content=b"{}", headers=headers).status_code == status, key


def test_a_key_in_the_query_is_not_accepted(make_app: MakeApp, call: Call) -> None:
    response = call(make_app(api_keys=KEYS), "POST", "/api/v1/frontal/crop?api_key=first-key&key=first-key")
    assert response.status_code == 401


@pytest.mark.parametrize("name", ["x-api-key", "authorization"])
def test_a_repeated_header_is_rejected(make_app: MakeApp, call: Call, name: str) -> None:
    value = "first-key" if name == "x-api-key" else "Bearer first-key"
    response = call(make_app(api_keys=KEYS), content=b"{}", headers=[(name, value), (name, value)])
    assert (response.status_code, response.json()["code"]) == (401, "unauthorized")


class TestKeyFile:
    @pytest.fixture
    def file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setattr(auth, "RELOAD_S", 0.0)
        file = tmp_path / "keys"
        file.write_text("batch:old\n", encoding="utf-8")
        return file

    def test_a_replaced_file_is_reloaded_and_names_keep_their_identity(self, file: Path) -> None:
        ring = KeyRing(["fixed"], file)
        before = ring.find(b"old")
        # Kubernetes replaces a symbolic link, so the path refers to another file at once.
        new = file.with_name("new")
        new.write_text("batch:new\nbatch:newer\n", encoding="utf-8")
        new.replace(file)
        assert ring.find(b"old") is None
        assert ring.find(b"new") == ring.find(b"newer") == before
        assert ring.find(b"fixed") not in {None, before}

    def test_an_edit_that_keeps_size_time_and_inode_is_detected(self, file: Path) -> None:
        ring = KeyRing([], file)
        before = file.stat()
        file.write_text("batch:new\n", encoding="utf-8")
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        after = file.stat()
        assert (after.st_size, after.st_mtime_ns, after.st_ino) == (before.st_size, before.st_mtime_ns, before.st_ino)
        assert ring.find(b"old") is None
        assert ring.find(b"new") is not None

    def test_an_unchanged_file_is_not_parsed_again(self, file: Path, caplog: pytest.LogCaptureFixture) -> None:
        ring = KeyRing([], file)
        with caplog.at_level("INFO"):
            assert ring.find(b"old") is ring.find(b"old")
            file.unlink()
            assert ring.find(b"old") is not None
            file.write_text("batch:old\n", encoding="utf-8")
            assert ring.find(b"old") is not None
            file.unlink()
            assert ring.find(b"old") is not None
        assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"], "each absence is logged"

    @pytest.mark.parametrize("text", [None, "", "# nothing\n", "a b:c", "x:\n"])
    def test_a_missing_or_invalid_file_keeps_the_keys_and_is_logged_once(
        self, file: Path, caplog: pytest.LogCaptureFixture, text: str | None
    ) -> None:
        ring = KeyRing([], file)
        file.unlink()
        if text is not None:
            file.write_text(text, encoding="utf-8")
        for _ in range(3):
            assert ring.find(b"old") is not None
            assert ring.find(b"") is None
            assert ring.find(b"c") is None
        assert bool(ring)
        assert [record.levelname for record in caplog.records] == ["ERROR"]
        file.write_text("late", encoding="utf-8")
        assert ring.find(b"old") is None
        assert ring.find(b"late") is not None

    def test_a_file_that_was_never_readable_accepts_no_key(self, tmp_path: Path) -> None:
        ring = KeyRing([], tmp_path / "missing")
        assert bool(ring)
        assert ring.find(b"any") is None


def test_callers_are_distinguished_by_key_or_network() -> None:
    ring = KeyRing(["a:one", "a:two", "b:three", "four", "name"])
    found = {key: ring.find(key.encode()) for key in ("one", "two", "three", "four", "name")}
    assert found["one"] == found["two"]
    labels = {caller.label for caller in found.values() if caller}
    assert {"a", "b"} < labels
    assert all(key not in repr(found[key]) for key in ("three", "four"))
    assert len({caller.owner for caller in found.values() if caller}) == 4
    assert KeyRing(["name:x"]).find(b"x") != found["name"], "a key does not have the identity of a name"


@pytest.mark.parametrize(
    ("host", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("unknown", ""),
        ("", ""),
    ],
)
def test_a_network_is_one_caller(host: str, network: str) -> None:
    assert auth._caller_at(host).identity == network

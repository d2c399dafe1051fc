"""Addresses that the service listens on, and addresses of clients."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from app.supervisor.application import bind, listening_host
from app.supervisor.uvicorn_adapter import unmapped


def test_machine_without_ipv6_listens_on_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    assert listening_host("::") == "0.0.0.0"  # noqa: S104
    with bind("::", 0, "PORT") as listener:
        assert listener.family == socket.AF_INET


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1", "localhost"])  # noqa: S104
def test_other_addresses_stay_as_they_are(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    assert listening_host(host) == host


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        (("::ffff:10.0.0.1", 5), ("10.0.0.1", 5)),
        (("10.0.0.1", 5), ("10.0.0.1", 5)),
        (("2001:db8::ffff:1", 5), ("2001:db8::ffff:1", 5)),
        (("::ffff:0:1", 5), ("::ffff:0:1", 5)),
        (None, None),
    ],
)
def test_ipv4_client_of_a_socket_for_both_families(address: Any, expected: Any) -> None:
    assert unmapped(address) == expected

"""Statistics of the NATS server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from app.tasks.nats_monitoring import NatsServerStats, read_server_stats

if TYPE_CHECKING:
    from tests.tasks.conftest import NatsServer


@pytest.mark.parametrize("url", ["", "http://127.0.0.1:9", "http://[", "nonsense"])
def test_a_port_that_does_not_respond_reports_nothing(url: str) -> None:
    assert read_server_stats(url) == NatsServerStats()


def test_a_server_that_is_not_nats_reports_nothing(nats_server: NatsServer) -> None:
    assert read_server_stats(f"{nats_server.monitor_url}/healthz?") == NatsServerStats()


def test_a_single_server_has_no_leader(nats_server: NatsServer) -> None:
    found = read_server_stats(nats_server.monitor_url)
    assert found.memory is not None
    assert found.memory > 1e6
    assert found.connections is not None
    assert found.storage_limit is not None
    assert found.has_leader is None

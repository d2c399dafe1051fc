"""The API and the exporter, reached at addresses of both families."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.live.conftest import REPOSITORY, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.live.conftest import RunningService

pytestmark = pytest.mark.live


@pytest.fixture(scope="module")
def everywhere(run_service: Callable[..., Any]) -> Any:
    """An instance that listens on all addresses and trusts proxies on the loopback addresses."""
    if not _has_ipv6():
        pytest.skip("this machine has no IPv6")
    with run_service(HOST="::", WORKERS=1, FORWARDED_ALLOW_IPS="127.0.0.0/8,::1") as service:
        yield service


def _has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_both_ports_accept_both_families(everywhere: RunningService, host: str) -> None:
    api, metrics = (httpx.URL(url).copy_with(host=host) for url in (everywhere.api, everywhere.metrics))
    assert httpx.get(f"{api}/version").status_code == 200
    assert httpx.get(f"{metrics}/health/ready").status_code == 200
    assert "api_requests_total" in httpx.get(f"{metrics}/metrics").text


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("forwarded", ["", "192.0.2.7", "2001:db8::7"])
def test_client_has_the_address_of_its_own_family(everywhere: RunningService, host: str, forwarded: str) -> None:
    """Otherwise, IPv4 addresses in FORWARDED_ALLOW_IPS would match no proxy."""
    request_id = f"address-{host}-{forwarded}".replace(":", "-")
    headers = {"x-request-id": request_id} | ({"x-forwarded-for": forwarded} if forwarded else {})
    httpx.get(httpx.URL(everywhere.api).copy_with(host=host, path="/version"), headers=headers).raise_for_status()
    (line,) = everywhere.wait_for_lines(lambda line: line.get("request_id") == request_id)
    assert line["client"] == (forwarded or host)


def test_tasks_end_on_an_address_of_ipv6(run_service: Callable[..., Any], sample: Any) -> None:
    """The embedded queue stays on the loopback address of IPv4, which every machine has."""
    if not _has_ipv6():
        pytest.skip("this machine has no IPv6")
    with run_service(HOST="::1", ENABLE_TASKS="true", WORKERS=1, TASK_WORKERS=1) as service:
        assert httpx.URL(service.api).host == httpx.URL(service.metrics).host == "::1"
        service.wait_tasks()
        headers = {"content-type": sample.multipart}
        sent = httpx.post(f"{service.api}/api/v1/frontal/crop/submit", content=sample.form(), headers=headers)
        url = f"{service.api}{sent.raise_for_status().headers['location']}"
        assert wait_until(lambda: httpx.get(url).json()["status"] == "SUCCESS", limit_s=30, what="the task")


BIND = """
import socket
from app.supervisor.application import bind, listening_host
from app.supervisor.gunicorn_adapter import gunicorn_sock
from gunicorn.config import Config
with bind("::", 0, "PORT") as socket_:
    socket.create_connection(("127.0.0.1", socket_.getsockname()[1])).close()
config = Config()
config.set("bind", ["[::]:0"])
(listener,) = gunicorn_sock.create_sockets(config, None)
socket.create_connection(("127.0.0.1", listener.getsockname()[1])).close()
print(listening_host("::"))
"""


@pytest.mark.parametrize("setting", ["net/ipv6/bindv6only", "net/ipv6/conf/all/disable_ipv6"])
def test_listens_on_ipv4_whatever_the_system_says_about_ipv6(setting: str) -> None:
    script = f'ip link set lo up; echo 1 >/proc/sys/{setting} || exit 77; exec "$0" -c "$1"'
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        pytest.skip("unshare or ip is missing")
    command = ["unshare", "--map-root-user", "--net", "sh", "-c", script, sys.executable, BIND]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, env=dict(os.environ))
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"no network namespace: {done.stderr[-200:]}")
    assert (done.returncode, done.stdout) == (0, "::\n"), done.stderr

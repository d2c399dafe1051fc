"""Clocks: this machine's against those of the queue's server and of the service that answers."""

from __future__ import annotations

import http.client
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import orjson

from app.cli.doctor.findings import Finding, error, ok, skipped, warning
from app.cli.doctor.instance import get
from app.cli.doctor.queue_access import STREAMS, ask_server, files_of_access, stream_info
from app.cli.doctor.queue_address import look_at_addresses
from app.tasks.embedded import reach_running
from app.tasks.errors import QueueUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from app.cli.doctor.context import Context
    from app.settings import Settings

SOME_S, MUCH_S = 2.0, 30.0
# `Date` has whole seconds, and servers make it anew once a second.
DATE_ERROR_S = 2.0
MONITOR_PORTS = {"http": 80, "https": 443}


def run(context: Context) -> Iterator[Finding]:
    """Look at both."""
    yield _look_at_queue(context)
    yield _look_at_service(context)


def _look_at_queue(context: Context) -> Finding:
    part = "clock.queue"
    if not context.settings.enable_tasks:
        return skipped(part, "queue", "no tasks are taken")
    scheme = urlsplit(context.settings.nats_monitor_url).scheme
    if context.settings.nats_monitor_url and scheme not in MONITOR_PORTS:
        return error(
            part,
            "NATS_MONITOR_URL",
            f"scheme {scheme!r}" if scheme else "no scheme",
            expected="http or https",
            advice="set it to the address of the server's monitoring port, such as http://nats:8222",
        )
    try:
        settings = reach_running(context.settings)
    except QueueUnavailableError:
        return skipped(part, "queue", "none runs here")
    for read in (_read_monitor, _read_stream):
        found = read(settings)
        if found is not None:
            return _judge(part, *found)
    return skipped(part, "queue", "its server tells no time: it cannot be reached, or has no streams yet")


def _look_at_service(context: Context) -> Finding:
    part, port = "clock.service", context.instance.metrics
    if port.health is None or "date" not in port.health.headers:
        return skipped(part, "service", "it does not run here")
    date = parsedate_to_datetime(port.health.headers["date"]).timestamp()
    early, late = date - port.health.received_at, date + DATE_ERROR_S - port.health.sent_at
    return _judge(part, port.place, early, late)


def _read_monitor(settings: Settings) -> tuple[str, float, float] | None:
    """Read the time from the monitoring port; the embedded server has none, but a system account (``nats://``)."""
    url = urlsplit(settings.nats_monitor_url)
    if not url.hostname or url.scheme not in MONITOR_PORTS:
        return None
    try:
        port = url.port or MONITOR_PORTS[url.scheme]
        answer = get(url.hostname, port, f"{url.path.rstrip('/')}/varz", is_tls=url.scheme == "https")
        now = datetime.fromisoformat(orjson.loads(answer.body)["now"]).timestamp()
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        return None
    return f"{url.hostname}:{port}", now - answer.received_at, now - answer.sent_at


def _read_stream(settings: Settings) -> tuple[str, float, float] | None:
    """Read the time that JetStream puts into what it tells of a stream."""
    if not any(greeting for _, greeting in look_at_addresses(settings)) or any(files_of_access(settings)):
        return None
    _, answers = ask_server(settings)
    if answers is None:
        return None
    for name in STREAMS:
        text = answers.of(stream_info(name)).get("ts")
        if text:
            now = datetime.fromisoformat(text).timestamp()
            return "the queue's server", now - answers.answered_at, now - answers.asked_at
    return None


def _judge(part: str, place: str, early: float, late: float) -> Finding:
    """Judge a clock that is between ``early`` and ``late`` seconds ahead of this one."""
    ahead = 0.0 if early <= 0 <= late else min(early, late, key=abs)
    if abs(ahead) <= SOME_S:
        return ok(part, place, "the same time as here")
    direction = "ahead of" if ahead > 0 else "behind"
    return (error if abs(ahead) > MUCH_S else warning)(
        part,
        place,
        f"{abs(ahead):.0f} s {direction} this machine's clock",
        expected=f"at most {SOME_S:g} s apart",
        advice="let a time service (chrony, systemd-timesyncd) set the clocks of both machines; `timedatectl` shows it",
    )

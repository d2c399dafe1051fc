"""Ports: free, or this service's, or somebody else's."""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING

from app.cli.doctor.findings import Finding, error, note, ok, skipped
from app.cli.doctor.instance import Listener, Port, Role, find_holders

if TYPE_CHECKING:
    from collections.abc import Iterator

    from app.cli.doctor.context import Context


def run(context: Context) -> Iterator[Finding]:
    """Look at PORT and METRICS_PORT."""
    instance = context.instance
    if instance.role is Role.WORKER:
        yield skipped("ports.api", "PORT", "a worker listens on METRICS_PORT alone")
    else:
        yield _judge("ports.api", "PORT", context.settings.host, instance.api)
    yield _judge("ports.metrics", "METRICS_PORT", context.settings.host, instance.metrics)
    pids = [
        {worker["pid"] for worker in port.report.get("workers", [])}
        for port in (instance.api, instance.metrics)
        if port.listener is Listener.SERVICE
    ]
    if len(pids) > 1 and pids[0].isdisjoint(pids[1]) and all(pids):
        advice = "set PORT and METRICS_PORT to those of one instance"
        yield note("ports.api", "PORT, METRICS_PORT", "two different instances answer on them", advice)


def _judge(part: str, setting: str, host: str, port: Port) -> Finding:
    place = f"{setting} {port.place}"
    if not port.number:
        return skipped(part, f"{setting}=0", "a free port is taken at each start; nothing to look at")
    holders = ", ".join(port.holders) or "a process that this user may not see"
    if port.listener is Listener.SERVICE:
        return ok(part, place, f"held by this service: {holders}")
    if port.listener is Listener.NOBODY:
        return _try(part, setting, host, port)
    return error(
        part,
        place,
        f"taken by {holders}" + (", which does not answer" if port.listener is Listener.SILENT else ""),
        expected="a free port, or facial-service on it",
        advice=f"stop that process, or set another {setting}",
    )


def _try(part: str, setting: str, host: str, port: Port) -> Finding:
    """Bind, without listening: nobody can connect meanwhile."""
    place = f"{setting} {host}:{port.number}"
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port.number))
    except OSError as fault:
        return error(
            part,
            place,
            f"cannot be listened on: {_reason(fault, port.number)}",
            expected="an address of this machine, with a port that this user may have",
            advice=_advise(fault.errno, setting),
        )
    return ok(part, place, "free")


def _reason(fault: OSError, number: int) -> str:
    reason = os.strerror(fault.errno) if fault.errno else "no such address"
    holders = ", ".join(find_holders(number)) if fault.errno == errno.EADDRINUSE else ""
    return f"{reason} ({holders})" if holders else reason


def _advise(number: int | None, setting: str) -> str:
    if number == errno.EACCES:
        return f"set {setting} above 1023, or let the user have lower ports (capability NET_BIND_SERVICE)"
    if number == errno.EADDRINUSE:
        return f"stop what listens there, or set another {setting}"
    return "set HOST to an address of this machine, 127.0.0.1, or 0.0.0.0 for all"

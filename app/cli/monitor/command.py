"""``facial-service monitor`` as a user types it."""

from __future__ import annotations

import math
import sys
from typing import Annotated

import typer

DEFAULT_URL = "http://127.0.0.1:9000"
SHORTEST_S, LONGEST_S = 0.2, 3600.0

Urls = Annotated[
    list[str] | None,
    typer.Argument(metavar="[URL]…", show_default=False, help=f"Metrics port of each instance; default: {DEFAULT_URL}"),
]
Interval = Annotated[float, typer.Option("--interval", "-n", metavar="S", help="Seconds between two scrapes.")]
Over = Annotated[float, typer.Option("--window", metavar="S", help="Seconds that rates and quantiles look back.")]
Limit = Annotated[float, typer.Option("--timeout", metavar="S", help="Seconds that an instance may take to answer.")]
Once = Annotated[bool, typer.Option("--once", help="Print one frame; exit code 1 where something is not ready.")]
Json = Annotated[bool, typer.Option("--json", help="For programs: one JSON object an interval.")]


def monitor(
    urls: Urls = None,
    *,
    interval: Interval = 2.0,
    window: Over = 10.0,
    timeout: Limit = 3.0,
    is_once: Once = False,
    is_json: Json = False,
) -> None:
    """Watch running instances: health, requests, latency, errors, tasks and processes, live in the terminal.

    Give one URL for each instance, such as an API pod and a worker pod; what they count is added up. Press q or Ctrl-C
    to leave. Where the output is no terminal, frames are printed as plain text.
    """
    for name, value in (("--interval", interval), ("--window", window), ("--timeout", timeout)):
        if not (math.isfinite(value) and SHORTEST_S <= value <= LONGEST_S):
            _refuse(f"{name}: expected {SHORTEST_S:g} to {LONGEST_S:g} seconds, got {value:g}")
    # Imported here: `--help` answers without loading HTTP, metrics and the renderer.
    from app.cli.monitor.feed import AddressError, parse_targets  # noqa: PLC0415

    try:
        targets = parse_targets(urls or [DEFAULT_URL])
    except AddressError as error:
        _refuse(f"URL: {error}")
    from app.cli.monitor.watch import Options, watch  # noqa: PLC0415 - as above

    sys.exit(
        watch(
            Options(
                targets=targets,
                interval_s=interval,
                window_s=max(window, interval),
                timeout_s=timeout,
                is_once=is_once,
                is_json=is_json,
            )
        )
    )


def _refuse(text: str) -> None:
    typer.echo(f"facial-service: {text}", err=True)
    sys.exit(2)

"""Command line of ``facial-service monitor``."""

from __future__ import annotations

import math
import sys
from typing import Annotated

import typer

DEFAULT_URL = "http://127.0.0.1:9000"
MIN_S, MAX_S = 0.2, 3600.0

Urls = Annotated[
    list[str] | None,
    typer.Argument(metavar="URL", show_default=False, help=f"Metrics port of each instance; default: {DEFAULT_URL}"),
]
Interval = Annotated[float, typer.Option("--interval", "-n", metavar="S", help="Seconds between scrapes.")]
Window = Annotated[float, typer.Option("--window", metavar="S", help="Time window of rates and quantiles, in seconds.")]
Timeout = Annotated[float, typer.Option("--timeout", metavar="S", help="Response timeout per instance, in seconds.")]
Once = Annotated[bool, typer.Option("--once", help="Print one frame and exit; code 1 if an instance is not ready.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object per interval.")]


def monitor(
    urls: Urls = None,
    *,
    interval: Interval = 2.0,
    window: Window = 10.0,
    timeout: Timeout = 3.0,
    is_once: Once = False,
    is_json: Json = False,
) -> None:
    """Watch running instances in the terminal: health, requests, latency, errors, tasks and processes.

    Pass one URL per instance, such as an API pod and a worker pod, to sum their counters.
    Press q or Ctrl-C to quit. If standard output is not a terminal, frames are printed as text.
    """
    for name, value in (("--interval", interval), ("--window", window), ("--timeout", timeout)):
        if not (math.isfinite(value) and MIN_S <= value <= MAX_S):
            _exit_with_usage_error(f"{name}: expected {MIN_S:g} to {MAX_S:g} seconds, got {value:g}")
    # Import lazily: `--help` does not load the HTTP client, the metrics parser and the renderer.
    from app.cli.monitor.scraper import AddressError, parse_targets  # noqa: PLC0415

    try:
        targets = parse_targets(urls or [DEFAULT_URL])
    except AddressError as error:
        _exit_with_usage_error(f"URL: {error}")
    from app.cli.monitor.watch import WatchOptions, watch  # noqa: PLC0415 - lazily, as above

    options = WatchOptions(
        targets=targets,
        interval_s=interval,
        window_s=max(window, interval),
        timeout_s=timeout,
        is_once=is_once,
        is_json=is_json,
    )
    sys.exit(watch(options))


def _exit_with_usage_error(text: str) -> None:
    typer.echo(f"facial-service: {text}", err=True)
    sys.exit(2)

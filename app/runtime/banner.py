"""What the service says when it has bound its ports: a banner for a person, one line for a machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from app import __version__
from app.main import log_options
from app.observability.rich_logging import get_logger, make_console

if TYPE_CHECKING:
    from app.runtime.arbiter import ServiceArbiter
    from app.settings import Settings

log = get_logger("server")

SAMPLE = Path("examples/astronaut.png")
SAMPLE_LANDMARKS = Path("examples/astronaut.landmarks.json")


def announce(arbiter: ServiceArbiter) -> None:
    """Say where the service is to be found; called by gunicorn once its ports are bound."""
    settings = arbiter.settings
    api = _url(arbiter.LISTENERS[0].sock.getsockname())
    metrics = _url(arbiter.exporter_listener.getsockname())
    if log_options(settings).is_rich:
        _print_banner(settings, api, metrics)
    log.info(
        "facial-service %s listens on %s, metrics and probes on %s",
        __version__,
        api,
        metrics,
        extra={"version": __version__, "api": api, "metrics": metrics, "workers": settings.workers},
    )


def sample_command(api: str) -> str:
    """Return the command that sends the sample photo and keeps the overlay."""
    return (
        f"curl -fsS -F image=@{SAMPLE} -F landmarks=@{SAMPLE_LANDMARKS} "
        f"-H 'Accept: image/svg+xml' -o face.svg {api}/api/v1/frontal/crop"
    )


def _url(address: tuple[Any, ...]) -> str:
    host, port = address[:2]
    if host in {"0.0.0.0", "::"}:  # noqa: S104 - not bound here, only printed as what one can open
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _print_banner(settings: Settings, api: str, metrics: str) -> None:
    # Imported here: a worker that writes JSON shall not pay for the memory of a renderer it never uses.
    from rich.panel import Panel  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table.grid(padding=(0, 2))
    rows = {
        "API": f"{api}/api/v1/frontal/crop",
        "Docs": f"{api}/docs",
        "Metrics": f"{metrics}/metrics" if settings.enable_metrics else "off (ENABLE_METRICS=false)",
        "Health": f"{metrics}/health/ready",
        "Workers": f"{settings.workers}",
        "Limits": f"{settings.max_body_bytes / 2**20:g} MiB a body, {settings.max_image_pixels / 1e6:g} Mpx a picture",
        "API keys": f"{len(settings.api_keys)}" if settings.api_keys else "none: open to whoever reaches the port",
    }
    for name, text in rows.items():
        table.add_row(f"[bold]{name}[/]", text)
    console = make_console(log_options(settings))
    console.print(Panel(table, title=f"facial-service {__version__}", title_align="left", border_style="cyan"))
    if SAMPLE.exists():
        console.print("[bold]Try it:[/]")
        console.print(sample_command(api), soft_wrap=True, markup=False)
        console.print()

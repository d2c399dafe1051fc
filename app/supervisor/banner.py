"""Start-up messages: a banner on a terminal, and one log line in all cases."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from app import __version__
from app.main import log_options
from app.observability.log_text import count_of
from app.observability.rich_logging import get_logger, make_console
from app.service.detector_pool import DetectorPool
from app.supervisor.scoreboard import count_task_workers

if TYPE_CHECKING:
    from app.settings import Settings

log = get_logger("server")

SAMPLE = Path("examples/astronaut.png")


def announce_api(settings: Settings, api_url: str, metrics_url: str, *, is_queue_embedded: bool) -> None:
    """Log the URLs of an API instance; on a terminal, also print a banner."""
    if log_options(settings).is_rich:
        _print_banner(settings, api_url, metrics_url, is_queue_embedded=is_queue_embedded)
    log.info(
        "facial-service %s listens on %s, metrics and probes on %s",
        __version__,
        api_url,
        metrics_url,
        extra={"version": __version__, "api": api_url, "metrics": metrics_url, "workers": settings.workers},
    )
    _warn_of_missing_models(settings)


def announce_task_workers(settings: Settings, metrics_url: str) -> None:
    """Log the queue and the metrics URL of a worker instance."""
    count = count_task_workers(settings)
    log.info(
        "facial-service %s processes tasks from %s in %s, metrics and probes on %s",
        __version__,
        describe_servers(settings),
        count_of(count, "worker process", "worker processes"),
        metrics_url,
        extra={"version": __version__, "metrics": metrics_url, "tasks": count},
    )
    _warn_of_missing_models(settings)


def describe_servers(settings: Settings) -> str:
    """Return the URLs of the NATS servers without credentials."""
    servers = (urlsplit(server) for server in settings.nats_servers)
    return ", ".join(f"{server.scheme}://{server.netloc.rpartition('@')[2]}" for server in servers)


def sample_command(api_url: str) -> str:
    """Return a command that sends the sample image and saves the overlay."""
    return (
        f"curl -fsS -F image=@{SAMPLE} -F background=image -F crop=face "
        f"-H 'Accept: image/svg+xml' -o face.svg {api_url}/api/v1/frontal/crop"
    )


def url_of(address: tuple[Any, ...]) -> str:
    """Return a URL that opens a bound address."""
    host, port = address[:2]
    if host in {"0.0.0.0", "::"}:  # noqa: S104 - printed, not bound
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _print_banner(settings: Settings, api_url: str, metrics_url: str, *, is_queue_embedded: bool) -> None:
    # Import lazily: with JSON logs, Rich is not loaded.
    from rich.panel import Panel  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table.grid(padding=(0, 2))
    limits = f"{settings.max_body_bytes / 2**20:g} MiB per body, {settings.max_image_pixels / 1e6:g} Mpx per image"
    rows = {
        "Page": f"{api_url}/" if settings.enable_page else "off (ENABLE_PAGE=false)",
        "API": f"{api_url}/api/v1/frontal/crop",
        "Docs": f"{api_url}/docs",
        "Metrics": f"{metrics_url}/metrics" if settings.enable_metrics else "off (ENABLE_METRICS=false)",
        "Health": f"{metrics_url}/health/ready",
        "Workers": f"{settings.workers}",
        "Tasks": _describe_tasks(settings, is_queue_embedded=is_queue_embedded),
        "Landmarks": _describe_landmarks(settings),
        "Limits": limits,
        "API keys": _describe_keys(settings),
    }
    for name, text in rows.items():
        table.add_row(f"[bold]{name}[/]", text)
    console = make_console(log_options(settings))
    console.print(Panel(table, title=f"facial-service {__version__}", title_align="left", border_style="cyan"))
    if SAMPLE.exists():
        console.print("[bold]Try it:[/]")
        console.print(sample_command(api_url), soft_wrap=True, markup=False)
        console.print()


def _describe_landmarks(settings: Settings) -> str:
    if DetectorPool(settings.models_dir).has_models:
        return "detected if a request has none"
    return "required: face-detection models are missing (run `make models` or set MODELS_DIR)"


def _warn_of_missing_models(settings: Settings) -> None:
    if not DetectorPool(settings.models_dir).has_models:
        log.warning(
            "Face-detection models are missing, so requests must include landmarks; run `make models` or set MODELS_DIR"
        )


def _describe_tasks(settings: Settings, *, is_queue_embedded: bool) -> str:
    if not settings.enable_tasks:
        return "off (ENABLE_TASKS=false)"
    if is_queue_embedded:
        workers = count_of(count_task_workers(settings), "worker process", "worker processes")
        return f"{workers}; embedded queue in {settings.data_dir}/"
    return f"queue on {describe_servers(settings)}; task workers run separately"


def _describe_keys(settings: Settings) -> str:
    sources = [f"{len(settings.api_keys)} in API_KEYS"] if settings.api_keys else []
    if settings.api_keys_file is not None:
        sources.append("API_KEYS_FILE")
    return ", ".join(sources) or "none: every client that reaches the port may send requests"

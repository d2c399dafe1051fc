"""What the service says when it has bound its ports: a banner for a person, one line for a machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from app import __version__
from app.main import log_options
from app.observability.rich_logging import get_logger, make_console
from app.service.faces import FaceFinders
from app.supervisor.slots import count_task_workers

if TYPE_CHECKING:
    from app.settings import Settings
    from app.supervisor.arbiter import ServiceArbiter
    from app.supervisor.server import ApiApplication
    from app.supervisor.task_server import TaskApplication

log = get_logger("server")

SAMPLE = Path("examples/astronaut.png")
SAMPLE_LANDMARKS = Path("examples/astronaut.landmarks.json")


def announce(arbiter: ServiceArbiter) -> None:
    """Say where the service is to be found; called by gunicorn once its ports are bound."""
    settings, application = arbiter.settings, cast("ApiApplication", arbiter.app)
    api = url_of(arbiter.LISTENERS[0].sock.getsockname())
    metrics = application.metrics_url
    if log_options(settings).is_rich:
        _print_banner(settings, api, metrics, is_queue_embedded=application.embedded is not None)
    log.info(
        "facial-service %s listens on %s, metrics and probes on %s",
        __version__,
        api,
        metrics,
        extra={"version": __version__, "api": api, "metrics": metrics, "workers": settings.workers},
    )
    _warn_of_missing_models(settings)


def announce_workers(arbiter: ServiceArbiter) -> None:
    """Say where the metrics of task workers are, unless an API has these among its own."""
    metrics, count = cast("TaskApplication", arbiter.app).metrics_url, count_task_workers(arbiter.settings)
    if metrics:
        log.info(
            "facial-service %s works on the tasks of %s in %d processes, metrics and probes on %s",
            __version__,
            describe_servers(arbiter.settings),
            count,
            metrics,
            extra={"version": __version__, "metrics": metrics, "tasks": count},
        )
        _warn_of_missing_models(arbiter.settings)


def describe_servers(settings: Settings) -> str:
    """Name the servers of the queue, without what may stand before them: a user and a password."""
    servers = (urlsplit(server) for server in settings.nats_servers)
    return ", ".join(f"{server.scheme}://{server.netloc.rpartition('@')[2]}" for server in servers)


def sample_command(api: str) -> str:
    """Return the command that sends the sample photo and keeps the overlay."""
    return (
        f"curl -fsS -F image=@{SAMPLE} -F landmarks=@{SAMPLE_LANDMARKS} "
        f"-H 'Accept: image/svg+xml' -o face.svg {api}/api/v1/frontal/crop"
    )


def url_of(address: tuple[Any, ...]) -> str:
    """Return where a bound address can be opened."""
    host, port = address[:2]
    if host in {"0.0.0.0", "::"}:  # noqa: S104 - not bound here, only printed as what one can open
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _print_banner(settings: Settings, api: str, metrics: str, *, is_queue_embedded: bool) -> None:
    # Imported here: a worker that writes JSON shall not pay for the memory of a renderer it never uses.
    from rich.panel import Panel  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table.grid(padding=(0, 2))
    rows = {
        "Page": f"{api}/" if settings.enable_page else "off (ENABLE_PAGE=false)",
        "API": f"{api}/api/v1/frontal/crop",
        "Docs": f"{api}/docs",
        "Metrics": f"{metrics}/metrics" if settings.enable_metrics else "off (ENABLE_METRICS=false)",
        "Health": f"{metrics}/health/ready",
        "Workers": f"{settings.workers}",
        "Tasks": _describe_tasks(settings, is_queue_embedded=is_queue_embedded),
        "Landmarks": _describe_landmarks(settings),
        "Limits": f"{settings.max_body_bytes / 2**20:g} MiB a body, {settings.max_image_pixels / 1e6:g} Mpx a picture",
        "API keys": _describe_keys(settings),
    }
    for name, text in rows.items():
        table.add_row(f"[bold]{name}[/]", text)
    console = make_console(log_options(settings))
    console.print(Panel(table, title=f"facial-service {__version__}", title_align="left", border_style="cyan"))
    if SAMPLE.exists():
        console.print("[bold]Try it:[/]")
        console.print(sample_command(api), soft_wrap=True, markup=False)
        console.print()


def _describe_landmarks(settings: Settings) -> str:
    if FaceFinders(settings.models_dir).are_models_there:
        return "found where they are left out"
    return "have to be sent: there are no models to find them with (make models, or MODELS_DIR)"


def _warn_of_missing_models(settings: Settings) -> None:
    if not FaceFinders(settings.models_dir).are_models_there:
        log.warning("Landmarks have to be sent: there are no models to find them with (make models, or MODELS_DIR)")


def _describe_tasks(settings: Settings, *, is_queue_embedded: bool) -> str:
    if not settings.enable_tasks:
        return "off (ENABLE_TASKS=false)"
    if is_queue_embedded:
        return f"processes: {count_task_workers(settings)}; queue in {settings.data_dir}/"
    return f"queue on {describe_servers(settings)}; its workers run elsewhere"


def _describe_keys(settings: Settings) -> str:
    sources = [f"{len(settings.api_keys)} in API_KEYS"] if settings.api_keys else []
    if settings.api_keys_file is not None:
        sources.append("API_KEYS_FILE")
    return ", ".join(sources) or "none: anyone who reaches the port may call"

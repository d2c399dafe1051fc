"""Logging: Rich lines on a terminal, otherwise one JSON object per line, with the ids of the request or task.

A Rich line costs 2.8 ms of CPU and a JSON line 0.03 ms, so Rich is only used on a terminal. Rich tracebacks are off,
because one costs 600 ms and its local variables would print images. Text from callers is never parsed as markup.

The lines about images are debugging aids. In a cluster, the access line and the metrics contain the same at a tenth of
the cost, so the level of the ``images`` component is WARNING there.
"""

from __future__ import annotations

import logging
import math
import re
import secrets
import sys
import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

import orjson
from concurrent_log_handler import ConcurrentRotatingFileHandler

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from rich.console import Console
    from rich.text import Text

# Of the current request or task; every log line contains them.
request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
trace_id: ContextVar[str | None] = ContextVar("trace_id", default=None)
span_id: ContextVar[str | None] = ContextVar("span_id", default=None)  # set only while traces are on

# Long enough for a UUID with a prefix, and without characters that could forge a line or a field.
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}", re.ASCII)
# W3C Trace Context, level 1: version, trace id, parent id, flags; an all-zero trace id is invalid.
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?", re.ASCII)

ROOT = "facial"
COMPONENTS = ("api", "images", "tasks", "server")
COMPONENT_TITLES = {"api": "API", "images": "Images", "tasks": "Tasks", "server": "Server"}
DEFAULT_THEME = {
    "component.api": "bold cyan",
    "component.images": "bold magenta",
    "component.tasks": "bold green",
    "component.server": "bold blue",
    "status.ok": "green",
    "status.client": "yellow",
    "status.server": "bold red",
}
_RECORD_FIELDS = frozenset({*logging.makeLogRecord({}).__dict__, "message", "asctime"})
_COMPONENT = r"\A(?:(?P<api>API)|(?P<images>Images)|(?P<tasks>Tasks)|(?P<server>Server))\b"
_STATUS = r" (?:(?P<ok>[123]\d\d)|(?P<client>4\d\d)|(?P<server>5\d\d))(?= [\d.]+ms )"

SHORT_ID = 8
ImageEvent = Literal["verified", "faces", "segmentation", "extracted"]
_IMAGE_TEXT: dict[ImageEvent, str] = {
    "verified": "🖼️ Image verified: %d×%d %s",
    "faces": "👤 Faces found: %d",
    "segmentation": "🗺️ Segmentation map decoded: %d×%d, %d labels",
    "extracted": "✅ Extracted %d regions",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LogOptions:
    """Settings of the logs, as documented in `app.settings`."""

    format: Literal["auto", "rich", "json"] = "auto"
    level: str = "INFO"
    levels: Mapping[str, str] = field(default_factory=dict)
    theme: Mapping[str, str] = field(default_factory=dict)
    time_format: str = "%H:%M:%S"
    file: Path | None = None
    file_max_bytes: int = 10 * 1024 * 1024
    file_backups: int = 5

    @property
    def is_rich(self) -> bool:
        """Whether lines are formatted by Rich."""
        return self.format == "rich" or (self.format == "auto" and sys.stderr.isatty())

    def level_of(self, component: str) -> str:
        """Return the level of a component: the configured one, or WARNING for images if there is no terminal."""
        if component in self.levels:
            return self.levels[component]
        return "WARNING" if component == "images" and self.level == "INFO" and not self.is_rich else self.level


def accept_request_id(header: str | None) -> str:
    """Return the caller's request id if it is safe to log, or a new one.

    Example:
        >>> accept_request_id("order-17")
        'order-17'
        >>> accept_request_id("forged line") == "forged line"
        False
    """
    if header is not None and _REQUEST_ID.fullmatch(header):
        return header
    return secrets.token_hex(8)


def parse_trace_id(traceparent: str | None) -> str | None:
    """Return the trace id of a W3C ``traceparent`` header, or None if it is missing or malformed.

    Example:
        >>> parse_trace_id("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
        '0af7651916cd43dd8448eb211c80319c'
    """
    match = _TRACEPARENT.fullmatch(traceparent) if traceparent else None
    return match[1] if match else None


def get_logger(component: str) -> logging.Logger:
    """Return the logger of a component: ``api``, ``images``, ``tasks`` or ``server``."""
    return logging.getLogger(f"{ROOT}.{component}")


class LogLimit:
    """Rate limit for logging an error that may occur repeatedly."""

    def __init__(self, pause_s: float) -> None:
        self._pause_s = pause_s
        self._next_at = -math.inf

    def is_due(self) -> bool:
        """Return whether the pause has passed since the last time this returned true."""
        now = time.monotonic()
        if now < self._next_at:
            return False
        self._next_at = now + self._pause_s
        return True


def configure_logging(options: LogOptions) -> None:
    """Set up all loggers of the process, replacing an earlier setup.

    Raises:
        OSError: the log file cannot be opened.
        rich.errors.StyleSyntaxError: the theme contains an invalid style (only if lines are formatted by Rich).
    """
    handlers: list[logging.Handler] = [_rich_handler(options) if options.is_rich else logging.StreamHandler()]
    if options.file is not None:
        handlers.append(_file_handler(options.file, options))
    root = logging.getLogger()
    for old in list(root.handlers):
        if getattr(old, "is_ours", False):
            root.removeHandler(old)
            old.close()
    # No formatter here prints these fields, and collecting them costs as much as writing the line. The switches are
    # documented in "Optimization" of the standard library's logging how-to.
    vars(logging)["_srcfile"] = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    vars(logging)["logAsyncioTasks"] = False  # since Python 3.12
    for handler in handlers:
        if handler.formatter is None:
            handler.setFormatter(JsonFormatter())
        handler.is_ours = True  # type: ignore[attr-defined]  # distinguishes them from handlers of a test runner
        root.addHandler(handler)
    logging.getLogger(ROOT).setLevel(options.level)
    for component in COMPONENTS:
        get_logger(component).setLevel(options.level_of(component))
    # Libraries log only warnings, because their routine lines duplicate those of the service.
    for name in ("gunicorn.error", "uvicorn.error", "uvicorn.access", "asyncio"):
        logging.getLogger(name).setLevel(options.levels.get("server", "WARNING"))


def _rich_handler(options: LogOptions) -> logging.Handler:
    # Import lazily: Rich is not loaded if lines are JSON.
    from rich.highlighter import Highlighter  # noqa: PLC0415
    from rich.logging import RichHandler  # noqa: PLC0415

    class LineHighlighter(Highlighter):
        """Highlighter of the component and the status code, in the styles of the theme."""

        def highlight(self, text: Text) -> None:
            text.highlight_regex(_COMPONENT, style_prefix="component.")
            text.highlight_regex(_STATUS, style_prefix="status.")

    handler = RichHandler(
        console=make_console(options),
        show_path=False,
        markup=False,
        rich_tracebacks=False,
        log_time_format=options.time_format,
        omit_repeated_times=False,
        highlighter=LineHighlighter(),
        keywords=[],
    )
    handler.setFormatter(ComponentFormatter())
    return handler


def make_console(options: LogOptions) -> Console:
    """Return a console for the banner and the lines: standard error, with the theme."""
    from rich.console import Console  # noqa: PLC0415 - see _rich_handler
    from rich.theme import Theme  # noqa: PLC0415

    return Console(theme=Theme({**DEFAULT_THEME, **options.theme}), stderr=True, highlight=False)


class ComponentFormatter(logging.Formatter):
    """Formatter that adds the component before the message and, from WARNING on, the request id after it."""

    def format(self, record: logging.LogRecord) -> str:
        """Return ``API     GET /health 200 15.2ms 127.0.0.1``."""
        component = record.name.rpartition(".")[2] if record.name.startswith(ROOT) else record.name
        record.message = record.getMessage()
        text = f"{COMPONENT_TITLES.get(component, component):<7} {record.message}"
        identifier = request_id.get()
        if identifier and record.levelno >= logging.WARNING:
            text = f"{text} [{identifier}]"
        if record.exc_info and not record.exc_text:
            record.exc_text = self.formatException(record.exc_info)
        return f"{text}\n{record.exc_text}" if record.exc_text else text


class JsonFormatter(logging.Formatter):
    """Formatter of JSON lines: time (UTC), level, logger, message, ids (request, trace, span) and ``extra`` fields.

    It is written by hand because the access line is on the path of every request, and the libraries for this take
    several times as long.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line without its line break."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name, variable in (("request_id", request_id), ("trace_id", trace_id), ("span_id", span_id)):
            if (identifier := variable.get()) is not None:
                line[name] = identifier
        line |= {name: value for name, value in record.__dict__.items() if name not in _RECORD_FIELDS}
        if record.exc_info:
            line["exc_info"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str, option=orjson.OPT_NON_STR_KEYS).decode()


def _file_handler(path: Path, options: LogOptions) -> logging.Handler:
    path.parent.mkdir(parents=True, exist_ok=True)
    # The handler of the standard library loses lines if several processes rotate one file.
    return ConcurrentRotatingFileHandler(
        str(path), maxBytes=options.file_max_bytes, backupCount=options.file_backups, encoding="utf-8"
    )


_images = get_logger("images")
_tasks = get_logger("tasks")


def log_image_processing(event: ImageEvent, *values: object) -> None:
    """Log one step; ``values`` are sizes, counts and formats, never the content of an image.

    Example:
        >>> log_image_processing("verified", 512, 512, "PNG")
    """
    if _images.isEnabledFor(logging.INFO):
        _images.info(_IMAGE_TEXT[event], *values, extra={"event": event})


def log_task_started(task_id: str, task_type: str, *, attempt: int = 1) -> None:
    """Log that an attempt started."""
    extra = {"event": "started", "task_id": task_id, "type": task_type, "attempt": attempt}
    again = f", attempt {attempt}" if attempt > 1 else ""
    _tasks.info("📋 Task started %s %s%s", task_id[:SHORT_ID], task_type, again, extra=extra)


def log_task_succeeded(task_id: str, duration_s: float) -> None:
    """Log that a task has a result."""
    extra = {"event": "succeeded", "task_id": task_id, "duration_ms": round(1000 * duration_s, 2)}
    _tasks.info("✅ Task success %s %.2fs", task_id[:SHORT_ID], duration_s, extra=extra)


def log_task_failed(task_id: str, code: str, reason: str) -> None:
    """Log that a task failed; the reason must not repeat input of the caller."""
    extra = {"event": "failed", "task_id": task_id, "code": code}
    _tasks.warning("❌ Task %s failed: %s", task_id[:SHORT_ID], reason, extra=extra)


def log_task_retried(task_id: str, reason: str, delay_s: float) -> None:
    """Log that a task was requeued for another attempt."""
    extra = {"event": "retried", "task_id": task_id, "delay_s": delay_s}
    _tasks.warning("🔁 Task %s failed, retrying in %.1fs: %s", task_id[:SHORT_ID], delay_s, reason, extra=extra)

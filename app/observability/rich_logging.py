"""Logging: Rich lines on a terminal, otherwise one JSON object per line, with the ids of the request or task.

A Rich line costs 2.8 ms of CPU and a JSON line 0.03 ms, so Rich is only used on a terminal. Tracebacks never contain
local variables, which would print images. Text from callers is never parsed as markup, and cannot contain line breaks
or control sequences.

The lines about images are debugging aids. In a cluster, the access line and the metrics contain the same at a tenth of
the cost, so the level of the ``images`` component is WARNING there.
"""

from __future__ import annotations

import json
import logging
import math
import re
import secrets
import sys
import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Literal

import orjson
from concurrent_log_handler import ConcurrentRotatingFileHandler

from app.observability import tracebacks
from app.observability.log_text import count_of, escape_unsafe, escape_unsafe_json, size_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from rich.console import Console, RenderableType
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
# Colours of the 256-colour palette with a contrast of at least 4:1 on black and on white, because a program cannot find
# out which background a terminal has.
RED, GREEN, ORANGE, BLUE, MAGENTA, CYAN, GREY = (f"color({code})" for code in (161, 28, 130, 63, 133, 30, 243))
DEFAULT_THEME = {
    "component.api": f"bold {CYAN}",
    "component.images": f"bold {MAGENTA}",
    "component.tasks": f"bold {GREEN}",
    "component.server": f"bold {BLUE}",
    "log.time": GREY,
    "logging.level.debug": GREY,
    "logging.level.info": BLUE,
    "logging.level.warning": f"bold {ORANGE}",
    "logging.level.error": f"bold {RED}",
    "logging.level.critical": f"bold reverse {RED}",
    "request.id": GREY,
    "request.size": GREY,
    "status.ok": GREEN,
    "status.client": f"bold {ORANGE}",
    "status.server": f"bold {RED}",
    "traceback.border": RED,
    "traceback.border.syntax_error": RED,
    "traceback.error": f"bold {RED}",
    "traceback.error_mark": f"bold {RED}",
    "traceback.exc_type": f"bold {RED}",
    "traceback.filename": MAGENTA,
    "traceback.group.border": MAGENTA,
    "traceback.lineno": MAGENTA,
    "traceback.offset": f"bold {RED}",
    "traceback.path": GREY,
    "traceback.title": f"bold {RED}",
}
_UNUSED: Final = ("thread", "threadName", "process", "processName")  # see `configure_logging`
_EMPTY_RECORD: Final = vars(
    logging.makeLogRecord({"levelno": logging.INFO, "levelname": "INFO", **dict.fromkeys(_UNUSED)})
)
_FIELD_COUNT: Final = len(_EMPTY_RECORD)
_LATE_FIELDS: Final = ("message", "asctime")
_STATUS = r" (?:(?P<ok>[123]\d\d)|(?P<client>4\d\d)|(?P<server>5\d\d))(?= [\d.]+ms )"

SHORT_ID: Final = 8
SLOW_UPLOAD_MS: Final = 100.0  # the time of a faster upload is not shown on a terminal


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


def log_request(logger: logging.Logger, message: str, fields: Mapping[str, object]) -> None:
    """Log a line at level INFO, as ``logger.info(message, extra=fields)`` does, for lines on the path of every request.

    Creating a record takes as long as formatting it. This copies one that has no fields of a caller, which are not
    collected anyway (`configure_logging`).

    Example:
        >>> log_request(get_logger("api"), "GET / 200", {"status": 200})
    """
    if logger.isEnabledFor(logging.INFO):
        created = time.time()
        record = logging.LogRecord.__new__(logging.LogRecord)
        own = {"name": logger.name, "msg": message, "created": created, "msecs": created % 1 * 1000}
        record.__dict__ = {**_EMPTY_RECORD, **own, **fields}
        logger.handle(record)


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
    handlers: list[logging.Handler] = [_rich_handler(options) if options.is_rich else _JsonHandler()]
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
    from rich.console import Group  # noqa: PLC0415
    from rich.logging import RichHandler  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    class ConsoleHandler(RichHandler):
        """Handler that formats lines by component, and prints tracebacks at a limited rate."""

        _limit = tracebacks.TracebackLimit()

        def emit(self, record: logging.LogRecord) -> None:
            """Print one record."""
            try:
                parts = [self._make_line(record, line) for line in console_lines(record)]
                after: list[RenderableType] = []
                error = record.exc_info
                if error and error[0] is not None:
                    is_printed, repeats = self._limit.check(error)
                    parts[0].append(
                        ": " + escape_unsafe(tracebacks.summarize(error, is_printed=is_printed, repeats=repeats))
                    )
                    if is_printed:
                        after = [tracebacks.render(error)]
                rows = [self.render(record=record, traceback=None, message_renderable=part) for part in parts]
                self.console.print(Group(*rows, *after))
            except Exception:  # noqa: BLE001 - as in the handlers of the standard library
                self.handleError(record)

        @staticmethod
        def _make_line(record: logging.LogRecord, message: str) -> Text:
            component = _component_of(record)
            line = Text(f"{COMPONENT_TITLES.get(component, component):<7} ", style="", end="")
            line.stylize(f"component.{component}", 0, len(component))
            if identifier := request_id.get():
                line.append(f"{shorten_id(identifier):<{SHORT_ID}} ", "request.id")
            text = Text(escape_unsafe(message))
            text.highlight_regex(_STATUS, style_prefix="status.")
            return line.append_text(text).append(_describe_sizes(record), "request.size")

    handler = ConsoleHandler(
        console=make_console(options),
        show_path=False,
        log_time_format=options.time_format,
        omit_repeated_times=False,
    )
    handler.setFormatter(logging.Formatter())
    return handler


def make_console(options: LogOptions) -> Console:
    """Return a console for the banner and the lines: standard error, with the theme."""
    from rich.console import Console  # noqa: PLC0415 - see _rich_handler
    from rich.theme import Theme  # noqa: PLC0415

    return Console(theme=Theme({**DEFAULT_THEME, **options.theme}), stderr=True, highlight=False)


def console_lines(record: logging.LogRecord) -> list[str]:
    """Return the messages of a record on a terminal: one, or one per metric of a summary."""
    rows = getattr(record, "metrics", None)
    if getattr(record, "event", None) != "metrics" or not rows:
        return [record.getMessage()]
    return [
        _METRIC
        % (row["name"], format_number(row["value"]), f" (+{format_number(row['change'])})", _labels(row["labels"]))
        for row in rows
    ]


def shorten_id(identifier: str) -> str:
    """Return the end of a request id, in which ids of one client differ.

    Example:
        >>> shorten_id("3f2a9c01b7e64d55"), shorten_id("order-000017"), shorten_id("17")
        ('b7e64d55', 'r-000017', '17')
    """
    return identifier[-SHORT_ID:]


def _component_of(record: logging.LogRecord) -> str:
    return record.name.rpartition(".")[2] if record.name.startswith(ROOT) else record.name


def _describe_sizes(record: logging.LogRecord) -> str:
    """Return the sizes of an access line's bodies, and the time of a slow upload."""
    if not hasattr(record, "bytes_out"):
        return ""
    received, sent, upload_ms = (getattr(record, name, 0) for name in ("bytes_in", "bytes_out", "upload_ms"))
    parts = [f" {arrow}{size_of(size).replace(' ', '')}" for arrow, size in (("↑", received), ("↓", sent)) if size]
    if upload_ms >= SLOW_UPLOAD_MS:
        parts.insert(1, f" in {upload_ms / 1000:.1f}s")
    return "".join(parts)


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
        # A record has its own fields first; `message` and `asctime` are added by other formatters.
        added = dict(islice(record.__dict__.items(), _FIELD_COUNT, None))
        for name in _LATE_FIELDS:
            added.pop(name, None)
        line |= added
        if record.exc_info:
            line["exc_info"] = self.formatException(record.exc_info)
            if record.exc_info[0] is not None:
                line["exc_type"] = tracebacks.type_name(record.exc_info[0])
        try:
            text = orjson.dumps(line, default=str).decode()
        except TypeError:  # a surrogate, a large integer or a key that is no text; orjson is slower if it accepts keys
            text = json.dumps(line, default=str, skipkeys=True)
        return escape_unsafe_json(text)


class _JsonHandler(logging.StreamHandler):  # type: ignore[type-arg]  # generic only in the stubs
    """Handler for standard error, which is not flushed again if it writes each line at once."""

    def flush(self) -> None:
        """Write what the stream has kept, if it keeps anything."""
        if not getattr(self.stream, "line_buffering", False):
            super().flush()


def _file_handler(path: Path, options: LogOptions) -> logging.Handler:
    path.parent.mkdir(parents=True, exist_ok=True)
    # The handler of the standard library loses lines if several processes rotate one file.
    return ConcurrentRotatingFileHandler(
        str(path), maxBytes=options.file_max_bytes, backupCount=options.file_backups, encoding="utf-8"
    )


_images = get_logger("images")
_tasks = get_logger("tasks")
_server = get_logger("server")
_METRIC: Final = "📊 Metric %s = %s%s%s"


def log_image_processing(operation: str, shape: tuple[int, ...], duration_s: float) -> None:
    """Log one step of image processing with the shape of its result, an array of ``(height, width, channels)``.

    Example:
        >>> log_image_processing("decode", (512, 512, 3), 0.123)
    """
    if _images.isEnabledFor(logging.INFO):
        extra = {"event": operation, "shape": shape, "duration_ms": round(1000 * duration_s, 2)}
        _images.info("🖼️ Image %s %s %.3fs", operation, tuple(map(int, shape)), duration_s, extra=extra)


def log_image_verified(width: int, height: int, image_format: str) -> None:
    """Log that the structure of an image is valid.

    Example:
        >>> log_image_verified(640, 480, "png")
    """
    if _images.isEnabledFor(logging.INFO):
        extra = {"event": "verified", "width": width, "height": height, "format": image_format}
        _images.info("🖼️ Image verified: %d×%d %s", width, height, image_format.upper(), extra=extra)


def log_faces_found(count: int) -> None:
    """Log the number of detected faces.

    Example:
        >>> log_faces_found(1)
    """
    if _images.isEnabledFor(logging.INFO):
        _images.info("👤 Found %s", count_of(count, "face"), extra={"event": "faces", "faces": count})


def log_segmentation_decoded(width: int, height: int, labels: int) -> None:
    """Log that a label map has been decoded.

    Example:
        >>> log_segmentation_decoded(512, 512, 10)
    """
    if _images.isEnabledFor(logging.INFO):
        extra = {"event": "segmentation", "width": width, "height": height, "labels": labels}
        text = count_of(labels, "label")
        _images.info("🗺️ Segmentation map decoded: %d×%d, %s", width, height, text, extra=extra)


def log_regions_extracted(count: int) -> None:
    """Log the number of regions in a result.

    Example:
        >>> log_regions_extracted(10)
    """
    if _images.isEnabledFor(logging.INFO):
        _images.info("✅ Extracted %s", count_of(count, "region"), extra={"event": "extracted", "regions": count})


def log_image_error(code: str, reason: str, *, is_decoding: bool = True) -> None:
    """Log that an image, or the landmarks or segmentation map sent with it, were refused.

    The reason must not repeat input of the caller.

    Example:
        >>> log_image_error("image_truncated", "image: expected a complete PNG file, got 812 bytes of it")
    """
    subject = "Image decoding error" if is_decoding else "Input error"
    _images.warning("💥 %s: %s [%s]", subject, reason, code, extra={"event": "refused", "code": code})


def log_task_started(task_id: str, task_type: str, *, attempt: int = 1) -> None:
    """Log that an attempt started.

    Example:
        >>> log_task_started("0123456789abcdef0123456789abcdef", "facial_processing")
    """
    extra = {"event": "started", "task_id": task_id, "type": task_type, "attempt": attempt}
    again = f", attempt {attempt}" if attempt > 1 else ""
    _tasks.info("📋 Task started %s %s%s", task_id[:SHORT_ID], task_type, again, extra=extra)


def log_task_succeeded(task_id: str, duration_s: float) -> None:
    """Log that a task has a result.

    Example:
        >>> log_task_succeeded("0123456789abcdef0123456789abcdef", 0.123)
    """
    extra = {"event": "succeeded", "task_id": task_id, "duration_ms": round(1000 * duration_s, 2)}
    _tasks.info("✅ Task success %s %.2fs", task_id[:SHORT_ID], duration_s, extra=extra)


def log_task_failed(task_id: str, code: str, reason: str) -> None:
    """Log that a task failed; the reason must not repeat input of the caller.

    Example:
        >>> log_task_failed("0123456789abcdef0123456789abcdef", "no_face", "image: expected a face, got none")
    """
    extra = {"event": "failed", "task_id": task_id, "code": code}
    _tasks.warning("❌ Task %s failed: %s [%s]", task_id[:SHORT_ID], reason, code, extra=extra)


def log_task_retried(task_id: str, reason: str, delay_s: float) -> None:
    """Log that a task was requeued for another attempt.

    Example:
        >>> log_task_retried("0123456789abcdef0123456789abcdef", "internal error", 2.0)
    """
    extra = {"event": "retried", "task_id": task_id, "delay_s": delay_s}
    _tasks.warning("🔁 Task %s failed, retrying in %.1fs: %s", task_id[:SHORT_ID], delay_s, reason, extra=extra)


def log_metric(name: str, value: float, /, **labels: object) -> None:
    """Log the value of a metric; to record it, use `app.observability.recording`.

    Example:
        >>> log_metric("task_completions_total", 42, task_type="facial_processing", status="success")
    """
    texts = {label: str(text) for label, text in labels.items()}
    extra = {"event": "metric", "metric": name, "value": value, "labels": texts}
    _server.info(_METRIC, name, format_number(value), "", _labels(texts), extra=extra)


def format_number(value: float) -> str:
    """Return a number without an exponent, as far as that is readable.

    Example:
        >>> format_number(42.0), format_number(0.125), format_number(1234567.0)
        ('42', '0.125', '1234567')
    """
    return f"{value:.0f}" if float(value).is_integer() and abs(value) < 1e15 else f"{value:.6g}"  # noqa: PLR2004


def _labels(labels: Mapping[str, str]) -> str:
    """Return labels as text that starts with a space; a value with spaces or quotes is quoted."""
    return "".join(
        f" {name}={json.dumps(text, ensure_ascii=False) if not text or set(text) & _QUOTED else text}"
        for name, text in labels.items()
    )


_QUOTED: Final = frozenset(' "=\n\t')

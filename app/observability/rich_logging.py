"""Logs: Rich lines for a person at a terminal, one JSON object a line for everything else.

A Rich line costs 2.8 ms of CPU and a JSON one 0.03 ms, so Rich is never used where nobody looks. Rich tracebacks are
off (600 ms each, and locals would print images); text from callers is never read as markup.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

import orjson
from concurrent_log_handler import ConcurrentRotatingFileHandler

from app.observability import context

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from rich.console import Console
    from rich.text import Text

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


@dataclass(frozen=True, slots=True, kw_only=True)
class LogOptions:
    """What the settings say of logs; see there for the meanings."""

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
        """Whether lines go to a person."""
        return self.format == "rich" or (self.format == "auto" and sys.stderr.isatty())

    def level_of(self, component: str) -> str:
        """Return the level of one component: what was asked for, else quiet about images where nobody looks."""
        if component in self.levels:
            return self.levels[component]
        return "WARNING" if component == "images" and self.level == "INFO" and not self.is_rich else self.level


def get_logger(component: str) -> logging.Logger:
    """Return the logger of one component: ``api``, ``images``, ``tasks`` or ``server``."""
    return logging.getLogger(f"{ROOT}.{component}")


def configure_logging(options: LogOptions) -> None:
    """Set up every logger of the process; called again, it replaces what it set up before.

    Raises:
        OSError: the log file cannot be opened.
        rich.errors.StyleSyntaxError: a style of the theme cannot be read (on a terminal only).
    """
    handlers: list[logging.Handler] = [_rich_handler(options) if options.is_rich else _json_handler()]
    if options.file is not None:
        handlers.append(_file_handler(options))
    root = logging.getLogger()
    for old in list(root.handlers):
        if getattr(old, "is_ours", False):
            root.removeHandler(old)
            old.close()
    # Nothing of ours prints these, and looking them up costs as much as writing the line. The standard library's
    # documentation names these switches, the first of them too ("Optimization" in the logging how-to).
    vars(logging)["_srcfile"] = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    vars(logging)["logAsyncioTasks"] = False  # from Python 3.12 on
    for handler in handlers:
        handler.is_ours = True  # type: ignore[attr-defined]  # tells them from a host's, such as a test runner's
        root.addHandler(handler)
    logging.getLogger(ROOT).setLevel(options.level)
    for component in COMPONENTS:
        get_logger(component).setLevel(options.level_of(component))
    # Libraries speak up only when something is wrong; their routine lines say nothing that ours do not.
    for name in ("gunicorn.error", "uvicorn.error", "uvicorn.access", "asyncio"):
        logging.getLogger(name).setLevel(options.levels.get("server", "WARNING"))


def _rich_handler(options: LogOptions) -> logging.Handler:
    # Imported here: a worker that writes JSON shall not pay for the memory of a renderer it never uses.
    from rich.highlighter import Highlighter  # noqa: PLC0415
    from rich.logging import RichHandler  # noqa: PLC0415

    class LineHighlighter(Highlighter):
        """Colours the component and the status code, by the styles of the theme."""

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
    """Make the console that banner and lines are written to: standard error, in the theme."""
    from rich.console import Console  # noqa: PLC0415 - see _rich_handler
    from rich.theme import Theme  # noqa: PLC0415

    return Console(theme=Theme({**DEFAULT_THEME, **options.theme}), stderr=True, highlight=False)


class ComponentFormatter(logging.Formatter):
    """Puts the component before the message, and the request id behind it where a line is a problem."""

    def format(self, record: logging.LogRecord) -> str:
        """Return ``API     GET /health 200 15.2ms 127.0.0.1``."""
        component = record.name.rpartition(".")[2] if record.name.startswith(ROOT) else record.name
        record.message = record.getMessage()
        text = f"{COMPONENT_TITLES.get(component, component):<7} {record.message}"
        request_id = context.request_id.get()
        if request_id and record.levelno >= logging.WARNING:
            text = f"{text} [{request_id}]"
        if record.exc_info and not record.exc_text:
            record.exc_text = self.formatException(record.exc_info)
        return f"{text}\n{record.exc_text}" if record.exc_text else text


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, the request's ids, and what the call gave extra.

    Written out here, for the access line is on the path of every request, and the libraries for it cost several times
    as much as what they do.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (request_id := context.request_id.get()) is not None:
            line["request_id"] = request_id
        if (trace_id := context.trace_id.get()) is not None:
            line["trace_id"] = trace_id
        line |= {name: value for name, value in record.__dict__.items() if name not in _RECORD_FIELDS}
        if record.exc_info:
            line["exc_info"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str, option=orjson.OPT_NON_STR_KEYS).decode()


def _json_handler() -> logging.Handler:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    return handler


def _file_handler(options: LogOptions) -> logging.Handler:
    if options.file is None:
        raise ValueError("no file is set")
    options.file.parent.mkdir(parents=True, exist_ok=True)
    # The standard library's handler loses lines when several processes rotate one file.
    handler = ConcurrentRotatingFileHandler(
        str(options.file), maxBytes=options.file_max_bytes, backupCount=options.file_backups, encoding="utf-8"
    )
    handler.setFormatter(JsonFormatter())
    return handler

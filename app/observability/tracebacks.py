"""Tracebacks on a terminal: with code context, without locals, at a limited rate.

Rich needs up to 600 ms of CPU for one, and an error that occurs in every request would hide all other lines. So all
processes of an instance together print at most one per second, and each distinct one once per minute. Every error still
has its line, with the place where it was raised and the number of its repetitions.
"""

from __future__ import annotations

import importlib.util
import mmap
import struct
import sysconfig
import time
import traceback
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Final

from app.observability.log_text import count_of, escape_unsafe

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from rich.console import RenderableType

    ExceptionInfo = tuple[type[BaseException], BaseException, TracebackType | None]

ANY_S: Final = 1.0  # minimum time between two tracebacks
SAME_S: Final = 60.0  # minimum time between two identical ones
MAX_FRAMES: Final = 30
MAX_TEXT: Final = 300  # characters of an exception's text in the line
MAX_CHAIN: Final = 10  # causes and contexts that distinguish tracebacks
ROWS: Final = 64
_ROW: Final = struct.Struct("<QdQ")  # fingerprint, time of the last traceback (0 if none), repetitions since then
_LAST: Final = struct.Struct("<d")  # time of the last traceback of any kind
# Frames of these packages are not shown: every request has twenty of them, and what matters is the code of the service.
_FRAMEWORKS: Final = ("fastapi", "gunicorn", "prometheus_fastapi_instrumentator", "starlette", "uvicorn")


class TracebackLimit:
    """Decides whether a traceback is printed, for all processes that are forked after it has been created.

    The table is in shared memory, without a lock, because a process can be killed while it holds one. If two processes
    fail at the same moment, both may print a traceback.
    """

    def __init__(self) -> None:
        self._table = mmap.mmap(-1, _LAST.size + ROWS * _ROW.size)

    def check(self, error: ExceptionInfo) -> tuple[bool, int]:
        """Return whether to print the traceback now, and how often it has occurred since it was printed last."""
        now = time.monotonic()  # the same clock in all processes of a machine
        fingerprint = _fingerprint(error)
        offset, shown_at, repeats = self._find(fingerprint)
        (last,) = _LAST.unpack_from(self._table, 0)
        is_due = now - last >= ANY_S and (not shown_at or now - shown_at >= SAME_S)
        if is_due:
            _LAST.pack_into(self._table, 0, now)
            _ROW.pack_into(self._table, offset, fingerprint, now, 0)
            return True, repeats
        _ROW.pack_into(self._table, offset, fingerprint, shown_at, repeats + 1)
        return False, repeats + 1

    def _find(self, fingerprint: int) -> tuple[int, float, int]:
        """Return the offset and values of a traceback's row; a new traceback replaces the one printed longest ago."""
        oldest, oldest_at = _LAST.size, float("inf")
        for number in range(ROWS):
            offset = _LAST.size + number * _ROW.size
            found, shown_at, repeats = _ROW.unpack_from(self._table, offset)
            if found == fingerprint:
                return offset, shown_at, repeats
            if shown_at < oldest_at:
                oldest, oldest_at = offset, shown_at
        return oldest, 0.0, 0


def type_name(kind: type[BaseException]) -> str:
    """Return the qualified name of an exception class.

    Example:
        >>> import json
        >>> type_name(ValueError), type_name(json.JSONDecodeError)
        ('ValueError', 'json.decoder.JSONDecodeError')
    """
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def summarize(error: ExceptionInfo, *, is_printed: bool, repeats: int) -> str:
    """Return the class, text and origin of an exception, and how often it was repeated, for one line."""
    kind, value, frames = error
    text = _text_of(value)
    place = ""
    if frames is not None:
        *_, (frame, line) = traceback.walk_tb(frames)
        place = f" (at {_short_path(frame.f_code.co_filename)}:{line} in {frame.f_code.co_name})"
    summary = f"{type_name(kind)}{f': {text}' if text else ''}{place}"
    if not repeats:
        return summary
    since = " since its last traceback" if is_printed else ", traceback omitted"
    return f"{summary} [repeated {count_of(repeats, 'time')}{since}]"


def render(error: ExceptionInfo) -> RenderableType:
    """Return a traceback with code context, as Rich prints it."""
    # Import lazily: Rich is not loaded if lines are JSON.
    from pygments.token import Comment, Keyword, Name, Number, String, Token  # noqa: PLC0415
    from rich.style import Style  # noqa: PLC0415
    from rich.syntax import ANSISyntaxTheme  # noqa: PLC0415
    from rich.traceback import Trace, Traceback  # noqa: PLC0415

    # Readable on dark and on light backgrounds, as the colours of `rich_logging.DEFAULT_THEME`.
    colours = {
        Token: Style(),
        Comment: Style(color="color(243)"),
        Keyword: Style(color="color(63)", bold=True),
        Name.Function: Style(color="color(30)"),
        Number: Style(color="color(30)"),
        String: Style(color="color(28)"),
    }

    def prepare(trace: Trace) -> Trace:
        for stack in trace.stacks:
            hidden = _framework_paths()
            # The last frame shows where the exception was raised, even if that is in a framework.
            stack.frames = [
                frame for frame in stack.frames[:-1] if not frame.filename.startswith(hidden)
            ] + stack.frames[-1:]
            for frame in stack.frames:
                frame.filename = frame.filename.removeprefix(f"{Path.cwd()}/")
                frame.last_instruction = None  # Rich also marks parts of the lines after it
            stack.exc_value = escape_unsafe(stack.exc_value)
            stack.notes = [escape_unsafe(str(note)) for note in stack.notes]
            for nested in stack.exceptions:
                prepare(nested)
        return trace

    trace = prepare(Traceback.extract(*error, show_locals=False))
    return Traceback(
        trace,
        width=None,
        code_width=None,
        extra_lines=2,
        theme=ANSISyntaxTheme(colours),  # type: ignore[arg-type]  # passed to `Syntax.get_theme`, which accepts it
        word_wrap=True,
        show_locals=False,
        max_frames=MAX_FRAMES,
    )


@cache
def _framework_paths() -> tuple[str, ...]:
    specs = (importlib.util.find_spec(name) for name in _FRAMEWORKS)
    packages = (str(Path(spec.origin).parent) for spec in specs if spec is not None and spec.origin is not None)
    standard = (f"{sysconfig.get_path('stdlib')}/{name}" for name in ("asyncio", "concurrent", "contextlib.py"))
    return (*packages, *standard)


def _fingerprint(error: ExceptionInfo) -> int:
    digest = blake2b(digest_size=8)
    for value in _chain(error[1]):
        digest.update(type_name(type(value)).encode())
        for frame, line in traceback.walk_tb(value.__traceback__):
            digest.update(f"{frame.f_code.co_filename}:{line}".encode(errors="replace"))
    return int.from_bytes(digest.digest()) or 1  # 0 is an empty row


def _chain(value: BaseException) -> Iterator[BaseException]:
    """Yield an exception, its causes and contexts, and the members of groups."""
    pending, seen = [value], set[int]()
    while pending and len(seen) < MAX_CHAIN:
        value = pending.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        yield value
        if isinstance(value, BaseExceptionGroup):
            pending.extend(value.exceptions)
        related = value.__cause__ or (None if value.__suppress_context__ else value.__context__)
        if related is not None:
            pending.append(related)


def _text_of(value: BaseException) -> str:
    try:
        text = str(value)
    except Exception:  # noqa: BLE001 - a log line must not fail because of the text of an exception
        return "(no text)"
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}…"


def _short_path(path: str) -> str:
    """Return the end of a path.

    Example:
        >>> _short_path("/srv/app/web/middleware.py")
        'web/middleware.py'
    """
    return "/".join(path.split("/")[-2:])

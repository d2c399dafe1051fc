"""Log lines, as Rich text and as JSON."""

from __future__ import annotations

import io
import json
import logging
import os
import re
from typing import TYPE_CHECKING, Any

import pytest
from rich.style import Style

from app.observability import rich_logging, tracebacks
from app.observability.rich_logging import (
    LogOptions,
    configure_logging,
    get_logger,
    log_faces_found,
    log_image_error,
    log_image_processing,
    log_image_verified,
    log_metric,
    log_regions_extracted,
    log_segmentation_decoded,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


# No formatter of the service prints these fields of a record.
UNUSED = {"pathname", "filename", "module", "lineno", "funcName", "relativeCreated"}


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., io.StringIO]]:
    """Return a function that configures logging and returns the output; the setup is removed afterwards."""
    stream = io.StringIO()
    monkeypatch.setenv("COLUMNS", "200")

    def configure(**options: Any) -> io.StringIO:
        monkeypatch.setattr("sys.stderr", stream)
        configure_logging(LogOptions(**options))
        return stream

    yield configure
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if getattr(handler, "is_ours", False)]:
        root.removeHandler(handler)
        handler.close()
    for component in rich_logging.COMPONENTS:
        get_logger(component).setLevel(logging.NOTSET)
    logging.getLogger(rich_logging.ROOT).setLevel(logging.NOTSET)


def test_json_is_one_object_per_line_with_the_ids_of_the_request(logged: Callable[..., io.StringIO]) -> None:
    stream = logged(format="json")
    request = rich_logging.request_id.set("order-17")
    trace = rich_logging.trace_id.set("0af7651916cd43dd8448eb211c80319c")
    get_logger("api").info("one\ntwo %s", "[red]x[/]", extra={"status": 200})
    try:
        int("cause")
    except ValueError:
        get_logger("api").exception("Unhandled error")
    rich_logging.request_id.reset(request)
    rich_logging.trace_id.reset(trace)
    get_logger("server").warning("no request")
    first, second, third = (json.loads(line) for line in stream.getvalue().splitlines())
    assert first["message"] == "one\ntwo [red]x[/]"
    assert (first["level"], first["logger"], first["status"]) == ("INFO", "facial.api", 200)
    assert (first["request_id"], first["trace_id"]) == ("order-17", "0af7651916cd43dd8448eb211c80319c")
    assert first["time"].endswith("+00:00")
    assert "ValueError: invalid literal" in second["exc_info"]
    assert second["exc_type"] == "ValueError"
    assert "request_id" not in third


def test_line_of_a_request_is_one_of_the_standard_library(
    logged: Callable[..., io.StringIO], caplog: pytest.LogCaptureFixture
) -> None:
    """It passes the filters and handlers of any other line, with the same fields in the same order."""
    stream = logged(format="json")
    fields = {"status": 200, "path": "/%s"}
    rich_logging.log_request(get_logger("api"), "GET /%s 200", fields)
    get_logger("api").info("GET /%s 200", extra=fields)
    fast, usual = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (list(fast), fast["message"], fast["level"]) == (list(usual), "GET /%s 200", "INFO")
    one, other = (vars(record) for record in caplog.records)
    assert one.keys() == other.keys()
    assert {name for name in one if one[name] != other[name]} <= {"msg", "message", "created", "msecs"} | UNUSED
    get_logger("api").setLevel("WARNING")
    rich_logging.log_request(get_logger("api"), "GET / 200", fields)
    assert len(stream.getvalue().splitlines()) == 2


def test_rich_lines_contain_the_component_and_parse_no_markup(logged: Callable[..., io.StringIO]) -> None:
    stream = logged(format="rich", time_format="at %H")
    get_logger("api").info("GET /[bold]x[/] 200")
    request = rich_logging.request_id.set("order-17")
    get_logger("images").warning("odd")
    rich_logging.request_id.reset(request)
    text = stream.getvalue()
    assert "API     GET /[bold]x[/] 200" in text
    assert "Images  order-17 odd" in text
    assert text.startswith("at ")


def test_rich_lines_are_coloured_by_component_and_status(
    logged: Callable[..., io.StringIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    stream = logged(format="rich", theme={"status.client": "magenta"})
    get_logger("api").info("GET /200 404 15.2ms 127.0.0.1")
    assert "\x1b[1;38;5;30mAPI" in stream.getvalue(), "bold cyan, the default of the theme"
    assert "\x1b[35m404\x1b[0m" in stream.getvalue(), "magenta, as configured"


@pytest.mark.parametrize(("format_", "is_quiet"), [("json", True), ("rich", False)])
def test_image_lines_are_only_written_on_a_terminal(
    logged: Callable[..., io.StringIO], format_: str, is_quiet: bool
) -> None:
    stream = logged(format=format_)
    log_image_verified(640, 480, "png")
    log_image_processing("decode", (512, 512, 3), 0.123)
    log_faces_found(1)
    log_segmentation_decoded(256, 256, 1)
    log_regions_extracted(10)
    text = stream.getvalue()
    assert (text == "") is is_quiet
    if not is_quiet:
        assert "Image verified: 640×480 PNG" in text
        assert "Image decode (512, 512, 3) 0.123s" in text
        assert "Found 1 face\n" in re.sub(" +", " ", text).replace(" \n", "\n")
        assert "Segmentation map decoded: 256×256, 1 label" in text
        assert "1 labels" not in text
        assert "Extracted 10 regions" in text


def test_image_lines_can_be_enabled(logged: Callable[..., io.StringIO]) -> None:
    stream = logged(format="json", levels={"images": "INFO"})
    log_image_processing("decode", (512, 512, 3), 0.123)
    line = json.loads(stream.getvalue())
    assert (line["event"], line["shape"], line["duration_ms"]) == ("decode", [512, 512, 3], 123.0)


def test_refused_images_and_metrics_are_logged_in_both_formats(logged: Callable[..., io.StringIO]) -> None:
    stream = logged(format="rich")
    log_image_error("image_truncated", "image: expected a complete PNG")
    log_metric("task_completions_total", 42, task_type="facial_processing", status="success")
    log_metric("odd", 0.5, label='two words "quoted"')
    text = stream.getvalue()
    assert "Images  💥 Image decoding error: image: expected a complete PNG [image_truncated]" in text
    assert "📊 Metric task_completions_total = 42 task_type=facial_processing status=success" in text
    assert '📊 Metric odd = 0.5 label="two words \\"quoted\\""' in text
    stream = logged(format="json")
    stream.truncate(stream.seek(0))
    log_image_error("image_truncated", "image: expected a complete PNG")
    log_metric("task_completions_total", 42, status="success")
    refused, metric = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (refused["level"], refused["code"]) == ("WARNING", "image_truncated")
    assert (metric["metric"], metric["value"], metric["labels"]) == (
        "task_completions_total",
        42,
        {"status": "success"},
    )


UNSAFE = "a\nb\rc\x1b[31md\x9b31me\u2028f\u202eg\x7fh"


@pytest.mark.parametrize("format_", ["rich", "json"])
def test_text_cannot_forge_a_line_or_control_the_terminal(logged: Callable[..., io.StringIO], format_: str) -> None:
    stream = logged(format=format_)
    get_logger("api").info("%s [red]x[/]", UNSAFE)
    try:
        raise ValueError(UNSAFE)  # noqa: TRY301 - the traceback is logged
    except ValueError as error:
        error.add_note(UNSAFE)
        get_logger("api").exception("failed")
    text = stream.getvalue()
    assert not set(text) & {"\r", "\x1b", "\x9b", "\u2028", "\u202e", "\x7f"}
    assert "[red]x[/]" in text
    if format_ == "json":
        assert json.loads(text.splitlines()[0])["message"] == f"{UNSAFE} [red]x[/]"
    else:
        assert "a\\nb\\rc\\x1b[31md" in text.splitlines()[0]


def test_line_that_orjson_refuses_is_logged_by_the_standard_library(logged: Callable[..., io.StringIO]) -> None:
    stream = logged(format="json")
    get_logger("api").info("half \ud800", extra={"number": 2**70})
    assert json.loads(stream.getvalue())["number"] == 2**70


def fail(number: int) -> None:
    def first() -> None:
        local = "QXcanaryQX"
        raise ZeroDivisionError(len(local))

    def second() -> None:
        raise KeyError("second")

    try:
        (first, second)[number]()
    except (ZeroDivisionError, KeyError):
        get_logger("api").exception("Unhandled error")


def test_tracebacks_are_limited_and_contain_no_local_variables(
    logged: Callable[..., io.StringIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = logged(format="rich")
    now = [1000.0]
    monkeypatch.setattr(tracebacks.time, "monotonic", lambda: now[0])

    def log(number: int) -> str:
        stream.truncate(stream.seek(0))
        fail(number)
        return stream.getvalue()

    text = log(0)
    assert "Traceback (most recent call last)" in text
    assert "raise ZeroDivisionError(len(local))" in text, "code context"
    assert "'QXcanaryQX'" not in text, "no values of local variables"
    text = log(0)
    assert "Traceback (most" not in text
    assert "Unhandled error: ZeroDivisionError: 10 (at observability/test_rich_logging.py:" in text
    assert "[repeated 1 time, traceback omitted]" in re.sub(r"\s+", " ", text)
    assert "Traceback (most" not in log(1), "a second has not passed"
    now[0] += 1.5
    assert "Traceback (most" in log(1)
    now[0] += 30
    assert "[repeated 2 times, traceback omitted]" in re.sub(r"\s+", " ", log(0))
    now[0] += 30
    text = re.sub(r"\s+", " ", log(0))
    assert "Traceback (most" in text
    assert "[repeated 2 times since its last traceback]" in text


def test_tracebacks_are_limited_across_processes() -> None:
    limit = tracebacks.TracebackLimit()
    error = ValueError("x")
    found = type(error), error, None
    assert limit.check(found) == (True, 0)
    child = os.fork()
    if not child:
        os._exit(0 if limit.check(found) == (False, 1) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert limit.check(found) == (False, 2)


def contrast(one: tuple[int, ...], other: tuple[int, ...]) -> float:
    """Return the contrast of two colours as WCAG 2 defines it."""

    def luminance(colour: tuple[int, ...]) -> float:
        parts = [part / 255 for part in colour]
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("name", rich_logging.DEFAULT_THEME)
def test_colours_are_readable_on_dark_and_light_terminals(name: str) -> None:
    colour = Style.parse(rich_logging.DEFAULT_THEME[name]).color
    assert colour is not None
    rgb = tuple(colour.get_truecolor())
    assert min(contrast(rgb, (0, 0, 0)), contrast(rgb, (255, 255, 255))) >= 4


def test_levels_of_components(logged: Callable[..., io.StringIO]) -> None:
    stream = logged(format="json", level="ERROR", levels={"api": "DEBUG"})
    get_logger("api").debug("seen")
    get_logger("server").warning("not seen")
    assert [json.loads(line)["message"] for line in stream.getvalue().splitlines()] == ["seen"]


def test_file_gets_json_and_is_rotated(logged: Callable[..., io.StringIO], tmp_path: Path) -> None:
    file = tmp_path / "logs" / "service.log"
    logged(format="rich", file=file, file_max_bytes=1024, file_backups=2)
    for number in range(40):
        get_logger("api").info("line %d", number)
    assert json.loads(file.read_text().splitlines()[-1])["message"] == "line 39"
    assert len(list(file.parent.glob("service.log*"))) == 3


def test_line_is_written_once_after_two_setups(logged: Callable[..., io.StringIO]) -> None:
    logged(format="json")
    stream = logged(format="json")
    get_logger("api").info("once")
    assert stream.getvalue().count("once") == 1


@pytest.mark.parametrize(
    ("header", "is_taken"),
    [
        ("order-17", True),
        ("a" * 128, True),
        ("a" * 129, False),
        ("two words", False),
        ("x\ny", False),
        ("", False),
        (None, False),
    ],
)
def test_request_id_is_accepted_if_safe(header: str | None, is_taken: bool) -> None:
    made = rich_logging.accept_request_id(header)
    assert (made == header) is is_taken
    assert made.isprintable()


@pytest.mark.parametrize(
    ("header", "trace"),
    [
        ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "0af7651916cd43dd8448eb211c80319c"),
        ("00-" + "0" * 32 + "-b7ad6b7169203331-01", None),
        ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331", None),
        ("garbage", None),
        (None, None),
    ],
)
def test_trace_id(header: str | None, trace: str | None) -> None:
    assert rich_logging.parse_trace_id(header) == trace

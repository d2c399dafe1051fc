"""Log lines, as Rich text and as JSON."""

from __future__ import annotations

import io
import json
import logging
from typing import TYPE_CHECKING, Any

import pytest

from app.observability import rich_logging
from app.observability.rich_logging import LogOptions, configure_logging, get_logger, log_image_processing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


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
    assert "request_id" not in third


def test_rich_lines_contain_the_component_and_parse_no_markup(logged: Callable[..., io.StringIO]) -> None:
    stream = logged(format="rich", time_format="at %H")
    get_logger("api").info("GET /[bold]x[/] 200")
    request = rich_logging.request_id.set("order-17")
    get_logger("images").warning("odd")
    rich_logging.request_id.reset(request)
    text = stream.getvalue()
    assert "API     GET /[bold]x[/] 200" in text
    assert "Images  odd [order-17]" in text
    assert text.startswith("at ")


def test_rich_lines_are_coloured_by_component_and_status(
    logged: Callable[..., io.StringIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    stream = logged(format="rich", theme={"status.client": "magenta"})
    get_logger("api").info("GET /200 404 15.2ms 127.0.0.1")
    assert "\x1b[1;36mAPI" in stream.getvalue(), "bold cyan, the default of the theme"
    assert "\x1b[35m404\x1b[0m" in stream.getvalue(), "magenta, as configured"


@pytest.mark.parametrize(("format_", "is_quiet"), [("json", True), ("rich", False)])
def test_image_lines_are_only_written_on_a_terminal(
    logged: Callable[..., io.StringIO], format_: str, is_quiet: bool
) -> None:
    stream = logged(format=format_)
    log_image_processing("verified", 512, 512, "PNG")
    log_image_processing("segmentation", 256, 256, 10)
    log_image_processing("extracted", 10)
    text = stream.getvalue()
    assert (text == "") is is_quiet
    if not is_quiet:
        assert "Image verified: 512×512 PNG" in text
        assert "Segmentation map decoded: 256×256, 10 labels" in text
        assert "Extracted 10 regions" in text


def test_image_lines_can_be_enabled(logged: Callable[..., io.StringIO]) -> None:
    stream = logged(format="json", levels={"images": "INFO"})
    log_image_processing("extracted", 10)
    assert json.loads(stream.getvalue())["event"] == "extracted"


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

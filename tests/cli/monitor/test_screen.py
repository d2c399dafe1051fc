"""The picture fits every terminal, says what the figures say, and takes no order from what came over the network."""

from __future__ import annotations

import io
import re
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from app.cli.monitor.chart import BLOCKS, draw_chart
from app.cli.monitor.history import History
from app.cli.monitor.moment import summarize
from app.cli.monitor.panels import View
from app.cli.monitor.screen import draw_screen
from tests.cli.monitor.conftest import Service, hostile

SIZES = [(80, 24), (120, 35), (200, 60), (64, 20), (40, 12), (20, 5)]


def busy(*, away: bool = False, label: str = "landmarks_count") -> View:
    service, history = Service(), History()
    service.gauge("queue_up", 1)
    service.gauge("task_queue_size", 12, "facial_processing")
    service.gauge("cpu_usage_percent", 33.3, "worker-0")
    service.gauge("memory_usage_bytes", 100 << 20, "worker-0")
    service.gauge("memory_usage_bytes", 50 << 20, "master")
    service.gauge("app_build_info", 1, label, "3.13")
    for number in (0, 40, 20, 60):
        service.answer(number)
        service.answer(number // 10, status="422")
        service.count("errors_total", (label, "images"), number // 10)
        service.scrape()
        figures = sum_up(service)
        history.add(figures, [service.instance])
    if away:
        service.miss()
        figures = sum_up(service)
        history.add(figures, [service.instance])
    return View(figures, history)


def sum_up(service: Service) -> Any:
    moment = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
    return summarize([service.instance], at=service.now, when=moment, began=100.0, interval_s=2.0, window_s=10.0)


def draw(view: View, width: int, height: int | None, **options: Any) -> str:
    console = Console(width=width, height=height or 25, file=io.StringIO(), **options)
    console.print(draw_screen(view, width, height, hint="q quits"))
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("away", [False, True])
def test_picture_fits_the_terminal(width: int, height: int, away: bool) -> None:
    lines = draw(busy(away=away), width, height).splitlines()
    assert len(lines) <= height
    assert max(map(cell_len, lines)) <= width
    if width > 40:
        assert len(lines) == height, "all of the terminal is made use of"


@given(st.integers(1, 260), st.integers(1, 90))
def test_any_size_can_be_drawn(width: int, height: int) -> None:
    text = draw(VIEW, width, height)
    assert "nan" not in text.lower()
    assert all(cell_len(line) <= width for line in text.splitlines())


VIEW = busy()


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 35), (200, 60), (80, None)])
def test_picture_says_what_the_figures_say(width: int, height: int | None) -> None:
    text = draw(VIEW, width, height)
    for words in ("READY", r"rate +22/s", r"p50 +\d+ ms", r"2xx +20/s", r"4xx +2.0/s", r"waiting +12", r"status 422"):
        assert re.search(words, text), words
    for words in (r"worker-0 +ready +33 % +100 MiB", r"master +up", r"API +2/2 ready", "Errors", "Processes"):
        assert re.search(words, text), words


def test_an_absence_is_told_and_the_last_figures_are_dimmed() -> None:
    text = draw(busy(away=True), 100, 30, force_terminal=True, color_system="standard")
    assert "AWAY" in text
    assert "one:9000 is away since" in text
    inside = [line for line in text.splitlines() if "worker-0" in line]
    assert inside
    assert all("\x1b[32m" not in line for line in inside), "green is for what is known now"


def test_nothing_is_said_to_be_fine_before_anybody_has_answered() -> None:
    service = Service()
    service.miss()
    text = draw(View(sum_up(service), History()), 100, 30)
    assert text.count("no metrics yet") == 2
    assert "none since" not in text
    assert "tasks are off" not in text
    service.gauge("app_build_info", 1, "0.1.0", "3.13")
    service.scrape()
    text = draw(View(sum_up(service), History()), 100, 30)
    assert "none since the service was started" in text
    assert "tasks are off" in text


@given(hostile)
def test_labels_are_text_and_nothing_else(label: str) -> None:
    view = busy(label=label)
    text = draw(view, 120, 40)
    assert all(letter.isprintable() or letter == "\n" for letter in text)
    assert escapes(view) <= escapes(VIEW)
    if label == "[bold red]x[/]":
        assert label in text


def escapes(view: View) -> set[str]:
    return set(re.findall(r"\x1b[^m]*m?", draw(view, 120, 40, force_terminal=True, color_system="standard")))


def test_a_terminal_of_ascii_gets_ascii() -> None:
    for width, height in SIZES:
        plain = View(VIEW.figures, VIEW.history, is_plain=True)
        stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        Console(width=width, height=height, file=stream).print(draw_screen(plain, width, height))
        stream.flush()


@given(st.lists(st.none() | st.floats(0, 1e9), max_size=30), st.integers(0, 40), st.integers(1, 6))
def test_charts_are_as_large_as_asked_for(values: list[float | None], width: int, height: int) -> None:
    lines = draw_chart(values, width, height)
    assert [len(line) for line in lines] == [width] * height
    columns = ["".join(column) for column in zip(*lines, strict=True)]
    levels = [sum(BLOCKS.index(cell) for cell in column) for column in columns]
    shown = values[-width:] if width else []
    for value, level in zip(shown, levels[width - len(shown) :], strict=True):
        assert (level == 0) == (value is None)
        if value is not None and value == max(other for other in shown if other is not None) and value > 0:
            assert level == 8 * height

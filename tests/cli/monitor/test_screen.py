"""The screen fits every terminal, shows the values of the snapshot, and never interprets text from the network."""

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

from app.cli.monitor.formatting import BLOCKS, draw_bars
from app.cli.monitor.screen import View, draw_screen
from app.cli.monitor.snapshot import History, build_snapshot
from tests.cli.monitor.conftest import Service, hostile

SIZES = [(80, 24), (120, 35), (200, 60), (64, 20), (40, 12), (20, 5)]


def busy(*, unreachable: bool = False, label: str = "landmarks_count") -> View:
    service, history = Service(), History()
    service.gauge("queue_up", 1)
    service.gauge("task_queue_size", 12, "facial_processing")
    service.gauge("cpu_usage_percent", 33.3, "worker-0")
    service.gauge("memory_usage_bytes", 100 << 20, "worker-0")
    service.gauge("memory_usage_bytes", 50 << 20, "master")
    service.gauge("app_build_info", 1, label, "3.13")
    for number in (0, 40, 20, 60):
        service.respond(number)
        service.respond(number // 10, status="422")
        service.count("errors_total", (label, "images"), number // 10)
        service.scrape()
        snapshot = take_snapshot(service)
        history.add(snapshot, [service.instance])
    if unreachable:
        service.fail()
        snapshot = take_snapshot(service)
        history.add(snapshot, [service.instance])
    return View(snapshot, history)


def take_snapshot(service: Service) -> Any:
    time = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
    return build_snapshot(
        [service.instance], at=service.now, time=time, started_at=100.0, interval_s=2.0, window_s=10.0
    )


def draw(view: View, width: int, height: int | None, **options: Any) -> str:
    console = Console(width=width, height=height or 25, file=io.StringIO(), **options)
    console.print(draw_screen(view, width, height, hint="q quits"))
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("unreachable", [False, True])
def test_screen_fits_the_terminal(width: int, height: int, unreachable: bool) -> None:
    lines = draw(busy(unreachable=unreachable), width, height).splitlines()
    assert len(lines) <= height
    assert max(map(cell_len, lines)) <= width
    if width > 40:
        assert len(lines) == height, "the screen fills the terminal"


@given(st.integers(1, 260), st.integers(1, 90))
def test_any_size_can_be_drawn(width: int, height: int) -> None:
    text = draw(VIEW, width, height)
    assert "nan" not in text.lower()
    assert all(cell_len(line) <= width for line in text.splitlines())


VIEW = busy()


def test_small_terminal_names_the_sections_that_it_hides() -> None:
    *_, last = draw(VIEW, 40, 20).splitlines()
    found = re.search(r"(\d+) sections hidden; (\d+) lines needed: (.+)", last)
    assert found, last
    assert int(found[1]) > 1
    high = draw(VIEW, 40, int(found[2]))
    assert "hidden" not in high
    assert all(title in high for title in ("Requests", "Tasks", "Errors", "Processes", "Routes", "Image steps"))
    assert "hidden" in draw(VIEW, 40, int(found[2]) - 1)


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 35), (200, 60), (80, None)])
def test_screen_shows_the_values_of_the_snapshot(width: int, height: int | None) -> None:
    text = draw(VIEW, width, height)
    for words in ("READY", r"rate +22/s", r"p50 +\d+ ms", r"2xx +20/s", r"4xx +2.0/s", r"waiting +12", r"status 422"):
        assert re.search(words, text), words
    for words in (r"worker-0 +ready +33 % +100 MiB", r"master +up", r"API +2/2 ready", "Errors", "Processes"):
        assert re.search(words, text), words


def test_errors_that_have_not_occurred_for_a_long_time_are_only_counted() -> None:
    service = Service()
    service.count("errors_total", ("earlier", "api"), 3)  # before the monitor started
    service.scrape()
    service.count("errors_total", ("old", "api"), 1)
    service.scrape()
    assert all(kind in draw_errors(service) for kind in ("earlier (api)", "old (api)"))
    service.count("errors_total", ("recent", "api"), 1)
    service.scrape(after_s=590.0)
    text = draw_errors(service)
    assert all(kind in text for kind in ("earlier (api)", "old (api)", "recent (api)"))
    assert "not seen" not in text
    service.scrape(after_s=10.0)
    text = draw_errors(service)
    assert "recent (api)" in text
    assert "2 kinds not seen for 10 min" in text
    assert "earlier (api)" not in text
    assert "old (api)" not in text
    service.count("errors_total", ("old", "api"), 1)
    service.scrape()
    text = draw_errors(service)
    assert "old (api)" in text
    assert "1 kind not seen for 10 min" in text


def draw_errors(service: Service) -> str:
    return draw(View(take_snapshot(service), History()), 120, 60)


def test_outage_is_reported_and_the_last_values_are_dimmed() -> None:
    text = draw(busy(unreachable=True), 100, 30, force_terminal=True, color_system="standard")
    assert "UNREACHABLE" in text
    assert "one:9000: unreachable since" in text
    inside = [line for line in text.splitlines() if "worker-0" in line]
    assert inside
    assert all("\x1b[32m" not in line for line in inside), "green is for current values"


def test_nothing_is_reported_as_good_before_the_first_response() -> None:
    service = Service()
    service.fail()
    text = draw(View(take_snapshot(service), History()), 100, 30)
    assert text.count("no metrics yet") == 2
    assert "none since" not in text
    assert "tasks are disabled" not in text
    service.gauge("app_build_info", 1, "0.1.0", "3.13")
    service.scrape()
    text = draw(View(take_snapshot(service), History()), 100, 30)
    assert "none since the service started" in text
    assert "tasks are disabled" in text


@given(hostile)
def test_labels_are_never_interpreted(label: str) -> None:
    view = busy(label=label)
    text = draw(view, 120, 40)
    assert all(letter.isprintable() or letter == "\n" for letter in text)
    assert escapes(view) <= escapes(VIEW)
    if label == "[bold red]x[/]":
        assert label in text


def escapes(view: View) -> set[str]:
    return set(re.findall(r"\x1b[^m]*m?", draw(view, 120, 40, force_terminal=True, color_system="standard")))


def test_ascii_terminal_gets_ascii_only() -> None:
    for width, height in SIZES:
        plain = View(VIEW.snapshot, VIEW.history, is_ascii=True)
        stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        Console(width=width, height=height, file=stream).print(draw_screen(plain, width, height))
        stream.flush()


@given(st.lists(st.none() | st.floats(0, 1e9), max_size=30), st.integers(0, 40), st.integers(1, 6))
def test_charts_have_the_requested_size(values: list[float | None], width: int, height: int) -> None:
    lines = draw_bars(values, width, height)
    assert [len(line) for line in lines] == [width] * height
    columns = ["".join(column) for column in zip(*lines, strict=True)]
    levels = [sum(BLOCKS.index(cell) for cell in column) for column in columns]
    shown = values[-width:] if width else []
    for value, level in zip(shown, levels[width - len(shown) :], strict=True):
        assert (level == 0) == (value is None)
        if value is not None and value == max(other for other in shown if other is not None) and value > 0:
            assert level == 8 * height

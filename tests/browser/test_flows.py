"""Tasks, what goes wrong, keys, prefixes; and the page for those who use a keyboard, a phone or a screen reader."""

from __future__ import annotations

import http.client
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import cv2
import httpx
import numpy as np
import orjson
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from tests.browser.conftest import DESKTOP, PHONE
from tests.browser.visitor import landmarks_of, names, offline, outlines, photo_of, require_same, run_shell

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tests.browser.visitor import Visitor
    from tests.conftest import Sample
    from tests.live.conftest import RunningNats, RunningService

    Visit = Callable[..., Visitor]

pytestmark = pytest.mark.live

KEY = "a-key-of-this-test"
PREFIX = "/faces"
REFUSED = "the server responded with a status of {}"


# Tasks


def test_task_waits_is_cancelled_and_another_succeeds(
    visitor: Visitor,
    nats: RunningNats,
    run_worker: Callable[..., AbstractContextManager[Any]],
    tmp_path: Path,
) -> None:
    page = visitor.page
    expect(page.locator("#after")).to_be_hidden()
    visitor.sample()
    status, progress = page.locator("#task-status"), page.locator("#task-progress")
    page.click("#task-start")
    expect(status).to_have_text("Waiting for a worker")  # there is none
    expect(page.locator("#task-start")).to_be_disabled()
    page.click("#task-cancel")
    expect(status).to_have_text("Cancelled")
    expect(page.locator("#task-cancel")).to_be_hidden()
    first = page.locator("#task-id").inner_text()

    with run_worker(NATS_URL=nats.url, TASK_WORKERS=1):
        page.click("#task-start")
        expect(status).to_have_text("Done: the picture shows its result")
        assert page.locator("#task-id").inner_text() not in {"", first}
        assert progress.evaluate("bar => bar.value") == 1
        expect(page.locator("#facts")).to_contain_text("as a task")
        visitor.see_regions(15)
        with page.expect_download() as caught:
            page.click("#save-json")
        answer = orjson.loads(caught.value.path().read_bytes())
        assert [region["name"] for region in answer["regions"]] == names(visitor)
        run_shell(page.locator("#curl").inner_text(), tmp_path)
        require_same(tmp_path, answer)
        page.locator("#upright").check()
        expect(status).to_contain_text("the picture shows something else by now")

        # A task's own failure: what can only be told from its pixels.
        grey = cv2.imencode(".png", np.full((200, 200, 3), 127, np.uint8))[1].tobytes()
        visitor.expect_error(REFUSED.format(422))
        visitor.choose(photo=("grey.png", "image/png", grey))
        assert visitor.trouble()
        page.click("#task-start")
        expect(status).to_have_text("Failed")
        assert visitor.trouble()


def test_result_of_a_task_does_not_replace_what_was_chosen_since(
    visitor: Visitor, nats: RunningNats, run_worker: Callable[..., AbstractContextManager[Any]]
) -> None:
    visitor.sample()
    page = visitor.page
    page.click("#task-start")
    expect(page.locator("#task-status")).to_have_text("Waiting for a worker")
    visitor.answer_of(lambda: page.locator("#crop").check())
    before = outlines(visitor)
    with run_worker(NATS_URL=nats.url, TASK_WORKERS=1):
        expect(page.locator("#task-status")).to_contain_text("Done, for what was chosen before")
    assert outlines(visitor) == before


# What goes wrong


def test_file_that_is_no_picture(visitor: Visitor) -> None:
    visitor.expect_error(REFUSED.format(422))
    visitor.choose(photo=("notes.png", "image/png", b"these are notes and no picture, and long enough"))
    text = visitor.trouble()
    assert "no picture that the service reads" in text
    assert "Save it as PNG, JPEG or WebP" in text
    assert "image_unsupported_format" in text
    expect(visitor.page.locator("#welcome")).to_be_visible()
    expect(visitor.page.locator(".region")).to_have_count(0)
    visitor.page.click("#sample")
    visitor.see_regions(15)
    expect(visitor.page.locator("#notice")).to_be_empty()


@pytest.mark.usefixtures("face_models")
def test_photo_without_a_face(visitor: Visitor) -> None:
    grey = cv2.imencode(".png", np.full((200, 200, 3), 127, np.uint8))[1].tobytes()
    visitor.expect_error(REFUSED.format(422))
    visitor.choose(photo=("grey.png", "image/png", grey))
    text = visitor.trouble()
    assert "No face was found" in text
    assert "add its landmarks" in text
    expect(visitor.page.locator("#regions-card")).to_be_hidden()
    expect(visitor.page.locator("img.photo")).to_be_visible()


def test_landmarks_that_are_none(visitor: Visitor, sample: Sample) -> None:
    visitor.expect_error(REFUSED.format(422))
    visitor.choose(landmarks=("x.json", "application/json", b'[{"x": 1, "y": 2}]'), photo=photo_of(sample))
    assert "not those of a face mesh" in visitor.trouble()
    visitor.choose(landmarks=landmarks_of(sample))
    visitor.see_regions(15)


def test_files_that_are_too_large_are_not_even_sent(visitor: Visitor, tmp_path: Path) -> None:
    file = tmp_path / "large.png"
    with file.open("wb") as large:
        large.truncate(17 * 1024 * 1024)
    visitor.choose(photo=str(file))
    text = visitor.trouble()
    assert "17 MB; this service takes 16 MB" in text
    assert "Nothing was sent" in text
    assert visitor.calls == []


def test_network_that_is_away_and_back(visitor: Visitor) -> None:
    visitor.sample()
    visitor.expect_error("net::ERR_INTERNET_DISCONNECTED")
    with offline(visitor.page):
        visitor.page.locator("#upright").check()
        text = visitor.trouble()
        assert "cannot be reached" in text
    visitor.page.click("#notice button")
    visitor.see_regions(15)
    expect(visitor.page.locator("#facts")).to_contain_text("eyes 0.0°")


def test_queue_that_is_away_says_when_to_come_back(visitor: Visitor, nats: RunningNats, wait_until: Any) -> None:
    visitor.sample()
    visitor.expect_error(REFUSED.format(503))
    nats.kill()
    try:
        visitor.page.click("#task-start")
        text = visitor.trouble()
        assert "queue cannot be reached" in text
        assert "It asks to wait a second." in text
        assert "processed at once" in text
        visitor.see_regions(15)  # what there was is still there
    finally:
        nats.start()
        wait_until(nats.is_up, limit_s=30, what="nats-server")

    def is_taken() -> bool:
        visitor.page.click("#notice button:visible")
        expect(visitor.page.locator("#notice h2, #task-cancel").filter(visible=True)).to_have_count(1)
        return visitor.page.locator("#task-cancel").is_visible()

    wait_until(is_taken, limit_s=30, what="a task that is taken")
    visitor.page.click("#task-cancel")
    expect(visitor.page.locator("#task-status")).to_have_text("Cancelled")


# Keys and prefixes


class _Stripper(BaseHTTPRequestHandler):
    """A proxy that takes a prefix off the path, as an Ingress with a rewrite does."""

    protocol_version = "HTTP/1.1"
    target = ""

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if not self.path.startswith(f"{PREFIX}/"):
            self.send_error(404)
            return
        connection = http.client.HTTPConnection(self.target, timeout=60)
        connection.request(self.command, self.path.removeprefix(PREFIX), body, dict(self.headers))
        answer = connection.getresponse()
        content = answer.read()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in {"content-length", "connection", "date", "server"}:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        connection.close()

    do_GET = do_POST = do_DELETE = do_HEAD = handle_any  # noqa: N815 - the base class's names

    def log_message(self, *_: object) -> None:
        """Write nothing."""


@contextmanager
def stripping_proxy(api: str) -> Iterator[str]:
    handler = type("Handler", (_Stripper,), {"target": urlsplit(api).netloc})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def guarded(run_service: Callable[..., AbstractContextManager[RunningService]]) -> Iterator[str]:
    """A service with a key, behind a proxy that strips a prefix, and without tasks; gives the proxy's address."""
    with run_service(WORKERS=1, API_KEYS=KEY, ROOT_PATH=PREFIX) as running, stripping_proxy(running.api) as address:
        yield address


def test_key_is_asked_for_and_kept_in_the_tab_alone(visit: Visit, guarded: str, tmp_path: Path) -> None:
    visitor = visit(guarded, f"{PREFIX}/")
    page = visitor.page
    page.click("#sample")
    expect(page.locator("#key")).to_be_focused()
    assert visitor.calls == []  # nothing is sent that would be refused
    for none in ("  ", "ключ…", "two\u200bparts"):  # nothing that a header can hold
        page.keyboard.type(none)
        page.keyboard.press("Enter")
        expect(page.locator("#key-wrong")).to_contain_text("This one was not kept")
        expect(page.locator("#key")).to_be_focused()
        assert page.evaluate("sessionStorage.length") == 0
        expect(page.locator("#key-forget")).to_be_hidden()
    visitor.expect_error(REFUSED.format(401))
    page.keyboard.type("wrong")
    page.keyboard.press("Enter")
    assert "key was not accepted" in visitor.trouble()
    expect(page.locator("#key")).to_be_focused()
    expect(page.locator("#key")).to_have_value("")
    page.keyboard.type(KEY)
    page.keyboard.press("Enter")
    visitor.see_regions(15)
    assert set(visitor.calls) == {f"POST {PREFIX}/api/v1/frontal/crop"}
    expect(page.locator("#key-form")).to_be_hidden()

    command = page.locator("#curl").inner_text()
    assert KEY not in command
    assert KEY not in page.content()
    answer = visitor.answer_of(lambda: page.locator("#upright").check())
    visitor.see_regions(15)
    expect(page.locator("#curl")).to_contain_text("upright=true")
    run_shell(page.locator("#curl").inner_text(), tmp_path, API_KEY=KEY)
    require_same(tmp_path, answer)

    assert page.evaluate("[localStorage.length, document.cookie, location.href]") == [0, "", f"{guarded}{PREFIX}/"]
    visitor.open(page.url)
    visitor.sample()  # the tab knows it still
    page.click("#key-forget")
    assert page.evaluate("sessionStorage.length") == 0
    page.locator("#crop").check()
    expect(page.locator("#key")).to_be_focused()


def test_everything_is_under_the_prefix_and_tasks_that_are_off_are_explained(visit: Visit, guarded: str) -> None:
    visitor = visit(guarded, f"{PREFIX}/")
    page = visitor.page
    page.click("#sample")
    expect(page.locator("#task-off")).to_contain_text("switched off on this service")
    expect(page.locator("#task-start")).to_be_hidden()
    link = page.evaluate("document.querySelector('nav a').href")
    assert link == f"{guarded}{PREFIX}/docs"
    assert httpx.get(link).status_code == 200


# Who uses it, and how


def tab_to(visitor: Visitor, selector: str, *, back: bool = False) -> None:
    """Press Tab until an element has the focus; each that has it on the way has to show it."""
    page = visitor.page
    for _ in range(60):
        page.keyboard.press("Shift+Tab" if back else "Tab")
        outlined = page.evaluate(
            """() => {
              const focused = document.activeElement;
              const shown = focused.matches(".chip input") ? focused.nextElementSibling : focused;
              return focused === document.body || Number.parseFloat(getComputedStyle(shown).outlineWidth) >= 2;
            }"""
        )
        assert outlined, page.evaluate("document.activeElement.outerHTML")
        if page.locator(selector).evaluate("element => element === document.activeElement"):
            return
    raise AssertionError(f"{selector} is not reached by the keyboard")


def test_keyboard_alone_is_enough(visitor: Visitor, sample: Sample, tmp_path: Path) -> None:
    page = visitor.page
    (tmp_path / "face.jpg").write_bytes(sample.jpeg)
    (tmp_path / "points.json").write_bytes(sample.landmarks)
    tab_to(visitor, "#landmarks-choose")
    with page.expect_file_chooser() as caught:
        page.keyboard.press("Enter")
    caught.value.set_files(tmp_path / "points.json")
    expect(page.locator("#landmarks-name")).to_contain_text("points.json")
    page.locator("body").focus()
    tab_to(visitor, "#choose", back=True)
    with page.expect_file_chooser() as caught:
        page.keyboard.press("Enter")
    caught.value.set_files(tmp_path / "face.jpg")
    visitor.see_regions(15)

    tab_to(visitor, "#show-labels")
    page.keyboard.press("Space")
    expect(page.locator(".labels text")).to_have_count(15)
    tab_to(visitor, "#opacity")
    page.keyboard.press("End")
    expect(page.locator(".overlay .regions")).to_have_attribute("fill-opacity", "1")
    tab_to(visitor, "#save-svg")
    with page.expect_download():
        page.keyboard.press("Enter")
    tab_to(visitor, "#upright")
    page.keyboard.press("Space")
    expect(page.locator("#facts")).to_contain_text("eyes 0.0°")
    visitor.see_regions(15)

    listed = names(visitor)
    tab_to(visitor, "#regions li:first-child input")
    expect(page.locator(".region.lit")).to_have_attribute("data-name", listed[0])
    for key, at in (("ArrowDown", 1), ("ArrowDown", 2), ("ArrowUp", 1), ("End", 14), ("ArrowDown", 14), ("Home", 0)):
        page.keyboard.press(key)
        expect(page.locator(".region.lit")).to_have_attribute("data-name", listed[at])
    page.keyboard.press("Space")
    expect(page.locator(f".region[data-name={listed[0]}]")).to_be_hidden()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # the label's button, in the same row
    expect(page.locator(".labels text")).to_have_count(14)
    page.keyboard.press("Tab")  # and out of the list
    assert page.evaluate("document.activeElement.closest('#regions')") is None

    tab_to(visitor, "#task-start")
    page.keyboard.press("Enter")
    expect(page.locator("#task-status")).to_have_text("Waiting for a worker")
    tab_to(visitor, "#task-cancel")
    page.keyboard.press("Enter")
    expect(page.locator("#task-status")).to_have_text("Cancelled")
    expect(page.locator("#task-start")).to_be_focused()
    tab_to(visitor, "#curl-copy")


def require_accessible(visitor: Visitor) -> None:
    found = Axe().run(visitor.page).response["violations"]
    bad = [(v["id"], [node["target"] for node in v["nodes"]]) for v in found if v["impact"] in {"serious", "critical"}]
    assert bad == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_page_is_accessible_and_fits(visit: Visit, served: RunningService, scheme: str, size: dict[str, int]) -> None:
    options = {"reduced_motion": "reduce", "has_touch": size is PHONE}
    visitor = visit(served, viewport=size, color_scheme=scheme, **options)
    page = visitor.page

    def require_fit() -> None:
        width = page.evaluate("[document.documentElement.scrollWidth, document.body.scrollWidth]")
        assert max(width) <= size["width"]

    require_accessible(visitor)
    require_fit()
    light = sum(
        int(part)
        for part in page.evaluate("getComputedStyle(document.documentElement).backgroundColor")[4:-1].split(",")
    )
    assert (light > 600) if scheme == "light" else (light < 150)
    visitor.sample()
    page.locator("#show-labels").check(force=True)
    page.locator("#crop").check()
    expect(page.locator("#facts")).to_contain_text("cut to")
    visitor.see_regions(15)
    page.click("#task-start")
    expect(page.locator("#task-cancel")).to_be_visible()
    require_accessible(visitor)
    require_fit()
    page.click("#task-cancel")
    expect(page.locator("#task-cancel")).to_be_hidden()
    visitor.expect_error(REFUSED.format(422))
    long_name = "a-name-without-any-space-" * 8 + ".png"
    visitor.choose(photo=(long_name, "image/png", b"no picture at all, but bytes"))
    assert visitor.trouble()
    require_accessible(visitor)
    require_fit()


def test_those_who_do_not_see_are_told(visitor: Visitor, sample: Sample) -> None:
    page = visitor.page
    assert page.locator("#facts").get_attribute("role") == "status"
    assert page.locator("#notice").get_attribute("role") == "alert"
    visitor.sample()
    expect(page.get_by_role("status").first).to_contain_text("15 regions")
    expect(page.get_by_role("img", name="15 regions over the photo; the list of regions names them")).to_have_count(1)
    expect(page.get_by_role("list", name="Regions 15").get_by_role("checkbox")).to_have_count(15)
    expect(page.get_by_role("button", name="Label of nose")).to_have_count(1)
    expect(page.get_by_role("switch", name="Upright")).to_have_count(1)
    expect(page.get_by_role("slider", name="Opacity")).to_have_count(1)
    visitor.expect_error(REFUSED.format(422))
    visitor.choose(photo=("x.png", "image/png", sample.png[:100]))
    expect(page.get_by_role("alert")).to_contain_text("The picture")


def test_nothing_moves_for_those_who_ask_for_it(visit: Visit, served: RunningService) -> None:
    moving, still = (visit(served, reduced_motion=motion) for motion in ("no-preference", "reduce"))
    durations = [
        v.page.locator(".photo").evaluate("p => getComputedStyle(p).transitionDuration") for v in (moving, still)
    ]
    assert durations == ["0.2s", "0s"]

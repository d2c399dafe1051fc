"""Tasks, errors, API keys, path prefixes and accessibility."""

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
from playwright.sync_api import expect

from tests.browser.conftest import DESKTOP, PHONE
from tests.browser.visitor import (
    check_accessibility,
    check_saved_response,
    image_of,
    landmarks_of,
    names,
    offline,
    outlines,
    run_shell,
)

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


def test_task_is_cancelled_and_another_succeeds(
    visitor: Visitor,
    nats: RunningNats,
    run_worker: Callable[..., AbstractContextManager[Any]],
    tmp_path: Path,
) -> None:
    page = visitor.page
    expect(page.locator("#more")).to_be_hidden()
    visitor.load_sample()
    status, progress = page.locator("#task-status"), page.locator("#task-progress")
    page.click("#task-start")
    expect(status).to_have_text("Waiting for a worker")  # no worker is running
    expect(page.locator("#task-start")).to_be_disabled()
    page.click("#task-cancel")
    expect(status).to_have_text("Cancelled")
    expect(page.locator("#task-cancel")).to_be_hidden()
    expect(progress).to_be_hidden()
    first = page.locator("#task-id").inner_text()

    with run_worker(NATS_URL=nats.url, TASK_WORKERS=1):
        page.click("#task-start")
        expect(status).to_have_text("Completed: its result is displayed")
        assert page.locator("#task-id").inner_text() not in {"", first}
        expect(progress).to_be_visible()
        assert progress.evaluate("bar => bar.value") == 1
        expect(page.locator("#summary")).to_contain_text("as a task")
        visitor.expect_regions(15)
        with page.expect_download() as caught:
            page.click("#save-json")
        response = orjson.loads(caught.value.path().read_bytes())
        assert [region["name"] for region in response["regions"]] == names(visitor)
        run_shell(page.locator("#snippet").inner_text(), tmp_path)
        check_saved_response(tmp_path, response)
        page.locator("#upright").check()
        expect(status).to_contain_text("its result is not displayed")

        # A task that fails: the error is found only when the image is processed.
        grey = cv2.imencode(".png", np.full((200, 200, 3), 127, np.uint8))[1].tobytes()
        visitor.expect_error(REFUSED.format(422))
        visitor.choose(image=("grey.png", "image/png", grey))
        assert visitor.error_text()
        page.click("#task-start")
        expect(status).to_have_text("Failed")
        expect(progress).to_be_hidden()
        assert visitor.error_text()


def test_result_of_a_task_does_not_replace_a_newer_request(
    visitor: Visitor, nats: RunningNats, run_worker: Callable[..., AbstractContextManager[Any]]
) -> None:
    visitor.load_sample()
    page = visitor.page
    page.click("#task-start")
    expect(page.locator("#task-status")).to_have_text("Waiting for a worker")
    visitor.response_of(lambda: page.locator("#crop").check())
    before = outlines(visitor)
    with run_worker(NATS_URL=nats.url, TASK_WORKERS=1):
        expect(page.locator("#task-status")).to_contain_text("Completed: its result is not displayed")
    assert outlines(visitor) == before


# Errors


def test_file_that_is_not_an_image(visitor: Visitor) -> None:
    visitor.expect_error(REFUSED.format(422))
    visitor.choose(image=("notes.png", "image/png", b"these are notes, not an image, and long enough"))
    text = visitor.error_text()
    assert "Unsupported file type" in text
    assert "Expected PNG, JPEG, WebP, AVIF or HEIC, got a file of unknown format." in text
    assert "image_unsupported_format" in text
    expect(visitor.page.locator("#welcome")).to_be_visible()
    expect(visitor.page.locator(".region")).to_have_count(0)
    visitor.page.click("#sample-landmarks")
    visitor.expect_regions(15)
    expect(visitor.page.locator("#error-notice")).to_be_empty()


@pytest.mark.usefixtures("face_models")
def test_image_without_a_face(visitor: Visitor) -> None:
    grey = cv2.imencode(".png", np.full((200, 200, 3), 127, np.uint8))[1].tobytes()
    visitor.expect_error(REFUSED.format(422))
    visitor.choose(image=("grey.png", "image/png", grey))
    text = visitor.error_text()
    assert "No face was found" in text
    assert "add its landmarks" in text
    expect(visitor.page.locator("#regions-card")).to_be_hidden()
    expect(visitor.page.locator("img.image")).to_be_visible()


def test_wrong_number_of_landmarks(visitor: Visitor, sample: Sample) -> None:
    visitor.expect_error(REFUSED.format(422))
    visitor.choose(landmarks=("x.json", "application/json", b'[{"x": 1, "y": 2}]'), image=image_of(sample))
    assert "Wrong number of landmarks" in visitor.error_text()
    visitor.choose(landmarks=landmarks_of(sample))
    visitor.expect_regions(15)


def test_files_above_the_limit_are_not_sent(visitor: Visitor, tmp_path: Path) -> None:
    file = tmp_path / "large.png"
    with file.open("wb") as large:
        large.truncate(17 * 1024 * 1024)
    visitor.choose(image=str(file))
    text = visitor.error_text()
    assert "17 MB; the limit is 16 MB." in text
    assert "Nothing was sent" in text
    assert visitor.calls == []


def test_network_outage(visitor: Visitor) -> None:
    visitor.load_sample()
    visitor.expect_error("net::ERR_INTERNET_DISCONNECTED")
    with offline(visitor.page):
        visitor.page.locator("#upright").check()
        text = visitor.error_text()
        assert "is unreachable" in text
    visitor.page.click("#error-notice button")
    visitor.expect_regions(15)
    expect(visitor.page.locator("#summary")).to_contain_text("roll 0.0°")


def test_unreachable_queue_reports_when_to_retry(visitor: Visitor, nats: RunningNats, wait_until: Any) -> None:
    visitor.load_sample()
    visitor.expect_error(REFUSED.format(503))
    nats.kill()
    try:
        visitor.page.click("#task-start")
        text = visitor.error_text()
        assert "queue is unreachable" in text
        assert "Retry after 1 second." in text
        assert "process the photo without a task" in text
        visitor.expect_regions(15)  # the result is still displayed
    finally:
        nats.start()
        wait_until(nats.is_up, limit_s=30, what="nats-server")

    def is_accepted() -> bool:
        visitor.page.click("#error-notice button:visible")
        expect(visitor.page.locator("#error-notice h2, #task-cancel").filter(visible=True)).to_have_count(1)
        return visitor.page.locator("#task-cancel").is_visible()

    wait_until(is_accepted, limit_s=30, what="an accepted task")
    visitor.page.click("#task-cancel")
    expect(visitor.page.locator("#task-status")).to_have_text("Cancelled")


# API keys and path prefixes


class _Stripper(BaseHTTPRequestHandler):
    """A proxy that removes a path prefix, like an Ingress with a rewrite rule."""

    protocol_version = "HTTP/1.1"
    target = ""

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        if url.path != PREFIX and not url.path.startswith(f"{PREFIX}/"):
            self.send_error(404)
            return
        path = f"/{self.path.removeprefix(PREFIX).removeprefix('/')}"
        connection = http.client.HTTPConnection(self.target, timeout=60)
        connection.request(self.command, path, body, dict(self.headers))
        response = connection.getresponse()
        content = response.read()
        self.send_response(response.status)
        for name, value in response.getheaders():
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
    """Run a service with an API key and without tasks behind a proxy that removes a prefix; yield the proxy's URL."""
    with run_service(WORKERS=1, API_KEYS=KEY, ROOT_PATH=PREFIX) as running, stripping_proxy(running.api) as address:
        yield address


def test_api_key_is_requested_and_kept_in_the_tab(visit: Visit, guarded: str, tmp_path: Path) -> None:
    visitor = visit(guarded, f"{PREFIX}/")
    page = visitor.page
    page.click("#sample-landmarks")
    expect(page.locator("#key")).to_be_focused()
    assert visitor.calls == []  # no request without a key
    for none in ("  ", "ключ…", "two\u200bparts"):  # not valid in a header
        page.keyboard.type(none)
        page.keyboard.press("Enter")
        expect(page.locator("#key-error")).to_contain_text("The key was not saved")
        expect(page.locator("#key")).to_be_focused()
        assert page.evaluate("sessionStorage.length") == 0
        expect(page.locator("#key-forget")).to_be_hidden()
    visitor.expect_error(REFUSED.format(401))
    page.keyboard.type("wrong")
    page.keyboard.press("Enter")
    assert "key was not accepted" in visitor.error_text()
    expect(page.locator("#key")).to_be_focused()
    expect(page.locator("#key")).to_have_value("")
    page.keyboard.type(KEY)
    page.keyboard.press("Enter")
    visitor.expect_regions(15)
    assert set(visitor.calls) == {f"POST {PREFIX}/api/v1/frontal/crop"}
    expect(page.locator("#key-form")).to_be_hidden()

    command = page.locator("#snippet").inner_text()
    assert KEY not in command
    assert KEY not in page.content()
    response = visitor.response_of(lambda: page.locator("#upright").check())
    visitor.expect_regions(15)
    expect(page.locator("#snippet")).to_contain_text("upright=true")
    run_shell(page.locator("#snippet").inner_text(), tmp_path, API_KEY=KEY)
    check_saved_response(tmp_path, response)

    assert page.evaluate("[localStorage.length, document.cookie, location.href]") == [0, "", f"{guarded}{PREFIX}/"]
    visitor.open(page.url)
    visitor.load_sample()  # the key is still in the session storage
    page.click("#key-forget")
    assert page.evaluate("sessionStorage.length") == 0
    page.locator("#crop").check()
    expect(page.locator("#key")).to_be_focused()


def test_urls_have_the_prefix_and_disabled_tasks_are_explained(visit: Visit, guarded: str) -> None:
    visitor = visit(guarded, f"{PREFIX}/")
    page = visitor.page
    page.click("#sample-landmarks")
    expect(page.locator("#task-off")).to_contain_text("disabled on this service")
    expect(page.locator("#task-start")).to_be_hidden()
    link = page.evaluate("document.querySelector('nav a').href")
    assert link == f"{guarded}{PREFIX}/docs"
    assert httpx.get(link).status_code == 200


PATHS = [PREFIX, f"{PREFIX}/", f"{PREFIX}?from=mail"]


def check_prefix(visitor: Visitor, path: str) -> None:
    """Use the page at a prefix."""
    page = visitor.page
    visitor.load_sample()
    assert set(visitor.calls) == {f"POST {PREFIX}/api/v1/frontal/crop"}
    url = urlsplit(page.url)
    assert (url.path, url.query) == (f"{PREFIX}/", urlsplit(path).query)
    expect(page.locator("#snippet")).to_contain_text(f"{PREFIX}/page/sample/astronaut.jpg")
    page.reload()
    visitor.load_sample()


@pytest.mark.parametrize("path", PATHS)
def test_page_behind_a_proxy_that_strips_the_prefix(visit: Visit, served: RunningService, path: str) -> None:
    """The service does not know the prefix, and receives the same request with and without the slash."""
    with stripping_proxy(served.api) as address:
        visitor = visit(address, path)
        check_prefix(visitor, path)
    if not urlsplit(path).path.endswith("/"):  # Chromium requests assets early, before the page has added the slash
        visitor.errors = [error for error in visitor.errors if "404" not in error]


@pytest.mark.parametrize("path", PATHS)
def test_page_behind_a_proxy_that_keeps_the_prefix(visit: Visit, keeping: RunningService, path: str) -> None:
    check_prefix(visit(keeping, path), path)


@pytest.fixture(scope="module")
def keeping(run_service: Callable[..., AbstractContextManager[RunningService]]) -> Iterator[RunningService]:
    """Run a service whose proxy does not change paths."""
    with run_service(WORKERS=1, ROOT_PATH=PREFIX) as running:
        yield running


# Accessibility


def tab_to(visitor: Visitor, selector: str, *, back: bool = False) -> None:
    """Press Tab until an element has the focus; check that each focused element has an outline."""
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
    raise AssertionError(f"{selector}: not reachable with Tab")


def test_page_works_with_the_keyboard_alone(visitor: Visitor, sample: Sample, tmp_path: Path) -> None:
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
    visitor.expect_regions(15)

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
    expect(page.locator("#summary")).to_contain_text("roll 0.0°")
    visitor.expect_regions(15)

    listed = names(visitor)
    tab_to(visitor, "#regions li:first-child input")
    expect(page.locator(".region.highlighted")).to_have_attribute("data-name", listed[0])
    for key, at in (("ArrowDown", 1), ("ArrowDown", 2), ("ArrowUp", 1), ("End", 14), ("ArrowDown", 14), ("Home", 0)):
        page.keyboard.press(key)
        expect(page.locator(".region.highlighted")).to_have_attribute("data-name", listed[at])
    page.keyboard.press("Space")
    expect(page.locator(f".region[data-name={listed[0]}]")).to_be_hidden()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # the label button in the same row
    expect(page.locator(".labels text")).to_have_count(14)
    page.keyboard.press("Tab")  # leave the list
    assert page.evaluate("document.activeElement.closest('#regions')") is None

    tab_to(visitor, "#task-start")
    page.keyboard.press("Enter")
    expect(page.locator("#task-status")).to_have_text("Waiting for a worker")
    tab_to(visitor, "#task-cancel")
    page.keyboard.press("Enter")
    expect(page.locator("#task-status")).to_have_text("Cancelled")
    expect(page.locator("#task-start")).to_be_focused()
    tab_to(visitor, "#snippet-copy")
    tab_to(visitor, "#tab-curl")
    for key, tab in (("ArrowRight", "python"), ("ArrowRight", "javascript"), ("Home", "curl"), ("End", "javascript")):
        page.keyboard.press(key)
        expect(page.locator(f"#tab-{tab}")).to_be_focused()
        expect(page.locator(f"#tab-{tab}")).to_have_attribute("aria-selected", "true")
        expect(page.get_by_role("tab", selected=True)).to_have_count(1)
    tab_to(visitor, "#snippet-panel")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_page_is_accessible_and_fits(visit: Visit, served: RunningService, scheme: str, size: dict[str, int]) -> None:
    options = {"reduced_motion": "reduce", "has_touch": size is PHONE}
    visitor = visit(served, viewport=size, color_scheme=scheme, **options)
    page = visitor.page

    def check_width() -> None:
        width = page.evaluate("[document.documentElement.scrollWidth, document.body.scrollWidth]")
        assert max(width) <= size["width"]

    check_accessibility(visitor)
    check_width()
    light = sum(
        int(part)
        for part in page.evaluate("getComputedStyle(document.documentElement).backgroundColor")[4:-1].split(",")
    )
    assert (light > 600) if scheme == "light" else (light < 150)
    visitor.load_sample()
    page.locator("#show-labels").check(force=True)
    page.locator("#crop").check()
    expect(page.locator("#summary")).to_contain_text("output ")
    visitor.expect_regions(15)
    page.click("#task-start")
    expect(page.locator("#task-cancel")).to_be_visible()
    check_accessibility(visitor)
    check_width()
    page.click("#task-cancel")
    expect(page.locator("#task-cancel")).to_be_hidden()
    visitor.expect_error(REFUSED.format(422))
    long_name = "a-name-without-any-space-" * 8 + ".png"
    visitor.choose(image=(long_name, "image/png", b"bytes, but not an image"))
    assert visitor.error_text()
    check_accessibility(visitor)
    check_width()


def test_screen_reader_roles_and_names(visitor: Visitor, sample: Sample) -> None:
    page = visitor.page
    assert page.locator("#summary").get_attribute("role") == "status"
    assert page.locator("#error-notice").get_attribute("role") == "alert"
    visitor.load_sample()
    expect(page.get_by_role("status").first).to_contain_text("15 regions")
    expect(page.get_by_role("img", name="15 regions drawn over the photo; see the list of regions")).to_have_count(1)
    expect(page.get_by_role("list", name="Regions 15").get_by_role("checkbox")).to_have_count(15)
    expect(page.get_by_role("button", name="Label of nose")).to_have_count(1)
    expect(page.get_by_role("switch", name="Upright")).to_have_count(1)
    expect(page.get_by_role("slider", name="Opacity")).to_have_count(1)
    visitor.expect_error(REFUSED.format(422))
    visitor.choose(image=("x.png", "image/png", sample.png[:100]))
    expect(page.get_by_role("alert")).to_contain_text("The file is incomplete")


def test_reduced_motion(visit: Visit, served: RunningService) -> None:
    moving, still = (visit(served, reduced_motion=motion) for motion in ("no-preference", "reduce"))
    durations = [
        v.page.locator(".image").evaluate("p => getComputedStyle(p).transitionDuration") for v in (moving, still)
    ]
    assert durations == ["0.2s", "0s"]

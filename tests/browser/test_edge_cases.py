"""Unusual files, concurrent requests, failing networks and invalid responses."""

from __future__ import annotations

from contextlib import suppress
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import orjson
import pytest
from playwright.sync_api import Route, expect

from tests.browser.visitor import (
    JSON_FILE,
    check_saved_response,
    drop,
    image_of,
    landmarks_of,
    names,
    offline,
    run_shell,
    save,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from playwright.sync_api import Locator, Page

    from tests.browser.visitor import Visitor
    from tests.conftest import Sample

pytestmark = pytest.mark.live

REFUSED = "the server responded with a status of {}"
CROP = "**/frontal/crop"
STATUS = "**/crop/status/**"
EYE = [33, 246, 161, 160, 159, 158, 157, 173, 133, 155, 154, 153, 145, 144, 163, 7]
NOSE = [168, 417, 465, 412, 399, 437, 429, 358, 331, 294]


def problem(status: int, code: str) -> dict[str, Any]:
    """Build an error response of the API for `Route.fulfill`."""
    body = orjson.dumps({"code": code, "title": code, "detail": "", "request_id": "r", "status": status}).decode()
    return {"status": status, "content_type": "application/problem+json", "body": body}


def hold(page: Page) -> list[Route]:
    """Delay crop requests, and return the list to which they are added."""
    held: list[Route] = []

    def keep(route: Route) -> None:
        held.append(route)

    page.route(CROP, keep)
    return held


def respond_with(body: str) -> Callable[[Route], None]:
    """Respond to every request with a text and status 200."""

    def fulfill(route: Route) -> None:
        route.fulfill(status=200, body=body)

    return fulfill


def focused(page: Page) -> str:
    identifier: str = page.evaluate("document.activeElement.id")
    return identifier


def skip_to(page: Page, target: Locator) -> None:
    """Advance the clock of the page until an element is visible."""
    for _ in range(300):
        page.clock.fast_forward(2000)
        with suppress(AssertionError):
            expect(target).to_be_visible(timeout=100)
            return
    raise TimeoutError(f"not visible: {target}")


# Files


def test_deleted_file_is_still_sent_and_a_folder_is_reported(visitor: Visitor, sample: Sample, tmp_path: Path) -> None:
    page = visitor.page
    file = tmp_path / "face.jpg"
    file.write_bytes(sample.jpeg)
    visitor.choose(landmarks=landmarks_of(sample), image=str(file))
    visitor.expect_regions(15)
    file.unlink()
    page.locator("#upright").check()
    expect(page.locator("#summary")).to_contain_text("roll 0.0°")
    visitor.expect_regions(15)
    calls = len(visitor.calls)

    folder = tmp_path / "holiday"
    folder.mkdir()
    session = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(folder)], "dragOperationsMask": 1}
    for event in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": event, "x": 400, "y": 300, "data": data})
    expect(page.locator("#upload-notice")).to_contain_text("holiday cannot be read. It is a folder")
    visitor.expect_regions(15)
    assert len(visitor.calls) == calls


def test_ignored_files_are_reported(visitor: Visitor, sample: Sample) -> None:
    page = visitor.page
    own = ("face.regions.json", JSON_FILE, orjson.dumps({"regions": [], "image": {"width": 1}}))
    drop(visitor, "#stage", image_of(sample), landmarks_of(sample), ("labels.png", "image/png", sample.labels), own)
    visitor.expect_regions(15)
    text = page.locator("#upload-notice").inner_text()
    assert (
        "Only face.jpg and points.json are used; ignored labels.png. To use a label image, drop it onto “Label map”."
        in text
    )
    assert "Ignored face.regions.json: expected landmarks or a label map." in text
    expect(page.locator("#map-name")).to_have_text("none")
    calls = len(visitor.calls)
    drop(visitor, "#stage", own)
    expect(page.locator("#upload-notice")).to_have_text("Ignored face.regions.json: expected landmarks or a label map.")
    assert len(visitor.calls) == calls
    drop(visitor, "[data-slot=map]", ("labels.png", "image/png", sample.labels))
    visitor.expect_regions(10)
    expect(page.locator("#upload-notice")).to_be_empty()


def test_invalid_landmarks_and_label_maps_are_explained(visitor: Visitor, sample: Sample) -> None:
    visitor.expect_error(REFUSED.format(422))
    visitor.expect_error(REFUSED.format(400))
    visitor.choose(image=image_of(sample), landmarks=landmarks_of(sample))
    visitor.expect_regions(15)
    landmarks, label_map = (
        ("The landmarks are not valid", "JSON list"),
        ("The label map is not valid", "JSON object"),
    )
    points = sample.landmarks
    for slot, content, (heading, hint) in (
        ("map", points, label_map),
        ("map", b'{"nose": 1}', label_map),
        ("map", b'{"nose": [1, 2, 3000]}', label_map),
        ("landmarks", b'{"a": 1}', landmarks),
        ("landmarks", b"not JSON", landmarks),
        ("landmarks", points.replace(b'"x"', b'"z"', 3), landmarks),
    ):
        page = visitor.page
        with page.expect_response(CROP):
            page.set_input_files(f"#{slot}-file", {"name": "x.json", "mimeType": JSON_FILE, "buffer": content})
        expect(page.locator("#error-notice h2")).to_have_text(heading)
        text = visitor.error_text()
        assert hint in text, content
        assert text.count("lossless WebP") < 2
        assert "segmentation_map:" not in text
        if slot == "map":
            page.click("#map-clear")
            visitor.expect_regions(15)


def test_units_can_be_changed_back(visitor: Visitor, sample: Sample) -> None:
    page = visitor.page
    visitor.choose(landmarks=landmarks_of(sample), image=image_of(sample))
    visitor.expect_regions(15)
    visitor.expect_error(REFUSED.format(422))
    page.locator("#units").focus()
    page.select_option("#units", "normalized")
    assert visitor.error_text()
    expect(page.locator("#units")).to_be_focused()
    page.select_option("#units", "pixels")
    visitor.expect_regions(15)


def test_regions_are_hidden_by_name(visitor: Visitor) -> None:
    page = visitor.page
    visitor.load_sample()
    off = [names(visitor)[at] for at in (0, 1)]
    for name in off:
        page.locator("#regions li").filter(has=page.get_by_text(name, exact=True)).locator("input").uncheck()
    page.locator("#regions button").first.click()
    visitor.choose(label_map=("own.json", JSON_FILE, orjson.dumps({"mine": EYE, off[0]: NOSE})))
    visitor.expect_regions(2)
    expect(page.locator("#regions .name").filter(has_text="mine")).to_have_count(1)
    rows = {
        row.locator(".name").inner_text(): (
            row.locator("input").is_checked(),
            row.locator("button").get_attribute("aria-pressed"),
        )
        for row in page.locator("#regions li").all()
    }
    assert rows == {"mine": (True, "false"), off[0]: (False, "true")}


def test_file_names_with_a_special_meaning_for_curl(visitor: Visitor, sample: Sample, tmp_path: Path) -> None:
    visitor.choose(landmarks=landmarks_of(sample))
    (tmp_path / "points.json").write_bytes(sample.landmarks)
    for name in (" lead.png", "trail.png ", "-"):
        (tmp_path / name).write_bytes(sample.jpeg)
        response = visitor.response_of(
            lambda name=name: drop(visitor, "#stage", landmarks_of(sample), (name, "image/jpeg", sample.jpeg))
        )
        expect(visitor.page.locator("#snippet")).to_contain_text(name.strip())
        visitor.expect_regions(15)
        run_shell(visitor.page.locator("#snippet").inner_text(), tmp_path)
        check_saved_response(tmp_path, response)


# Concurrent requests


def test_task_does_not_affect_a_running_request(visitor: Visitor) -> None:
    visitor.load_sample()
    page = visitor.page
    held = hold(page)
    page.locator("#upright").check()
    expect(page.locator("#stage")).to_have_attribute("data-busy", "true")
    visitor.expect_error(REFUSED.format(503))
    page.route("**/submit", lambda route: route.fulfill(**problem(503, "queue_full")))
    page.click("#task-start")
    assert "task queue is full" in visitor.error_text()
    expect(page.locator("#summary")).to_have_text("Processing the photo…")
    page.unroute("**/submit")
    page.click("#task-start")
    expect(page.locator("#task-status")).to_have_text("Waiting for a worker")
    expect(page.locator("#task-start")).to_be_focused()
    page.click("#task-cancel")
    expect(page.locator("#task-status")).to_have_text("Cancelled")
    expect(page.locator("#stage")).to_have_attribute("data-busy", "true")
    (route,) = held
    route.continue_()
    expect(page.locator("#summary")).to_contain_text("roll 0.0°")
    visitor.expect_regions(15)


def test_response_for_the_previous_image_is_discarded(visitor: Visitor, sample: Sample) -> None:
    page = visitor.page
    hold(page)
    visitor.choose(landmarks=landmarks_of(sample), image=("first.jpg", "image/jpeg", sample.jpeg))
    expect(page.locator("#stage")).to_have_attribute("data-busy", "true")
    # Delay the second read of the landmarks, which follows the change of the image.
    page.evaluate(
        """() => {
          const { text } = Blob.prototype;
          const gate = new Promise((resolve) => (window.letRead = resolve));
          let readings = 0;
          Blob.prototype.text = async function () {
            readings += 1;
            if (readings > 1) await gate;
            return text.call(this);
          };
        }"""
    )
    with page.expect_event("requestfailed"):
        drop(visitor, "#stage", ("second.png", "image/png", sample.png), landmarks_of(sample))
    expect(page.locator("#image-name")).to_contain_text("second.png")
    expect(page.locator(".region")).to_have_count(0)
    page.unroute(CROP)
    page.evaluate("letRead()")
    visitor.expect_regions(15)
    expect(page.locator("#summary")).to_contain_text("512 × 512 PNG")


# Tasks and failing requests


def test_polling_resumes_after_errors(visitor: Visitor) -> None:
    page = visitor.page
    status, notice = page.locator("#task-status"), page.locator("#error-notice")
    visitor.load_sample()
    page.click("#task-start")
    expect(status).to_have_text("Waiting for a worker")
    task = page.locator("#task-id").inner_text()
    # The API key was replaced.
    visitor.expect_error(REFUSED.format(401))
    page.route(STATUS, lambda route: route.fulfill(**problem(401, "unauthorized")))
    expect(page.locator("#key")).to_be_focused()
    page.unroute(STATUS)
    page.keyboard.type("another-key")
    page.keyboard.press("Enter")
    expect(status).to_have_text("Waiting for a worker")
    assert page.locator("#task-id").inner_text() == task
    # The record has expired.
    visitor.expect_error(REFUSED.format(404))
    page.route(STATUS, lambda route: route.fulfill(**problem(404, "task_unknown")))
    assert "The task was not found" in visitor.error_text()
    expect(status).to_have_text("Not found")
    expect(notice.locator("button")).to_have_count(0)
    assert [call for call in visitor.calls if call.endswith("/submit")] == ["POST /api/v1/frontal/crop/submit"]
    visitor.expect_regions(15)


def test_task_survives_a_network_outage(visitor: Visitor) -> None:
    page = visitor.page
    status = page.locator("#task-status")
    page.clock.install()
    visitor.open(page.url)
    visitor.load_sample()
    page.click("#task-start")
    expect(status).to_have_text("Waiting for a worker")
    task = page.locator("#task-id").inner_text()
    visitor.expect_error("net::ERR_INTERNET_DISCONNECTED")
    with offline(page):
        page.click("#task-cancel")
        skip_to(page, page.get_by_text("Cancellation failed. The service is unreachable"))
        skip_to(page, page.locator("#error-notice h2"))
        assert "is unreachable" in visitor.error_text()
        expect(status).to_have_text("Status unavailable: the task may still be running")
    page.clock.resume()
    page.click("#error-notice button")
    expect(status).to_have_text("Waiting for a worker")
    assert page.locator("#task-id").inner_text() == task
    assert sum(call.endswith("/submit") for call in visitor.calls) == 1
    page.click("#task-cancel")
    expect(status).to_have_text("Cancelled")


def test_submission_is_repeated_with_the_same_idempotency_key(visitor: Visitor) -> None:
    page = visitor.page
    visitor.load_sample()
    taken = []

    def lose(route: Route) -> None:
        taken.append(route.fetch().json()["task_id"])
        route.abort()

    visitor.expect_error("net::ERR_FAILED")
    page.route("**/submit", lose)
    page.click("#task-start")
    assert "is unreachable" in visitor.error_text()
    page.unroute("**/submit")
    page.click("#error-notice button")
    expect(page.locator("#task-status")).to_have_text("Waiting for a worker")
    assert {page.locator("#task-id").inner_text()} == set(taken)
    page.click("#task-cancel")
    expect(page.locator("#task-status")).to_have_text("Cancelled")


# Invalid responses


def test_invalid_responses_are_reported(visitor: Visitor) -> None:
    page = visitor.page
    visitor.load_sample()
    visitor.expect_error("error: ")  # logged for debugging
    for body in ("{}", '{"svg": "", "regions": []}', "null", "<p>Sorry"):
        page.route(CROP, respond_with(body))
        page.locator("#upright").click()
        assert "The response cannot be read" in visitor.error_text(), body
        expect(page.locator("#stage")).to_have_attribute("data-busy", "false")
        expect(page.locator("#summary")).to_be_empty()
        page.unroute(CROP)
        page.click("#error-notice button")
        visitor.expect_regions(15)
        expect(page.locator("#summary")).to_be_focused()


def test_png_that_cannot_be_rendered_is_reported(visitor: Visitor) -> None:
    page = visitor.page
    visitor.load_sample()
    page.evaluate("() => { HTMLCanvasElement.prototype.toBlob = (callback) => callback(null); }")
    visitor.expect_error("too large for a PNG")
    page.click("#save-png")
    assert "The PNG cannot be saved" in visitor.error_text()
    assert save(visitor, "svg")[1]


def test_download_that_fails_is_reported_and_repeated(visitor: Visitor) -> None:
    page = visitor.page
    visitor.load_sample()
    visitor.expect_error("net::ERR_INTERNET_DISCONNECTED")
    with offline(page):
        page.click("#save-svg")
        assert "is unreachable" in visitor.error_text()
    visitor.expect_regions(15)
    with page.expect_download() as caught:
        page.click("#error-notice button")
    assert caught.value.suggested_filename == "astronaut.regions.svg"
    expect(page.locator("#error-notice")).to_be_empty()


# Layout and focus


def test_incomplete_page_is_reported(visitor: Visitor) -> None:
    page = visitor.page
    expect(page.locator("#stalled")).to_be_hidden()
    page.route("**/label_layout.js", lambda route: route.abort())
    visitor.expect_error("net::ERR_FAILED")
    page.goto(page.url)
    page.evaluate("document.getAnimations().forEach((animation) => animation.finish())")
    expect(page.locator("#stalled")).to_be_visible()
    buttons = page.locator("#stage button:visible, .panel button:visible")
    assert buttons.count() == 8
    for button in buttons.all():
        expect(button).to_be_disabled()


def test_focus_does_not_return_to_the_top(visitor: Visitor) -> None:
    page = visitor.page
    page.locator("#sample").focus()
    page.keyboard.press("Enter")
    visitor.expect_regions(15)
    assert focused(page) == "summary"
    box = page.locator("#show-labels").bounding_box()
    assert box is not None
    assert box["width"] > 40  # the whole chip is clickable


def test_low_window_and_wide_image(visit: Callable[..., Visitor], served: Any, sample: Sample) -> None:
    visitor = visit(served, viewport={"width": 320, "height": 215})
    visitor.load_sample()
    box = visitor.page.locator("#frame").bounding_box()
    assert box is not None
    assert box["height"] > 250
    # There are only as many labels as fit.
    canvas = np.zeros((300, 5000, 3), np.uint8)
    canvas[:, 2350:2650] = cv2.resize(cv2.imdecode(np.frombuffer(sample.png, np.uint8), cv2.IMREAD_COLOR), (300, 300))
    points = (np.array(sample.pairs) * 300 / 512 + (2350, 0)).tolist()
    photo = ("wide.png", "image/png", sample.encode(".png", canvas))
    drop(visitor, "#stage", ("l.json", JSON_FILE, orjson.dumps(points)), photo)
    expect(visitor.page.locator("#summary")).to_contain_text("5000 × 300")
    visitor.expect_regions(15)
    visitor.page.locator("#show-labels").check(force=True)
    labels = visitor.page.locator(".labels text")
    expect(labels.first).to_be_attached()
    assert labels.count() < 15
    boxes = [box for box in (label.bounding_box() for label in labels.all()) if box]
    tops = {side: sorted(b["y"] for b in boxes if (b["x"] < 160) is side) for side in (True, False)}
    for column in tops.values():
        assert all(low - high >= 12 for high, low in pairwise(column))

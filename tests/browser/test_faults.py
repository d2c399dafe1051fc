"""What users, files, networks and proxies do that they should not, and what the page makes of it."""

from __future__ import annotations

from contextlib import suppress
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import orjson
import pytest
from playwright.sync_api import Route, expect

from tests.browser.visitor import JSON_FILE, drop, landmarks_of, names, offline, photo_of, require_same, run_shell, save

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
    """Build an answer of the API that says no, for `Route.fulfill`."""
    body = orjson.dumps({"code": code, "title": code, "detail": "", "request_id": "r", "status": status}).decode()
    return {"status": status, "content_type": "application/problem+json", "body": body}


def hold(page: Page) -> list[Route]:
    """Hold requests for a crop on their way; gives them."""
    held: list[Route] = []

    def keep(route: Route) -> None:
        held.append(route)

    page.route(CROP, keep)
    return held


def answer_with(body: str) -> Callable[[Route], None]:
    """Answer every request with a text, and 200."""

    def fulfill(route: Route) -> None:
        route.fulfill(status=200, body=body)

    return fulfill


def focused(page: Page) -> str:
    identifier: str = page.evaluate("document.activeElement.id")
    return identifier


def skip_to(page: Page, place: Locator) -> None:
    """Let the page's waits pass at once, until something is to be seen."""
    for _ in range(300):
        page.clock.fast_forward(2000)
        with suppress(AssertionError):
            expect(place).to_be_visible(timeout=100)
            return
    raise TimeoutError(f"it never came: {place}")


# Files


def test_file_that_has_gone_is_still_in_hand_and_a_folder_is_told(
    visitor: Visitor, sample: Sample, tmp_path: Path
) -> None:
    page = visitor.page
    file = tmp_path / "face.jpg"
    file.write_bytes(sample.jpeg)
    visitor.choose(landmarks=landmarks_of(sample), photo=str(file))
    visitor.see_regions(15)
    file.unlink()
    page.locator("#upright").check()
    expect(page.locator("#facts")).to_contain_text("eyes 0.0°")
    visitor.see_regions(15)
    calls = len(visitor.calls)

    folder = tmp_path / "holiday"
    folder.mkdir()
    session = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(folder)], "dragOperationsMask": 1}
    for event in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": event, "x": 400, "y": 300, "data": data})
    expect(page.locator("#aside")).to_contain_text("holiday cannot be read: it is a folder")
    visitor.see_regions(15)
    assert len(visitor.calls) == calls


def test_files_that_are_left_out_are_told(visitor: Visitor, sample: Sample) -> None:
    page = visitor.page
    own = ("face.regions.json", JSON_FILE, orjson.dumps({"regions": [], "image": {"width": 1}}))
    drop(visitor, "#stage", photo_of(sample), landmarks_of(sample), ("labels.png", "image/png", sample.labels), own)
    visitor.see_regions(15)
    text = page.locator("#aside").inner_text()
    assert "Only face.jpg and points.json were taken, and not labels.png. Drop a label image onto “Label map”." in text
    assert "Left out: face.regions.json, neither landmarks nor a label map." in text
    expect(page.locator("#map-name")).to_have_text("none")
    calls = len(visitor.calls)
    drop(visitor, "#stage", own)
    expect(page.locator("#aside")).to_have_text("Left out: face.regions.json, neither landmarks nor a label map.")
    assert len(visitor.calls) == calls
    drop(visitor, "[data-slot=map]", ("labels.png", "image/png", sample.labels))
    visitor.see_regions(10)
    expect(page.locator("#aside")).to_be_empty()


def test_landmarks_and_label_maps_that_are_none_say_what_they_have_to_be(visitor: Visitor, sample: Sample) -> None:
    visitor.expect_error(REFUSED.format(422))
    visitor.expect_error(REFUSED.format(400))
    visitor.choose(photo=photo_of(sample), landmarks=landmarks_of(sample))
    visitor.see_regions(15)
    landmarks, label_map = (
        ("The landmarks cannot be used", "JSON list"),
        ("The label map cannot be used", "JSON object"),
    )
    points = sample.landmarks
    for slot, content, (heading, hint) in (
        ("map", points, label_map),
        ("map", b"", label_map),
        ("map", b'{"nose": 1}', label_map),
        ("map", b'{"nose": [1, 2, 3000]}', label_map),
        ("landmarks", b'{"a": 1}', landmarks),
        ("landmarks", b"not JSON", landmarks),
        ("landmarks", points.replace(b'"x"', b'"z"', 3), landmarks),
    ):
        page = visitor.page
        with page.expect_response(CROP):
            page.set_input_files(f"#{slot}-file", {"name": "x.json", "mimeType": JSON_FILE, "buffer": content})
        expect(page.locator("#notice h2")).to_have_text(heading)
        text = visitor.trouble()
        assert hint in text, content
        assert "JPEG or WebP, and choose" not in text
        assert "segmentation_map:" not in text
        if slot == "map":
            page.click("#map-clear")
            visitor.see_regions(15)


def test_units_can_be_chosen_back(visitor: Visitor, sample: Sample) -> None:
    page = visitor.page
    pairs = [[x / 512, y / 512] for x, y in sample.pairs]
    visitor.choose(landmarks=("n.json", JSON_FILE, orjson.dumps(pairs)), photo=photo_of(sample))
    visitor.see_regions(15)
    visitor.expect_error(REFUSED.format(422))
    page.locator("#units").focus()
    page.select_option("#units", "pixels")
    assert visitor.trouble()
    expect(page.locator("#units")).to_be_focused()
    page.select_option("#units", "normalized")
    visitor.see_regions(15)


def test_what_is_switched_off_is_a_name_and_no_number(visitor: Visitor) -> None:
    page = visitor.page
    visitor.sample()
    off = [names(visitor)[at] for at in (0, 1)]
    for name in off:
        page.locator("#regions li").filter(has=page.get_by_text(name, exact=True)).locator("input").uncheck()
    page.locator("#regions button").first.click()
    visitor.choose(label_map=("own.json", JSON_FILE, orjson.dumps({"mine": EYE, off[0]: NOSE})))
    visitor.see_regions(2)
    expect(page.locator("#regions .name").filter(has_text="mine")).to_have_count(1)
    rows = {
        row.locator(".name").inner_text(): (
            row.locator("input").is_checked(),
            row.locator("button").get_attribute("aria-pressed"),
        )
        for row in page.locator("#regions li").all()
    }
    assert rows == {"mine": (True, "false"), off[0]: (False, "true")}


def test_names_that_curl_reads_otherwise(visitor: Visitor, sample: Sample, tmp_path: Path) -> None:
    visitor.choose(landmarks=landmarks_of(sample))
    (tmp_path / "points.json").write_bytes(sample.landmarks)
    for name in (" lead.png", "trail.png ", "-"):
        (tmp_path / name).write_bytes(sample.jpeg)
        answer = visitor.answer_of(
            lambda name=name: drop(visitor, "#stage", landmarks_of(sample), (name, "image/jpeg", sample.jpeg))
        )
        expect(visitor.page.locator("#curl")).to_contain_text(name.strip())
        visitor.see_regions(15)
        run_shell(visitor.page.locator("#curl").inner_text(), tmp_path)
        require_same(tmp_path, answer)


# Requests that cross each other


def test_task_leaves_the_request_under_way_alone(visitor: Visitor) -> None:
    visitor.sample()
    page = visitor.page
    held = hold(page)
    page.locator("#upright").check()
    expect(page.locator("#stage")).to_have_attribute("data-busy", "true")
    visitor.expect_error(REFUSED.format(503))
    page.route("**/submit", lambda route: route.fulfill(**problem(503, "queue_full")))
    page.click("#task-start")
    assert "queue is full" in visitor.trouble()
    expect(page.locator("#facts")).to_have_text("Looking at the photo…")
    page.unroute("**/submit")
    page.click("#task-start")
    expect(page.locator("#task-status")).to_have_text("Waiting for a worker")
    expect(page.locator("#task-start")).to_be_focused()
    page.click("#task-cancel")
    expect(page.locator("#task-status")).to_have_text("Cancelled")
    expect(page.locator("#stage")).to_have_attribute("data-busy", "true")
    (route,) = held
    route.continue_()
    expect(page.locator("#facts")).to_contain_text("eyes 0.0°")
    visitor.see_regions(15)


def test_answer_for_the_photo_before_is_given_up(visitor: Visitor, sample: Sample) -> None:
    page = visitor.page
    hold(page)
    visitor.choose(landmarks=landmarks_of(sample), photo=("first.jpg", "image/jpeg", sample.jpeg))
    expect(page.locator("#stage")).to_have_attribute("data-busy", "true")
    # The second reading of the landmarks takes its time, when the photo has been taken already.
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
    expect(page.locator("#photo-name")).to_contain_text("second.png")
    expect(page.locator(".region")).to_have_count(0)
    page.unroute(CROP)
    page.evaluate("letRead()")
    visitor.see_regions(15)
    expect(page.locator("#facts")).to_contain_text("512 × 512 PNG")


# Tasks that get out of sight


def test_task_that_is_lost_from_sight_is_found_again(visitor: Visitor) -> None:
    page = visitor.page
    status, notice = page.locator("#task-status"), page.locator("#notice")
    visitor.sample()
    page.click("#task-start")
    expect(status).to_have_text("Waiting for a worker")
    task = page.locator("#task-id").inner_text()
    # The key has been changed.
    visitor.expect_error(REFUSED.format(401))
    page.route(STATUS, lambda route: route.fulfill(**problem(401, "unauthorized")))
    expect(page.locator("#key")).to_be_focused()
    page.unroute(STATUS)
    page.keyboard.type("another-key")
    page.keyboard.press("Enter")
    expect(status).to_have_text("Waiting for a worker")
    assert page.locator("#task-id").inner_text() == task
    # The record has been kept for its time.
    visitor.expect_error(REFUSED.format(404))
    page.route(STATUS, lambda route: route.fulfill(**problem(404, "task_unknown")))
    assert "The task is gone" in visitor.trouble()
    expect(status).to_have_text("Its record is gone")
    expect(notice.locator("button")).to_have_count(0)
    assert [call for call in visitor.calls if call.endswith("/submit")] == ["POST /api/v1/frontal/crop/submit"]
    visitor.see_regions(15)


def test_task_outlives_a_network_that_is_away(visitor: Visitor) -> None:
    page = visitor.page
    status = page.locator("#task-status")
    page.clock.install()
    visitor.open(page.url)
    visitor.sample()
    page.click("#task-start")
    expect(status).to_have_text("Waiting for a worker")
    task = page.locator("#task-id").inner_text()
    visitor.expect_error("net::ERR_INTERNET_DISCONNECTED")
    with offline(page):
        page.click("#task-cancel")
        skip_to(page, page.get_by_text("It could not be cancelled. The service cannot be reached"))
        skip_to(page, page.locator("#notice h2"))
        assert "cannot be reached" in visitor.trouble()
        expect(status).to_have_text("Lost sight of it: it may still be worked on")
    page.clock.resume()
    page.click("#notice button")
    expect(status).to_have_text("Waiting for a worker")
    assert page.locator("#task-id").inner_text() == task
    assert sum(call.endswith("/submit") for call in visitor.calls) == 1
    page.click("#task-cancel")
    expect(status).to_have_text("Cancelled")


def test_task_whose_answer_was_lost_is_sent_again_as_the_same(visitor: Visitor) -> None:
    page = visitor.page
    visitor.sample()
    taken = []

    def lose(route: Route) -> None:
        taken.append(route.fetch().json()["task_id"])
        route.abort()

    visitor.expect_error("net::ERR_FAILED")
    page.route("**/submit", lose)
    page.click("#task-start")
    assert "cannot be reached" in visitor.trouble()
    page.unroute("**/submit")
    page.click("#notice button")
    expect(page.locator("#task-status")).to_have_text("Waiting for a worker")
    assert {page.locator("#task-id").inner_text()} == set(taken)
    page.click("#task-cancel")
    expect(page.locator("#task-status")).to_have_text("Cancelled")


# Answers that are none


def test_answers_that_are_none_are_told(visitor: Visitor) -> None:
    page = visitor.page
    visitor.sample()
    visitor.expect_error("error: ")  # written for whoever looks for the cause
    for body in ("{}", '{"svg": "", "regions": []}', "null", "<p>Sorry"):
        page.route(CROP, answer_with(body))
        page.locator("#upright").click()
        assert "The answer cannot be read" in visitor.trouble(), body
        expect(page.locator("#stage")).to_have_attribute("data-busy", "false")
        expect(page.locator("#facts")).to_be_empty()
        page.unroute(CROP)
        page.click("#notice button")
        visitor.see_regions(15)
        expect(page.locator("#facts")).to_be_focused()


def test_picture_that_cannot_be_painted_is_told(visitor: Visitor) -> None:
    page = visitor.page
    visitor.sample()
    page.evaluate("() => { HTMLCanvasElement.prototype.toBlob = (callback) => callback(null); }")
    visitor.expect_error("too large to be saved")
    page.click("#save-png")
    assert "The picture cannot be saved" in visitor.trouble()
    assert save(visitor, "svg")[1]


# The page itself


def test_page_that_has_not_come_to_its_end_says_so(visitor: Visitor) -> None:
    page = visitor.page
    expect(page.locator("#stalled")).to_be_hidden()
    page.route("**/labels.js", lambda route: route.abort())
    visitor.expect_error("net::ERR_FAILED")
    page.goto(page.url)
    page.evaluate("document.getAnimations().forEach((animation) => animation.finish())")
    expect(page.locator("#stalled")).to_be_visible()
    for button in ("#choose", "#sample", "#photo-choose", "#landmarks-choose", "#map-choose"):
        expect(page.locator(button)).to_be_disabled()


def test_focus_is_not_thrown_to_the_top(visitor: Visitor) -> None:
    page = visitor.page
    page.locator("#sample").focus()
    page.keyboard.press("Enter")
    visitor.see_regions(15)
    assert focused(page) == "facts"
    box = page.locator("#show-labels").bounding_box()
    assert box is not None
    assert box["width"] > 40  # all of the chip can be pressed


def test_low_window_and_long_photo(visit: Callable[..., Visitor], served: Any, sample: Sample) -> None:
    visitor = visit(served, viewport={"width": 320, "height": 215})
    visitor.sample()
    box = visitor.page.locator("#frame").bounding_box()
    assert box is not None
    assert box["height"] > 250
    # Names are as many as can be read.
    canvas = np.zeros((300, 5000, 3), np.uint8)
    canvas[:, 2350:2650] = cv2.resize(cv2.imdecode(np.frombuffer(sample.png, np.uint8), cv2.IMREAD_COLOR), (300, 300))
    points = (np.array(sample.pairs) * 300 / 512 + (2350, 0)).tolist()
    photo = ("wide.png", "image/png", sample.encode(".png", canvas))
    drop(visitor, "#stage", ("l.json", JSON_FILE, orjson.dumps(points)), photo)
    expect(visitor.page.locator("#facts")).to_contain_text("5000 × 300")
    visitor.see_regions(15)
    visitor.page.locator("#show-labels").check(force=True)
    labels = visitor.page.locator(".labels text")
    expect(labels.first).to_be_attached()
    assert labels.count() < 15
    boxes = [box for box in (label.bounding_box() for label in labels.all()) if box]
    tops = {side: sorted(b["y"] for b in boxes if (b["x"] < 160) is side) for side in (True, False)}
    for column in tops.values():
        assert all(low - high >= 12 for high, low in pairwise(column))

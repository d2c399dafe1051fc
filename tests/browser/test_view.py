"""What a user sees of the photo: it stays in view, zooms to faces, and nothing is drawn over text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest
from playwright.sync_api import expect

from tests.browser.conftest import DESKTOP, PHONE
from tests.browser.visitor import decode, outlines, outlines_of, save

if TYPE_CHECKING:
    from collections.abc import Callable

    from playwright.sync_api import Locator

    from tests.browser.visitor import Visitor
    from tests.conftest import Sample
    from tests.live.conftest import RunningService

pytestmark = pytest.mark.live


def box_of(locator: Locator) -> tuple[float, float, float, float]:
    """Return left, top, right and bottom in the window."""
    box = locator.bounding_box()
    assert box is not None
    return box["x"], box["y"], box["x"] + box["width"], box["y"] + box["height"]


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_photo_stays_in_view_beside_the_regions(
    visit: Callable[..., Visitor], served: RunningService, size: dict[str, int]
) -> None:
    visitor = visit(served, viewport=size, reduced_motion="reduce")
    page = visitor.page
    visitor.load_sample()
    page.locator("#regions li input").first.focus()
    for key, row in (("Home", page.locator("#regions li").first), ("End", page.locator("#regions li").last)):
        page.keyboard.press(key)
        expect(row.locator("input")).to_be_focused()
        _, top, _, bottom = box_of(page.locator("#frame"))
        assert 0 <= top < bottom <= size["height"]
        left, upper, _, lower = box_of(row)
        assert bottom <= upper or left > box_of(page.locator("#stage"))[2]  # not hidden by the photo
        assert lower <= size["height"]


@pytest.mark.usefixtures("face_models")
def test_zoom_to_faces(visitor: Visitor) -> None:
    page = visitor.page
    zoom = page.locator("#zoom")
    expect(zoom).to_be_hidden()
    responses = visitor.responses_of(lambda: page.click("#sample-faces"))
    visitor.expect_regions_of_faces(3)
    expect(zoom).to_have_text("Zoom to the faces")
    page.locator("#faces input[value='1']").check(force=True)
    visitor.expect_regions(15)
    expect(zoom).to_have_text("Zoom to the face")
    before = box_of(page.locator(".overlay g[data-face='1']"))
    whole = save(visitor, "png")[1]
    zoom.click()
    expect(zoom).to_have_text("Show the whole photo")
    after = box_of(page.locator(".overlay g[data-face='1']"))
    assert after[2] - after[0] > 2.5 * (before[2] - before[0])
    frame = box_of(page.locator("#frame"))
    assert frame[0] <= after[0] < after[2] <= frame[2]
    assert frame[1] <= after[1] < after[3] <= frame[3]
    # The photo and the overlay move together, and coordinates and downloads stay those of the API.
    assert outlines(visitor) == outlines_of(responses[1])
    assert save(visitor, "png")[1] == whole
    x, y, width, height = responses[1]["face"]["bbox"]
    page.locator("#opacity").fill("0")
    page.locator("#show-landmarks").uncheck(force=True)
    shown = decode(page.locator("#frame").screenshot())[:, :, :3]
    scale = (after[2] - after[0]) / width
    left, top = round(after[0] - frame[0]), round(after[1] - frame[1])
    face = shown[top : top + round(height * scale), left : left + round(width * scale)]
    photo = decode(whole)[round(y) : round(y + height), round(x) : round(x + width), :3]
    assert np.abs(cv2.resize(face, photo.shape[1::-1]).astype(int) - photo).mean() < 40

    page.locator("#show-labels").check(force=True)
    expect(page.locator(".labels text")).to_have_count(15)
    for label in page.locator(".labels text").all():
        assert frame[0] - 1 <= box_of(label)[0] < box_of(label)[2] <= frame[2] + 1
    page.locator("#faces input[value='0']").check(force=True)  # another face, still zoomed
    expect(page.locator(".overlay g[data-face='0'] .region")).to_have_count(15)
    moved = box_of(page.locator(".overlay g[data-face='0']"))
    assert moved[2] - moved[0] > 2.5 * (before[2] - before[0])
    # A cropped face fills the frame already.
    visitor.responses_of(lambda: page.locator("#crop").check())
    expect(zoom).to_be_hidden()
    visitor.responses_of(lambda: page.locator("#crop").uncheck())
    zoom.click()
    expect(zoom).to_have_text("Zoom to the face")


@pytest.mark.usefixtures("face_models")
def test_samples(visitor: Visitor) -> None:
    page = visitor.page
    page.click("#sample")
    visitor.expect_regions(15)
    expect(page.locator("#summary")).to_contain_text("face detected")
    expect(page.locator("#landmarks-name")).to_have_text("detected in the photo")
    page.click("#sample-landmarks")
    expect(page.locator("#summary")).to_contain_text("landmarks from file")
    expect(page.locator("#landmarks-name")).to_contain_text("astronaut.landmarks.json")
    page.click("#sample-faces")
    visitor.expect_regions_of_faces(3)
    expect(page.locator("#landmarks-name")).to_have_text("detected in the photo")
    # Each face can be selected in the photo and in the list.
    for face in range(3):
        page.locator(f"#faces input[value='{face}']").check(force=True)
        expect(page.locator(f".overlay g[data-face='{face}'] .region")).to_have_count(15)
        expect(page.locator(".overlay g[data-face]")).to_have_count(1)
        page.locator(f".overlay .face[data-face='{(face + 1) % 3}']").click()
        expect(page.locator("#faces input:checked")).to_have_value(str((face + 1) % 3))


def test_samples_that_need_detection_are_not_offered_without_it(
    visit: Callable[..., Visitor], run_service: Callable[..., object], tmp_path: object
) -> None:
    with run_service(WORKERS=1, MODELS_DIR=tmp_path) as running:  # type: ignore[attr-defined]
        visitor = visit(running)
        expect(visitor.page.locator("#sample-portrait")).to_be_hidden()
        expect(visitor.page.locator("#sample-faces")).to_be_hidden()
        visitor.page.click("#sample")
        visitor.expect_regions(15)


@pytest.mark.parametrize("has_photo", [False, True])
def test_drop_hint_covers_text_and_photo(visitor: Visitor, *, has_photo: bool) -> None:
    page = visitor.page
    if has_photo:
        visitor.load_sample()
    page.evaluate(
        """() => {
          const transfer = new DataTransfer();
          transfer.items.add(new File(["x"], "x.jpg", { type: "image/jpeg" }));
          document.body.dispatchEvent(new DragEvent("dragenter", { dataTransfer: transfer, bubbles: true }));
        }"""
    )
    hint = page.locator(".drop-hint")
    expect(hint).to_be_visible()
    shown = decode(page.locator("#stage").screenshot())[:, :, :3].astype(int)
    height, width = shown.shape[:2]
    # Above and below the text of the hint, there is nothing but its background.
    for part in (shown[30 : height // 2 - 40, 30 : width - 30], shown[height // 2 + 40 : height - 30, 30 : width - 30]):
        assert part.std(axis=(0, 1)).max() < 1


def test_image_above_the_limit(
    visit: Callable[..., Visitor], run_service: Callable[..., object], sample: Sample
) -> None:
    with run_service(WORKERS=1, MAX_IMAGE_PIXELS=2_000_000) as running:  # type: ignore[attr-defined]
        visitor = visit(running)
        visitor.expect_error("the server responded with a status of 422")
        photo = sample.encode(".png", np.zeros((1500, 2000, 3), np.uint8))
        visitor.choose(image=("large.png", "image/png", photo))
        text = visitor.error_text()
        assert "The photo is too large" in text
        assert "3 MP; the limit is 2 MP." in text

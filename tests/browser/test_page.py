"""Uploads, the view of a result, downloads and the curl command."""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import cv2
import httpx
import numpy as np
import orjson
import pytest
from playwright.sync_api import expect

from tests.browser.visitor import (
    JSON_FILE,
    check_saved_response,
    decode,
    drop,
    image_of,
    landmarks_of,
    names,
    outlines,
    outlines_of,
    parse_svg,
    run_shell,
    save,
    with_orientation,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.browser.visitor import Visitor
    from tests.conftest import Sample
    from tests.live.conftest import RunningService

pytestmark = pytest.mark.live

SVG = "{http://www.w3.org/2000/svg}"


def test_sample_needs_one_click_and_nothing_is_sent_before(visitor: Visitor) -> None:
    assert visitor.calls == []
    response = visitor.response_of(lambda: visitor.page.click("#sample-landmarks"))
    visitor.expect_regions(15)
    assert visitor.calls == ["POST /api/v1/frontal/crop"]
    assert names(visitor) == [region["name"] for region in response["regions"]]
    assert outlines(visitor) == outlines_of(response)
    svg = base64.b64decode(response["svg"]).decode()
    drawn = dict(re.findall(r'data-name="(\w+)" data-label-id="\d+" fill="(#\w+)"', svg))
    shown = {r.get_attribute("data-name"): r.get_attribute("fill") for r in visitor.page.locator(".region").all()}
    assert shown == drawn
    areas = visitor.page.locator("#regions .area").all_inner_texts()
    assert areas == [f"{round(region['area_px']):,} px²" for region in response["regions"]]
    expect(visitor.page.locator("#summary")).to_contain_text("15 regions · 320 × 320 JPEG")
    assert visitor.page.locator("img.image").get_attribute("alt")


def test_upload_with_landmarks_and_custom_regions(visitor: Visitor, sample: Sample) -> None:
    own = ["Öl 目 : mine", "b" * 60]
    regions = orjson.dumps({own[0]: [33, 133, 159, 145], own[1]: [263, 362, 386]})
    hostile = '<img src=x onerror="document.title=1">.json'
    visitor.choose(landmarks=landmarks_of(sample), label_map=(hostile, JSON_FILE, regions))
    expect(visitor.page.locator("#map-name")).to_contain_text("<img src=x")
    assert visitor.calls == []  # no image yet
    response = visitor.response_of(lambda: visitor.choose(image=image_of(sample)))
    visitor.expect_regions(2)
    assert response["detection"] is None
    assert names(visitor) == own
    visitor.page.check("#show-labels", force=True)
    assert visitor.page.locator(".labels text").all_text_contents() == own
    assert visitor.page.locator("#stage img").count() == 1  # the photo
    assert visitor.page.title() == "facial-service"
    parse_svg(save(visitor, "svg")[1])
    # Custom regions apply to any image; landmarks belong to one.
    visitor.page.click("#map-clear")
    visitor.expect_regions(15)
    assert visitor.page.evaluate("document.activeElement.id") == "map-choose"


def test_normalized_landmarks_are_recognised(visitor: Visitor, sample: Sample) -> None:
    pairs = [[x / 512, y / 512] for x, y in sample.pairs]
    visitor.choose(landmarks=("n.json", JSON_FILE, orjson.dumps(pairs)), image=image_of(sample))
    visitor.expect_regions(15)
    expect(visitor.page.locator("#units")).to_have_value("normalized")
    expect(visitor.page.locator("#units")).to_be_visible()
    visitor.page.check("#show-landmarks", force=True)
    dots = visitor.page.locator(".overlay .landmarks").get_attribute("d") or ""
    first = [float(n) for n in dots[1:].split("h0")[0].split(",")]
    assert first == pytest.approx(sample.pairs[0], abs=0.02)
    assert dots.count("M") == 478


def test_dropped_files_are_assigned_to_their_slots(visitor: Visitor, sample: Sample) -> None:
    drop(visitor, "#stage", landmarks_of(sample), image_of(sample))
    visitor.expect_regions(15)
    expect(visitor.page.locator("#landmarks-name")).to_contain_text("points.json")
    drop(visitor, "[data-slot=map]", ("labels.png", "image/png", sample.labels))
    visitor.expect_regions(10)
    assert set(names(visitor)) >= {"skin", "hair", "nose"}
    # A new image removes the label image and the landmarks.
    drop(visitor, "#stage", landmarks_of(sample), ("other.png", "image/png", sample.png))
    visitor.expect_regions(15)
    expect(visitor.page.locator("#map-name")).to_contain_text("none")
    assert visitor.open_urls() == 1


def test_paste(visit: Callable[..., Visitor], served: RunningService, sample: Sample) -> None:
    visitor = visit(served, permissions=["clipboard-read", "clipboard-write"])
    visitor.choose(landmarks=landmarks_of(sample))
    visitor.page.evaluate(
        """async (content) => {
          const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0));
          const image = new Blob([bytes], { type: "image/png" });
          await navigator.clipboard.write([new ClipboardItem({ "image/png": image })]);
        }""",
        base64.b64encode(sample.png).decode(),
    )
    visitor.page.keyboard.press("Control+V")
    visitor.expect_regions(15)
    expect(visitor.page.locator("#snippet-note")).to_contain_text("Save the pasted files as image.png")


def test_regions_and_labels_are_shown_and_hidden(visitor: Visitor) -> None:
    visitor.load_sample()
    page = visitor.page
    nose, chin = page.locator(".region[data-name=nose]"), page.locator(".region[data-name=chin]")
    row = page.locator("#regions li", has_text="nose")
    row.locator("input").uncheck()
    expect(nose).to_be_hidden()
    expect(chin).to_be_visible()
    assert page.evaluate("document.querySelector('#show-regions').indeterminate") is True
    page.locator("#show-regions").check()
    expect(nose).to_be_visible()
    page.locator("#show-regions").uncheck()
    expect(page.locator(".region:visible")).to_have_count(0)
    page.locator("#show-regions").check()

    expect(page.locator(".labels text")).to_have_count(0)
    row.locator("button").click()
    expect(page.locator(".labels text")).to_have_text(["nose"])
    expect(row.locator("button")).to_have_attribute("aria-pressed", "true")
    page.locator("#show-labels").check(force=True)
    expect(page.locator(".labels text")).to_have_count(15)
    row.locator("input").uncheck()
    expect(page.locator(".labels text")).to_have_count(14)
    page.locator("#show-labels").uncheck(force=True)
    expect(page.locator(".labels text")).to_have_count(0)

    page.locator("#opacity").fill("80")
    expect(page.locator(".overlay .regions")).to_have_attribute("fill-opacity", "0.8")
    page.locator("#show-image").uncheck(force=True)
    expect(page.locator("img.image")).to_have_css("opacity", "0")
    assert visitor.calls == ["POST /api/v1/frontal/crop"]  # the view is not part of the request


def test_overlay_and_list_highlight_the_same_region(visitor: Visitor) -> None:
    visitor.load_sample()
    page = visitor.page
    highlighted, highlighted_row = page.locator(".region.highlighted"), page.locator("#regions li.highlighted")
    page.locator("#regions li", has_text="chin").hover()
    expect(highlighted).to_have_attribute("data-name", "chin")
    expect(page.locator("#caption")).to_contain_text("chin")
    page.locator(".region[data-name=nose] path").hover()
    expect(highlighted).to_have_attribute("data-name", "nose")
    expect(highlighted_row.locator(".name")).to_have_text("nose")
    page.locator("h1").hover()
    expect(highlighted).to_have_count(0)
    page.locator("#regions input").nth(2).focus()
    expect(highlighted).to_have_attribute("data-name", names(visitor)[2])
    # A resting pointer does not move the highlight away from the keyboard focus.
    page.locator(".region[data-name=nose] path").hover()
    expect(highlighted).to_have_attribute("data-name", "nose")
    page.locator("#regions input").nth(2).focus()
    page.keyboard.press("ArrowDown")
    page.set_viewport_size({"width": 1240, "height": 860})
    expect(highlighted).to_have_attribute("data-name", names(visitor)[3])
    page.locator("#opacity").focus()
    expect(highlighted).to_have_count(0)
    expect(page.locator("#caption")).to_be_hidden()


def test_upright_and_cropped_result_is_aligned_with_the_image(visitor: Visitor) -> None:
    visitor.load_sample()
    page = visitor.page
    visitor.response_of(lambda: page.locator("#upright").check())
    response = visitor.response_of(lambda: page.locator("#crop").check())
    visitor.expect_regions(15)
    page.locator("#margin").fill("60")
    response = visitor.response_of(lambda: page.locator("#margin").dispatch_event("change"))
    visitor.expect_regions(15)
    assert response["transform"] != [[1, 0, 0], [0, 1, 0]]
    width, height = response["output"]["width"], response["output"]["height"]
    assert page.locator(".overlay").get_attribute("viewBox") == f"0 0 {width} {height}"
    assert outlines(visitor) == outlines_of(response)
    # On the screen, image points must be where the transform of the response puts them in the overlay.
    points = [[0, 0], [320, 0], [100, 200], [160, 90]]
    shown = page.evaluate(
        """(points) => {
          const photo = document.querySelector("img.image");
          const overlay = document.querySelector(".overlay");
          const size = overlay.getBoundingClientRect().width / overlay.viewBox.baseVal.width;
          const style = getComputedStyle(photo);
          const across = Number.parseFloat(style.width) / photo.naturalWidth;
          const down = Number.parseFloat(style.height) / photo.naturalHeight;
          const matrix = new DOMMatrix(style.transform);
          return points.map(([x, y]) => {
            const at = matrix.transformPoint(new DOMPoint(x * across, y * down));
            return [at.x / size, at.y / size];
          });
        }""",
        points,
    )
    linear, shift = np.array(response["transform"])[:, :2], np.array(response["transform"])[:, 2]
    np.testing.assert_allclose(shown, np.array(points) @ linear.T + shift, atol=0.5)
    expect(page.locator("#summary")).to_contain_text(f"output {width} × {height}")


@pytest.mark.parametrize("orientation", [4, 6, 7])
def test_image_is_displayed_with_its_exif_orientation(visitor: Visitor, sample: Sample, orientation: int) -> None:
    stored = with_orientation(sample.jpeg, orientation)
    displayed = cv2.imdecode(np.frombuffer(stored, np.uint8), cv2.IMREAD_COLOR)
    seen = []
    for name, content in (("stored.jpg", stored), ("displayed.jpg", sample.encode(".jpg", displayed))):
        visitor.open(visitor.page.url)
        visitor.choose(landmarks=landmarks_of(sample), image=(name, "image/jpeg", content))
        visitor.expect_regions(15)
        expect(visitor.page.locator("#frame")).to_have_attribute("data-ready", "true")
        shown = decode(visitor.page.locator("#frame").screenshot())
        seen.append((shown.astype(int), decode(save(visitor, "png")[1]).astype(int)))
    expect(visitor.page.locator("#warnings")).to_be_hidden()
    plain = decode(sample.jpeg).astype(int)
    assert np.abs(displayed.astype(int) - plain).mean() > 20  # the orientation makes a difference
    for from_stored, from_displayed in zip(*seen, strict=True):
        assert from_stored.shape == from_displayed.shape
        assert np.abs(from_stored - from_displayed).mean() < 2  # compressed once more


def test_large_image(visitor: Visitor, sample: Sample) -> None:
    pairs = (np.array(sample.pairs) * (7, 7) + (1000, 200)).tolist()
    grey = np.full((4000, 6000, 3), 128, np.uint8)
    photo = ("large.jpg", "image/jpeg", sample.encode(".jpg", grey))
    visitor.choose(landmarks=("l.json", JSON_FILE, orjson.dumps(pairs)), image=photo)
    visitor.expect_regions(15)
    expect(visitor.page.locator("#summary")).to_contain_text("6000 × 4000")
    assert visitor.page.evaluate("document.documentElement.scrollWidth") <= 1280


def test_downloads_match_the_view(visitor: Visitor) -> None:
    page = visitor.page
    response = visitor.response_of(lambda: page.click("#sample-landmarks"))
    visitor.expect_regions(15)
    name, content = save(visitor, "json")
    assert (name, orjson.loads(content)) == ("astronaut.regions.json", response)

    page.locator("#regions li", has_text="chin").locator("input").uncheck()
    page.locator("#show-labels").check(force=True)
    name, content = save(visitor, "svg")
    root = parse_svg(content)
    assert (name, root.get("viewBox")) == ("astronaut.regions.svg", "0 0 320 320")
    regions = [group.get("data-name") for group in root.iter(f"{SVG}g") if group.get("class") == "region"]
    assert regions == [region["name"] for region in response["regions"] if region["name"] != "chin"]
    assert {text.text for text in root.iter(f"{SVG}text")} == set(regions)

    name, content = save(visitor, "png")
    whole = decode(content)
    assert (name, whole.shape[:2]) == ("astronaut.regions.png", (320, 320))
    with_photo = whole[:, :, :3].astype(float)
    assert with_photo.std() > 20
    photo = decode(httpx.get(page.evaluate("document.baseURI") + "page/sample/astronaut.jpg").content).astype(float)
    # Only the image outside the regions, and more than the image inside.
    assert np.abs(with_photo[200:] - photo[200:]).mean() < 3
    nose = response["regions"][[region["name"] for region in response["regions"]].index("nose")]
    x, y, width, height = (round(side) for side in nose["bbox"])
    assert np.abs(with_photo - photo)[y : y + height, x : x + width].mean() > 10

    page.locator("#show-image").uncheck(force=True)
    alone = decode(save(visitor, "png")[1])
    assert alone.shape == (320, 320, 4)
    assert alone[300, 10, 3] == 0
    assert alone[y + height // 2, x + width // 2, 3] > 0


def fetch_overlay(served: RunningService, sample: Sample, options: dict[str, str]) -> bytes:
    response = httpx.post(
        f"{served.api}/api/v1/frontal/crop",
        files={"image": image_of(sample)[::2], "landmarks": landmarks_of(sample)[::2]},
        data=options,
        headers={"Accept": "image/svg+xml"},
    )
    return response.raise_for_status().content


def test_svg_download_equals_the_svg_of_the_api(visitor: Visitor, served: RunningService, sample: Sample) -> None:
    page = visitor.page
    visitor.choose(landmarks=landmarks_of(sample), image=image_of(sample))
    visitor.expect_regions(15)
    assert save(visitor, "svg")[1] == fetch_overlay(served, sample, {})

    page.locator("#show-labels").check(force=True)
    page.locator("#show-landmarks").check(force=True)
    page.locator("#opacity").fill("80")
    visitor.response_of(lambda: page.locator("#upright").check())
    visitor.response_of(lambda: page.locator("#crop").check())
    visitor.expect_regions(15)
    style = {
        "show_labels": "true",
        "show_landmarks": "true",
        "region_opacity": "0.8",
        "upright": "true",
        "crop": "face",
    }
    overlay = fetch_overlay(served, sample, style)
    assert b'class="labels"' in overlay
    assert save(visitor, "svg")[1] == overlay

    # The API has no options for single regions and labels; the page removes them from the same SVG.
    page.locator("#regions li", has_text="chin").locator("input").uncheck()
    page.locator("#regions li", has_text="nose").locator("button").click()
    root, whole = parse_svg(save(visitor, "svg")[1]), parse_svg(overlay)
    regions = [group.get("data-name") for group in root.iter(f"{SVG}g") if group.get("class") == "region"]
    assert regions == [name for name in names(visitor) if name != "chin"]
    labels, all_labels = ([ET.tostring(text) for text in tree.iter(f"{SVG}text")] for tree in (root, whole))
    assert labels == [text for text in all_labels if not re.search(rb">(chin|nose)<", text)]


def test_overlay_has_the_style_of_the_svg_of_the_api(visitor: Visitor) -> None:
    page = visitor.page
    visitor.load_sample()
    page.locator("#show-labels").check(force=True)
    page.locator("#show-landmarks").check(force=True)
    expect(page.locator(".labels text")).to_have_count(15)
    saved = parse_svg(save(visitor, "svg")[1])
    for path, attributes in {
        "g[@class='regions']": ("fill-opacity", "fill-rule", "stroke-width", "stroke-dasharray", "stroke-linejoin"),
        "path[@class='landmarks']": ("stroke", "stroke-width", "stroke-linecap"),
        "g[@class='labels']": ("font-family", "fill", "stroke", "stroke-linejoin", "paint-order"),
    }.items():
        element = saved.find(f"{SVG}{path}")
        assert element is not None
        displayed = page.locator(f".overlay .{element.get('class')}")
        for name in attributes:
            expected = element.get(name)
            assert expected
            assert shorten(displayed.get_attribute(name) or "") == shorten(expected), name


def shorten(value: str) -> list[str]:
    """Round numbers to the four significant digits that the SVG of the API has."""
    return [f"{float(part):.4g}" if part[0].isdigit() else part for part in value.split()]


def test_curl_command_returns_the_same_regions(visitor: Visitor, sample: Sample, tmp_path: Path) -> None:
    page = visitor.page
    visitor.load_sample()
    visitor.response_of(lambda: page.locator("#upright").check())
    response = visitor.response_of(lambda: page.locator("#crop").check())
    visitor.expect_regions(15)
    expect(page.locator("#snippet")).to_contain_text("crop=face")
    run_shell(page.locator("#snippet").inner_text(), tmp_path)
    check_saved_response(tmp_path, response)

    page.locator("#show-labels").check(force=True)
    page.locator("#snippet-format").select_option("svg")
    run_shell(page.locator("#snippet").inner_text(), tmp_path)
    overlay = (tmp_path / "face.svg").read_text()
    assert 'class="labels"' in overlay
    assert 'class="photo"' in overlay
    parse_svg(overlay)

    page.locator("#snippet-format").select_option("json")
    visitor.response_of(lambda: page.locator("#crop").uncheck())
    name = """a photo; it's "odd", $HOME\\x.jpg"""
    (tmp_path / name).write_bytes(sample.jpeg)
    (tmp_path / "points.json").write_bytes(sample.landmarks)
    response = visitor.response_of(lambda: drop(visitor, "#stage", landmarks_of(sample), (name, "", sample.jpeg)))
    visitor.expect_regions(15)
    expect(page.locator("#snippet")).to_contain_text("points.json")
    run_shell(page.locator("#snippet").inner_text(), tmp_path)
    check_saved_response(tmp_path, response)


def test_curl_command_is_copied(visit: Callable[..., Visitor], served: RunningService) -> None:
    visitor = visit(served, permissions=["clipboard-read", "clipboard-write"])
    visitor.load_sample()
    visitor.page.click("#snippet-copy")
    expect(visitor.page.locator("#snippet-copy")).to_contain_text("Copied")
    copied = visitor.page.evaluate("navigator.clipboard.readText()")
    assert copied == visitor.page.locator("#snippet").inner_text()


def test_object_urls_are_revoked(visitor: Visitor, sample: Sample) -> None:
    for number in range(3):
        drop(visitor, "#stage", landmarks_of(sample), (f"{number}.jpg", "image/jpeg", sample.jpeg))
        expect(visitor.page.locator("#image-name")).to_contain_text(f"{number}.jpg")
        visitor.expect_regions(15)
    assert visitor.open_urls() == 1


def test_page_and_assets_have_their_own_endpoints_in_metrics(visitor: Visitor, served: RunningService) -> None:
    visitor.load_sample()
    endpoints = {dict(labels)["endpoint"] for name, labels in served.scrape() if name == "api_requests_total"}
    assert {"/", "/page/{version}/{name}", "/api/v1/frontal/crop"} <= endpoints
    assert "unmatched" not in endpoints

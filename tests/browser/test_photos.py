"""Photos of several faces, large photos, and photos that the browser cannot decode."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import orjson
import pillow_heif
import psutil
import pytest
from playwright.sync_api import expect

from app.service import serialization
from tests.browser.conftest import DESKTOP, PHONE
from tests.browser.visitor import (
    JSON_FILE,
    check_accessibility,
    check_saved_response,
    decode,
    drop,
    image_of,
    landmarks_of,
    outlines_of,
    parse_svg,
    run_shell,
    save,
    with_orientation,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.browser.visitor import Visitor
    from tests.conftest import Sample
    from tests.live.conftest import RunningService

pytestmark = [pytest.mark.live, pytest.mark.usefixtures("face_models")]

SVG = "{http://www.w3.org/2000/svg}"
# From the choice of a file until its photo is displayed: the duration, and the longest pause between two heartbeats of
# the main thread.
MEASURE_PAUSES = """() => {
  const frame = document.querySelector("#frame");
  document.addEventListener("change", () => {
    const start = performance.now();
    let last = start;
    window.measured = { longestPause: 0, duration: 0 };
    const timer = setInterval(() => {
      const now = performance.now();
      measured.longestPause = Math.max(measured.longestPause, now - last);
      last = now;
      if (frame.dataset.ready !== "true") return;
      measured.duration = now - start;
      clearInterval(timer);
    }, 5);
  }, { capture: true, once: true });
}"""
# If the main thread decoded the photo, it would pause for most of the time.
MAX_PAUSE_RATIO = 0.5
MAX_PREVIEW_PX = 2_048


def two_faces(sample: Sample) -> np.ndarray:
    head = decode(sample.photo)[:320, 66:386, :3]
    return np.hstack([head, cv2.flip(head, 1)])


def choose_two_faces(visitor: Visitor, sample: Sample) -> list[dict[str, Any]]:
    photo = ("two.png", "image/png", sample.encode(".png", two_faces(sample)))
    responses = visitor.responses_of(lambda: visitor.choose(image=photo))
    assert len(responses) == 2
    expect_faces(visitor, 2)
    return responses


def expect_faces(visitor: Visitor, count: int) -> None:
    expect(visitor.page.locator("#stage[data-busy=false] .overlay [data-face] .regions")).to_have_count(count)
    expect(visitor.page.locator("#regions li")).to_have_count(15)


def displayed_photo(visitor: Visitor) -> dict[str, Any]:
    """Wait for the photo, and return its size and mean colour as the browser draws it."""
    expect(visitor.page.locator("#frame")).to_have_attribute("data-ready", "true")
    found: dict[str, Any] = visitor.page.locator("img.image").first.evaluate(
        """(image) => {
          const canvas = document.createElement("canvas");
          Object.assign(canvas, { width: 32, height: 32 });
          const context = canvas.getContext("2d");
          context.drawImage(image, 0, 0, 32, 32);
          const { data } = context.getImageData(0, 0, 32, 32);
          const pixels = Array.from({ length: 1024 }, (_, at) => [data[4 * at + 2], data[4 * at + 1], data[4 * at]]);
          return { size: [image.naturalWidth, image.naturalHeight], pixels };
        }"""
    )
    return found


# Several faces


def test_all_faces_are_displayed_and_one_is_selected(visitor: Visitor, sample: Sample, tmp_path: Path) -> None:
    page = visitor.page
    responses = choose_two_faces(visitor, sample)
    for face, response in enumerate(responses):
        group = page.locator(f".overlay g[data-face='{face}']")
        expect(group.locator(".region")).to_have_count(15)
        nose = group.locator(".region[data-name=nose] path").get_attribute("d")
        assert nose == "".join(
            f"M{'L'.join(f'{x:g},{y:g}' for x, y in ring)}Z" for ring in outlines_of(response)["nose"]
        )
    expect(page.locator("#summary")).to_contain_text("15 regions · 640 × 320 PNG · 2 faces detected")
    expect(page.locator("#faces label")).to_have_text(["All", "Face 1", "Face 2"])
    expect(page.get_by_role("radio", name="All")).to_be_checked()
    expect(page.locator(".overlay .face")).to_have_count(2)
    area = page.locator("#regions li", has_text="nose").locator(".area")
    total = sum(region["area_px"] for one in responses for region in one["regions"] if region["name"] == "nose")
    expect(area).to_have_text(f"{round(total):,} px²")
    assert orjson.loads(save(visitor, "json")[1]) == responses
    overlay = parse_svg(save(visitor, "svg")[1])
    assert len([group for group in overlay.iter(f"{SVG}g") if group.get("class") == "face"]) == 2

    # In the list, with the keyboard.
    calls = len(visitor.calls)
    page.get_by_role("radio", name="All").focus()
    page.keyboard.press("ArrowDown")
    expect(page.get_by_role("radio", name="Face 1")).to_be_focused()
    expect_faces(visitor, 1)
    expect(page.locator("#summary")).to_contain_text("face detected with")
    page.keyboard.press("ArrowDown")
    expect(page.locator(".overlay g[data-face='1'] .region")).to_have_count(15)
    expect(page.locator(".overlay .face")).to_have_attribute("data-face", "0")
    assert len(visitor.calls) == calls  # the result contains all faces
    assert orjson.loads(save(visitor, "json")[1]) == responses[1]
    (tmp_path / "two.png").write_bytes(sample.encode(".png", two_faces(sample)))
    expect(page.locator("#snippet")).to_contain_text("face=1")
    run_shell(page.locator("#snippet").inner_text(), tmp_path)
    check_saved_response(tmp_path, responses[1])

    # In the picture: by the box of the other face, and by a region while all faces are displayed.
    page.locator(".overlay .face").click()
    expect(page.get_by_role("radio", name="Face 1")).to_be_checked()
    page.locator("#show-labels").check(force=True)
    expect(page.locator(".labels text")).to_have_count(15)
    page.get_by_role("radio", name="All").check(force=True)
    expect(page.locator(".labels text", has_text="left_under_eye")).to_have_count(0)  # outside of its region
    page.locator(".overlay g[data-face='1'] .region[data-name=nose] path").click()
    expect(page.get_by_role("radio", name="Face 2")).to_be_checked()
    # The selection of the next photo is not that of this one.
    drop(visitor, "#stage", landmarks_of(sample), image_of(sample))
    visitor.expect_regions(15)
    expect(page.locator("#faces")).to_be_hidden()
    expect(page.locator(".overlay .face")).to_have_count(0)


def test_cropped_faces_are_displayed_side_by_side(visitor: Visitor, sample: Sample) -> None:
    page = visitor.page
    choose_two_faces(visitor, sample)
    responses = visitor.responses_of(lambda: page.locator("#crop").check())
    expect(page.locator("img.image")).to_have_count(2)
    expect_faces(visitor, 2)
    view = [int(side) for side in (page.locator(".overlay").get_attribute("viewBox") or "").split()]
    assert view[2] == 2 * max(response["output"]["width"] for response in responses)
    rendered = decode(save(visitor, "png")[1])
    assert rendered.shape[:2] == (view[3], view[2])
    shown = cv2.resize(decode(page.locator("#frame").screenshot()), (view[2], view[3]), interpolation=cv2.INTER_AREA)
    numbers_and_borders = 6
    assert np.abs(shown[:, :, :3].astype(int) - rendered[:, :, :3]).mean() < numbers_and_borders
    second = page.locator(".overlay g[data-face='1'] .region[data-name=nose] path")
    second.click()
    expect(page.get_by_role("radio", name="Face 2")).to_be_checked()
    expect(page.locator("img.image")).to_have_count(1)
    expect(page.locator("#summary")).to_contain_text(
        f"output {responses[1]['output']['width']} × {responses[1]['output']['height']}"
    )
    page.locator("#crop").uncheck()
    expect(page.locator("#summary")).not_to_contain_text("output")
    expect(page.get_by_role("radio", name="Face 2")).to_be_checked()
    expect(page.locator(".overlay .face")).to_have_count(1)


def test_regions_of_a_label_map_are_drawn_once(visitor: Visitor, sample: Sample) -> None:
    page = visitor.page
    labels = np.zeros((320, 640), np.uint8)
    labels[40:280, 20:620] = 1
    responses = choose_two_faces(visitor, sample)
    visitor.choose(label_map=("labels.png", "image/png", sample.encode(".png", labels)))
    visitor.expect_regions(1)
    expect(page.locator("#regions .area")).to_have_text(re.compile("14[34],[0-9]{3} px²"))
    expect(page.locator(".overlay .face")).to_have_count(2)
    x, y, width, height = responses[1]["face"]["bbox"]
    displayed = page.locator(".overlay").bounding_box()
    assert displayed is not None
    scale = displayed["width"] / 640
    page.mouse.click(displayed["x"] + scale * (x + width / 2), displayed["y"] + scale * (y + height / 2))
    expect(page.get_by_role("radio", name="Face 2")).to_be_checked()


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_faces_of_a_mediapipe_result(
    visit: Callable[..., Visitor], served: RunningService, sample: Sample, size: dict[str, int]
) -> None:
    visitor = visit(served, viewport=size)
    pairs = np.array(sample.pairs) / 512
    faces = [[{"x": x, "y": y, "z": 0} for x, y in points.tolist()] for points in (pairs, pairs * 0.5 + 0.4)]
    document = orjson.dumps({"faceLandmarks": faces})
    visitor.choose(landmarks=("result.json", JSON_FILE, document), image=image_of(sample))
    expect_faces(visitor, 2)
    expect(visitor.page.locator("#summary")).to_contain_text("landmarks of 2 faces from file")
    check_accessibility(visitor)
    visitor.page.locator("#upright").check()
    visitor.page.get_by_role("radio", name="Face 2").check(force=True)
    expect(visitor.page.locator("#summary")).to_contain_text("roll 0.0°")
    width = visitor.page.evaluate("document.documentElement.scrollWidth")
    assert width <= size["width"]


# Warnings


def test_every_warning_has_a_text(visitor: Visitor, sample: Sample) -> None:
    page = visitor.page
    response = visitor.response_of(lambda: page.click("#sample-landmarks"))
    visitor.expect_regions(15)
    source = Path(serialization.__file__).read_text(encoding="utf-8")
    codes = sorted(set(re.findall(r'"code": "(\w+)"', source)))
    assert {"exif_orientation", "faces_omitted", "not_frontal", "regions_omitted"} <= set(codes)
    response["face"] |= {"yaw_deg": -41.2, "pitch_deg": 3.4}
    response["omitted"] = [{"id": 99, "name": "mole", "reason": "no area"}]
    response["warnings"] = [{"code": code, "message": f"message of {code}"} for code in (*codes, "from_the_future")]
    page.route("**/crop", lambda route: route.fulfill(json=[response]))
    visitor.choose(image=image_of(sample))  # with landmarks, the page would send two requests: it has an image already
    expect(page.locator("#warnings li")).to_have_count(len(codes) + 1)
    texts = page.locator("#warnings li").all_inner_texts()
    assert [text for text in texts if text.startswith("message of")] == ["message of from_the_future"]
    assert "yaw -41°, pitch 3°" in texts[codes.index("not_frontal")]
    assert "1 region is not drawn" in texts[codes.index("regions_omitted")]


# Large photos, and other formats


def report_memory(name: str, visitor: Visitor, served: RunningService) -> None:
    """Print the peak memory of the processes, and the longest pause of the page."""
    heap = visitor.page.evaluate("performance.memory.usedJSHeapSize") / 1e6
    workers = [read_peak_mb(process) for process in served.workers()]
    tree = psutil.Process().children(recursive=True)
    renderers = [read_peak_mb(process) for process in tree if "--type=renderer" in process.cmdline()]
    visitor.page.wait_for_function("measured.duration > 0")
    measured = visitor.page.evaluate("measured")
    print(
        f"\n{name}: peak RSS of the workers {max(workers):.0f} MB, of the renderer {max(renderers):.0f} MB, "
        f"JavaScript heap {heap:.1f} MB, displayed after {measured['duration']:.0f} ms, "
        f"longest pause {measured['longestPause']:.0f} ms"
    )
    assert measured["longestPause"] < MAX_PAUSE_RATIO * measured["duration"]


def read_peak_mb(process: psutil.Process) -> float:
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1e3


LARGE = {
    "64 Mpx PNG": (".png", (8_000, 8_000), cv2.INTER_NEAREST, [cv2.IMWRITE_PNG_COMPRESSION, 1]),
    "48 Mpx JPEG": (".jpg", (8_000, 6_000), cv2.INTER_LINEAR, [cv2.IMWRITE_JPEG_QUALITY, 80]),
}


@pytest.mark.parametrize("name", LARGE)
def test_large_photo_is_displayed_without_freezing_the_page(
    visitor: Visitor, served: RunningService, sample: Sample, name: str
) -> None:
    extension, size, interpolation, options = LARGE[name]
    pixels = cv2.resize(decode(sample.photo)[:, :, :3], size, interpolation=interpolation)
    kind = "image/png" if extension == ".png" else "image/jpeg"
    content = sample.encode(extension, pixels, *options)
    visitor.page.evaluate(MEASURE_PAUSES)
    visitor.choose(image=(f"large{extension}", kind, content))
    visitor.expect_regions(15)
    expect(visitor.page.locator("#summary")).to_contain_text(f"{size[0]} × {size[1]}")
    photo = displayed_photo(visitor)
    report_memory(name, visitor, served)
    assert photo["size"] == [MAX_PREVIEW_PX, MAX_PREVIEW_PX * size[1] // size[0]]
    expected = cv2.resize(pixels, (32, 32), interpolation=cv2.INTER_AREA).reshape(-1, 3)
    assert np.abs(np.array(photo["pixels"]) - expected).mean() < 6
    assert visitor.open_urls() == 1


def test_large_photo_keeps_its_orientation_and_transparency(visitor: Visitor, sample: Sample) -> None:
    pixels = cv2.resize(decode(sample.photo)[:, :, :3], (3_600, 2_400))
    turned = with_orientation(sample.encode(".jpg", cv2.rotate(pixels, cv2.ROTATE_90_COUNTERCLOCKWISE)), 6)
    visitor.choose(image=("turned.jpg", "image/jpeg", turned))
    visitor.expect_regions(15)
    photo = displayed_photo(visitor)
    assert photo["size"] == [MAX_PREVIEW_PX, 1_365]
    expected = cv2.resize(pixels, (32, 32), interpolation=cv2.INTER_AREA)
    assert np.abs(np.array(photo["pixels"]) - expected.reshape(-1, 3)).mean() < 6
    clear = np.dstack([pixels, np.zeros(pixels.shape[:2], np.uint8)])
    clear[:1_200, :, 3] = 255
    drop(visitor, "#stage", landmarks_of(sample), ("clear.png", "image/png", sample.encode(".png", clear)))
    visitor.expect_regions(15)
    assert not np.array(displayed_photo(visitor)["pixels"])[600:].any()


def encode_heic(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    size = pixels.shape[1], pixels.shape[0]
    heif = pillow_heif.from_bytes("BGR", size, pixels.tobytes())
    heif.save(file, quality=80, enc_params={"preset": "ultrafast"})
    return file.getvalue()


def test_heic_is_displayed(visitor: Visitor, served: RunningService, sample: Sample) -> None:
    page = visitor.page
    pixels = cv2.resize(decode(sample.photo)[:, :, :3], (3_000, 3_000))
    page.evaluate(MEASURE_PAUSES)
    page.locator("#upright").check()
    visitor.choose(image=("photo.heic", "image/heic", encode_heic(pixels)))
    visitor.expect_regions(15)
    expect(page.locator("#frame")).to_have_attribute("data-preview", "service")
    expect(page.locator("#no-preview")).to_be_hidden()
    expect(page.locator("#welcome")).to_be_hidden()
    photo = displayed_photo(visitor)
    report_memory("9 Mpx HEIC", visitor, served)
    assert photo["size"] == [MAX_PREVIEW_PX, MAX_PREVIEW_PX]
    expected = cv2.resize(pixels, (32, 32), interpolation=cv2.INTER_AREA).reshape(-1, 3)
    assert np.abs(np.array(photo["pixels"]) - expected).mean() < 6
    assert visitor.calls == ["POST /api/v1/frontal/crop"] * 2
    visitor.response_of(lambda: page.locator("#upright").uncheck())
    visitor.expect_regions(15)
    assert visitor.calls == ["POST /api/v1/frontal/crop"] * 3  # the photo is requested once
    rendered = decode(save(visitor, "png")[1])
    assert rendered.shape[:2] == (3_000, 3_000)
    assert np.abs(rendered[2_800:, :, :3].astype(int) - pixels[2_800:]).mean() < 6
    shown = cv2.resize(decode(page.locator("#frame").screenshot()), (300, 300), interpolation=cv2.INTER_AREA)
    scaled = cv2.resize(rendered, (300, 300), interpolation=cv2.INTER_AREA)
    assert np.abs(shown[:, :, :3].astype(int) - scaled[:, :, :3]).mean() < 6
    assert visitor.open_urls() <= 2  # the photo, and a download that the browser may still read


def test_heic_without_a_face_is_explained(visitor: Visitor) -> None:
    visitor.expect_error("the server responded with a status of 422")
    grey = np.full((200, 200, 3), 127, np.uint8)
    visitor.choose(image=("grey.heic", "image/heic", encode_heic(grey)))
    assert "No face was found" in visitor.error_text()
    expect(visitor.page.locator("#welcome")).to_be_visible()
    expect(visitor.page.locator("#no-preview")).to_be_hidden()

"""A user of the page, and helpers to inspect what it displays and downloads."""

from __future__ import annotations

import base64
import struct
import subprocess
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from xml.etree import ElementTree as ET

import cv2
import numpy as np
import orjson
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import ConsoleMessage, Error, Page, Request, expect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conftest import Sample

JSON_FILE = "application/json"
LIMIT_MS = 30_000
ATTEMPTS = 5
# Containers that start next to the tests create network interfaces, and Chromium then aborts pending requests. The page
# retries them, so these console messages are not errors of the page.
NETWORK_CHANGED = "net::ERR_NETWORK_CHANGED"


class Visitor:
    """A user with an open page.

    Attributes:
        page: the page.
        calls: requests to the API, as method and path.
        errors: console errors, uncaught exceptions and requests to other origins.
    """

    def __init__(self, page: Page, api: str) -> None:
        self.page = page
        self.calls: list[str] = []
        self.errors: list[str] = []
        self._origin = api
        self._expected: list[str] = []
        self._changes = 0
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self.errors.append(f"uncaught: {error}"))
        page.on("request", self._on_request)
        # Playwright intercepts file choosers only after a delay, and a test may press a key earlier.
        page.on("filechooser", lambda _: None)

    def expect_error(self, text: str) -> None:
        """Expect a console error that contains a text, such as the status of an error response."""
        self._expected.append(text)

    def open(self, url: str) -> None:
        """Open a URL; retry if the network of the machine changes."""
        for _ in range(ATTEMPTS):
            changes = self._changes
            with suppress(Error):
                self.page.goto(url)
                if self.page.locator("html[data-ready=true]").count():
                    return
            assert self._changes > changes, self.errors
        raise TimeoutError(f"page not loaded: the network changed {self._changes} times")

    def load_sample(self) -> None:
        """Load the sample and wait for its regions."""
        self.page.click("#sample-landmarks")
        self.expect_regions(15)

    def choose(self, *, image: Any = None, landmarks: Any = None, label_map: Any = None) -> None:
        """Choose files, each a path or (name, type, bytes). The image is last, so that the page sends one request."""
        for slot, file in (("landmarks", landmarks), ("map", label_map), ("image", image)):
            if file is not None:
                self.page.set_input_files(f"#{slot}-file", file if isinstance(file, str) else [to_file(*file)])

    def expect_regions(self, count: int) -> None:
        """Wait until the overlay and the list contain this number of regions, and no request is running."""
        expect(self.page.locator("#stage[data-busy=false] .region")).to_have_count(count)
        expect(self.page.locator("#regions li")).to_have_count(count)

    def expect_regions_of_faces(self, count: int) -> None:
        """Wait until the overlay contains the regions of this number of faces, and no request is running."""
        expect(self.page.locator("#stage[data-busy=false] .overlay [data-face] .regions")).to_have_count(count)

    def responses_of(self, action: Callable[[], Any]) -> list[dict[str, Any]]:
        """Run an action and return the JSON response of the API, which has one document for each face."""
        with self.page.expect_response(lambda response: urlsplit(response.url).path.endswith("/crop")) as caught:
            action()
        documents: list[dict[str, Any]] = caught.value.json()
        return documents

    def response_of(self, action: Callable[[], Any]) -> dict[str, Any]:
        """Run an action and return the part of the JSON response of the API for the only face."""
        (document,) = self.responses_of(action)
        return document

    def error_text(self) -> str:
        """Wait for the error notice and return its text."""
        notice = self.page.locator("#error-notice")
        expect(notice.locator("h2")).to_be_visible()
        return notice.inner_text()

    def open_urls(self) -> int:
        """Count the object URLs that are not revoked."""
        count: int = self.page.evaluate("openUrls.size")
        return count

    def _on_console(self, message: ConsoleMessage) -> None:
        if NETWORK_CHANGED in message.text:
            self._changes += 1
        elif message.type in {"error", "warning"}:
            self.errors.append(f"{message.type}: {message.text}")

    def _on_request(self, request: Request) -> None:
        parts = urlsplit(request.url)
        if parts.scheme in {"blob", "data"}:
            return
        if f"{parts.scheme}://{parts.netloc}" != self._origin:
            self.errors.append(f"request to another origin: {parts.netloc}")
        if "/api/" in parts.path:
            self.calls.append(f"{request.method} {parts.path}")

    def check_errors(self) -> None:
        """Check that all errors were expected, and all expected errors occurred."""
        unexpected = [error for error in self.errors if not any(text in error for text in self._expected)]
        assert unexpected == []
        unseen = [text for text in self._expected if not any(text in error for error in self.errors)]
        assert unseen == [], "expected errors did not occur"


def to_file(name: str, media_type: str, content: bytes) -> dict[str, Any]:
    """Convert a file to the form that Playwright expects."""
    return {"name": name, "mimeType": media_type, "buffer": content}


@contextmanager
def offline(page: Page) -> Iterator[None]:
    """Disconnect the network for a while."""
    page.context.set_offline(True)
    try:
        yield
    finally:
        page.context.set_offline(False)


def image_of(sample: Sample) -> tuple[str, str, bytes]:
    return ("face.jpg", "image/jpeg", sample.jpeg)


def landmarks_of(sample: Sample) -> tuple[str, str, bytes]:
    return ("points.json", JSON_FILE, sample.landmarks)


def names(visitor: Visitor) -> list[str]:
    return visitor.page.locator("#regions .name").all_inner_texts()


def outlines(visitor: Visitor) -> dict[str, list[list[list[float]]]]:
    """Return the rings of each region in the overlay, by name."""
    found = {}
    for region in visitor.page.locator(".overlay .region").all():
        data = region.locator("path").get_attribute("d") or ""
        rings = [[[float(n) for n in point.split(",")] for point in ring.split("L")] for ring in data[1:-1].split("ZM")]
        found[region.get_attribute("data-name") or ""] = rings
    return found


def outlines_of(response: dict[str, Any]) -> dict[str, list[Any]]:
    return {
        region["name"]: [*region["contours"], *(hole["contour"] for hole in region["holes"])]
        for region in response["regions"]
    }


def save(visitor: Visitor, kind: str) -> tuple[str, bytes]:
    """Download a file and return its name and content."""
    with visitor.page.expect_download() as caught:
        visitor.page.click(f"#save-{kind}")
    return caught.value.suggested_filename, caught.value.path().read_bytes()


def parse_svg(content: bytes | str) -> ET.Element:
    return ET.fromstring(content)  # noqa: S314 - generated by the service


def decode(content: bytes) -> np.ndarray:
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    assert image is not None
    return image


def drop(visitor: Visitor, target: str, *files: tuple[str, str, bytes]) -> None:
    encoded = [[name, kind, base64.b64encode(content).decode()] for name, kind, content in files]
    transfer = visitor.page.evaluate_handle(
        """(files) => {
          const transfer = new DataTransfer();
          for (const [name, type, content] of files) {
            transfer.items.add(new File([Uint8Array.from(atob(content), (c) => c.charCodeAt(0))], name, { type }));
          }
          return transfer;
        }""",
        encoded,
    )
    locator = visitor.page.locator(target)
    locator.dispatch_event("dragenter", {"dataTransfer": transfer})
    expect(visitor.page.locator(".drop-hint")).to_be_visible()
    locator.dispatch_event("dragover", {"dataTransfer": transfer})
    locator.dispatch_event("drop", {"dataTransfer": transfer})
    expect(visitor.page.locator(".drop-hint")).to_be_hidden()


def with_orientation(jpeg: bytes, orientation: int) -> bytes:
    tiff = b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    exif = b"Exif\0\0" + tiff
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]


def check_accessibility(visitor: Visitor) -> None:
    found = Axe().run(visitor.page).response["violations"]
    bad = [(v["id"], [node["target"] for node in v["nodes"]]) for v in found if v["impact"] in {"serious", "critical"}]
    assert bad == []


def run_shell(command: str, folder: Path, **env: str) -> None:
    done = subprocess.run(
        ["/bin/sh", "-ec", command], cwd=folder, env={"PATH": "/usr/bin:/bin", **env}, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr


def check_saved_response(folder: Path, response: Any) -> None:
    """Check that a saved response is a response of the page, except for what differs with every request."""
    saved = orjson.loads((folder / "face.json").read_bytes())
    saved = saved.get("result", saved) if isinstance(saved, dict) else saved
    documents, responses = ([each] if isinstance(each, dict) else each for each in (saved, response))
    ignored = {"processing_time_ms": 0}
    assert [each | ignored for each in documents] == [each | ignored for each in responses]

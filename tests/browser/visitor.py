"""Somebody who visits the page, and what they look at and take along."""

from __future__ import annotations

import base64
import subprocess
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from xml.etree import ElementTree as ET

import cv2
import numpy as np
import orjson
from playwright.sync_api import ConsoleMessage, Error, Page, Request, expect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conftest import Sample

JSON_FILE = "application/json"
LIMIT_MS = 30_000
ATTEMPTS = 5
# Containers that come and go beside the tests are new network interfaces, for which Chromium drops every request that
# waits for a connection. The page asks again; what Chromium writes of it is not of its doing.
NETWORK_CHANGED = "net::ERR_NETWORK_CHANGED"


class Visitor:
    """A page as somebody has opened it, and what it does behind the scenes.

    Attributes:
        page: the page.
        calls: requests to the API, as method and path.
    """

    def __init__(self, page: Page, api: str) -> None:
        self.page = page
        self.calls: list[str] = []
        self.errors: list[str] = []
        self._origin = api
        self._expected: list[str] = []
        self._changes = 0
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.errors.append(f"uncaught: {error}"))
        page.on("request", self._see)
        # Playwright tells the browser late that choosers are its own; a key may be pressed before.
        page.on("filechooser", lambda _: None)

    def expect_error(self, text: str) -> None:
        """Say that the browser will write an error that has this text, such as the status of a refused request."""
        self._expected.append(text)

    def open(self, url: str) -> None:
        """Open an address, again where the machine's network changed meanwhile."""
        for _ in range(ATTEMPTS):
            changes = self._changes
            with suppress(Error):
                self.page.goto(url)
                if self.page.locator("html[data-ready=true]").count():
                    return
            assert self._changes > changes, self.errors
        raise TimeoutError(f"the machine's network changed {self._changes} times")

    def sample(self) -> None:
        """Try the sample, and wait for its regions."""
        self.page.click("#sample")
        self.see_regions(15)

    def choose(self, *, photo: Any = None, landmarks: Any = None, label_map: Any = None) -> None:
        """Choose files, each as a path or as (name, type, bytes); the photo last, so that there is one request."""
        for slot, file in (("landmarks", landmarks), ("map", label_map), ("photo", photo)):
            if file is not None:
                self.page.set_input_files(f"#{slot}-file", file if isinstance(file, str) else [as_file(*file)])

    def see_regions(self, count: int) -> None:
        """Wait until the picture and the list show that many regions, and nothing is under way."""
        expect(self.page.locator("#stage[data-busy=false] .region")).to_have_count(count)
        expect(self.page.locator("#regions li")).to_have_count(count)

    def answer_of(self, action: Callable[[], Any], path: str = "/crop") -> dict[str, Any]:
        """Do something, and return the document that the API answers with."""
        with self.page.expect_response(lambda response: urlsplit(response.url).path.endswith(path)) as caught:
            action()
        document: dict[str, Any] = caught.value.json()
        return document

    def trouble(self) -> str:
        """Wait for the notice of something that went wrong, and return its text."""
        notice = self.page.locator("#notice")
        expect(notice.locator("h2")).to_be_visible()
        return notice.inner_text()

    def open_urls(self) -> int:
        """Count the object URLs that are held."""
        count: int = self.page.evaluate("openUrls.size")
        return count

    def _hear(self, message: ConsoleMessage) -> None:
        if NETWORK_CHANGED in message.text:
            self._changes += 1
        elif message.type in {"error", "warning"}:
            self.errors.append(f"{message.type}: {message.text}")

    def _see(self, request: Request) -> None:
        parts = urlsplit(request.url)
        if parts.scheme in {"blob", "data"}:
            return
        if f"{parts.scheme}://{parts.netloc}" != self._origin:
            self.errors.append(f"a request to another host: {parts.netloc}")
        if "/api/" in parts.path:
            self.calls.append(f"{request.method} {parts.path}")

    def require_clean(self) -> None:
        """Show that nothing was written to the console, nothing broke the policy and nobody else was asked."""
        unexpected = [error for error in self.errors if not any(text in error for text in self._expected)]
        assert unexpected == []
        unseen = [text for text in self._expected if not any(text in error for error in self.errors)]
        assert unseen == [], "errors that were expected and did not come"


def as_file(name: str, media_type: str, content: bytes) -> dict[str, Any]:
    """Build a file as Playwright takes it."""
    return {"name": name, "mimeType": media_type, "buffer": content}


@contextmanager
def offline(page: Page) -> Iterator[None]:
    """Take the network away for a while."""
    page.context.set_offline(True)
    try:
        yield
    finally:
        page.context.set_offline(False)


def photo_of(sample: Sample) -> tuple[str, str, bytes]:
    return ("face.jpg", "image/jpeg", sample.jpeg)


def landmarks_of(sample: Sample) -> tuple[str, str, bytes]:
    return ("points.json", JSON_FILE, sample.landmarks)


def names(visitor: Visitor) -> list[str]:
    return visitor.page.locator("#regions .name").all_inner_texts()


def outlines(visitor: Visitor) -> dict[str, list[list[list[float]]]]:
    """Read what is drawn: name to rings of points."""
    found = {}
    for region in visitor.page.locator(".overlay .region").all():
        data = region.locator("path").get_attribute("d") or ""
        rings = [[[float(n) for n in point.split(",")] for point in ring.split("L")] for ring in data[1:-1].split("ZM")]
        found[region.get_attribute("data-name") or ""] = rings
    return found


def expected_outlines(answer: dict[str, Any]) -> dict[str, list[Any]]:
    return {
        region["name"]: [*region["contours"], *(hole["contour"] for hole in region["holes"])]
        for region in answer["regions"]
    }


def save(visitor: Visitor, kind: str) -> tuple[str, bytes]:
    """Download something, and return its name and bytes."""
    with visitor.page.expect_download() as caught:
        visitor.page.click(f"#save-{kind}")
    return caught.value.suggested_filename, caught.value.path().read_bytes()


def parse_svg(content: bytes | str) -> ET.Element:
    return ET.fromstring(content)  # noqa: S314 - our own document


def decode(content: bytes) -> np.ndarray:
    picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    assert picture is not None
    return picture


def drop(visitor: Visitor, target: str, *files: tuple[str, str, bytes]) -> None:
    given = [[name, kind, base64.b64encode(content).decode()] for name, kind, content in files]
    transfer = visitor.page.evaluate_handle(
        """(files) => {
          const transfer = new DataTransfer();
          for (const [name, type, content] of files) {
            transfer.items.add(new File([Uint8Array.from(atob(content), (c) => c.charCodeAt(0))], name, { type }));
          }
          return transfer;
        }""",
        given,
    )
    place = visitor.page.locator(target)
    place.dispatch_event("dragenter", {"dataTransfer": transfer})
    expect(visitor.page.locator(".drop-hint")).to_be_visible()
    place.dispatch_event("dragover", {"dataTransfer": transfer})
    place.dispatch_event("drop", {"dataTransfer": transfer})
    expect(visitor.page.locator(".drop-hint")).to_be_hidden()


def run_shell(command: str, folder: Path, **env: str) -> None:
    done = subprocess.run(
        ["/bin/sh", "-ec", command], cwd=folder, env={"PATH": "/usr/bin:/bin", **env}, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr


def require_same(folder: Path, answer: dict[str, Any]) -> None:
    made = orjson.loads((folder / "face.json").read_bytes())
    made = made.get("result", made)
    assert made["regions"] == answer["regions"]
    assert made["transform"] == answer["transform"]

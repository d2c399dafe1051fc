"""Take the screenshots of the page: start the service, and operate the page with Chromium.

Example: python tools/docs/draw_page.py docs
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from playwright.sync_api import Page, expect, sync_playwright

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

START_TIMEOUT_S = 60.0
FLAGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"]
COLOURS = 255


@contextmanager
def running_service() -> Iterator[str]:
    """Run the service with default settings on unused ports, and yield its URL."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        settings = {"PORT": "0", "METRICS_PORT": "0", "DATA_DIR": f"{folder}/data", "LOG_FORMAT": "json"}
        with log.open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "app", "serve"], env={**os.environ, **settings}, stderr=stderr
            )
        try:
            yield find_address(log, process)
        finally:
            process.terminate()
            process.wait()


def find_address(log: Path, process: subprocess.Popen[bytes]) -> str:
    """Wait for the log line that contains the URL of the API."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        for line in log.read_text(encoding="utf-8").splitlines():
            if '"api"' in line and line.endswith("}"):
                return str(json.loads(line)["api"])
        time.sleep(0.1)
    raise TimeoutError(
        f"expected the service to start within {START_TIMEOUT_S:g} s, got:\n{log.read_text(encoding='utf-8')}"
    )


def show_result(page: Page) -> None:
    """Process the sample with all labels, cropped to the face."""
    page.click("#sample-landmarks")
    expect(page.locator("#regions li")).to_have_count(15)
    page.locator("#show-labels").check(force=True)
    page.locator("#upright").check()
    page.locator("#crop").check()
    page.locator("#margin").fill("45")
    page.locator("#margin").dispatch_event("change")
    expect(page.locator("#snippet")).to_contain_text("margin=0.45")
    expect(page.locator("#stage[data-busy=false] .labels text")).to_have_count(15)


def encode_png(image: np.ndarray) -> bytes:
    """Encode an image as PNG with a palette, which halves its size with hardly visible differences.

    Args:
        image: ``(H, W, 3)`` uint8 BGR.
    """
    height, width = image.shape[:2]
    pixels = image.reshape(-1, 3)
    cv2.setRNGSeed(1)
    subset = pixels[np.random.default_rng(1).choice(len(pixels), 40_000, replace=False)].astype(np.float32)
    criteria = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 20, 0.5)
    labels: Any = None  # no initial assignment
    _, _, centres = cv2.kmeans(subset, COLOURS, labels, criteria, 1, cv2.KMEANS_PP_CENTERS)
    palette = np.clip(centres.round(), 0, 255).astype(np.uint8)
    colours, inverse = np.unique(pixels, axis=0, return_inverse=True)
    nearest = np.concatenate(
        [
            ((part[:, None].astype(np.int32) - palette[None]) ** 2).sum(axis=2).argmin(axis=1)
            for part in np.array_split(colours, max(1, len(colours) // 4096))
        ]
    )
    rows = np.zeros((height, width + 1), np.uint8)  # each row begins with its filter type: none
    rows[:, 1:] = nearest[inverse.ravel()].reshape(height, width)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    parts = (b"IHDR", header), (b"PLTE", palette[:, ::-1].tobytes()), (b"IDAT", zlib.compress(rows.tobytes(), 9))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in (*parts, (b"IEND", b"")))


def draw(chromium: str, folder: Path) -> None:
    """Take all screenshots."""
    screenshots: list[tuple[str, Callable[[Page], None], dict[str, Any]]] = [
        ("page.png", show_result, {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"}),
        (
            "page-phone.png",
            show_result,
            {"viewport": {"width": 390, "height": 800}, "color_scheme": "dark", "device_scale_factor": 1.5},
        ),
    ]
    with running_service() as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        for name, show, options in screenshots:
            page = browser.new_context(reduced_motion="reduce", **options).new_page()
            page.goto(address)
            show(page)
            page.evaluate("window.scrollTo(0, 0)")
            content = cv2.imdecode(np.frombuffer(page.screenshot(), np.uint8), cv2.IMREAD_COLOR)
            if content is None:
                raise ValueError("screenshot: decoding failed")
            target = folder / name
            target.write_bytes(encode_png(np.asarray(content, np.uint8)))
            print(f"{target}: {target.stat().st_size} bytes")
        browser.close()


def main() -> None:
    """Take the screenshots, or do nothing if Chromium is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="output folder")
    folder = parser.parse_args().folder
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        print("Chromium is missing; the screenshots are unchanged. Set CHROMIUM or PATH.", file=sys.stderr)
        return
    draw(chromium, folder)


if __name__ == "__main__":
    main()

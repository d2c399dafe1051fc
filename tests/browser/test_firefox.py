"""The page in Firefox: the whole path from a photo to its downloads, and its accessibility.

Firefox is operated by Marionette, Mozilla's own client, because Playwright needs its own build of Firefox.
"""

from __future__ import annotations

import base64
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import pytest
from axe_playwright_python.base import AXE_SCRIPT

from tests.browser.conftest import DESKTOP
from tests.browser.visitor import decode, parse_svg
from tests.live.conftest import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import Sample
    from tests.live.conftest import RunningService

marionette = pytest.importorskip("marionette_driver.marionette")

pytestmark = [
    pytest.mark.live,
    pytest.mark.timeout(600),
    # Marionette leaves files and sockets to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]

LIMIT_S = 60.0
NARROW = {"width": 500, "height": 800}  # Firefox has no narrower windows
SVG = "{http://www.w3.org/2000/svg}"
RUN_AXE = """
const [resolve] = arguments;
window.axe.run().then(({ violations }) => resolve(violations
  .filter(({ impact }) => impact === "serious" || impact === "critical")
  .map(({ id, nodes }) => [id, nodes.map(({ target }) => String(target))])));
"""


class FirefoxVisitor:
    """A user with the page open in Firefox."""

    def __init__(self, client: Any, downloads: Path) -> None:
        self.client = client
        self._downloads = downloads

    def query(self, expression: str, *arguments: Any) -> Any:
        """Evaluate an expression in the page."""
        return self.client.execute_script(f"return {expression}", script_args=list(arguments), sandbox=None)

    def wait_for(self, expression: str) -> Any:
        """Wait until an expression is true in the page."""
        return wait_until(lambda: self.query(expression), limit_s=LIMIT_S, what=expression)

    def click(self, selector: str) -> None:
        """Click an element as a user does, which fails if something is above it."""
        element = self.client.find_element("css selector", selector)
        self.query("arguments[0].scrollIntoView({ block: 'center' })", element)
        element.click()

    def choose(self, slot: str, path: Path) -> None:
        """Choose a file."""
        field = self.client.find_element("id", f"{slot}-file")
        self.query("arguments[0].hidden = false", field)  # a driver only uses what is visible
        field.send_keys(str(path))
        self.query("arguments[0].hidden = true", field)

    def expect_regions(self, count: int) -> None:
        """Wait until the overlay contains this number of regions, and no request is running."""
        self.wait_for(f"document.querySelectorAll('#stage[data-busy=false] .region').length === {count}")

    def save(self, kind: str) -> bytes:
        """Download a file and return its content."""
        before = set(self._downloads.iterdir())
        self.click(f"#save-{kind}")

        def find_new() -> bytes | None:
            complete = [path for path in self._downloads.glob(f"*.regions*.{kind}") if path not in before]
            pending = list(self._downloads.glob("*.part"))
            return complete[0].read_bytes() or None if complete and not pending else None

        return wait_until(find_new, limit_s=LIMIT_S, what=f"a downloaded {kind}") or b""

    def check_accessibility(self) -> None:
        """Check that axe finds nothing serious."""
        assert self.client.execute_async_script(f"{AXE_SCRIPT};{RUN_AXE}", sandbox=None) == []

    def check_width(self) -> None:
        """Check that nothing is wider than the window."""
        assert self.query("document.documentElement.scrollWidth <= window.innerWidth")


@contextmanager
def run_firefox(
    program: str, downloads: Path, log: Path, *, scheme: str, size: dict[str, int]
) -> Iterator[FirefoxVisitor]:
    downloads.mkdir()
    preferences = {
        "browser.download.folderList": 2,
        "browser.download.dir": str(downloads),
        "browser.download.alwaysOpenPanel": False,
        "layout.css.prefers-color-scheme.content-override": 0 if scheme == "dark" else 1,
        "ui.prefersReducedMotion": 1,
    }
    client = marionette.Marionette(bin=program, headless=True, prefs=preferences, gecko_log=str(log), port=0)
    try:
        client.start_session()
        client.timeout.script = LIMIT_S
        client.set_window_rect(**size)
        yield FirefoxVisitor(client, downloads)
    finally:
        client.cleanup()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, NARROW], ids=["desktop", "narrow"])
def test_page_in_firefox(
    firefox: str, served: RunningService, sample: Sample, tmp_path: Path, scheme: str, size: dict[str, int]
) -> None:
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(sample.jpeg)
    points = tmp_path / "points.json"
    points.write_bytes(sample.landmarks)
    with run_firefox(firefox, tmp_path / "downloads", tmp_path / "log", scheme=scheme, size=size) as visitor:
        visitor.client.navigate(f"{served.api}/")
        visitor.wait_for("document.documentElement.dataset.ready === 'true'")
        violations = (
            "addEventListener('securitypolicyviolation', (event) => (window.violation = event.violatedDirective))"
        )
        visitor.query(violations)
        background = visitor.query("getComputedStyle(document.documentElement).backgroundColor")
        assert (sum(map(int, background[4:-1].split(","))) < 150) == (scheme == "dark")
        visitor.check_accessibility()
        visitor.check_width()

        visitor.choose("landmarks", points)
        visitor.choose("image", photo)
        visitor.expect_regions(15)
        visitor.click("label:has(#show-labels)")
        visitor.click("#upright")
        visitor.wait_for("document.querySelector('#summary').textContent.includes('roll 0.0°')")
        visitor.expect_regions(15)
        assert visitor.query("document.querySelectorAll('.labels text').length") == 15
        response = orjson.loads(visitor.save("json"))
        names = {region["name"] for region in response["regions"]}
        svg = parse_svg(visitor.save("svg"))
        assert {text.text for text in svg.iter(f"{SVG}text")} == names
        png = decode(visitor.save("png"))
        assert png.shape[:2] == (response["output"]["height"], response["output"]["width"])
        assert png[:, :, :3].std() > 20

        visitor.click("#regions li:nth-child(3) input")
        visitor.wait_for("document.querySelectorAll('.region.off').length === 1")
        visitor.click("#zoom")
        visitor.wait_for("document.querySelector('#zoom').textContent === 'Show the whole photo'")
        visitor.click("#tab-javascript")
        visitor.wait_for("document.querySelector('#snippet').textContent.includes('node:fs')")
        visitor.click("#task-start")
        visitor.wait_for("document.querySelector('#task-status').textContent === 'Waiting for a worker'")
        visitor.click("#task-cancel")
        visitor.wait_for("document.querySelector('#task-status').textContent === 'Cancelled'")
        visitor.check_accessibility()
        visitor.check_width()
        assert visitor.query("window.violation || ''") == ""
        shown = decode(base64.b64decode(visitor.client.screenshot(full=False)))
        assert np.asarray(shown).std() > 10

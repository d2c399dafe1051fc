"""The interactive API documentation in Chromium."""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from tests.browser.visitor import LIMIT_MS
from tests.conftest import EXAMPLES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.live.conftest import RunningService

pytestmark = pytest.mark.live

PHOTO = EXAMPLES / "astronaut.png"
CROP = "/api/v1/frontal/crop"


@pytest.fixture
def open_docs(browser: Browser, served: RunningService) -> Iterator[Callable[..., Page]]:
    """Return a function that opens the documentation; check for errors of the page at the end."""
    contexts: list[BrowserContext] = []
    errors: list[str] = []

    def open_page(**options: Any) -> Page:
        context = browser.new_context(**options)
        contexts.append(context)
        context.set_default_timeout(10 * LIMIT_MS)  # Swagger UI resolves all references of an operation
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"{served.api}/docs")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert errors == []


@pytest.mark.timeout(600)
def test_a_chosen_photo_is_all_that_a_request_needs(open_docs: Callable[..., Page], served: RunningService) -> None:
    page = open_docs()
    operations = [
        ("regions-crop", CROP, 200),
        ("regions-find_landmarks", "/api/v1/frontal/landmarks", 200),
        ("tasks-submit_crop", f"{CROP}/submit", 202),
    ]
    answers: dict[str, Any] = {}
    for name, path, status in operations:
        block = page.locator(f"#operations-{name}")
        block.locator(".opblock-summary").click()
        block.locator("input[type=file]").first.set_input_files(PHOTO)
        with page.expect_response(lambda response, path=path: response.url.split("?")[0].endswith(path)) as caught:
            block.locator("button.execute").click()
        assert caught.value.status == status, caught.value.text()
        answers[name] = caught.value.json()
        block.locator(".opblock-summary").click()
    # Nothing but the photo was sent: fields that were not filled in do not change the result.
    expected = httpx.post(served.api + CROP, files={"image": PHOTO.read_bytes()}, timeout=60).json()
    found = answers["regions-crop"]
    assert base64.b64decode(found["svg"]) == base64.b64decode(expected["svg"])
    assert found | {"processing_time_ms": 0} == expected | {"processing_time_ms": 0}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_documentation_follows_the_colour_scheme(open_docs: Callable[..., Page], scheme: str) -> None:
    page = open_docs(color_scheme=scheme)
    expect(page.locator(".opblock").first).to_be_visible(timeout=10 * LIMIT_MS)
    red, green, blue = _colour(page.locator("html").evaluate("node => getComputedStyle(node).backgroundColor"))
    assert (red + green + blue < 200) == (scheme == "dark")
    other = "light" if scheme == "dark" else "dark"
    page.emulate_media(color_scheme=other)
    expect(page.locator("html.dark-mode")).to_have_count(1 if other == "dark" else 0)


def test_documentation_links_to_the_page(open_docs: Callable[..., Page], served: RunningService) -> None:
    page = open_docs()
    page.get_by_role("link", name="Try it with a photo on the page").click()
    expect(page).to_have_url(f"{served.api}/")


def _colour(text: str) -> tuple[int, ...]:
    numbers = re.findall(r"[\d.]+", text)
    # A transparent background shows the default, white.
    return (255, 255, 255) if len(numbers) > 3 and float(numbers[3]) == 0 else tuple(map(int, numbers[:3]))

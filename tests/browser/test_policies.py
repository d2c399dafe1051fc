"""Pages under their Content-Security-Policy, in a real browser."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest
from playwright.sync_api import expect

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.browser.visitor import Visitor
    from tests.conftest import Sample
    from tests.live.conftest import RunningService

pytestmark = pytest.mark.live


def test_the_docs_work_under_their_policy(visit: Callable[..., Visitor], served: RunningService) -> None:
    """A refused script or style is an error on the console, which the visitor reports."""
    visitor = visit(served, "/")
    visitor.page.goto(f"{served.api}/docs")
    expect(visitor.page.locator(".opblock").first).to_be_visible()
    assert visitor.errors == []


def test_an_overlay_with_its_photo_is_shown_under_its_policy(
    visit: Callable[..., Visitor], served: RunningService, sample: Sample
) -> None:
    answer = httpx.post(
        f"{served.api}/api/v1/frontal/crop?background=image&show_labels=true",
        content=sample.json(),
        headers={"Content-Type": "application/json", "Accept": "image/svg+xml"},
    ).raise_for_status()
    policy = answer.headers["content-security-policy"]
    visitor = visit(served, "/")
    address = f"{served.api}/face.svg"
    headers = {"Content-Type": "image/svg+xml", "Content-Security-Policy": policy}
    visitor.page.route(address, lambda route: route.fulfill(body=answer.content, headers=headers))
    visitor.page.goto(address)
    expect(visitor.page.locator("image")).to_have_count(1)
    left, width = visitor.page.evaluate(
        "() => { const box = document.querySelector('image').getBoundingClientRect(); return [box.left, box.width] }"
    )
    assert left >= 0
    assert width > 100
    assert visitor.errors == []

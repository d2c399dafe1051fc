"""Pages with their Content-Security-Policy, in a browser."""

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


def test_docs_work_with_their_policy(visit: Callable[..., Visitor], served: RunningService) -> None:
    """A blocked script or style is a console error, which the visitor records."""
    visitor = visit(served, "/")
    visitor.page.goto(f"{served.api}/docs")
    expect(visitor.page.locator(".opblock").first).to_be_visible()
    assert visitor.errors == []


def test_overlay_with_background_works_with_its_policy(
    visit: Callable[..., Visitor], served: RunningService, sample: Sample
) -> None:
    response = httpx.post(
        f"{served.api}/api/v1/frontal/crop?background=image&show_labels=true",
        content=sample.json(),
        headers={"Content-Type": "application/json", "Accept": "image/svg+xml"},
    ).raise_for_status()
    policy = response.headers["content-security-policy"]
    visitor = visit(served, "/")
    address = f"{served.api}/face.svg"
    headers = {"Content-Type": "image/svg+xml", "Content-Security-Policy": policy}
    visitor.page.route(address, lambda route: route.fulfill(body=response.content, headers=headers))
    visitor.page.goto(address)
    expect(visitor.page.locator("image")).to_have_count(1)
    left, width = visitor.page.evaluate(
        "() => { const box = document.querySelector('image').getBoundingClientRect(); return [box.left, box.width] }"
    )
    assert left >= 0
    assert width > 100
    assert visitor.errors == []

"""Pages under their Content-Security-Policy, in a real browser."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.browser.visitor import Visitor
    from tests.live.conftest import RunningService

pytestmark = pytest.mark.live


def test_the_docs_work_under_their_policy(visit: Callable[..., Visitor], served: RunningService) -> None:
    """A refused script or style is an error on the console, which the visitor reports."""
    visitor = visit(served, "/docs")
    expect(visitor.page.locator(".opblock").first).to_be_visible()

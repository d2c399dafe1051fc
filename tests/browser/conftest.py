"""Fixtures for tests of the page in Chromium and Firefox, with a running service.

Chromium is the program in CHROMIUM, or the one on PATH, and Firefox the one in FIREFOX, or on PATH. If one is missing,
its tests are skipped, or fail if BROWSER_REQUIRED is 1.
"""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from tests.browser.visitor import LIMIT_MS, Visitor

# Fixtures of the live tests.
from tests.live.conftest import give_wait_until, run_nats, run_service, run_worker  # noqa: F401 - fixtures

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from tests.live.conftest import RunningNats, RunningService

DESKTOP = {"width": 1280, "height": 860}
PHONE = {"width": 360, "height": 740}
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# Track the object URLs that are not revoked.
COUNT_URLS = """
  window.openUrls = new Set();
  const { createObjectURL, revokeObjectURL } = URL;
  URL.createObjectURL = (blob) => { const url = createObjectURL.call(URL, blob); openUrls.add(url); return url; };
  URL.revokeObjectURL = (url) => { openUrls.delete(url); revokeObjectURL.call(URL, url); };
"""


@pytest.fixture(scope="session")
def chromium() -> str:
    """Return the path of Chromium."""
    return find_browser("CHROMIUM", "chromium", "chromium-browser")


@pytest.fixture(scope="session")
def firefox() -> str:
    """Return the path of Firefox."""
    return find_browser("FIREFOX", "firefox-esr", "firefox")


def find_browser(variable: str, *names: str) -> str:
    """Return the program in an environment variable, or the first one on PATH; skip the test if there is none."""
    found = os.environ.get(variable) or next(filter(None, map(shutil.which, names)), None)
    if found:
        return found
    message = f"{names[0]}: not found; set {variable}, or install it (Debian: apt-get install {names[0]})"
    if os.environ.get("BROWSER_REQUIRED") == "1":
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    """One browser for each module. While it runs, this thread cannot run another event loop."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        expect.set_options(timeout=LIMIT_MS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def nats(run_nats: Callable[..., AbstractContextManager[RunningNats]]) -> Iterator[RunningNats]:  # noqa: F811 - the fixture's name
    """The NATS server of `served`, which a test may stop and start."""
    with run_nats() as servers:
        yield servers


@pytest.fixture(scope="module")
def served(
    run_service: Callable[..., AbstractContextManager[RunningService]],  # noqa: F811 - the fixture's name
    nats: RunningNats,
) -> Iterator[RunningService]:
    """The service with a task queue but without a worker, unless a test starts one."""
    with run_service(NATS_URL=nats.url, WORKERS=2, NATS_TIMEOUT_S=2) as running:
        yield running


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Visitor]]:
    """Return ``visit(service, path="/", **context)``, which opens the page; check for errors at the end."""
    visitors: list[Visitor] = []

    def open_page(service: RunningService | str, path: str = "/", **options: Any) -> Visitor:
        base = service if isinstance(service, str) else service.api
        context = browser.new_context(**{"viewport": DESKTOP, "color_scheme": "light", **options})
        context.set_default_timeout(LIMIT_MS)
        context.add_init_script(COUNT_URLS)
        page = context.new_page()
        visitor = Visitor(page, base)
        visitors.append(visitor)
        visitor.open(base + path)
        return visitor

    yield open_page
    for visitor in visitors:
        visitor.page.context.close()
    for visitor in visitors:
        visitor.check_errors()


@pytest.fixture
def visitor(visit: Callable[..., Visitor], served: RunningService) -> Visitor:
    """The page of `served`, opened on a desktop in light mode."""
    return visit(served)

"""The code that the page offers: each program returns what the page displays."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from playwright.sync_api import expect

from tests.browser.visitor import check_saved_response, drop, landmarks_of, parse_svg

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tests.browser.visitor import Visitor
    from tests.conftest import Sample
    from tests.live.conftest import RunningNats, RunningService

    Visit = Callable[..., Visitor]

pytestmark = pytest.mark.live

KEY = "a-key-of-this-test"
LANGUAGES = ["curl", "python", "javascript"]
SVG = "{http://www.w3.org/2000/svg}"


def run_snippet(visitor: Visitor, language: str, folder: Path, answer: str = "json", **env: str) -> bytes:
    """Run the displayed code in a folder, and return the file that it writes."""
    page = visitor.page
    page.locator("#snippet-format").select_option(answer)
    page.click(f"#tab-{language}")
    code = page.locator("#snippet").inner_text()
    if language == "curl":
        command: list[str] = ["/bin/sh", "-ec", code]
    elif language == "python":
        command = [sys.executable, "-c", code]
    else:
        node = shutil.which("node")
        if node is None:
            pytest.skip("Node.js is missing")
        script = folder / "snippet.mjs"
        script.write_text(code, encoding="utf-8")
        command = [node, str(script)]
    variables = {"PATH": os.environ["PATH"], **env}
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr.decode()
    return (folder / f"face.{answer}").read_bytes()


@pytest.mark.parametrize("language", LANGUAGES)
def test_code_returns_the_displayed_result(visitor: Visitor, sample: Sample, language: str, tmp_path: Path) -> None:
    page = visitor.page
    visitor.load_sample()
    visitor.response_of(lambda: page.locator("#upright").check())
    response = visitor.response_of(lambda: page.locator("#crop").check())
    visitor.expect_regions(15)
    expect(page.locator("#snippet")).to_contain_text("upright")
    run_snippet(visitor, language, tmp_path)
    check_saved_response(tmp_path, response)

    page.locator("#show-labels").check(force=True)
    page.locator("#show-landmarks").check(force=True)
    page.locator("#opacity").fill("60")
    root = parse_svg(run_snippet(visitor, language, tmp_path, "svg"))
    assert root.find(f".//{SVG}image") is not None
    assert {text.text for text in root.iter(f"{SVG}text")} == {region["name"] for region in response["regions"]}
    regions = root.find(f".//{SVG}g[@class='regions']")
    assert regions is not None
    assert regions.get("fill-opacity") == "0.6"

    name = """a photo; it's "odd", $HOME\\x `é`.jpg"""
    (tmp_path / name).write_bytes(sample.jpeg)
    (tmp_path / "points.json").write_bytes(sample.landmarks)
    response = visitor.response_of(lambda: drop(visitor, "#stage", landmarks_of(sample), (name, "", sample.jpeg)))
    visitor.expect_regions(15)
    expect(page.locator("#snippet-note")).to_contain_text(f"Run it in the directory of {name}, points.json.")
    run_snippet(visitor, language, tmp_path)
    check_saved_response(tmp_path, response)


@pytest.mark.usefixtures("face_models")
@pytest.mark.parametrize("language", LANGUAGES)
def test_code_returns_the_displayed_faces(visitor: Visitor, language: str, tmp_path: Path) -> None:
    page = visitor.page
    responses = visitor.responses_of(lambda: page.click("#sample-faces"))
    visitor.expect_regions_of_faces(3)
    run_snippet(visitor, language, tmp_path)
    check_saved_response(tmp_path, responses)
    page.locator("#faces input[value='2']").check(force=True)
    visitor.expect_regions(15)
    run_snippet(visitor, language, tmp_path)
    check_saved_response(tmp_path, responses[2])


@pytest.fixture(scope="module")
def guarded(
    run_service: Callable[..., AbstractContextManager[RunningService]], nats: RunningNats
) -> Iterator[RunningService]:
    """Run a service that needs an API key."""
    with run_service(WORKERS=1, API_KEYS=KEY, NATS_URL=nats.url) as running:
        yield running


@pytest.mark.parametrize("language", LANGUAGES)
def test_code_of_a_task_with_an_api_key(
    visit: Visit,
    guarded: RunningService,
    nats: RunningNats,
    run_worker: Callable[..., AbstractContextManager[Any]],
    language: str,
    tmp_path: Path,
) -> None:
    visitor = visit(guarded)
    page = visitor.page
    page.click("#sample-landmarks")
    page.locator("#key").fill(KEY)
    page.locator("#key").press("Enter")
    visitor.expect_regions(15)
    with run_worker(NATS_URL=nats.url, TASK_WORKERS=1, API_KEYS=KEY):
        page.click("#task-start")
        expect(page.locator("#summary")).to_contain_text("as a task")
        with page.expect_download() as caught:
            page.click("#save-json")
        response = orjson.loads(caught.value.path().read_bytes())
        run_snippet(visitor, language, tmp_path, API_KEY=KEY)
        check_saved_response(tmp_path, response)
        root = parse_svg(run_snippet(visitor, language, tmp_path, "svg", API_KEY=KEY))
        assert len([group for group in root.iter(f"{SVG}g") if group.get("class") == "region"]) == 15
    assert KEY not in page.locator("#snippet").inner_text()


def test_code_is_not_clipped(visit: Visit, served: RunningService) -> None:
    visitor = visit(served, viewport={"width": 360, "height": 740})
    visitor.load_sample()
    for language in LANGUAGES:
        visitor.page.click(f"#tab-{language}")
        panel = visitor.page.locator("#snippet-panel")
        assert panel.evaluate("panel => panel.scrollWidth <= panel.clientWidth")

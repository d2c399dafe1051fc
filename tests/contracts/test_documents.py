"""The documentation matches the code."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import msgspec
import pytest

from app import __version__
from app.face.errors import PUBLIC_CODES
from app.main import create_app
from app.observability.metrics import METRICS
from app.service.detector_pool import DetectorPool
from app.settings import Settings
from app.supervisor.banner import sample_command
from app.web.problems import PROBLEMS, TASK_ERRORS
from app.web.schemas import CropResponse, TaskResponse

if TYPE_CHECKING:
    from fastapi import FastAPI

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
API = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
DOCUMENTS = [
    *ROOT.glob("*.md"),
    *(ROOT / "docs").rglob("*.md"),
    *(ROOT / name / "README.md" for name in ("charts/facial-service", "examples", "grafana")),
]
MAX_README_LINES = 220


@pytest.fixture(scope="module")
def app() -> FastAPI:
    return create_app(Settings())


def test_generated_tables_are_fresh() -> None:
    done = subprocess.run(
        [sys.executable, "tools/docs/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_worked_examples_are_fresh(tmp_path: Path) -> None:
    target = tmp_path / "examples.json"
    subprocess.run([sys.executable, "examples/make_docs_examples.py", str(target)], cwd=ROOT, check=True)
    made, kept = (json.loads(path.read_text()) for path in (target, ROOT / "app/web/static/examples.json"))
    assert made.keys() == kept.keys()
    for name in made:
        # Other encoder versions may write other bytes for the same image; everything else is equal.
        for example in (made[name]["value"], kept[name]["value"]):
            example.pop("image")
        assert made[name] == kept[name]


@pytest.mark.skipif(not DetectorPool().has_models, reason="the face-detection models are not installed")
def test_response_examples_are_fresh(tmp_path: Path) -> None:
    target = tmp_path / "response_examples.json"
    subprocess.run([sys.executable, "examples/make_response_examples.py", str(target)], cwd=ROOT, check=True)
    made, kept = (json.loads(path.read_text()) for path in (target, ROOT / "app/web/static/response_examples.json"))
    # Detected landmarks may differ in their last digits on another machine.
    for examples in (made, kept):
        value = examples["landmarks_result"]["value"]
        assert len(value.pop("landmarks")) == 478
        del value["detection"], value["face"]
    assert made == kept


def test_readme_command_is_the_banners() -> None:
    joined = re.sub(r"\s*\\\n\s*", " ", README)
    assert sample_command("http://127.0.0.1:8000") in joined


def test_overlay_is_drawn_by_the_current_renderer(tmp_path: Path) -> None:
    command = [sys.executable, "tools/docs/draw_overlay.py", "--check"]
    assert subprocess.run([*command, "docs"], cwd=ROOT, check=False).returncode == 0
    content = (ROOT / "docs" / "overlay.jpg").read_bytes()
    digest = re.search(rb"sha256 of overlay and sample: ([0-9a-f]{64})", content)
    assert digest
    (tmp_path / "overlay.jpg").write_bytes(content.replace(digest[1], b"0" * 64))
    stale = subprocess.run([*command, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert stale.returncode == 1
    assert stale.stderr.startswith("out of date: ")


def test_readme_is_short_and_links_to_every_page() -> None:
    assert len(README.splitlines()) <= MAX_README_LINES
    pages = {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")} - {"docs/README.md"}
    assert {page for page in pages if f"({page}" not in README} == set()
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    assert {page for page in pages if f"({page.removeprefix('docs/')})" not in index} == set()


def test_readme_has_the_current_version() -> None:
    assert set(re.findall(r"facial-service:(\d+\.\d+\.\d+)", README)) == {__version__}


def test_documented_response_is_the_samples(app: FastAPI, sample: Any) -> None:
    block = next(text for text in re.findall(r"```json\n(.*?)```", API, re.DOTALL) if "mask_contours" in text)
    answer: dict[str, Any] = json.loads(block)
    documented = msgspec.convert(
        {**answer, "regions": [], "mask_contours": {}}, CropResponse
    )  # without the contours, which are abbreviated in the text
    assert list(answer) == list(CropResponse.__struct_fields__)
    body = json.dumps({"image": base64.b64encode(sample.photo).decode(), "landmarks": sample.points})
    real = asyncio.run(post(app, body))
    assert (documented.face, documented.image) == (real.face, real.image)
    (shown,), nose = answer["regions"], next(region for region in real.regions if region.name == "nose")
    assert (shown["area_px"], shown["bbox"]) == (nose.area_px, nose.bbox)
    assert shown["contours"][0] == nose.contours[0][: len(shown["contours"][0])]


async def post(app: FastAPI, body: str) -> CropResponse:
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        headers = {"Content-Type": "application/json"}
        answer = await client.post("/api/v1/frontal/crop", content=body, headers=headers)
    return msgspec.json.decode(answer.raise_for_status().content, type=CropResponse)


def test_documented_task_has_every_member() -> None:
    block = next(text for text in re.findall(r"```json\n(.*?)```", API, re.DOTALL) if "task_id" in text)
    task: dict[str, Any] = json.loads(block)
    assert list(task) == list(TaskResponse.__struct_fields__)
    assert task["result"].keys() < set(CropResponse.__struct_fields__)
    msgspec.convert({**task, "result": None}, TaskResponse)


def test_every_path_is_documented(app: FastAPI) -> None:
    paths = set(app.openapi()["paths"]) | {"/docs", "/openapi.json"}
    assert {path for path in paths if f"{path}`" not in API} == set()


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("metrics", [spec.name for spec in METRICS]),
        ("settings", [name.upper() for name in Settings.model_fields]),
    ],
)
def test_every_metric_and_setting_is_documented_once(page: str, names: list[str]) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    assert [name for name in names if text.count(f"| `{name}` |") != 1] == []


def test_every_code_is_documented_once() -> None:
    text = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    codes = [*PROBLEMS, *PUBLIC_CODES, *TASK_ERRORS]
    assert len(codes) == len(set(codes))
    assert [code for code in codes if text.count(f"| `{code}` |") != 1] == []


def list_anchors(document: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a document."""
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_to_a_file_and_a_heading(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)|<img src=\"([^\"]+)\"", text):
        name, _, anchor = "".join(target).partition("#")
        if ":" in name:
            continue
        page = (document.parent / name).resolve() if name else document
        assert page.exists(), f"{target}: the file does not exist"
        assert not anchor or anchor in list_anchors(page), f"{target}: {page.name} has no such heading"


def test_make_targets_in_documents_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z0-9-]+):", makefile, re.MULTILINE))
    for document in [*DOCUMENTS, ROOT / ".github/workflows/ci.yaml", ROOT / ".ci/run"]:
        text = document.read_text(encoding="utf-8")
        named = set(re.findall(r"(?:`|\$ |run: |^)make ([a-z0-9-]+)", text, re.MULTILINE))
        assert named <= targets, document.name

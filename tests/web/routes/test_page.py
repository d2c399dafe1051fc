"""The document and assets of the page, and their headers."""

from __future__ import annotations

import base64
import gzip
import hashlib
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from app.web.routes.page import load_assets

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx
    from fastapi import FastAPI

    Call = Callable[..., httpx.Response]
    MakeApp = Callable[..., FastAPI]

ROOT = Path(__file__).parents[3]
IMMUTABLE = "public, max-age=31536000, immutable"


def links_of(text: str) -> list[str]:
    return re.findall(r'(?:src|href)="([^"#]+)"', text)


def test_document_is_restricted_to_its_own_origin(make_app: MakeApp, call: Call) -> None:
    response = call(make_app(), "GET", "/")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    scripts = re.findall(r"<script>(.*?)</script>", response.text, re.DOTALL)
    hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in scripts]
    assert len(hashes) == 1
    policy = dict(part.strip().split(" ", 1) for part in response.headers["content-security-policy"].split(";"))
    assert policy == {
        "default-src": "'none'",
        "script-src": f"'self' {hashes[0]}",
        "style-src": "'self'",
        "img-src": "'self' blob:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "preview-worker",
    }
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=|https?://", response.text)


def test_links_are_relative_and_exist(make_app: MakeApp, call: Call) -> None:
    app = make_app(root_path="/faces")
    page = call(app, "GET", "/").text
    assert "{{" not in page
    links = links_of(page)
    assert len(links) > 15
    for link in links:
        assert not link.startswith(("/", "http", ".")), link
        response = call(app, "GET", f"/{link}")
        assert response.status_code == 200, link
        assert link == "docs" or response.headers["x-content-type-options"] == "nosniff"


def test_modules_import_existing_modules_by_relative_path() -> None:
    names = load_assets().by_name
    scripts = {name: asset.content.decode() for name, asset in names.items() if name.endswith(".js")}
    statement = re.compile(r'^import .*"(.+)";$', re.MULTILINE)
    imports = [(name, found) for name, text in scripts.items() for found in statement.findall(text)]
    assert len(imports) > 20
    assert [pair for pair in imports if not pair[1].startswith("./") or pair[1][2:] not in names] == []
    # Data cannot become markup or code.
    forbidden = re.compile(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\(|new Function")
    assert [name for name, text in scripts.items() if forbidden.search(text)] == []


def test_no_module_is_long() -> None:
    lengths = {
        name: asset.content.count(b"\n") for name, asset in load_assets().by_name.items() if name.endswith(".js")
    }
    assert max(lengths.values()) <= 600, lengths


def test_only_assets_of_the_current_version_are_immutable(make_app: MakeApp, call: Call) -> None:
    app = make_app()
    version = load_assets().version
    current = call(app, "GET", f"/page/{version}/main.js")
    assert current.headers["cache-control"] == IMMUTABLE
    assert current.headers["content-type"] == "text/javascript; charset=utf-8"
    other = call(app, "GET", "/page/0123456789abcdef/main.js")
    assert other.headers["cache-control"] == "no-cache"
    assert other.content == current.content
    assert call(app, "GET", f"/page/{version}/photo.jpg").json()["code"] == "not_found"
    # The document is only served with its headers.
    assert call(app, "GET", f"/page/{version}/index.html").status_code == 404
    assert call(app, "GET", f"/page/{version}/..%2fexamples.json").status_code == 404


@pytest.mark.parametrize("path", ["/", "/page/any/main.js", "/page/any/page.css", "/page/any/icon.svg"])
def test_text_is_compressed(make_app: MakeApp, call: Call, path: str) -> None:
    app = make_app()
    plain = call(app, "GET", path, headers={"accept-encoding": "identity"})
    for accepted in ("gzip", "br, GZIP;q=0.5", "deflate,gzip ; q=1.0"):
        packed = call(app, "GET", path, headers={"accept-encoding": accepted})
        assert packed.headers["content-encoding"] == "gzip"
        assert packed.content == plain.content  # the client decompresses it
        assert int(packed.headers["content-length"]) == len(gzip.compress(plain.content))
        assert int(packed.headers["content-length"]) < 0.8 * len(plain.content)
        assert packed.headers["etag"] != plain.headers["etag"]
        assert packed.headers["vary"] == plain.headers["vary"] == "Accept-Encoding"
        known = {"accept-encoding": accepted, "if-none-match": packed.headers["etag"]}
        again = call(app, "GET", path, headers=known)
        assert (again.status_code, again.content, again.headers["vary"]) == (304, b"", "Accept-Encoding")
    for refused in ("", "br", "gzip;q=0", "gzip; q=0.000", "xgzip"):
        response = call(app, "GET", path, headers={"accept-encoding": refused})
        assert "content-encoding" not in response.headers
        assert response.content == plain.content


def test_images_are_not_compressed_again(make_app: MakeApp, call: Call) -> None:
    response = call(make_app(), "GET", "/page/any/astronaut.jpg", headers={"accept-encoding": "gzip"})
    assert not {"content-encoding", "vary"} & set(response.headers)


@pytest.mark.parametrize("path", ["/", "/page/any/main.js"])
def test_conditional_requests(make_app: MakeApp, call: Call, path: str) -> None:
    app = make_app()
    first = call(app, "GET", path)
    etag = first.headers["etag"]
    for known in (etag, f'"other", W/{etag}', "*"):
        response = call(app, "GET", path, headers={"if-none-match": known})
        assert (response.status_code, response.content) == (304, b"")
        assert response.headers["etag"] == etag
        assert response.headers["cache-control"] == first.headers["cache-control"]
    assert call(app, "GET", path, headers={"if-none-match": '"other"'}).status_code == 200
    head = call(app, "HEAD", path)
    assert (head.status_code, head.headers["etag"]) == (200, etag)
    assert call(app, "POST", path).status_code == 405


def test_document_describes_the_settings(make_app: MakeApp, call: Call, tmp_path: Path) -> None:
    def attributes(**settings: object) -> dict[str, str]:
        return dict(
            re.findall(r'data-([a-z-]+)="([^"]*)"', call(make_app(**settings), "GET", "/").text.split("<head>")[0])
        )

    default = attributes(models_dir=tmp_path)  # without models
    assert default == {
        "assets": f"page/{load_assets().version}",
        "has-detection": "false",
        "has-tasks": "true",
        "is-key-needed": "false",
        "max-body-bytes": "16777216",
    }
    other = attributes(models_dir=tmp_path, enable_tasks=False, api_keys="secret-key", max_body_bytes=4096)
    assert other == {**default, "has-tasks": "false", "is-key-needed": "true", "max-body-bytes": "4096"}
    assert "secret-key" not in call(make_app(api_keys="secret-key"), "GET", "/").text


def test_page_requires_no_api_key(make_app: MakeApp, call: Call) -> None:
    app = make_app(api_keys="secret-key")
    assert [call(app, "GET", f"/{link}").status_code for link in ["", *links_of(call(app, "GET", "/").text)]] == [
        200
    ] * (1 + len(links_of(call(app, "GET", "/").text)))


def test_page_can_be_disabled(make_app: MakeApp, call: Call) -> None:
    app = make_app(enable_page=False)
    version = load_assets().version
    assert [call(app, "GET", path).status_code for path in ("/", f"/page/{version}/main.js", "/docs")] == [
        404,
        404,
        200,
    ]


def test_page_is_counted_by_route(
    make_app: MakeApp, call: Call, scrape: Callable[[], dict[tuple[str, ...], float]]
) -> None:
    app = make_app()
    version = load_assets().version
    for path in ("/", f"/page/{version}/main.js", f"/page/{version}/base.css"):
        call(app, "GET", path)
    counted = {key[1:]: value for key, value in scrape().items() if key[0] == "api_requests_total"}
    assert counted == {("/", "GET", "200"): 1, ("/page/{version}/{name}", "GET", "200"): 2}


@pytest.mark.usefixtures("face_models")
def test_samples_without_landmarks(make_app: MakeApp, call: Call) -> None:
    assert 'data-has-detection="true"' in call(make_app(), "GET", "/").text
    for name, count in (("astronaut.jpg", 1), ("faces.jpg", 3)):
        image = (files("app.web") / "static" / "page" / name).read_bytes()
        assert len(image) < 50_000
        faces = call(make_app(), files={"image": image}, data={"face": "all"}).json()
        assert [face["regions_detected"] for face in faces] == [15] * count


def test_sample_is_small_and_valid(make_app: MakeApp, call: Call) -> None:
    folder = files("app.web") / "static" / "page"
    image, landmarks = ((folder / name).read_bytes() for name in ("astronaut.jpg", "astronaut.landmarks.json"))
    assert len(image) < 40_000
    form = {"image": ("a.jpg", image), "landmarks": ("a.json", landmarks)}
    response = call(make_app(), files=form)
    assert response.status_code == 200
    assert response.json()["regions_detected"] == 15


def test_sample_is_generated_from_the_examples(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "examples/make_page_sample.py", str(tmp_path)], cwd=ROOT, check=True)
    kept = ROOT / "app/web/static/page"
    # Another version of the encoder may write other bytes for the same image; the landmarks do not depend on it.
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "astronaut.jpg",
        "astronaut.landmarks.json",
        "faces.jpg",
    ]
    name = "astronaut.landmarks.json"
    assert (tmp_path / name).read_bytes() == (kept / name).read_bytes()

"""The page at ``/``: a document and its assets.

All links are relative, so that the page works under any prefix that a proxy adds. The path of the assets contains a
digest of all of them, so that a browser can cache them permanently and never mixes two versions. Text is compressed
once, because compressing it for each request would take longer than everything else.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import re
from dataclasses import dataclass
from functools import cache, lru_cache
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Final

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

from app import __version__
from app.web.state import web_state

if TYPE_CHECKING:
    from collections.abc import Mapping

router = APIRouter(include_in_schema=False)

DOCUMENT: Final = "index.html"
MEDIA_TYPES: Final = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "jpg": "image/jpeg",
    "js": "text/javascript; charset=utf-8",
    "json": "application/json",
    "svg": "image/svg+xml",
}
# Everything comes from this origin, except images in memory (`blob:`). The page never parses HTML, so the only policy
# of Trusted Types is the one that returns the URL of the page's worker.
CONTENT_SECURITY_POLICY: Final = (
    "default-src 'none'; script-src 'self' {scripts}; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types preview-worker"
)
_COMMON: Final = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
_IMMUTABLE: Final = "public, max-age=31536000, immutable"
_REVALIDATE: Final = "no-cache"
_INLINE_SCRIPT: Final = re.compile(rb"<script>(.*?)</script>", re.DOTALL)
_REFUSED: Final = re.compile(r"\s*q\s*=\s*0(?:\.0*)?\s*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Asset:
    """A file of the page."""

    content: bytes
    media_type: str  # with a charset for text
    etag: str  # quoted digest of the content
    gzipped: bytes | None  # None for an image, which is compressed already


@dataclass(frozen=True, slots=True)
class Assets:
    """Assets of the document."""

    version: str  # digest of all assets
    by_name: Mapping[str, Asset]


@cache
def load_assets() -> Assets:
    """Load every file of the page except its document: about 200 kB, which each worker process keeps in memory."""
    folder = files("app.web") / "static" / "page"
    names = sorted(path.name for path in folder.iterdir() if path.name != DOCUMENT)
    found = {name: _make_asset((folder / name).read_bytes(), name) for name in names}
    digest = _digest(b"".join(name.encode() + asset.etag.encode() for name, asset in found.items()))
    return Assets(digest, found)


def _make_asset(content: bytes, name: str) -> Asset:
    extension = name.rpartition(".")[2]
    gzipped = None if extension == "jpg" else gzip.compress(content, mtime=0)
    return Asset(content, MEDIA_TYPES[extension], f'"{_digest(content)}"', gzipped)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


@lru_cache(maxsize=8)
def script_hashes(html: bytes) -> str:
    """Return the inline scripts of a document as sources of a Content-Security-Policy."""
    digests = (hashlib.sha256(script).digest() for script in _INLINE_SCRIPT.findall(html))
    return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)


@lru_cache(maxsize=8)
def render_document(*, has_detection: bool, has_tasks: bool, is_key_needed: bool, max_body_bytes: int) -> Asset:
    """Render the document."""
    assets = load_assets()
    preloads = "\n".join(
        f'    <link rel="modulepreload" href="page/{assets.version}/{name}">'
        for name in assets.by_name
        if name.endswith(".js")
    )
    values = {
        "assets": f"page/{assets.version}",
        "has-detection": str(has_detection).lower(),
        "has-tasks": str(has_tasks).lower(),
        "is-key-needed": str(is_key_needed).lower(),
        "max-body-bytes": str(max_body_bytes),
        "version": escape(__version__),
        "preloads": preloads.strip(),
    }
    text = (files("app.web") / "static" / "page" / DOCUMENT).read_text(encoding="utf-8")
    for name, value in values.items():
        text = text.replace("{{" + name + "}}", value)
    return _make_asset(text.encode(), DOCUMENT)


@router.api_route("/", methods=["GET", "HEAD"])
async def document(request: Request) -> Response:
    """Return the page. It requires no API key, because the page itself asks for the key that it sends."""
    state = web_state(request)
    page = render_document(
        has_detection=state.crop.detectors.has_models,
        has_tasks=state.queue is not None,
        is_key_needed=bool(state.keys),
        max_body_bytes=state.body_limits.max_bytes,
    )
    policy = CONTENT_SECURITY_POLICY.format(scripts=script_hashes(page.content))
    return _respond(request, page, {"Content-Security-Policy": policy, "Cache-Control": _REVALIDATE})


@router.api_route("/page/{version}/{name}", methods=["GET", "HEAD"])
async def asset(request: Request, version: str, name: str) -> Response:
    """Return an asset.

    For another version, return the current asset and forbid caching: during a rollout, the document and its assets may
    come from different pods.
    """
    assets = load_assets()
    found = assets.by_name.get(name)
    if found is None:
        raise HTTPException(404)
    return _respond(request, found, {"Cache-Control": _IMMUTABLE if version == assets.version else _REVALIDATE})


def _respond(request: Request, found: Asset, headers: Mapping[str, str]) -> Response:
    content, etag = found.content, found.etag
    sent = {**_COMMON, **headers}
    if found.gzipped is not None:
        sent["Vary"] = "Accept-Encoding"
        if _accepts_gzip(request.headers.get("accept-encoding", "")):
            content, etag = found.gzipped, f'{etag[:-1]}-gzip"'
            sent["Content-Encoding"] = "gzip"
    sent["ETag"] = etag
    known = (tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(","))
    if any(tag in {etag, "*"} for tag in known):
        sent.pop("Content-Encoding", None)
        return Response(status_code=304, headers=sent)
    return Response(content, headers=sent, media_type=found.media_type)


def _accepts_gzip(header: str) -> bool:
    codings = (part.partition(";") for part in header.split(","))
    return any(name.strip().lower() == "gzip" and not _REFUSED.fullmatch(weight) for name, _, weight in codings)

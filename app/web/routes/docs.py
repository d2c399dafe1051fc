"""The interactive API documentation at ``/docs``, and the OpenAPI document that it shows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import fastapi_offline
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles

from app.web import openapi
from app.web.routes.page import script_hashes

if TYPE_CHECKING:
    from fastapi import FastAPI

    from app.web.state import WebState

ASSETS: Final = "/docs/assets"

# Swagger UI has a dark theme, but does not select it by itself outside of its standalone layout.
_HEAD: Final = """<meta name="color-scheme" content="light dark">
<style>
body { margin: 0 }
.page-link { max-width: 1460px; margin: 0 auto; padding: 16px 20px 0; box-sizing: border-box;
  font: 14px/1.5 system-ui, sans-serif; color: #3b4151 }
.page-link a { color: #3346b8 }
html.dark-mode .page-link { color: #e4e6e6 }
html.dark-mode .page-link a { color: #a9b7ff }
</style>
<script>
const dark = matchMedia("(prefers-color-scheme: dark)");
const applyTheme = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", applyTheme);
applyTheme();
</script>
</head>"""
_LINKS: Final = '<nav class="page-link">{page}<a href="{prefix}/openapi.json">OpenAPI document</a></nav>'
_PAGE_LINK: Final = '<a href="{prefix}/">Try it with a photo on the page</a> · '


def add_docs(app: FastAPI, state: WebState, *, has_page: bool) -> None:
    """Serve the documentation with bundled assets, because browsers may not reach a CDN."""
    prefix = state.prefix

    def openapi_document() -> dict[str, object]:
        if not app.openapi_schema:
            app.openapi_schema = openapi.build_document(app, is_key_needed=bool(state.keys))
        return app.openapi_schema

    app.openapi = openapi_document  # type: ignore[method-assign]  # FastAPI's documented way to change the document
    assets = Path(fastapi_offline.__file__).parent / "static"
    app.mount(ASSETS, StaticFiles(directory=assets), name="docs-assets")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        html = _render(app.title, prefix, has_page=has_page)
        return HTMLResponse(html, headers={"Content-Security-Policy": docs_policy(html.encode())})


def _render(title: str, prefix: str, *, has_page: bool) -> str:
    page = get_swagger_ui_html(
        openapi_url=f"{prefix}/openapi.json",
        title=f"{title}: API",
        swagger_js_url=f"{prefix}{ASSETS}/swagger-ui-bundle.js",
        swagger_css_url=f"{prefix}{ASSETS}/swagger-ui.css",
        swagger_favicon_url=f"{prefix}{ASSETS}/favicon.png",
        # Execute requests without a click on "Try it out" first.
        swagger_ui_parameters={"tryItOutEnabled": True},
    )
    links = _LINKS.format(prefix=prefix, page=_PAGE_LINK.format(prefix=prefix) if has_page else "")
    html = bytes(page.body).decode()
    return html.replace("</head>", _HEAD, 1).replace("<body>", f"<body>\n{links}", 1)


def docs_policy(html: bytes) -> str:
    """Return the Content-Security-Policy of /docs, which allows its assets, and its inline scripts by hash."""
    return (
        f"default-src 'none'; script-src 'self' {script_hashes(html)}; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data:; font-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )

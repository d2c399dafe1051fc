"""Headers that restrict what a browser does with a response."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest

from tests.live.conftest import CROP_PATH

if TYPE_CHECKING:
    from tests.conftest import Sample
    from tests.live.conftest import RunningService

pytestmark = pytest.mark.live

JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    "path", ["/", "/version", "/docs", "/docs/assets/swagger-ui.css", "/openapi.json", "/no/such/path", CROP_PATH]
)
def test_no_response_of_the_api_is_sniffed(service: RunningService, path: str) -> None:
    response = httpx.get(service.api + path, timeout=30)
    assert response.headers.get_list("x-content-type-options") == ["nosniff"]


@pytest.mark.parametrize("path", ["/metrics", "/health", "/health/ready", "/no/such/path"])
def test_no_response_of_the_metrics_port_is_sniffed(service: RunningService, path: str) -> None:
    response = httpx.get(service.metrics + path, timeout=30)
    assert response.headers.get_list("x-content-type-options") == ["nosniff"]


def test_refusals_of_the_body_are_not_sniffed(service: RunningService) -> None:
    response = httpx.post(service.api + CROP_PATH, content=b"{", headers=JSON, timeout=30)
    assert (response.status_code, response.headers["x-content-type-options"]) == (400, "nosniff")


def test_an_svg_runs_no_scripts(service: RunningService, sample: Sample) -> None:
    headers = {**JSON, "accept": "image/svg+xml"}
    response = httpx.post(service.api + CROP_PATH, content=sample.json(), headers=headers, timeout=30)
    assert response.headers["content-type"].startswith("image/svg+xml")
    assert "script-src 'none'" in response.headers["content-security-policy"]


def test_the_policy_of_the_docs_names_its_inline_script(service: RunningService) -> None:
    policy = httpx.get(f"{service.api}/docs", timeout=30).headers["content-security-policy"]
    assert "'sha256-" in policy
    assert "'unsafe-inline'" not in policy.partition("script-src")[2].partition(";")[0]

"""Clients that are generated from the OpenAPI document call every operation of a running service.

`make tools` installs the generators. The programs that use the clients are in `tests/live/clients`.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from tests.live.conftest import RunningService

pytestmark = [pytest.mark.live, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
CLIENTS = Path(__file__).parent / "clients"
PHOTO, LANDMARKS = ROOT / "examples" / "astronaut.png", ROOT / "examples" / "astronaut.landmarks.json"
KEY = "key-of-the-client"
# All media types of images have the same body, for which the generator supports one type.
CONFIG = "content_type_overrides:\n  image/jpeg: application/octet-stream\n"


def find_tool(name: str) -> Path:
    spec = importlib.util.spec_from_file_location("setup_tools", ROOT / "tools" / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    folder: Path = module.folder_of(name)
    if not folder.is_dir():
        pytest.skip(f"{folder.parent.name} is not installed: run make tools")
    return folder


def run(*command: str | Path, cwd: Path) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command[:3]}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"


@pytest.fixture(scope="module", params=["", KEY], ids=["open", "with a key"])
def served(
    request: pytest.FixtureRequest,
    run_service: Callable[..., AbstractContextManager[RunningService]],
    wait_until: Callable[..., Any],
) -> Iterator[tuple[RunningService, str]]:
    keys = {"API_KEYS": request.param} if request.param else {}
    with run_service(ENABLE_TASKS="true", WORKERS=1, TASK_WORKERS=1, **keys) as running:
        headers = {"x-api-key": request.param}
        path = f"{running.api}/api/v1/frontal/crop/status/{'0' * 32}"
        wait_until(lambda: httpx.get(path, headers=headers).status_code == 404, limit_s=60, what="the queue")
        yield running, request.param


@pytest.fixture
def arguments(served: tuple[RunningService, str]) -> list[str | Path]:
    service, key = served
    return [service.api, PHOTO, LANDMARKS, *([key] if key else [])]


@pytest.mark.timeout(900)
def test_typescript_client(served: tuple[RunningService, str], arguments: list[str | Path], tmp_path: Path) -> None:
    modules = find_tool("typescript_client") / "node_modules"
    for name in ("main.ts", "tsconfig.json"):
        shutil.copyfile(CLIENTS / name, tmp_path / name)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "node_modules").symlink_to(modules)
    (tmp_path / "openapi.json").write_bytes(httpx.get(f"{served[0].api}/openapi.json").content)
    run("node", modules / "openapi-typescript" / "bin" / "cli.js", "openapi.json", "-o", "schema.d.ts", cwd=tmp_path)
    run("node", modules / "typescript" / "bin" / "tsc", cwd=tmp_path)
    run("node", "built/main.js", *arguments, cwd=tmp_path)


@pytest.mark.timeout(900)
def test_python_client(served: tuple[RunningService, str], arguments: list[str | Path], tmp_path: Path) -> None:
    python = find_tool("python_client") / "bin" / "python"
    shutil.copyfile(CLIENTS / "client.py", tmp_path / "client.py")
    (tmp_path / "openapi.json").write_bytes(httpx.get(f"{served[0].api}/openapi.json").content)
    (tmp_path / "config.yaml").write_text(CONFIG)
    options = ["--meta", "none", "--output-path", "generated", "--config", "config.yaml"]
    command = [python, "-m", "openapi_python_client", "generate", "--path", "openapi.json", *options]
    # The generator formats the code with ruff.
    environment = os.environ | {"PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    warnings = [line for line in done.stdout.splitlines() if "WARNING" in line or "ERROR" in line]
    assert [line for line in warnings if "Unsupported content type image/" not in line] == []
    # Only the program that uses the client is checked, as strictly as the service.
    mypy = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--python-executable", str(python)]
    run(*mypy, "--no-incremental", "client.py", cwd=tmp_path)
    run(python, "client.py", *arguments, cwd=tmp_path)

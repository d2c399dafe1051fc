"""The modules of `app` do not import each other in a circle, not even in functions or for type checking."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINTER = Path(sys.executable).with_name("lint-imports")


def check_cycles(folder: Path) -> subprocess.CompletedProcess[str]:
    """Check the package `app` of a folder with the project's contract."""
    command = [LINTER, "--config", ROOT / "pyproject.toml", "--contract", "cycles", "--no-cache"]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_there_are_no_import_cycles() -> None:
    done = check_cycles(ROOT)
    assert done.returncode == 0, f"import cycles:\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("import app.b", "import app.a"),
        ("from app import b", "from app.a import name"),
        ("from app.b import name", "def run():\n    from app import a"),
        ("from . import b", "if TYPE_CHECKING:\n    from app.a import Name"),
        ("from .b import name", "from .a import name"),
    ],
)
def test_a_cycle_is_found(tmp_path: Path, first: str, second: str) -> None:
    (tmp_path / "app").mkdir()
    for name, text in (("__init__", ""), ("a", first), ("b", second), ("c", "import app.a, json")):
        (tmp_path / "app" / f"{name}.py").write_text(text, encoding="utf-8")
    done = check_cycles(tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    # One of the two imports is named as the one that closes the circle.
    assert ".a -> .b" in done.stdout or ".b -> .a" in done.stdout
    assert ".c" not in done.stdout.partition("Broken contracts")[2]

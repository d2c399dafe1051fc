"""Rules about the source that no linter checks: module length, use of the environment, creation of metrics."""

from __future__ import annotations

import ast
import doctest
import importlib
import itertools
from pathlib import Path

import pytest

from tests.conftest import SLOW

ROOT = Path(__file__).parents[2]
MODULES = sorted((ROOT / "app").rglob("*.py"))
PACKAGES = ("app", "benchmarks", "charts", "examples", "facial_service", "grafana", "prometheus", "tools")
MAX_MODULE_LINES = 600

CALLS = {
    # The first three only set variables for libraries. The service itself reads its settings.
    "environ": ("app/__init__.py", "app/cli/main.py", "app/observability/multiprocess.py", "app/settings.py"),
    # Except in metrics.py, this is collections.Counter.
    "Counter": (
        "app/observability/metrics.py",
        "app/observability/recording.py",
        "app/tasks/admission.py",
    ),
    "Gauge": ("app/observability/metrics.py",),
    "Histogram": ("app/observability/metrics.py",),
    # Commands write results to standard output and progress to standard error.
    "Console": (
        "app/observability/rich_logging.py",
        "app/cli/tasks.py",
        "app/cli/main.py",
        "app/cli/doctor/findings.py",
        "app/cli/monitor/watch.py",
        "app/cli/process/report.py",
    ),
}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_long_modules_give_a_reason() -> None:
    for path in (path for name in PACKAGES for path in sorted((ROOT / name).rglob("*.py"))):
        lines = path.read_text(encoding="utf-8").splitlines()
        top = itertools.takewhile(lambda line: not line.startswith(("import ", "from ")), lines)
        assert len(lines) <= MAX_MODULE_LINES or any(f"{MAX_MODULE_LINES} lines" in line for line in top), (
            f"{name_of(path)} has {len(lines)} lines; split it by subject, or add a comment above its imports that "
            f"gives the reason: # Longer than {MAX_MODULE_LINES} lines, because …"
        )


@pytest.mark.parametrize("name", CALLS)
def test_only_these_modules_use_it(name: str) -> None:
    def uses(path: Path) -> bool:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if name == "environ":
            return any(isinstance(node, ast.Attribute) and node.attr == name for node in ast.walk(tree))
        calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
        return any(isinstance(call, ast.Name) and call.id == name for call in calls)

    assert {name_of(path) for path in MODULES if uses(path)} == set(CALLS[name])


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_examples_in_docstrings_are_correct(path: Path) -> None:
    if path.name == "__main__.py":
        return  # importing it runs the command
    module = importlib.import_module(name_of(path).removesuffix(".py").removesuffix("/__init__").replace("/", "."))
    assert doctest.testmod(module, optionflags=doctest.ELLIPSIS).failed == 0


@pytest.mark.parametrize("name", SLOW)
def test_slow_tests_exist(name: str) -> None:
    assert (ROOT / "tests" / name).exists()


def test_lock_files_have_hashes_and_no_registry() -> None:
    for lock in ROOT.glob("requirements*.lock"):
        text = lock.read_text(encoding="utf-8")
        assert "://" not in text
        assert "--index-url" not in text
        pins = [line for line in text.splitlines() if "==" in line and not line.lstrip().startswith("#")]
        assert len(pins) > 40
        assert text.count("--hash=sha256:") >= len(pins)

"""Rules about the source that no linter checks: sizes, who reads the environment, who makes metrics and consoles."""

from __future__ import annotations

import ast
import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted((ROOT / "app").rglob("*.py"))
MAX_MODULE_LINES = 600  # one subject per module; a longer one holds two
MAX_FUNCTION_LINES = 40

CALLS = {
    # The first two only write, for libraries that read; what the service itself is told comes through the settings.
    "environ": ("app/__init__.py", "app/observability/multiprocess.py", "app/settings.py"),
    # Those of the service and task layers are collections.Counter.
    "Counter": (
        "app/observability/metrics.py",
        "app/service/body_budget.py",
        "app/service/crop.py",
        "app/tasks/admission.py",
    ),
    "Gauge": ("app/observability/metrics.py",),
    "Histogram": ("app/observability/metrics.py",),
    # Those of commands write what they are asked for to standard output, and how far they are to standard error.
    "Console": (
        "app/observability/rich_logging.py",
        "app/cli/tasks.py",
        "app/cli/doctor/command.py",
        "app/cli/doctor/findings.py",
        "app/cli/monitor/watch.py",
        "app/cli/process/report.py",
    ),
}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_and_functions_are_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_MODULE_LINES
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    # Decorators and the docstring are what a reader wants long; the code is what should be short.
    long = {function.name: count_code_lines(function) for function in functions}
    assert {name: lines for name, lines in long.items() if lines > MAX_FUNCTION_LINES} == {}


def count_code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    lines = (function.end_lineno or 0) - function.lineno + 1
    first = function.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
        lines -= (first.end_lineno or 0) - first.lineno + 1
    return lines


@pytest.mark.parametrize("name", CALLS)
def test_only_one_module_does(name: str) -> None:
    def uses(path: Path) -> bool:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if name == "environ":
            return any(isinstance(node, ast.Attribute) and node.attr == name for node in ast.walk(tree))
        calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
        return any(isinstance(call, ast.Name) and call.id == name for call in calls)

    assert {name_of(path) for path in MODULES if uses(path)} == set(CALLS[name])


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_examples_in_docstrings_hold(path: Path) -> None:
    if path.name == "__main__.py":
        return  # importing it runs the command
    module = importlib.import_module(name_of(path).removesuffix(".py").removesuffix("/__init__").replace("/", "."))
    assert doctest.testmod(module, optionflags=doctest.ELLIPSIS).failed == 0


def test_locks_name_no_registry_and_hash_everything() -> None:
    for lock in ROOT.glob("requirements*.lock"):
        text = lock.read_text(encoding="utf-8")
        assert "://" not in text
        assert "--index-url" not in text
        pins = [line for line in text.splitlines() if "==" in line and not line.lstrip().startswith("#")]
        assert len(pins) > 40
        assert text.count("--hash=sha256:") >= len(pins)

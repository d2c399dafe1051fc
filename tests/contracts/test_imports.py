"""The modules of `app` do not import each other in a circle, not even in functions or for type checking."""

from __future__ import annotations

import ast
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT = Path(__file__).parents[2]


def module_name(path: Path, root: Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def imported_names(path: Path, name: str) -> Iterator[str]:
    """Yield the dotted names that a module imports anywhere in its code."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def import_graph(root: Path) -> dict[str, set[str]]:
    """Return the modules of `app` that each module imports."""
    paths = {module_name(path, root): path for path in sorted((root / "app").rglob("*.py"))}
    graph: dict[str, set[str]] = {}
    for name, path in paths.items():
        found = {
            imported if imported in paths else imported.rpartition(".")[0] for imported in imported_names(path, name)
        }
        graph[name] = found & paths.keys()
    return graph


def shortest_path(graph: Mapping[str, set[str]], start: str, goal: str) -> list[str] | None:
    previous: dict[str, str] = {start: ""}
    waiting = deque([start])
    while waiting:
        name = waiting.popleft()
        if name == goal:
            path = [name]
            while path[-1] != start:
                path.append(previous[path[-1]])
            return path[::-1]
        for imported in sorted(graph[name] - previous.keys()):
            previous[imported] = name
            waiting.append(imported)
    return None


def find_cycles(graph: Mapping[str, set[str]]) -> list[str]:
    """Return the shortest cycle through each import that is part of one, without repetitions."""
    cycles: dict[frozenset[str], str] = {}
    for name, imports in graph.items():
        for imported in sorted(imports):
            if path := shortest_path(graph, imported, name):
                cycles.setdefault(frozenset(path), " > ".join([name, *path]))
    return sorted(cycles.values())


def test_there_are_no_import_cycles() -> None:
    cycles = find_cycles(import_graph(ROOT))
    assert not cycles, "import cycles:\n" + "\n".join(cycles)


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
    assert find_cycles(import_graph(tmp_path)) == ["app.a > app.b > app.a"]

"""Words and phrases that do not belong into the code, its messages or its documentation, with their replacements."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import tokenize
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

ROOT = Path(__file__).parents[2]

# Regular expressions, each with what to write instead.
PHRASES = {
    "again and again": "repeatedly",
    "amongst|whilst": "among, while",
    "anew": "again",
    "(?:kept|laid|left|put|set) aside": "separate, dead-lettered",
    "aside from": "except for",
    "being failed": "fail",
    "beside": "next to",
    "besides": "except for, in addition to",
    "(?:come|comes|came) to nothing|ended otherwise": "failed",
    "companions?": "managed process, input file",
    "empty where|none where|where there (?:is|are)": "if",
    "for ever": "forever",
    "given back": "returned, requeued",
    "(?:give|gives|gave|given|giving) up on": "dead-lettered, abandoned",
    "go on to|goes on to|went on": "keep, continue",
    "(?:hand|hands|handed|handing) over": "pass",
    "hence|henceforth|hereby|herein|hitherto": "so, from now on",
    "in vain": "without a result",
    "(?:is|are|was|were) away": "is unreachable",
    "judge|judged|judges|judging": "evaluate",
    "lest": "so that … not",
    "(?:let|lets|letting) go": "release",
    "likewise": "also",
    "look(?:s|ed|ing)? (?:at|for)": "inspect, check, scan, search",
    "nobody(?:'s)?|no one": "no client, no process, none",
    "of late": "recent, recently",
    "of old(?=[.,:;)])": "earlier",
    "(?:said|says)": "report, return, document, contain",
    "shall": "must, should",
    "signs? of life": "heartbeat",
    "some [0-9.]+": "about",
    "somebody(?:'s)?|someone(?:'s)?": "a client, a user",
    "(?:take|takes|taken|took) along": "include",
    "tell|tells|telling|told": "report, return, distinguish",
    "thereafter|therein|thereof|thereupon": "then, in it, of it",
    "whence|wherein|whereof|whereupon": "from where, in which",
    "whatever": "regardless of, any, everything that",
    "whoever(?:'s)?|whomever": "the caller, the operator, any client",
    "whosoever|whatsoever": "any",
    "workshop": "worker context",
}
PATTERNS = {
    re.compile(rf"\b(?:{phrase})\b".replace(" ", r"[\s#*/]+"), re.IGNORECASE): instead
    for phrase, instead in PHRASES.items()
}
SUFFIXES = {".css", ".html", ".js", ".md", ".prom", ".py", ".sh", ".toml", ".tpl", ".yaml", ".yml"}
NAMES = {".ci/run", "Dockerfile", "Makefile"}
THIS_FILE = Path(__file__).relative_to(ROOT).as_posix()


def list_files() -> list[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)  # noqa: S607
    names = [name for name in listed.stdout.splitlines() if Path(name).suffix in SUFFIXES or name in NAMES]
    return [name for name in names if name != THIS_FILE and (ROOT / name).is_file()]


def read_texts(name: str) -> Iterator[tuple[int, str]]:
    """Yield the first line and the text of each comment and string of a Python file, or the whole text of another."""
    text = (ROOT / name).read_text(encoding="utf-8")
    if not name.endswith(".py"):
        yield 1, text
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
    start, block = 0, ""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            if token.start[0] != start + block.count("\n") + 1:  # not a continuation of the comment above
                yield start, block
                start, block = token.start[0], token.string
            else:
                block += f"\n{token.string}"
    yield start, block


def find_phrases(name: str) -> Iterator[str]:
    for start, text in read_texts(name):
        for pattern, instead in PATTERNS.items():
            for match in pattern.finditer(text):
                line = start + text.count("\n", 0, match.start())
                yield f"{name}:{line}: {' '.join(match[0].split())!r}; write instead: {instead}"


def test_language_is_plain() -> None:
    found = [finding for name in list_files() for finding in sorted(find_phrases(name))]
    assert not found, "phrases to replace:\n" + "\n".join(found)


def test_phrases_are_found_in_comments_strings_and_across_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.py").write_text(
        '"""A doc."""\n# It was given\n# up on.\nx = f"told {1}"  # whoever\n# shallow\n', encoding="utf-8"
    )
    (tmp_path / "a.md").write_text("It shows a sign\nof life.\n", encoding="utf-8")
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    found = [text.partition(";")[0] for name in ("a.py", "a.md") for text in sorted(find_phrases(name))]
    assert found == ["a.py:2: 'given # up on'", "a.py:4: 'told'", "a.py:4: 'whoever'", "a.md:1: 'sign of life'"]

"""Reads a chart's values.yaml with its comments: every key with what it means and what it takes.

A comment's lines are the meaning of the key under it. Lines of it that begin with `+` are notes, which narrow what the
key takes; they follow the meaning. `## Section` stands above the keys of a section. Nothing else may be a comment, so
that none is lost on the way to the schema and to the documentation.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

JSON_TYPES = ("array", "boolean", "integer", "null", "number", "object", "string")
_NOTE = re.compile(r"\+ ([a-z]+)(?:: (.+))?")


class ValuesError(ValueError):
    """Comments and keys do not fit together; one line for each place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A key of the values.

    Attributes:
        path: its name, behind the names it stands under.
        line: where it stands, from 1.
        section: the heading it is under.
        default: its value.
        meaning: what the comment says.
        notes: the comment's notes, read.
        children: the keys under it; empty where the value is taken as a whole.
    """

    path: tuple[str, ...]
    line: int
    section: str
    default: Any
    meaning: str
    notes: Mapping[str, Any]
    children: tuple[Key, ...] = ()

    @property
    def name(self) -> str:
        """The path as Helm writes it."""
        return ".".join(self.path)

    def leaves(self) -> Iterator[Key]:
        """Every key below it, or itself, whose value is taken as a whole."""
        for child in self.children:
            yield from child.leaves()
        if not self.children:
            yield self


@dataclass(frozen=True, slots=True)
class _Comment:
    column: int
    text: str
    is_alone: bool


def _one_of(*choices: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in choices:
            raise ValueError(f"expected one of {', '.join(choice or 'nothing' for choice in choices)}")
        return text

    return read


def _read_types(text: str) -> list[str]:
    types = text.split(", ")
    if not set(types) <= set(JSON_TYPES):
        raise ValueError(f"expected some of {', '.join(JSON_TYPES)}")
    return types


def _read_choices(text: str) -> list[Any]:
    return [yaml.safe_load(choice) for choice in text.split(", ")]


def _read_number(text: str) -> float:
    number = yaml.safe_load(text)
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise ValueError("expected a number")  # noqa: TRY004  the text is at fault
    return number


def _read_pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"no regular expression: {error}") from None
    return text


NOTES: Mapping[str, Callable[[str], Any]] = {
    "free": _one_of(""),
    "map": _one_of("string", "env", "alert"),
    "items": _read_types,
    "settings": _one_of("", "one component"),
    "type": _read_types,
    "enum": _read_choices,
    "pattern": _read_pattern,
    "minimum": _read_number,
    "maximum": _read_number,
}
"""What a note is called, and how what stands behind it is read."""

WHOLE = frozenset({"free", "map", "settings"})
"""Notes of mappings whose keys are not those of the file."""


def read_values(text: str) -> tuple[Key, ...]:
    """Read a file of values.

    Raises:
        ValuesError: a key without a comment, a comment without a key, or an unknown note.
        yaml.YAMLError: it is no YAML.
    """
    return _Reader(text).read()


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.comments = dict(_find_comments(text))
        self.sections = {
            line: comment.text[2:].strip()
            for line, comment in self.comments.items()
            if comment.is_alone and comment.text.startswith("##")
        }
        # Files begin with a word about themselves, which an empty line ends.
        header = next(line for line in range(1, len(self.comments) + 2) if line not in self.comments)
        self.used = {*self.sections, *range(1, header)}
        self.problems: dict[int, str] = {}

    def read(self) -> tuple[Key, ...]:
        root = yaml.compose(self.text, Loader=yaml.SafeLoader)
        if not isinstance(root, yaml.MappingNode):
            raise ValuesError("line 1: expected a mapping")
        keys = self._read_children(root, ())
        for line in self.comments.keys() - self.used:
            self.problems.setdefault(line, "a comment without a key: it stands in lines of its own, right above one")
        if self.problems:
            raise ValuesError("\n".join(f"line {line}: {what}" for line, what in sorted(self.problems.items())))
        return keys

    def _read_children(self, node: yaml.MappingNode, above: tuple[str, ...]) -> tuple[Key, ...]:
        return tuple(self._read_key(name, value, above) for name, value in node.value)

    def _read_key(self, name: yaml.ScalarNode, value: yaml.Node, above: tuple[str, ...]) -> Key:
        line, path = name.start_mark.line + 1, (*above, name.value)
        meaning, notes = self._read_comment(line, name.start_mark.column)
        is_whole = not isinstance(value, yaml.MappingNode) or bool(WHOLE & notes.keys())
        children = self._read_children(value, path) if isinstance(value, yaml.MappingNode) and not is_whole else ()
        default = yaml.SafeLoader("").construct_object(value, deep=True)
        if notes and not is_whole:
            self._object(line, f"{'.'.join(path)} has keys of its own, and a note narrows a single value")
        if is_whole and not meaning:
            self._object(line, f"{'.'.join(path)} has no comment that says what it means")
        if default in ({}, []) and not notes.keys() & {*WHOLE, "items"}:
            self._object(line, f"{'.'.join(path)} is empty, and no note says what goes into it")
        if default is None and "type" not in notes:
            self._object(line, f"{'.'.join(path)} is null, and no note says its type")
        section = self._find_section(line)
        return Key(
            path=path, line=line, section=section, default=default, meaning=meaning, notes=notes, children=children
        )

    def _find_section(self, line: int) -> str:
        above = [start for start in self.sections if start < line]
        if not above:
            self._object(line, "no `## Section` stands above it")
            return ""
        return self.sections[max(above)]

    def _read_comment(self, key_line: int, column: int) -> tuple[str, dict[str, Any]]:
        first = key_line
        while self._belongs(first - 1, column):
            first -= 1
        texts: list[str] = []
        notes: dict[str, Any] = {}
        for line in range(first, key_line):
            self.used.add(line)
            text = self.comments[line].text.removeprefix("#").strip()
            if text.startswith("+"):
                self._read_note(line, text, notes)
            elif notes:
                self._object(line, "the meaning stands above the notes")
            else:
                texts.append(text)
        return " ".join(texts), notes

    def _belongs(self, line: int, column: int) -> bool:
        comment = self.comments.get(line)
        return comment is not None and comment.is_alone and comment.column == column and line not in self.used

    def _read_note(self, line: int, text: str, notes: dict[str, Any]) -> None:
        match = _NOTE.fullmatch(text)
        if match is None or match[1] not in NOTES:
            self._object(line, f"`{text}` is no note: known are {', '.join(NOTES)}")
            return
        if match[1] in notes:
            self._object(line, f"`{match[1]}` is noted twice")
        try:
            notes[match[1]] = NOTES[match[1]](match[2] or "")
        except (ValueError, yaml.YAMLError) as error:
            self._object(line, f"`{text}`: {error}")

    def _object(self, line: int, what: str) -> None:
        self.problems.setdefault(line, what)


def _find_comments(text: str) -> Iterator[tuple[int, _Comment]]:
    """Every comment with its line: they are what stands between tokens, and a `#` inside of one is none."""
    lines = text.splitlines()
    end = 0
    for token in yaml.scan(text, Loader=yaml.SafeLoader):
        between = text[end : token.start_mark.index]
        for part in re.finditer(r"#[^\n]*", between):
            line = text.count("\n", 0, end + part.start())
            column = end + part.start() - (text.rfind("\n", 0, end + part.start()) + 1)
            yield line + 1, _Comment(column, part[0].rstrip(), not lines[line][:column].strip())
        end = max(end, token.end_mark.index)

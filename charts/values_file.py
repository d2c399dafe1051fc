"""Parser for a chart's values.yaml with its comments.

A comment describes the key below it. Comment lines that begin with `+` are tags, which restrict the key's value; they
follow the description. `## Section` precedes the keys of a section. Other comments are errors, so that no comment is
missing from the schema and the documentation.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

JSON_TYPES = ("array", "boolean", "integer", "null", "number", "object", "string")
_TAG = re.compile(r"\+ ([a-z]+)(?:: (.+))?")


class ValuesError(ValueError):
    """Raised if comments and keys do not match, with one message line per error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A key of the values file.

    Attributes:
        path: names of its parent keys, then its own name.
        line: line number, from 1.
        section: heading of its section.
        default: default value.
        description: text of its comment.
        tags: parsed tags of its comment.
        children: keys below it; empty if the value is treated as a whole.
    """

    path: tuple[str, ...]
    line: int
    section: str
    default: Any
    description: str
    tags: Mapping[str, Any]
    children: tuple[Key, ...] = ()

    @property
    def name(self) -> str:
        """Path in Helm's notation."""
        return ".".join(self.path)

    def leaves(self) -> Iterator[Key]:
        """Yield the keys below it that have no children, or the key itself."""
        for child in self.children:
            yield from child.leaves()
        if not self.children:
            yield self


@dataclass(frozen=True, slots=True)
class _Comment:
    column: int
    text: str
    is_own_line: bool


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"expected {' or '.join(choice or 'no argument' for choice in choices)}")
        return text

    return parse


def _parse_types(text: str) -> list[str]:
    types = text.split(", ")
    if not set(types) <= set(JSON_TYPES):
        raise ValueError(f"expected types from {', '.join(JSON_TYPES)}")
    return types


def _parse_choices(text: str) -> list[Any]:
    return [yaml.safe_load(choice) for choice in text.split(", ")]


def _parse_number(text: str) -> float:
    number = yaml.safe_load(text)
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise ValueError("expected a number")  # noqa: TRY004 - the text is invalid, not the call
    return number


def _parse_pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"expected a regular expression: {error}") from None
    return text


TAGS: Mapping[str, Callable[[str], Any]] = {
    "free": _one_of(""),
    "map": _one_of("string", "env", "alert"),
    "items": _parse_types,
    "settings": _one_of("", "one component"),
    "type": _parse_types,
    "enum": _parse_choices,
    "choices": _parse_choices,
    "pattern": _parse_pattern,
    "minimum": _parse_number,
    "maximum": _parse_number,
}
"""Parser of each tag's argument, by tag name."""

OPAQUE_TAGS = frozenset({"free", "map", "settings"})
"""Tags of mappings that users fill, so that their keys are not part of the chart."""


def read_values(text: str) -> tuple[Key, ...]:
    """Parse the text of a values file.

    Raises:
        ValuesError: a key has no comment, a comment has no key, or a tag is unknown.
        yaml.YAMLError: the text is not valid YAML.
    """
    return _Parser(text).parse()


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.comments = dict(_find_comments(text))
        self.sections = {
            line: comment.text[2:].strip()
            for line, comment in self.comments.items()
            if comment.is_own_line and comment.text.startswith("##")
        }
        # The file may begin with a comment about itself, up to the first empty line.
        header = next(line for line in range(1, len(self.comments) + 2) if line not in self.comments)
        self.used = {*self.sections, *range(1, header)}
        self.errors: dict[int, str] = {}

    def parse(self) -> tuple[Key, ...]:
        root = yaml.compose(self.text, Loader=yaml.SafeLoader)
        if not isinstance(root, yaml.MappingNode):
            raise ValuesError("line 1: expected a mapping")
        keys = self._parse_children(root, ())
        for line in self.comments.keys() - self.used:
            self.errors.setdefault(line, "comment without a key; place comments on separate lines directly above a key")
        if self.errors:
            raise ValuesError("\n".join(f"line {line}: {message}" for line, message in sorted(self.errors.items())))
        return keys

    def _parse_children(self, node: yaml.MappingNode, parents: tuple[str, ...]) -> tuple[Key, ...]:
        return tuple(self._parse_key(name, value, parents) for name, value in node.value)

    def _parse_key(self, name: yaml.ScalarNode, value: yaml.Node, parents: tuple[str, ...]) -> Key:
        line, path = name.start_mark.line + 1, (*parents, name.value)
        description, tags = self._parse_comment(line, name.start_mark.column)
        is_leaf = not isinstance(value, yaml.MappingNode) or bool(OPAQUE_TAGS & tags.keys())
        children = self._parse_children(value, path) if isinstance(value, yaml.MappingNode) and not is_leaf else ()
        default = yaml.SafeLoader("").construct_object(value, deep=True)
        if tags and not is_leaf:
            self._add_error(line, f"{'.'.join(path)}: tags apply to single values only, and this key has keys below it")
        if is_leaf and not description:
            self._add_error(line, f"{'.'.join(path)}: missing description; add a comment above the key")
        if default in ({}, []) and not tags.keys() & {*OPAQUE_TAGS, "items"}:
            self._add_error(line, f"{'.'.join(path)}: an empty default needs a tag with the type of its items")
        # A map with a list as its alternative is null by default, because Helm would try to merge a list with a map.
        if default is None and not tags.keys() & {"type", "map"}:
            self._add_error(line, f"{'.'.join(path)}: a null default needs a `+ type` tag")
        section = self._find_section(line)
        return Key(
            path=path,
            line=line,
            section=section,
            default=default,
            description=description,
            tags=tags,
            children=children,
        )

    def _find_section(self, line: int) -> str:
        above = [start for start in self.sections if start < line]
        if not above:
            self._add_error(line, "expected a `## Section` comment above the key")
            return ""
        return self.sections[max(above)]

    def _parse_comment(self, key_line: int, column: int) -> tuple[str, dict[str, Any]]:
        first = key_line
        while self._is_part_of_comment(first - 1, column):
            first -= 1
        texts: list[str] = []
        tags: dict[str, Any] = {}
        for line in range(first, key_line):
            self.used.add(line)
            text = self.comments[line].text.removeprefix("#").strip()
            if text.startswith("+"):
                self._parse_tag(line, text, tags)
            elif tags:
                self._add_error(line, "expected the description above the tags")
            else:
                texts.append(text)
        return " ".join(texts), tags

    def _is_part_of_comment(self, line: int, column: int) -> bool:
        comment = self.comments.get(line)
        return comment is not None and comment.is_own_line and comment.column == column and line not in self.used

    def _parse_tag(self, line: int, text: str, tags: dict[str, Any]) -> None:
        match = _TAG.fullmatch(text)
        if match is None or match[1] not in TAGS:
            self._add_error(line, f"`{text}`: unknown tag; expected one of {', '.join(TAGS)}")
            return
        if match[1] in tags:
            self._add_error(line, f"`{match[1]}`: duplicate tag")
        try:
            tags[match[1]] = TAGS[match[1]](match[2] or "")
        except (ValueError, yaml.YAMLError) as error:
            self._add_error(line, f"`{text}`: {error}")

    def _add_error(self, line: int, message: str) -> None:
        self.errors.setdefault(line, message)


def _find_comments(text: str) -> Iterator[tuple[int, _Comment]]:
    """Yield every comment with its line number.

    Comments are the text between tokens, so that a `#` inside a token does not count.
    """
    lines = text.splitlines()
    end = 0
    for token in yaml.scan(text, Loader=yaml.SafeLoader):
        between = text[end : token.start_mark.index]
        for part in re.finditer(r"#[^\n]*", between):
            line = text.count("\n", 0, end + part.start())
            column = end + part.start() - (text.rfind("\n", 0, end + part.start()) + 1)
            yield line + 1, _Comment(column, part[0].rstrip(), not lines[line][:column].strip())
        end = max(end, token.end_mark.index)

"""Write what the chart has from elsewhere: its schema, the tables of its README, and its rules and dashboards.

The schema (values.schema.json) and the tables are made from values.yaml and its comments; rules and dashboards are
copies of prometheus/rules/*.yaml and grafana/dashboards/*.json.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from jsonschema import Draft7Validator
from values_file import ValuesError, read_values
from values_schema import values_schema
from values_table import own_settings_table, values_tables

from app import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

ROOT = Path(__file__).parent.parent
CHART = Path("charts/facial-service")
COPIES = {
    CHART / "files/rules": ("prometheus/rules", "*.yaml"),
    CHART / "files/dashboards": ("grafana/dashboards", "*.json"),
}
"""Folders of the chart whose files are those of others: folder to the other and the pattern of its files."""

EXAMPLE = """examples:
  python charts/generate.py           write
  python charts/generate.py --check   change nothing; exit code 1 and the names of files that would change
"""
_BLOCK = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


class ChartError(Exception):
    """What the chart is made from does not fit together; says what to change."""


def make_files(root: Path) -> dict[Path, bytes]:
    """Make every generated file, by its path under the root.

    Raises:
        ChartError: values, comments, versions or sources are not as they have to be.
    """
    _check_version(root)
    values = root / CHART / "values.yaml"
    text = values.read_text(encoding="utf-8")
    try:
        keys = read_values(text)
    except ValuesError as error:
        lines = "\n".join(f"{CHART / 'values.yaml'}: {line}" for line in str(error).splitlines())
        raise ChartError(lines) from None
    schema = values_schema(keys, f"Values of {CHART.name}")
    _check_defaults(schema, yaml.safe_load(text))
    readme = root / CHART / "README.md"
    tables = {"values": values_tables(keys), "settings": own_settings_table()}
    return {
        CHART / "values.schema.json": (json.dumps(schema, indent=2, ensure_ascii=False) + "\n").encode(),
        CHART / "README.md": _fill(readme.read_text(encoding="utf-8"), tables).encode(),
        **dict(_copy(root)),
    }


def _check_version(root: Path) -> None:
    chart = yaml.safe_load((root / CHART / "Chart.yaml").read_text(encoding="utf-8"))
    for name in ("version", "appVersion"):
        if str(chart[name]) != __version__:
            raise ChartError(f"{CHART / 'Chart.yaml'}: {name} is {chart[name]}, and app.__version__ is {__version__}")


def _check_defaults(schema: dict[str, Any], defaults: Any) -> None:
    for error in Draft7Validator(schema).iter_errors(defaults):
        place = ".".join(map(str, error.absolute_path))
        raise ChartError(f"{CHART / 'values.yaml'}: {place}: the default is not what its notes allow: {error.message}")


def _fill(text: str, tables: Mapping[str, str]) -> str:
    names = [match[2] for match in _BLOCK.finditer(text)]
    if sorted(names) != sorted(tables):
        raise ChartError(f"{CHART / 'README.md'}: expected a place each for {', '.join(tables)}; found {names}")
    return _BLOCK.sub(lambda match: match[1] + tables[match[2]] + match[3], text)


def _copy(root: Path) -> Iterator[tuple[Path, bytes]]:
    for target, (source, pattern) in COPIES.items():
        files = sorted((root / source).glob(pattern))
        if not files:
            raise ChartError(f"{source} has no {pattern} to copy")
        for file in files:
            yield target / file.name, file.read_bytes()


def find_leftovers(root: Path, files: Mapping[Path, bytes]) -> list[Path]:
    """Files among the copies that are copies of nothing any more."""
    present = (path.relative_to(root) for folder in COPIES for path in sorted((root / folder).rglob("*")))
    return [path for path in present if path not in files and (root / path).is_file()]


def find_stale(root: Path, files: Mapping[Path, bytes]) -> list[Path]:
    """Generated files that are not there, or differ."""
    return [path for path, data in files.items() if not (root / path).is_file() or (root / path).read_bytes() != data]


def write(root: Path, files: Mapping[Path, bytes]) -> None:
    """Write the generated files, and remove what is left of older ones."""
    for path in find_leftovers(root, files):
        (root / path).unlink()
    for path in find_stale(root, files):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(files[path])


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> None:
    """Write, or compare and exit 1 where a file differs from its source."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="change nothing; fail where something would change")
    is_check = parser.parse_args(arguments).check
    try:
        files = make_files(root)
    except ChartError as error:
        sys.exit(str(error))
    if not is_check:
        write(root, files)
    elif differing := [*find_stale(root, files), *find_leftovers(root, files)]:
        sys.exit(f"not what they are made from: {', '.join(map(str, differing))}; run `make generate`")


if __name__ == "__main__":
    main()

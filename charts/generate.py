"""Generate the values schema of the Helm chart and the tables of its README, from values.yaml and its comments.

The generators of the rules and of the dashboards also write those of the chart.
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
from values_table import managed_settings_table, values_tables

from app import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROOT = Path(__file__).parent.parent
CHART = Path("charts/facial-service")

EXAMPLE = """examples:
  python charts/generate.py           write the files
  python charts/generate.py --check   only compare; exit with 1 and list the files that differ
"""
_BLOCK = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


class ChartError(Exception):
    """Raised if the sources of the chart are inconsistent."""


def make_files(root: Path) -> dict[Path, bytes]:
    """Generate every file, keyed by its path relative to the root.

    Raises:
        ChartError: values, comments, versions or source files are invalid.
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
    tables = {"values": values_tables(keys), "settings": managed_settings_table()}
    return {
        CHART / "values.schema.json": (json.dumps(schema, indent=2, ensure_ascii=False) + "\n").encode(),
        CHART / "README.md": _fill(readme.read_text(encoding="utf-8"), tables).encode(),
    }


def _check_version(root: Path) -> None:
    chart = yaml.safe_load((root / CHART / "Chart.yaml").read_text(encoding="utf-8"))
    for name in ("version", "appVersion"):
        if str(chart[name]) != __version__:
            raise ChartError(
                f"{CHART / 'Chart.yaml'}: {name}: expected app.__version__ ({__version__}), got {chart[name]}"
            )


def _check_defaults(schema: dict[str, Any], defaults: Any) -> None:
    for error in Draft7Validator(schema).iter_errors(defaults):
        name = ".".join(map(str, error.absolute_path))
        raise ChartError(f"{CHART / 'values.yaml'}: {name}: the default does not match the schema: {error.message}")


def _fill(text: str, tables: Mapping[str, str]) -> str:
    names = [match[2] for match in _BLOCK.finditer(text)]
    if sorted(names) != sorted(tables):
        raise ChartError(f"{CHART / 'README.md'}: expected one block each for {', '.join(tables)}, got {names}")
    return _BLOCK.sub(lambda match: match[1] + tables[match[2]] + match[3], text)


def find_stale(root: Path, files: Mapping[Path, bytes]) -> list[Path]:
    """Return the generated files that are missing or out of date."""
    return [path for path, data in files.items() if not (root / path).is_file() or (root / path).read_bytes() != data]


def write(root: Path, files: Mapping[Path, bytes]) -> None:
    """Write the generated files."""
    for path in find_stale(root, files):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(files[path])


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> None:
    """Write the files, or with --check exit with 1 if a file is out of date."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="only compare; fail if a file is out of date")
    is_check = parser.parse_args(arguments).check
    try:
        files = make_files(root)
    except ChartError as error:
        sys.exit(str(error))
    if not is_check:
        write(root, files)
    elif stale := find_stale(root, files):
        sys.exit(f"out of date: {', '.join(map(str, stale))}; run `make generate`")


if __name__ == "__main__":
    main()

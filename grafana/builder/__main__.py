"""Generate the dashboards in grafana/dashboards.

Example: python -m grafana.builder --check
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from grafana.builder import images, overview, resources, tasks

FOLDER = Path(__file__).parents[1] / "dashboards"
DASHBOARDS = (overview.DASHBOARD, tasks.DASHBOARD, images.DASHBOARD, resources.DASHBOARD)


def main() -> None:
    """Write the files, or with --check exit with 1 if a file is missing, out of date or orphaned."""
    parser = argparse.ArgumentParser(
        prog="python -m grafana.builder", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="only compare; fail if a file is out of date")
    is_check = parser.parse_args().check
    generated = {FOLDER / f"{spec.uid}.json": spec.render() for spec in DASHBOARDS}
    existing = {path: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.json")}
    stale = sorted(
        path.name for path in generated.keys() | existing.keys() if generated.get(path) != existing.get(path)
    )
    if is_check and stale:
        sys.exit(f"out of date: {', '.join(stale)}; run `make generate`")
    for path in existing.keys() - generated.keys():
        path.unlink()
    FOLDER.mkdir(exist_ok=True)
    for path, text in generated.items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

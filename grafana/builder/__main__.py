"""Write grafana/dashboards from the pages of this package; with --check, only compare.

Example: python -m grafana.builder --check
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from grafana.builder import images, overview, resources, tasks

FOLDER = Path(__file__).parents[1] / "dashboards"
PAGES = (overview.PAGE, tasks.PAGE, images.PAGE, resources.PAGE)


def main() -> None:
    """Write, or compare and exit 1 where a file differs from its page, or has none."""
    parser = argparse.ArgumentParser(
        prog="python -m grafana.builder", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="change nothing; fail where something would change")
    is_check = parser.parse_args().check
    made = {FOLDER / f"{page.uid}.json": page.render() for page in PAGES}
    there = {path: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.json")}
    stale = sorted(path.name for path in made.keys() | there.keys() if made.get(path) != there.get(path))
    if is_check and stale:
        sys.exit(f"not what grafana/builder makes: {', '.join(stale)}; run `make generate`")
    for path in there.keys() - made.keys():
        path.unlink()
    FOLDER.mkdir(exist_ok=True)
    for path, text in made.items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

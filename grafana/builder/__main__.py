"""Generate the dashboards in grafana/dashboards, or those for other objectives in another directory.

Example: python -m grafana.builder --check
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from grafana.builder import images, overview, resources, tasks
from prometheus.source.generate import read_texts
from prometheus.source.objectives import DEFAULT, Texts

FOLDER = Path(__file__).parents[1] / "dashboards"
CHART_FOLDER = Path(__file__).parents[2] / "charts" / "facial-service" / "files" / "dashboards"


def dashboard_files(texts: Texts = DEFAULT) -> dict[str, str]:
    """Render every dashboard.

    Args:
        texts: texts of the objectives.

    Returns:
        File contents by file name.
    """
    specs = (overview.dashboard(texts), tasks.DASHBOARD, images.DASHBOARD, resources.DASHBOARD)
    return {f"{spec.uid}.json": spec.render() for spec in specs}


def main() -> None:
    """Write the files, or with --check exit with 1 if a file is missing, out of date or orphaned."""
    parser = argparse.ArgumentParser(
        prog="python -m grafana.builder", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="only compare; fail if a file is out of date")
    parser.add_argument("--output", type=Path, help="write the dashboards to this directory")
    parser.add_argument("--values", type=Path, metavar="FILE", help="values of the chart with the section `slo`")
    arguments = parser.parse_args()
    if (arguments.values is not None or arguments.check) and (arguments.check != (arguments.output is None)):
        parser.error("--values requires --output, which cannot be combined with --check")
    if arguments.output is not None:
        outputs = {arguments.output: read_texts(arguments.values)}
    else:
        outputs = {FOLDER: DEFAULT, CHART_FOLDER: Texts.tokens()}
    generated = {
        folder / name: text for folder, texts in outputs.items() for name, text in dashboard_files(texts).items()
    }
    existing = {
        path: path.read_text(encoding="utf-8")
        for folder in outputs
        for path in folder.glob("*.json" if arguments.output is None else "facial-service-*.json")
    }
    stale = sorted(
        f"{path.parent.name}/{path.name}"
        for path in generated.keys() | existing.keys()
        if generated.get(path) != existing.get(path)
    )
    if arguments.check and stale:
        sys.exit(f"out of date: {', '.join(stale)}; run `make generate`")
    for path in existing.keys() - generated.keys():
        path.unlink()
    for path, text in generated.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

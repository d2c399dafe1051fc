"""Generate the dashboards in grafana/dashboards, or those for other objectives in another directory.

Example: python -m grafana.builder --check
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from grafana.builder import images, overview, resources, tasks
from grafana.builder.layout import all_panels, render
from grafana.builder.links import PanelLinks
from grafana.builder.panels import threshold_alerts
from prometheus.source.generate import read_texts
from prometheus.source.objectives import DEFAULT, Texts
from prometheus.source.render import Links

FOLDER = Path(__file__).parents[1] / "dashboards"
CHART_FOLDER = Path(__file__).parents[2] / "charts" / "facial-service" / "files" / "dashboards"


def dashboard_files(
    texts: Texts = DEFAULT, links: Links | None = None, *, has_logs: bool = False, has_traces: bool = False
) -> dict[str, str]:
    """Render every dashboard.

    Args:
        texts: texts of the objectives.
        links: base URL of the runbooks. If None, panels have no links to them.
        has_logs: whether dashboards have a link to the logs in Loki.
        has_traces: whether dashboards have a link to the traces in Tempo.

    Returns:
        File contents by file name.
    """
    specs = (overview.dashboard(texts), tasks.DASHBOARD, images.DASHBOARD, resources.DASHBOARD)
    documents = {spec.uid: spec.build(has_logs=has_logs, has_traces=has_traces) for spec in specs}
    panel_links = PanelLinks({uid: list(all_panels(each)) for uid, each in documents.items()}, links or Links())
    for uid, document in documents.items():
        for panel in all_panels(document):
            alerts = threshold_alerts(panel.description or "")
            panel.links = panel_links.of(uid, panel.title or "", alerts) or None
    return {f"{uid}.json": render(document) for uid, document in documents.items()}


def main() -> None:
    """Write the files, or with --check exit with 1 if a file is missing, out of date or orphaned."""
    parser = argparse.ArgumentParser(
        prog="python -m grafana.builder", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="only compare; fail if a file is out of date")
    parser.add_argument("--output", type=Path, help="write the dashboards to this directory")
    parser.add_argument("--values", type=Path, metavar="FILE", help="values of the chart with the section `slo`")
    parser.add_argument("--runbooks", default="", metavar="URL", help="base URL of the runbooks")
    parser.add_argument("--logs", action="store_true", help="add a link to the logs in Loki")
    parser.add_argument("--traces", action="store_true", help="add a link to the traces in Tempo")
    arguments = parser.parse_args()
    is_changed = arguments.values is not None or arguments.runbooks or arguments.logs or arguments.traces
    if (is_changed or arguments.check) and (arguments.check != (arguments.output is None)):
        parser.error(
            "--values, --runbooks, --logs and --traces require --output, which cannot be combined with --check"
        )
    if arguments.output is not None:
        links = Links(runbooks=arguments.runbooks.rstrip("/") or None)
        texts = read_texts(arguments.values)
        files = dashboard_files(texts, links, has_logs=arguments.logs, has_traces=arguments.traces)
        outputs = {arguments.output: files}
    else:
        # The chart adds the address of the runbooks, or removes their links, and those to logs and traces.
        of_chart = dashboard_files(Texts.tokens(), Links(runbooks=""), has_logs=True, has_traces=True)
        outputs = {FOLDER: dashboard_files(), CHART_FOLDER: of_chart}
    generated = {folder / name: text for folder, files in outputs.items() for name, text in files.items()}
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

"""Generator for the Grafana dashboards in grafana/dashboards.

Each dashboard is a module that lists its panels: `overview`, `tasks`, `images` and `resources`. `queries` builds
PromQL, `panels` creates panels with common options, `layout` arranges them, and `thresholds` reads the thresholds of
alerts.
"""

import importlib
import warnings

with warnings.catch_warnings():
    # The SDK recommends a schema that only Grafana 12 and later can provision from files.
    warnings.filterwarnings("ignore", message="Prefer using dashboardv2", category=DeprecationWarning)
    for name in ("dashboard", "heatmap"):
        importlib.import_module(f"grafana_foundation_sdk.builders.{name}")

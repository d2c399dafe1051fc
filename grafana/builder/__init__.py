"""Builds Grafana's dashboards from Python into the JSON that is committed beside this package.

A dashboard is a module here (`overview`, `tasks`, `images`, `resources`) that lists its panels; `queries` writes their
PromQL, `panels` gives them the look they share, `layout` places them, `limits` has the numbers at which alerts fire.
"""

import importlib
import warnings

with warnings.catch_warnings():
    # The SDK would rather have the schema that only Grafana 12 and later read from files.
    warnings.filterwarnings("ignore", message="Prefer using dashboardv2", category=DeprecationWarning)
    for name in ("dashboard", "heatmap"):
        importlib.import_module(f"grafana_foundation_sdk.builders.{name}")

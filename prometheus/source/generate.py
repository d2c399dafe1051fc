"""Generate the rule files and the index of the runbooks from the Python tables.

Links in the committed rules are paths, because the addresses of the repository and of Grafana are not known. To use the
rules without the chart, add the addresses with --output, --runbooks and --dashboards.

Examples:
  python -m prometheus.source.generate --check
  python -m prometheus.source.generate --output /etc/prometheus/rules --dashboards https://grafana.example.org
  python -m prometheus.source.generate --output /tmp/rules --speed-up 360      (for tests only)
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from prometheus.source import api, kubernetes, processes, slo, tasks
from prometheus.source.render import Links, SpeedUp, alerts_markdown, parse_duration_ms, rules_yaml

ROOT = Path(__file__).parents[2]
RULES = ROOT / "prometheus" / "rules"
INDEX = ROOT / "docs" / "runbooks" / "README.md"

FILES = {
    "facial-service-slo": slo.GROUPS,
    "facial-service-api": api.GROUPS,
    "facial-service-tasks": tasks.GROUPS,
    "facial-service-processes": processes.GROUPS,
    "facial-service-kubernetes": kubernetes.GROUPS,
}

INTRODUCTION = """\
# Runbooks

One page per alert, with its meaning, its impact, the diagnosis and the mitigation. `make generate` builds this index
from [the rules](../../prometheus/rules).

- **critical** pages the on-call engineer, because requests fail or will fail soon. **warning** creates a ticket.
  **info** gives context for other alerts.
- Queries do not select a namespace. If Prometheus monitors several releases, add `namespace="…"` to the selectors.
- Commands for Kubernetes use three variables. Alerts have the label `namespace`, and alerts on Kubernetes metrics also
  have the label `fullname`:

  ```console
  $ export NAMESPACE=faces FULLNAME=faces-facial-service RELEASE=faces
  $ kubectl -n "$NAMESPACE" get deploy,sts -l app.kubernetes.io/part-of=facial-service   # <fullname>-api, …
  $ helm -n "$NAMESPACE" list
  ```

- Settings are environment variables. With the chart, run `helm upgrade … --set settings.NAME=…`, which restarts the
  pods.
- The service logs to standard error, and to `LOG_FILE` if it is set.
"""


def rule_files(links: Links | None = None, speed_up: SpeedUp | None = None) -> dict[str, str]:
    """Render every rule file.

    Args:
        links: base URLs for links in annotations. If None, links are paths.
        speed_up: scaling of durations. If None, durations are unchanged.

    Returns:
        File contents by file name.
    """
    links, speed_up = links or Links(), speed_up or SpeedUp()
    return {
        f"{name}.yaml": rules_yaml([speed_up.apply(group) for group in groups], links) for name, groups in FILES.items()
    }


def main() -> None:
    """Write the files, or with --check exit with 1 if a file is out of date."""
    arguments = _parse()
    links = Links(runbooks=arguments.runbooks.rstrip("/"), dashboards=arguments.dashboards.rstrip("/"))
    speed_up = SpeedUp(factor=arguments.speed_up, min_window_ms=parse_duration_ms(arguments.min_window))
    folder = arguments.output or RULES
    files = {folder / name: text for name, text in rule_files(links, speed_up).items()}
    if arguments.output is None:
        files[INDEX] = INTRODUCTION + alerts_markdown(FILES)
    stale = [path for path, text in files.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    # Prometheus would still load a rule file whose source was removed.
    orphans = [path for path in RULES.glob("*.yaml") if path not in files] if arguments.output is None else []
    if arguments.check:
        if stale or orphans:
            names = ", ".join(str(path.relative_to(ROOT)) for path in stale + orphans)
            sys.exit(f"out of date: {names}; run `make generate`")
        return
    folder.mkdir(parents=True, exist_ok=True)
    for path in stale:
        path.write_text(files[path], encoding="utf-8")
    for path in orphans:
        path.unlink()


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only compare; fail if a file is out of date")
    parser.add_argument("--output", type=Path, help="write the rules to this directory")
    parser.add_argument("--runbooks", default="", metavar="URL", help="base URL of the runbooks")
    parser.add_argument("--dashboards", default="", metavar="URL", help="base URL of the dashboards")
    parser.add_argument(
        "--speed-up", type=float, default=1, metavar="N", help="divide windows, intervals and `for` by N"
    )
    parser.add_argument("--min-window", default="5s", metavar="D", help="minimum window with --speed-up (default: 5s)")
    arguments = parser.parse_args()
    is_changed = arguments.runbooks or arguments.dashboards or arguments.speed_up != 1
    if is_changed and arguments.output is None:
        parser.error("--runbooks, --dashboards and --speed-up require --output")
    if arguments.check and arguments.output is not None:
        parser.error("--check cannot be combined with --output")
    return arguments


if __name__ == "__main__":
    main()

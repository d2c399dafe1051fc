"""Write the rules, and the list of alerts among the runbooks, from the tables; with --check, only compare.

Links in the rules are paths, for no file knows where a repository and a Grafana are to be reached. Whoever loads the
rules as they are puts the addresses before them with --output, --runbooks and --dashboards.

Examples:
  python -m prometheus.source.generate --check
  python -m prometheus.source.generate --output /etc/prometheus/rules --dashboards https://grafana.example.org
  python -m prometheus.source.generate --output /tmp/rules --speed-up 360      (for tests alone)
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

One page an alert: what it means, whom it hurts, how to find the cause, what to do. This list is written by
`make generate`, by the files of [the rules](../../prometheus/rules).

- **critical** wakes somebody: callers are being failed now, or soon. **warning** is a ticket. **info** explains others.
- PromQL on the pages names no namespace. Where Prometheus watches several releases, add `namespace="…"` to a selector.
- Commands for Kubernetes expect three names, of which an alert has the first, and those from Kubernetes the second:

  ```console
  $ export NAMESPACE=faces FULLNAME=faces-facial-service RELEASE=faces
  $ kubectl -n "$NAMESPACE" get deploy,sts -l app.kubernetes.io/part-of=facial-service   # <fullname>-api, …
  $ helm -n "$NAMESPACE" list
  ```

- Settings are environment variables; with the chart, `helm upgrade … --set settings.NAME=…`, which starts the pods again.
- Logs are the service's standard error, and the file that `LOG_FILE` names.
"""


def rule_files(links: Links | None = None, speed_up: SpeedUp | None = None) -> dict[str, str]:
    """Write every file of rules.

    Args:
        links: what paths in annotations begin with; None leaves them paths.
        speed_up: how to shorten windows and `for`; None leaves them.

    Returns:
        Text by name of the file.
    """
    links, speed_up = links or Links(), speed_up or SpeedUp()
    return {
        f"{name}.yaml": rules_yaml([speed_up.apply(group) for group in groups], links) for name, groups in FILES.items()
    }


def main() -> None:
    """Write, or compare and exit 1 where a file differs from the tables."""
    arguments = _parse()
    links = Links(runbooks=arguments.runbooks.rstrip("/"), dashboards=arguments.dashboards.rstrip("/"))
    speed_up = SpeedUp(factor=arguments.speed_up, least_window_ms=parse_duration_ms(arguments.least_window))
    folder = arguments.output or RULES
    wanted = {folder / name: text for name, text in rule_files(links, speed_up).items()}
    if arguments.output is None:
        wanted[INDEX] = INTRODUCTION + alerts_markdown(FILES)
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    # A file that is no more would still be loaded.
    left = [path for path in RULES.glob("*.yaml") if path not in wanted] if arguments.output is None else []
    if arguments.check:
        if stale or left:
            names = ", ".join(str(path.relative_to(ROOT)) for path in stale + left)
            sys.exit(f"not what the tables say: {names}; run `make generate`")
        return
    folder.mkdir(parents=True, exist_ok=True)
    for path in stale:
        path.write_text(wanted[path], encoding="utf-8")
    for path in left:
        path.unlink()


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail where something would change")
    parser.add_argument("--output", type=Path, help="write the rules into this folder instead")
    parser.add_argument("--runbooks", default="", metavar="URL", help="what links to runbooks begin with")
    parser.add_argument("--dashboards", default="", metavar="URL", help="what links to dashboards begin with")
    parser.add_argument("--speed-up", type=float, default=1, metavar="N", help="divide windows and `for` by this")
    parser.add_argument("--least-window", default="5s", metavar="D", help="with --speed-up: no window below (5s)")
    arguments = parser.parse_args()
    is_changed = arguments.runbooks or arguments.dashboards or arguments.speed_up != 1
    if is_changed and arguments.output is None:
        parser.error("the rules of the repository have neither addresses nor other windows: give --output")
    if arguments.check and arguments.output is not None:
        parser.error("--check is of the rules of the repository")
    return arguments


if __name__ == "__main__":
    main()

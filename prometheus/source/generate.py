r"""Generate the rule files and the index of the runbooks from the Python tables.

The committed rules have no links, because the addresses of the runbooks and of Grafana are not known. They cover all
releases. To use other rules without the chart, add objectives, addresses or a release with --output.

Examples:
  python -m prometheus.source.generate --check
  python -m prometheus.source.generate --output /etc/prometheus/rules --values values.yaml \
    --runbooks https://git.example.org/facial-service/blob/main --dashboards https://grafana.example.org
  python -m prometheus.source.generate --output /tmp/rules --speed-up 360      (for tests only)
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import yaml

from prometheus.source import api, kubernetes, processes, slo, tasks
from prometheus.source.model import Alert, Group, Recording, Scope
from prometheus.source.objectives import DEFAULT, Objectives, ObjectivesError, Texts
from prometheus.source.render import Links, SpeedUp, alerts_markdown, parse_duration_ms, rules_yaml

ROOT = Path(__file__).parents[2]
RULES = ROOT / "prometheus" / "rules"
CHART_RULES = ROOT / "charts" / "facial-service" / "files" / "rules"
INDEX = ROOT / "docs" / "runbooks" / "README.md"


def groups_by_file(texts: Texts = DEFAULT, scope: Scope | None = None) -> dict[str, tuple[Group, ...]]:
    """Return the groups of each rule file.

    Args:
        texts: texts of the objectives.
        scope: release that the rules are limited to. If None, they cover all releases.
    """
    files = {
        "facial-service-slo": slo.groups(texts),
        "facial-service-api": api.GROUPS,
        "facial-service-tasks": tasks.groups(texts),
        "facial-service-processes": processes.GROUPS,
        "facial-service-kubernetes": kubernetes.groups(scope),
    }
    if scope is None:
        return files
    return {name: tuple(_limit(group, scope) for group in groups) for name, groups in files.items()}


def _limit(group: Group, scope: Scope) -> Group:
    def limit(rule: Alert | Recording) -> Alert | Recording:
        return replace(rule, expr=scope.apply(rule.expr))

    return replace(group, rules=tuple(map(limit, group.rules)))


FILES = groups_by_file()

SCOPE = ("namespace", "release", "fullname")

INTRODUCTION = """\
# Runbooks

One page per alert, with its meaning, its impact, the diagnosis and the mitigation. `make generate` builds this index
from [the rules](../../prometheus/rules).

- **critical** pages the on-call engineer, because requests or tasks fail now, and fires as long as that lasts.
  **warning** creates a ticket. **info** gives context for other alerts.
- Queries do not select a release. If Prometheus monitors several releases, add the labels `cluster`, `namespace` and
  `release` of the alert to the selectors.
- Objectives, their windows and thresholds are values (`slo` in the chart); the description of an alert contains them.
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


def rule_files(
    links: Links | None = None,
    speed_up: SpeedUp | None = None,
    *,
    texts: Texts = DEFAULT,
    scope: Scope | None = None,
) -> dict[str, str]:
    """Render every rule file.

    Args:
        links: base URLs for links in annotations. If None, there are no links.
        speed_up: scaling of durations. If None, durations are unchanged.
        texts: texts of the objectives.
        scope: release that the rules are limited to. If None, they cover all releases.

    Returns:
        File contents by file name.
    """
    links, speed_up = links or Links(), speed_up or SpeedUp()
    return {
        f"{name}.yaml": rules_yaml([speed_up.apply(group) for group in groups], links)
        for name, groups in groups_by_file(texts, scope).items()
    }


def chart_rule_files() -> dict[str, str]:
    """Render the rule files of the chart, in which tokens stand for objectives and release; links are paths."""
    scope = Scope(namespace="@NAMESPACE@", release="@RELEASE@", fullname="@FULLNAME@", cluster="@CLUSTER@")
    return rule_files(Links(runbooks="", dashboards=""), texts=Texts.tokens(), scope=scope)


def read_texts(path: Path | None) -> Texts:
    """Return the texts of the objectives in a values file of the chart; ends the program if one is impossible."""
    if path is None:
        return DEFAULT
    try:
        return Texts.of(Objectives.from_values(yaml.safe_load(path.read_text(encoding="utf-8")) or {}))
    except ObjectivesError as error:
        sys.exit(str(error))


def main() -> None:
    """Write the files, or with --check exit with 1 if a file is out of date."""
    arguments = _parse()
    bases = {name: getattr(arguments, name).rstrip("/") or None for name in ("runbooks", "dashboards")}
    links = Links(**bases)
    scope = Scope(**dict(zip(SCOPE, arguments.release.split("/"), strict=True))) if arguments.release else None
    speed_up = SpeedUp(factor=arguments.speed_up, min_window_ms=parse_duration_ms(arguments.min_window))
    rules = rule_files(links, speed_up, texts=read_texts(arguments.values), scope=scope)
    folder = arguments.output or RULES
    files = {folder / name: text for name, text in rules.items()}
    if arguments.output is None:
        files[INDEX] = INTRODUCTION + alerts_markdown(FILES)
        files |= {CHART_RULES / name: text for name, text in chart_rule_files().items()}
    stale = [path for path, text in files.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    # Prometheus would still load a rule file whose source was removed.
    folders = (RULES, CHART_RULES) if arguments.output is None else ()
    orphans = [path for one in folders for path in one.glob("*.yaml") if path not in files]
    if arguments.check:
        if stale or orphans:
            names = ", ".join(str(path.relative_to(ROOT)) for path in stale + orphans)
            sys.exit(f"out of date: {names}; run `make generate`")
        return
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(files[path], encoding="utf-8")
    for path in orphans:
        path.unlink()


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only compare; fail if a file is out of date")
    parser.add_argument("--output", type=Path, help="write the rules to this directory")
    parser.add_argument("--values", type=Path, metavar="FILE", help="values of the chart with the section `slo`")
    parser.add_argument(
        "--release",
        type=_check_release,
        metavar="NAMESPACE/RELEASE/FULLNAME",
        help="limit the rules to one release",
    )
    parser.add_argument("--runbooks", default="", metavar="URL", help="base URL of the runbooks")
    parser.add_argument("--dashboards", default="", metavar="URL", help="base URL of the dashboards")
    parser.add_argument(
        "--speed-up", type=float, default=1, metavar="N", help="divide windows, intervals and `for` by N"
    )
    parser.add_argument("--min-window", default="5s", metavar="D", help="minimum window with --speed-up (default: 5s)")
    arguments = parser.parse_args()
    changes = (arguments.values, arguments.release, arguments.runbooks, arguments.dashboards)
    if (any(changes) or arguments.speed_up != 1) and arguments.output is None:
        parser.error("--values, --release, --runbooks, --dashboards and --speed-up require --output")
    if arguments.check and arguments.output is not None:
        parser.error("--check cannot be combined with --output")
    return arguments


def _check_release(text: str) -> str:
    if len(text.split("/")) != len(SCOPE) or not all(text.split("/")):
        raise argparse.ArgumentTypeError(f"expected NAMESPACE/RELEASE/FULLNAME, got {text}")
    return text


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Fetch, into `.tools/crds`, the definitions of custom resources that tests judge the chart's objects by.

They come with the Go modules that `tools/crds/go.mod` pins and `go.sum` proves; Go downloads them and builds nothing.
Without Go, those tests are skipped.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from programs import FOLDER, format_version, read_pins
from setup import DEFAULT_HOME, hold_lock
from sources import UnavailableError, run_step, say

GO_MOD = FOLDER / "crds" / "go.mod"
EXAMPLE = """examples:
  python3 tools/custom_resources.py                    fetch what is missing
  python3 tools/custom_resources.py --check --strict   change nothing; exit code 1 if anything is missing
"""


@dataclass(frozen=True, slots=True)
class Source:
    """A module with definitions.

    Attributes:
        name: what it is called here.
        module: the Go module, without its version.
        folder: where in it the definitions are.
        files: those of the kinds that the chart has.
    """

    name: str
    module: str
    folder: str
    files: tuple[str, ...]

    @property
    def version(self) -> str:
        """The version that is pinned."""
        return f"v{format_version(read_pins(GO_MOD)[self.module])}"

    def folder_in(self, home: Path) -> Path:
        """Where its definitions are kept; another version has another folder."""
        return home / "crds" / f"{self.name}@{self.version}"


SOURCES = (
    Source(
        "prometheus-operator",
        "github.com/prometheus-operator/prometheus-operator",
        "example/prometheus-operator-crd",
        (
            "monitoring.coreos.com_podmonitors.yaml",
            "monitoring.coreos.com_prometheusrules.yaml",
            "monitoring.coreos.com_servicemonitors.yaml",
        ),
    ),
    Source("keda", "github.com/kedacore/keda/v2", "config/crd/bases", ("keda.sh_scaledobjects.yaml",)),
    Source(
        "gateway-api",
        "sigs.k8s.io/gateway-api",
        "config/crd/standard",
        ("gateway.networking.k8s.io_httproutes.yaml",),
    ),
)


def find_missing(home: Path) -> list[Source]:
    """Tell which definitions are not there."""
    return [source for source in SOURCES if not all((source.folder_in(home) / file).is_file() for file in source.files)]


def fetch(source: Source, home: Path) -> None:
    """Download a module and keep its definitions, in a folder that appears when it is complete.

    Raises:
        UnavailableError: there is no Go, the module cannot be had, or it is not the one that was pinned.
    """
    go = shutil.which("go")
    if go is None:
        raise UnavailableError("no Go on PATH")
    printed = run_step(
        [go, "mod", "download", "-json", f"{source.module}@{source.version}"],
        label=f"downloading {source.module} {source.version}",
        cwd=GO_MOD.parent,
        variables={"GOWORK": "off", "GOFLAGS": "-mod=readonly"},
    )
    module = Path(json.loads(printed[printed.index("{") :])["Dir"])
    target = source.folder_in(home)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        partial = Path(folder, "partial")
        partial.mkdir()
        for file in source.files:
            shutil.copyfile(module / source.folder / file, partial / file)
        shutil.rmtree(target, ignore_errors=True)
        partial.replace(target)


def fetch_missing(home: Path) -> dict[str, str]:
    """Fetch what is not there.

    Returns:
        Why something is still missing, by its name.
    """
    reasons = {}
    with hold_lock(home):
        for source in find_missing(home):
            try:
                fetch(source, home)
            except (UnavailableError, OSError) as error:
                reasons[source.name] = str(error)
    return reasons


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; see `--help`."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="report only; change nothing")
    parser.add_argument("--strict", action="store_true", help="exit code 1 if something is missing")
    parser.add_argument("--into", metavar="DIR", type=Path, default=DEFAULT_HOME, help="instead of .tools")
    options = parser.parse_args(arguments)
    home: Path = options.into.resolve()
    missing = {source.name: "not fetched" for source in find_missing(home)}
    if missing and not options.check:
        try:
            missing = fetch_missing(home)
        except OSError as error:
            missing = dict.fromkeys(missing, str(error))
    for source in SOURCES:
        print(f"{source.name:<20} {missing.get(source.name) or source.version}")
    for name, reason in missing.items():
        say(f"missing: definitions of {name} ({reason}): tests of the chart's objects of these kinds are skipped")
    return 1 if missing and options.strict else 0


if __name__ == "__main__":
    sys.exit(main())

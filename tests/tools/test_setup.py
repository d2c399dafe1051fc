import dataclasses
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "tools"))  # as `python3 tools/setup.py` has it
    import programs
    import setup
    import sources

WriteProgram = Callable[[Path, str, str], Path]

SCRIPT = programs.FOLDER / "setup.py"
TOOLS = {tool.name: tool for tool in programs.TOOLS}
OLD, GOOD, NEWER = "echo 'version 0.20.0'", "echo 'version 2.45.1 (branch: x)'", "echo 'version 3.0.0'"
BUILD = """for a; do case $a in -o=*)
    echo '#!/bin/sh' > "${a#-o=}"; echo 'echo version 3.16.0' >> "${a#-o=}"; /bin/chmod 755 "${a#-o=}";;
esac; done"""


class Case(NamedTuple):
    """A program's script in the own folder, those on PATH, and what is found or why not."""

    name: str
    own: str | None
    on_path: Mapping[str, str]
    version: programs.Version | None
    words: str
    is_pinned: bool = False


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(Case("promtool", GOOD, {"promtool": NEWER}, (2, 45, 1), "built by Go"), id="own-first"),
        pytest.param(Case("promtool", None, {"promtool": NEWER}, (3, 0, 0), "PATH: "), id="then-path"),
        pytest.param(Case("promtool", OLD, {"promtool": GOOD}, (2, 45, 1), "PATH: "), id="own-too-old"),
        pytest.param(Case("promtool", "exit 1", {"promtool": GOOD}, (2, 45, 1), "PATH: "), id="own-broken"),
        pytest.param(Case("promtool", None, {"promtool": OLD}, None, "is older than 2.42.0"), id="path-too-old"),
        pytest.param(
            Case("promtool", None, {"promtool": "exit 1"}, None, "does not tell its version"), id="path-broken"
        ),
        pytest.param(Case("promtool", None, {"promtool": "echo hello"}, None, "does not tell"), id="no-version"),
        pytest.param(Case("promtool", None, {}, None, "not on PATH"), id="nowhere"),
        pytest.param(
            Case("promtool", None, {"promtool": GOOD}, None, "is 2.45.1, not 3.16.0", is_pinned=True), id="not-the-pin"
        ),
        pytest.param(Case("amtool", None, {"prometheus-amtool": GOOD}, None, "not on PATH"), id="another-name"),
        pytest.param(
            Case("alertmanager", None, {"prometheus-alertmanager": GOOD}, (2, 45, 1), "PATH: "), id="debian-name"
        ),
        pytest.param(
            Case("alertmanager", None, {"prometheus-alertmanager": NEWER, "alertmanager": GOOD}, (2, 45, 1), "PATH: "),
            id="its-name-before-debian-name",
        ),
    ],
)
def test_find(home: Path, search_path: Path, write_program: WriteProgram, case: Case) -> None:
    if case.own is not None:
        write_program(home / "bin", case.name, case.own)
    for name, script in case.on_path.items():
        write_program(search_path, name, script)
    outcome = setup.Finder(home, str(search_path), is_pinned=case.is_pinned).find(TOOLS[case.name])
    assert outcome.version == case.version
    assert case.words in (outcome.reason if case.version is None else outcome.origin)


def test_find_passes_over_a_link_to_nothing(home: Path, search_path: Path, write_program: WriteProgram) -> None:
    (home / "bin").mkdir(parents=True)
    (home / "bin" / "promtool").symlink_to(home / "gone")
    write_program(search_path, "promtool", GOOD)
    outcome = setup.Finder(home, str(search_path)).find(TOOLS["promtool"])
    assert outcome.path == search_path / "promtool"


def test_find_names_the_debian_package_of_a_link(home: Path, write_program: WriteProgram) -> None:
    program = write_program(home / "debian" / "prometheus_2.45.1" / "usr" / "bin", "promtool", GOOD)
    sources.place(TOOLS["promtool"], home, program, is_link=True)
    assert setup.Finder(home, "").find(TOOLS["promtool"]).origin == "Debian package prometheus"


@pytest.mark.parametrize("is_in_place", [True, False])
def test_find_objects_to_an_unpacked_program_without_its_data(
    home: Path, tmp_path: Path, write_program: WriteProgram, is_in_place: bool
) -> None:
    tool = dataclasses.replace(TOOLS["alertmanager"], debian_data=str(tmp_path / "data"))
    program = write_program(home / "debian" / "prometheus-alertmanager_2.45.1", "prometheus-alertmanager", GOOD)
    sources.place(tool, home, program, is_link=True)
    if is_in_place:
        (tmp_path / "data").mkdir()
    outcome = setup.Finder(home, "").find(tool)
    assert outcome.reason == ("" if is_in_place else f"{home}/bin/alertmanager lacks {tmp_path}/data")


def test_set_up_links_a_program_that_has_another_name(
    home: Path, search_path: Path, write_program: WriteProgram
) -> None:
    write_program(search_path, "prometheus-alertmanager", GOOD)
    assert setup.main(["--into", str(home), "alertmanager"]) == 0
    assert (home / "bin" / "alertmanager").resolve() == search_path / "prometheus-alertmanager"


def test_set_up_leaves_alone_what_path_has(home: Path, search_path: Path, write_program: WriteProgram) -> None:
    write_program(search_path, "promtool", GOOD)
    assert setup.main(["--into", str(home), "--strict", "promtool"]) == 0
    assert not home.exists()


def test_set_up_falls_back_to_go(
    home: Path, search_path: Path, write_program: WriteProgram, capsys: pytest.CaptureFixture[str]
) -> None:
    write_program(search_path, "promtool", OLD)
    write_program(search_path, "go", BUILD)
    assert setup.main(["--into", str(home), "--strict", "promtool"]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[1].split() == ["promtool", "3.16.0", "built", "by", "Go"]
    assert "building promtool with Go" in printed.err


def test_set_up_again_does_nothing(home: Path, search_path: Path, write_program: WriteProgram) -> None:
    go = write_program(search_path, "go", BUILD)
    arguments = ["--into", str(home), "--strict", "promtool"]
    assert setup.main(arguments) == 0
    go.unlink()
    assert setup.main(arguments) == 0


def test_pinned_passes_debian_over(home: Path, search_path: Path, write_program: WriteProgram) -> None:
    write_program(search_path, "go", BUILD)
    for name in ("apt-cache", "apt-get", "dpkg-deb"):
        write_program(search_path, name, f"echo {name} >> {search_path / 'calls'}; exit 1")
    assert setup.main(["--into", str(home), "--strict", "--pinned", "promtool"]) == 0
    assert not (search_path / "calls").exists()


@pytest.mark.parametrize(("flags", "code"), [([], 0), (["--strict"], 1)])
@pytest.mark.usefixtures("search_path")
def test_missing_is_said_and_counts_only_when_strict(
    home: Path, capsys: pytest.CaptureFixture[str], flags: list[str], code: int
) -> None:
    assert setup.main(["--into", str(home), *flags, "helm"]) == code
    printed = capsys.readouterr()
    assert printed.err.splitlines()[-1] == (
        "missing: helm (not on PATH; no Debian package; no Go on PATH): "
        "skipped without it: tests that render and lint the chart"
    )
    assert printed.out.splitlines()[1].startswith("helm  missing  not on PATH;")


def test_check_changes_nothing(
    home: Path, search_path: Path, write_program: WriteProgram, capsys: pytest.CaptureFixture[str]
) -> None:
    write_program(search_path, "go", f"echo called > {search_path / 'calls'}")
    write_program(search_path, "prometheus-alertmanager", GOOD)
    assert setup.main(["--into", str(home), "--check", "--strict"]) == 1
    assert not home.exists()
    assert not (search_path / "calls").exists()
    rows = {row.split()[0]: row.split()[1] for row in capsys.readouterr().out.splitlines()[1:]}
    found = dict.fromkeys(("prometheus", "promtool", "amtool", "helm"), "missing") | {"alertmanager": "2.45.1"}
    assert rows == found


@pytest.mark.usefixtures("search_path")
def test_folder_that_cannot_be_made_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert setup.main(["--into", str(tmp_path / "file" / "home"), "promtool"]) == 0
    assert "nothing can be set up in" in capsys.readouterr().err


def test_unknown_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        setup.main(["kubectl"])
    assert "'kubectl' is none of prometheus, promtool, alertmanager, amtool, helm" in capsys.readouterr().err


def test_second_set_up_waits_for_the_first(home: Path, search_path: Path, write_program: WriteProgram) -> None:
    write_program(search_path, "go", BUILD)
    command = [sys.executable, str(SCRIPT), "--into", str(home), "--strict", "promtool"]
    with setup.hold_lock(home):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        assert process.stderr.readline() == "another set-up is running; waiting for it\n"
        write_program(home / "bin", "promtool", GOOD)
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, "")
    assert "2.45.1" in output


def test_help_shows_programs_and_an_example() -> None:
    answer = subprocess.run([sys.executable, str(SCRIPT), "--help"], capture_output=True, text=True, check=True)
    assert "python3 tools/setup.py helm promtool" in answer.stdout
    assert all(tool.needed_by in answer.stdout for tool in programs.TOOLS)

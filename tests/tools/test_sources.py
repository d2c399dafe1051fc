import dataclasses
import gzip
import json
import os
import re
import shutil
import time
import zipfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "tools"))  # as `python3 tools/setup.py` has it
    import programs
    import sources

WriteProgram = Callable[[Path, str, str], Path]

TOOLS = {tool.name: tool for tool in programs.TOOLS}
UNPACK = """
/bin/mkdir -p "$3/usr/bin"
for name in prometheus promtool; do
    echo "#!/bin/sh" > "$3/usr/bin/$name"
    /bin/chmod 755 "$3/usr/bin/$name"
done
"""


def unavailable(reason: str) -> AbstractContextManager[object]:
    return pytest.raises(sources.UnavailableError, match=reason)


@pytest.fixture
def apt(search_path: Path, write_program: WriteProgram) -> Path:
    """A Debian in which apt knows prometheus 2.42.0; returns the file in which its calls are written down."""
    calls = search_path / "calls"
    write_program(search_path, "apt-cache", 'echo "$2:"; echo "  Installed: (none)"; echo "  Candidate: 1:2.42.0+ds-5"')
    write_program(search_path, "apt-get", f'echo "$@" >> {calls}; echo content > package.deb')
    write_program(search_path, "dpkg-deb", UNPACK)
    return calls


@pytest.fixture
def plain_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)


def test_debian_unpacks_once_for_all_programs_of_a_package(apt: Path, home: Path) -> None:
    sources.provide_from_debian(TOOLS["prometheus"], home)
    sources.provide_from_debian(TOOLS["promtool"], home)
    assert len(apt.read_text(encoding="utf-8").splitlines()) == 1
    for name in ("prometheus", "promtool"):
        assert (home / "bin" / name).resolve() == home / "debian" / "prometheus_2.42.0" / "usr" / "bin" / name
    assert [entry.name for entry in (home / "debian").iterdir()] == ["prometheus_2.42.0"]


def test_debian_never_installs(apt: Path, home: Path) -> None:
    sources.provide_from_debian(TOOLS["prometheus"], home)
    verbs = {line.split()[0] for line in apt.read_text(encoding="utf-8").splitlines()}
    assert verbs == {"download"}


@pytest.mark.usefixtures("apt")
def test_debian_links_survive_a_move_of_the_folder(home: Path, tmp_path: Path) -> None:
    sources.provide_from_debian(TOOLS["promtool"], home)
    home.rename(tmp_path / "moved")
    assert (tmp_path / "moved" / "bin" / "promtool").is_file()


@pytest.mark.parametrize(
    ("candidate_and_name", "expectation"),
    [
        (("2.42.0+ds-5", "promtool"), nullcontext()),
        (("1:2.53.3-1", "promtool"), nullcontext()),
        (("2.31.2+ds1-1", "promtool"), unavailable(r"prometheus 2\.31\.2 is too old")),
        (("(none)", "promtool"), unavailable("knows no package prometheus")),
        (("2.42.0+ds-5", "helm"), unavailable("no Debian package")),
    ],
)
@pytest.mark.usefixtures("apt", "plain_user")
def test_debian_candidate(
    search_path: Path,
    home: Path,
    write_program: WriteProgram,
    candidate_and_name: tuple[str, str],
    expectation: AbstractContextManager[object],
) -> None:
    candidate, name = candidate_and_name
    write_program(search_path, "apt-cache", f'echo "  Candidate: {candidate}"')
    with expectation:
        sources.provide_from_debian(TOOLS[name], home)


def test_debian_as_root_fills_an_empty_package_list_first(
    apt: Path, search_path: Path, home: Path, write_program: WriteProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    write_program(search_path, "apt-cache", f'[ ! -e {apt} ] || echo "  Candidate: 2.42.0"')
    sources.provide_from_debian(TOOLS["promtool"], home)
    verbs = [line.split()[0] for line in apt.read_text(encoding="utf-8").splitlines()]
    assert verbs == ["update", "download"]


@pytest.fixture
def tool_with_data(tmp_path: Path, apt: Path, write_program: WriteProgram) -> programs.Tool:
    """A program whose Debian package has a folder that it reads at its absolute path."""
    data = tmp_path / "usr" / "share" / "data"
    write_program(
        apt.parent, "dpkg-deb", f'{UNPACK}\n/bin/mkdir -p "$3{data}"; echo template > "$3{data}/default.tmpl"'
    )
    return dataclasses.replace(TOOLS["promtool"], debian_data=str(data))


def test_debian_as_root_puts_data_in_place(
    tool_with_data: programs.Tool, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    sources.provide_from_debian(tool_with_data, home)
    assert Path(tool_with_data.debian_data, "default.tmpl").read_text(encoding="utf-8") == "template\n"


@pytest.mark.parametrize(("is_in_place", "expectation"), [(True, nullcontext()), (False, unavailable("only root"))])
@pytest.mark.usefixtures("plain_user")
def test_debian_data_of_a_plain_user(
    tool_with_data: programs.Tool, home: Path, is_in_place: bool, expectation: AbstractContextManager[object]
) -> None:
    if is_in_place:
        Path(tool_with_data.debian_data).mkdir(parents=True)
    with expectation:
        sources.provide_from_debian(tool_with_data, home)
    assert (home / "bin" / "promtool").exists() == is_in_place


@pytest.mark.usefixtures("search_path")
def test_debian_needs_apt(home: Path) -> None:
    with unavailable("no apt-get here"):
        sources.provide_from_debian(TOOLS["promtool"], home)


@pytest.mark.usefixtures("apt")
def test_debian_download_that_fails_leaves_nothing(search_path: Path, home: Path, write_program: WriteProgram) -> None:
    write_program(search_path, "apt-get", 'echo "E: Failed to fetch"; exit 100')
    with unavailable("downloading prometheus failed: E: Failed to fetch"):
        sources.provide_from_debian(TOOLS["promtool"], home)
    assert list((home / "debian").iterdir()) == []


def test_go_builds_the_pinned_source(search_path: Path, home: Path, write_program: WriteProgram) -> None:
    calls = search_path / "calls"
    script = f'echo "$PWD $CGO_ENABLED $@" > {calls}; for a; do case $a in -o=*) echo built > "${{a#-o=}}";; esac; done'
    write_program(search_path, "go", script)
    sources.provide_from_go(TOOLS["promtool"], home)
    call = calls.read_text(encoding="utf-8")
    assert call.startswith(f"{programs.FOLDER}/prometheus 0 build ")
    assert call.rstrip().endswith("github.com/prometheus/prometheus/cmd/promtool")
    assert "-mod=readonly" in call
    assert (home / "bin" / "promtool").read_text(encoding="utf-8") == "built\n"
    assert [entry.name for entry in home.iterdir()] == ["bin"]


def test_go_build_that_fails_leaves_what_was_there(
    search_path: Path, home: Path, write_program: WriteProgram, capsys: pytest.CaptureFixture[str]
) -> None:
    write_program(home / "bin", "promtool", "echo old")
    write_program(search_path, "go", 'echo "go: downloading x"; echo "no space left on device" >&2; exit 1')
    with unavailable("building promtool failed: no space left on device"):
        sources.provide_from_go(TOOLS["promtool"], home)
    assert "| go: downloading x" in capsys.readouterr().err
    assert "echo old" in (home / "bin" / "promtool").read_text(encoding="utf-8")
    assert [entry.name for entry in home.iterdir()] == ["bin"]


@pytest.mark.usefixtures("search_path")
def test_go_is_needed(home: Path) -> None:
    with unavailable("no Go on PATH"):
        sources.provide_from_go(TOOLS["promtool"], home)


def test_module_with_page_replaces_that_module_only(tmp_path: Path, write_program: WriteProgram) -> None:
    tool, version = TOOLS["alertmanager"], "v0.34.2"
    archive = tmp_path / "module.zip"
    with zipfile.ZipFile(archive, "w") as content:
        content.writestr(f"{tool.module}@{version}/ui/web.go", "package ui")
    answer = json.dumps({"Path": tool.module, "Version": version, "Zip": str(archive)})
    go = write_program(tmp_path, "go", f"echo 'go: downloading'; echo '{answer}'")
    scratch = tmp_path / "scratch"
    scratch.mkdir()

    go_mod = sources.write_module_with_page(str(go), tool, scratch)

    ours = tool.go_mod.read_text(encoding="utf-8")
    copy = scratch / f"{tool.module}@{version}"
    assert go_mod.read_text(encoding="utf-8") == f'{ours}\nreplace {tool.module} => "{copy}"\n'
    assert go_mod.with_name("go.sum").read_bytes() == tool.go_mod.with_name("go.sum").read_bytes()
    assert (copy / "ui" / "web.go").is_file()
    assert b"<title>" in gzip.decompress((copy / "ui" / "app" / "dist" / "index.html.gz").read_bytes())


def test_run_step_reports_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sources, "PROGRESS_INTERVAL_S", 0.1)
    printed = sources.run_step(["sh", "-c", "echo one; echo two >&2; sleep 0.5"], label="building", cwd=tmp_path)
    assert printed == "one\ntwo\n"
    assert re.search(r"building: \d+ s, 2 steps, latest: two", capsys.readouterr().err)


def test_run_step_takes_its_command_along_when_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sources, "PROGRESS_INTERVAL_S", 0.05)
    monkeypatch.setattr(sources, "say", interrupt)
    sleep = shutil.which("sleep")
    assert sleep is not None
    started_s = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        sources.run_step([sleep, "60"], label="sleeping", cwd=tmp_path)
    assert time.monotonic() - started_s < 30


def test_run_step_says_when_a_failure_is_silent(tmp_path: Path) -> None:
    with unavailable("checking failed: it printed nothing"):
        sources.run_step(["sh", "-c", "exit 3"], label="checking", cwd=tmp_path)

import json
import re
from pathlib import Path

import pytest

from tests.tools.conftest import WriteProgram

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "tools"))  # as `python3 tools/setup.py` has it
    import custom_resources


@pytest.fixture
def modules(tmp_path: Path, search_path: Path, write_program: WriteProgram) -> Path:
    """A Go that has every module at hand, in folders of their own; writes down what it was asked for."""
    for source in custom_resources.SOURCES:
        folder = tmp_path / "modules" / f"{source.module}@{source.version}"
        (folder / source.folder).mkdir(parents=True)
        for file in source.files:
            (folder / source.folder / file).write_text(f"of {source.name}", encoding="utf-8")
    answer = json.dumps({"Dir": f"{tmp_path}/modules/MODULE"}).replace("MODULE", "'$4'")
    write_program(search_path, "go", f"echo \"$@\" >> {tmp_path}/calls; echo '{answer}'")
    return tmp_path / "modules"


@pytest.mark.usefixtures("modules")
def test_fetches_what_is_pinned_once(tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert custom_resources.main(["--into", str(home), "--strict"]) == 0
    assert len((tmp_path / "calls").read_text(encoding="utf-8").splitlines()) == len(custom_resources.SOURCES)
    printed = capsys.readouterr().out
    for source in custom_resources.SOURCES:
        assert f"{source.name:<20} {source.version}" in printed
        for file in source.files:
            assert (source.folder_in(home) / file).read_text(encoding="utf-8") == f"of {source.name}"


def test_module_without_the_file_leaves_no_folder(modules: Path, home: Path) -> None:
    source = custom_resources.SOURCES[0]
    (modules / f"{source.module}@{source.version}" / source.folder / source.files[-1]).unlink()
    assert custom_resources.main(["--into", str(home), "--strict"]) == 1
    assert custom_resources.find_missing(home) == [source]
    assert not source.folder_in(home).exists()


def test_failing_download_is_said(
    home: Path, search_path: Path, write_program: WriteProgram, capsys: pytest.CaptureFixture[str]
) -> None:
    write_program(search_path, "go", "echo 'checksum mismatch' >&2; exit 1")
    assert custom_resources.main(["--into", str(home)]) == 0
    assert custom_resources.main(["--into", str(home), "--strict"]) == 1
    assert "failed: checksum mismatch): tests of the chart's objects" in capsys.readouterr().err


@pytest.mark.usefixtures("search_path")
def test_without_go_it_says_so_and_check_makes_nothing(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert custom_resources.main(["--into", str(home), "--check", "--strict"]) == 1
    assert not home.exists()
    assert custom_resources.main(["--into", str(home), "--strict"]) == 1
    assert "no Go on PATH" in capsys.readouterr().err


def test_pins_are_summed() -> None:
    go_sum = custom_resources.GO_MOD.with_name("go.sum").read_text(encoding="utf-8")
    for source in custom_resources.SOURCES:
        assert re.search(rf"^{re.escape(source.module)} {re.escape(source.version)} h1:\S{{44}}$", go_sum, re.MULTILINE)
        assert f"{source.module} {source.version}/go.mod h1:" in go_sum

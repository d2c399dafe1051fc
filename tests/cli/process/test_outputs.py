"""The results folder: which results are up to date, and atomic writes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from app.cli.process.outputs import (
    MANIFEST,
    FolderInUseError,
    OutputError,
    OutputFolder,
    write_files,
    write_temporary,
)

if TYPE_CHECKING:
    from pathlib import Path

OPTIONS = {"format": ["svg"], "upright": False, "output_size": None}


def open_folder(path: Path, *, options: dict[str, object] | None = None, is_forced: bool = False) -> OutputFolder:
    folder = OutputFolder(str(path))
    folder.lock()
    folder.check_manifest(options or OPTIONS, is_forced=is_forced)
    folder.close()
    return folder


def temporary_files(path: Path) -> list[str]:
    return [name for name in os.listdir(path) if name.endswith(".part")]


def test_image_is_up_to_date_if_all_results_exist_and_none_is_older(tmp_path: Path) -> None:
    svg, png = str(tmp_path / "a.svg"), str(tmp_path / "x" / "a.png")
    assert not open_folder(tmp_path).is_up_to_date([svg], 0)
    write_files({svg: b"s"})
    written_ns = os.stat(svg).st_mtime_ns
    assert open_folder(tmp_path).is_up_to_date([svg], written_ns)
    assert not open_folder(tmp_path).is_up_to_date([svg], written_ns + 1)
    assert not open_folder(tmp_path).is_up_to_date([svg, png], 0)
    write_files({svg: b"s", png: b"p"})
    assert open_folder(tmp_path).is_up_to_date([svg, png], written_ns)


def test_empty_file_is_not_a_result(tmp_path: Path) -> None:
    (tmp_path / "a.svg").touch()
    assert not open_folder(tmp_path).is_up_to_date([str(tmp_path / "a.svg")], 0)


def test_temporary_files_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    for path in (tmp_path, tmp_path / "x"):
        write_temporary(str(path / "a.svg"), b"half")
        (path / "mine.part").touch()
    folder = open_folder(tmp_path)
    folder.is_up_to_date([str(tmp_path / "a.svg"), str(tmp_path / "b.svg")], 0)
    folder.is_up_to_date([str(tmp_path / "x" / "a.svg")], 0)
    assert temporary_files(tmp_path) == temporary_files(tmp_path / "x") == ["mine.part"]


def test_different_options_are_refused_and_listed(tmp_path: Path) -> None:
    open_folder(tmp_path)
    open_folder(tmp_path)
    with pytest.raises(OutputError) as raised:
        open_folder(tmp_path, options={**OPTIONS, "upright": True, "output_size": 64})
    assert "upright changed from false to true, output_size changed from unset to 64" in str(raised.value)
    assert "--force" in str(raised.value)


def test_force_invalidates_results_until_they_are_replaced(tmp_path: Path) -> None:
    svg = str(tmp_path / "a.svg")
    open_folder(tmp_path)
    write_files({svg: b"s"})
    assert open_folder(tmp_path).is_up_to_date([svg], 0)
    os.utime(svg, ns=(0, os.stat(svg).st_mtime_ns - 10_000_000))
    changed = {**OPTIONS, "upright": True}
    assert not open_folder(tmp_path, options=changed, is_forced=True).is_up_to_date([svg], 0)
    # A run that resumes after a kill must not take an old result for one with the new options.
    assert not open_folder(tmp_path, options=changed).is_up_to_date([svg], 0)
    write_files({svg: b"t"})
    assert open_folder(tmp_path, options=changed).is_up_to_date([svg], 0)


@pytest.mark.parametrize("is_forced", [False, True])
def test_dry_run_changes_nothing(tmp_path: Path, *, is_forced: bool) -> None:
    svg = str(tmp_path / "a.svg")
    open_folder(tmp_path)
    write_files({svg: b"s"})
    write_temporary(svg, b"half")
    before = sorted(os.listdir(tmp_path))
    dry = OutputFolder(str(tmp_path))
    dry.check_manifest(OPTIONS, is_forced=is_forced, is_dry_run=True)
    assert dry.is_up_to_date([svg], 0) is not is_forced
    assert sorted(os.listdir(tmp_path)) == before


def test_existing_file_without_manifest_is_not_a_result(tmp_path: Path) -> None:
    svg = tmp_path / "a.svg"
    svg.write_bytes(b"from another program")
    os.utime(svg, ns=(0, svg.stat().st_mtime_ns - 10_000_000))
    dry = OutputFolder(str(tmp_path))
    dry.check_manifest(OPTIONS, is_forced=False, is_dry_run=True)
    assert not dry.is_up_to_date([str(svg)], 0)
    assert not open_folder(tmp_path).is_up_to_date([str(svg)], 0)
    assert not open_folder(tmp_path).is_up_to_date([str(svg)], 0)


@pytest.mark.parametrize("text", ["", "[]", '{"format": 2, "since_ns": 0, "options": {}}', '{"format": 1}', "\x00"])
def test_invalid_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(OutputError, match="expected the manifest of an earlier run"):
        open_folder(tmp_path)


def test_second_run_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    first = OutputFolder(str(tmp_path))
    first.lock()
    with pytest.raises(FolderInUseError, match="another run"):
        open_folder(tmp_path)
    first.close()
    open_folder(tmp_path)


def test_results_of_an_image_are_written_completely_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked" / "x").touch()
    with pytest.raises(OSError, match="directory"):
        write_files({str(tmp_path / "a.svg"): b"s", str(tmp_path / "blocked" / "x" / "a.png"): b"p"})
    assert sorted(os.listdir(tmp_path)) == ["blocked"]


def test_longest_file_name_can_be_written(tmp_path: Path) -> None:
    path = str(tmp_path / ("n" * 251 + ".svg"))
    write_files({path: b"s"})
    assert os.listdir(tmp_path) == [os.path.basename(path)]

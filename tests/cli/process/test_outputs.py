"""What is done already, and how results get to their places."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from app.cli.process.outputs import NOTES, BusyError, OutputError, OutputFolder, write_all, write_part

if TYPE_CHECKING:
    from pathlib import Path

OPTIONS = {"format": ["svg"], "upright": False, "output_size": None}


def folder(path: Path, *, options: dict[str, object] | None = None, is_again: bool = False) -> OutputFolder:
    made = OutputFolder(str(path))
    made.hold()
    made.claim(options or OPTIONS, is_again=is_again)
    made.close()
    return made


def parts(path: Path) -> list[str]:
    return [name for name in os.listdir(path) if name.endswith(".part")]


def test_a_photo_is_done_when_all_its_files_are_there_and_not_older(tmp_path: Path) -> None:
    svg, png = str(tmp_path / "a.svg"), str(tmp_path / "x" / "a.png")
    assert not folder(tmp_path).is_done([svg], 0)
    write_all({svg: b"s"})
    written_ns = os.stat(svg).st_mtime_ns
    assert folder(tmp_path).is_done([svg], written_ns)
    assert not folder(tmp_path).is_done([svg], written_ns + 1)
    assert not folder(tmp_path).is_done([svg, png], 0)
    write_all({svg: b"s", png: b"p"})
    assert folder(tmp_path).is_done([svg, png], written_ns)


def test_an_empty_file_is_no_result(tmp_path: Path) -> None:
    (tmp_path / "a.svg").touch()
    assert not folder(tmp_path).is_done([str(tmp_path / "a.svg")], 0)


def test_what_a_killed_run_left_half_written_is_removed(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    for place in (tmp_path, tmp_path / "x"):
        write_part(str(place / "a.svg"), b"half")
        (place / "mine.part").touch()
    held = folder(tmp_path)
    held.is_done([str(tmp_path / "a.svg"), str(tmp_path / "b.svg")], 0)
    held.is_done([str(tmp_path / "x" / "a.svg")], 0)
    assert parts(tmp_path) == parts(tmp_path / "x") == ["mine.part"]


def test_other_options_are_refused_and_what_differs_is_told(tmp_path: Path) -> None:
    folder(tmp_path)
    folder(tmp_path)
    with pytest.raises(OutputError) as told:
        folder(tmp_path, options={**OPTIONS, "upright": True, "output_size": 64})
    assert "upright was false and is true, output_size was not given and is 64" in str(told.value)
    assert "--again" in str(told.value)


def test_again_leaves_nothing_done_until_it_is_done_again(tmp_path: Path) -> None:
    svg = str(tmp_path / "a.svg")
    folder(tmp_path)
    write_all({svg: b"s"})
    assert folder(tmp_path).is_done([svg], 0)
    os.utime(svg, ns=(0, os.stat(svg).st_mtime_ns - 10_000_000))
    changed = {**OPTIONS, "upright": True}
    assert not folder(tmp_path, options=changed, is_again=True).is_done([svg], 0)
    # A run that was killed right after it goes on with the new options, and takes no old result for one of its own.
    assert not folder(tmp_path, options=changed).is_done([svg], 0)
    write_all({svg: b"t"})
    assert folder(tmp_path, options=changed).is_done([svg], 0)


@pytest.mark.parametrize("is_again", [False, True])
def test_a_dry_run_changes_nothing(tmp_path: Path, *, is_again: bool) -> None:
    svg = str(tmp_path / "a.svg")
    folder(tmp_path)
    write_all({svg: b"s"})
    write_part(svg, b"half")
    before = sorted(os.listdir(tmp_path))
    dry = OutputFolder(str(tmp_path))
    dry.claim(OPTIONS, is_again=is_again, is_dry=True)
    assert dry.is_done([svg], 0) is not is_again
    assert sorted(os.listdir(tmp_path)) == before


def test_what_is_there_without_notes_is_no_result(tmp_path: Path) -> None:
    svg = tmp_path / "a.svg"
    svg.write_bytes(b"drawn by somebody else")
    os.utime(svg, ns=(0, svg.stat().st_mtime_ns - 10_000_000))
    dry = OutputFolder(str(tmp_path))
    dry.claim(OPTIONS, is_again=False, is_dry=True)
    assert not dry.is_done([str(svg)], 0)
    assert not folder(tmp_path).is_done([str(svg)], 0)
    assert not folder(tmp_path).is_done([str(svg)], 0)


@pytest.mark.parametrize("text", ["", "[]", '{"format": 2, "since_ns": 0, "options": {}}', '{"format": 1}', "\x00"])
def test_notes_that_are_none_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / NOTES).write_text(text)
    with pytest.raises(OutputError, match="expected notes of an earlier run"):
        folder(tmp_path)


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    first = OutputFolder(str(tmp_path))
    first.hold()
    with pytest.raises(BusyError, match="another run"):
        folder(tmp_path)
    first.close()
    folder(tmp_path)


def test_files_of_a_photo_are_all_there_or_none(tmp_path: Path) -> None:
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked" / "x").touch()
    with pytest.raises(OSError, match="directory"):
        write_all({str(tmp_path / "a.svg"): b"s", str(tmp_path / "blocked" / "x" / "a.png"): b"p"})
    assert sorted(os.listdir(tmp_path)) == ["blocked"]


def test_a_long_name_is_no_longer_while_it_is_written(tmp_path: Path) -> None:
    place = str(tmp_path / ("n" * 251 + ".svg"))
    write_all({place: b"s"})
    assert os.listdir(tmp_path) == [os.path.basename(place)]

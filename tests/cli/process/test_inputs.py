"""Photos are found where they are, once, and what cannot be looked at is told by its name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.cli.process.inputs import Found, find_photos, show


def make(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def find(folder: Path, *inputs: str, out: str = "out") -> Found:
    return find_photos([str(folder / name) for name in inputs], str(folder / out))


def names(found: Found, folder: Path) -> list[str]:
    return [os.path.relpath(photo.path, folder) for photo in found.photos]


def test_folders_are_searched_with_all_below_them(tmp_path: Path) -> None:
    make(tmp_path, "p/b.JPG", "p/a.png", "p/x/c.jpeg", "p/x/y/d.WebP", "p/notes.txt", "p/a.landmarks.json", "p/.h.png")
    make(tmp_path, "p/.hidden/e.png", "other/f.png")
    found = find(tmp_path, "p")
    assert names(found, tmp_path) == ["p/a.png", "p/b.JPG", "p/x/c.jpeg", "p/x/y/d.WebP"]
    assert [photo.sub for photo in found.photos] == ["", "", "x", "x/y"]
    assert found.unreadable == []


def test_files_are_taken_as_they_are_named(tmp_path: Path) -> None:
    make(tmp_path, "a.heic", ".b.png")
    assert names(find(tmp_path, "a.heic", ".b.png"), tmp_path) == ["a.heic", ".b.png"]


def test_several_inputs_keep_their_places_below_what_they_have_in_common(tmp_path: Path) -> None:
    make(tmp_path, "x/p/a.png", "y/p/a.png", "y/p/z/a.png", "y/b.png")
    found = find(tmp_path, "x/p", "y/p", "y/b.png")
    assert [photo.sub for photo in found.photos] == ["x/p", "y/p", "y/p/z", "y"]


@pytest.mark.parametrize("inputs", [("p", "p"), ("p", "p/x"), ("p/x", "p"), ("p/x/a.png", "p"), ("p", "q/../p")])
def test_what_is_named_twice_is_taken_once(tmp_path: Path, inputs: tuple[str, ...]) -> None:
    make(tmp_path, "p/x/a.png", "p/b.png", "q/c.txt")
    places = {os.path.realpath(photo.path) for photo in find(tmp_path, *inputs).photos}
    assert places == {str(tmp_path / "p/x/a.png"), str(tmp_path / "p/b.png")}
    assert len(find(tmp_path, *inputs).photos) == 2


def test_links_in_a_loop_end_and_real_folders_come_first(tmp_path: Path) -> None:
    make(tmp_path, "p/z/a.png", "elsewhere/b.png")
    for link, target in (("p/a-link", "z"), ("p/z/loop", ".."), ("p/z/self", "."), ("p/far", "../elsewhere")):
        (tmp_path / link).symlink_to(target)
    assert names(find(tmp_path, "p"), tmp_path) == ["p/z/a.png", "p/far/b.png"]


def test_the_folder_of_results_is_no_input(tmp_path: Path) -> None:
    make(tmp_path, "p/a.png", "p/out/a.png", "p/out/x/b.png")
    assert names(find(tmp_path, "p", out="p/out"), tmp_path) == ["p/a.png"]


def test_what_cannot_be_read_is_told_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "p/a.png", "p/closed/b.png")
    (tmp_path / "p/gone.png").symlink_to("nowhere.png")
    (tmp_path / "p/loop.png").symlink_to("loop.png")
    scandir = os.scandir

    def refuse(path: str) -> os._ScandirIterator[str]:
        if path.endswith("closed"):  # root may read any folder there is
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = find(tmp_path, "p")
    assert names(found, tmp_path) == ["p/a.png"]
    told = {os.path.relpath(one.path, tmp_path): (one.code, one.reason) for one in found.unreadable}
    assert told == {
        "p/closed": ("folder_unreadable", "Permission denied"),
        "p/gone.png": ("file_unreadable", "image: No such file or directory"),
        "p/loop.png": ("file_unreadable", "image: Too many levels of symbolic links"),
    }


def test_an_input_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        find(tmp_path, "nowhere")


def test_names_that_are_no_text_are_found_and_shown(tmp_path: Path) -> None:
    os.makedirs(os.fsencode(tmp_path) + b"/p")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/p/\xff\n.png")).write_bytes(b"x")
    (photo,) = find(tmp_path, "p").photos
    assert show(photo.path).endswith(r"/p/\xff\n.png")


@given(st.binary(min_size=1, max_size=40))
def test_shown_names_are_plain_text(name: bytes) -> None:
    shown = show(os.fsdecode(name))
    assert shown.isprintable()
    assert shown.encode("utf-8")

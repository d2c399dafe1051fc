"""The search for images: each image is found once, and each unreadable file or folder is reported."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.cli.process.inputs import FoundImages, escape_path, find_images


def make(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def find(folder: Path, *inputs: str, out: str = "out") -> FoundImages:
    return find_images([str(folder / name) for name in inputs], str(folder / out))


def names(found: FoundImages, folder: Path) -> list[str]:
    return [os.path.relpath(image.path, folder) for image in found.images]


def test_folders_are_searched_recursively(tmp_path: Path) -> None:
    make(tmp_path, "p/b.JPG", "p/a.png", "p/x/c.jpeg", "p/x/y/d.WebP", "p/notes.txt", "p/a.landmarks.json", "p/.h.png")
    make(tmp_path, "p/.hidden/e.png", "other/f.png")
    found = find(tmp_path, "p")
    assert names(found, tmp_path) == ["p/a.png", "p/b.JPG", "p/x/c.jpeg", "p/x/y/d.WebP"]
    assert [image.sub for image in found.images] == ["", "", "x", "x/y"]
    assert found.failures == []


NAMES = ["a.AVIF", "b.heic", "c.HEIF", "d.jfif", "e.jpe", "f.gif", "g.json", "h", "i.MPO"]


@pytest.mark.parametrize(("has_heic", "ignored"), [(True, "fgh"), (False, "bcfgh")])
def test_other_files_are_ignored_with_a_reason(tmp_path: Path, ignored: str, *, has_heic: bool) -> None:
    make(tmp_path, *(f"p/{name}" for name in NAMES))
    found = find_images([str(tmp_path / "p")], str(tmp_path / "out"), has_heic=has_heic)
    assert names(found, tmp_path) == [f"p/{name}" for name in NAMES if name[0] not in ignored]
    reasons = {os.path.basename(file.path)[0]: file.reason for file in found.ignored}
    assert "".join(sorted(reasons)) == ignored
    assert reasons["f"] == "expected an image, got a .gif file"
    assert reasons["h"] == "expected an image, got a file without a suffix"
    assert has_heic or "install pillow-heif" in reasons["b"]


def test_named_files_may_have_any_suffix(tmp_path: Path) -> None:
    make(tmp_path, "a.heic", ".b.png")
    assert names(find(tmp_path, "a.heic", ".b.png"), tmp_path) == ["a.heic", ".b.png"]


def test_subfolders_are_relative_to_the_common_folder_of_all_inputs(tmp_path: Path) -> None:
    make(tmp_path, "x/p/a.png", "y/p/a.png", "y/p/z/a.png", "y/b.png")
    found = find(tmp_path, "x/p", "y/p", "y/b.png")
    assert [image.sub for image in found.images] == ["x/p", "y/p", "y/p/z", "y"]


@pytest.mark.parametrize("inputs", [("p", "p"), ("p", "p/x"), ("p/x", "p"), ("p/x/a.png", "p"), ("p", "q/../p")])
def test_image_in_two_inputs_is_found_once(tmp_path: Path, inputs: tuple[str, ...]) -> None:
    make(tmp_path, "p/x/a.png", "p/b.png", "q/c.txt")
    paths = {os.path.realpath(image.path) for image in find(tmp_path, *inputs).images}
    assert paths == {str(tmp_path / "p/x/a.png"), str(tmp_path / "p/b.png")}
    assert len(find(tmp_path, *inputs).images) == 2


def test_link_loops_end_and_real_folders_come_first(tmp_path: Path) -> None:
    make(tmp_path, "p/z/a.png", "elsewhere/b.png")
    for link, target in (("p/a-link", "z"), ("p/z/loop", ".."), ("p/z/self", "."), ("p/far", "../elsewhere")):
        (tmp_path / link).symlink_to(target)
    assert names(find(tmp_path, "p"), tmp_path) == ["p/z/a.png", "p/far/b.png"]


def test_results_folder_is_not_searched(tmp_path: Path) -> None:
    make(tmp_path, "p/a.png", "p/out/a.png", "p/out/x/b.png")
    assert names(find(tmp_path, "p", out="p/out"), tmp_path) == ["p/a.png"]


def test_unreadable_files_and_folders_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "p/a.png", "p/closed/b.png")
    (tmp_path / "p/gone.png").symlink_to("nowhere.png")
    (tmp_path / "p/loop.png").symlink_to("loop.png")
    scandir = os.scandir

    def refuse(path: str) -> os._ScandirIterator[str]:
        if path.endswith("closed"):  # Permissions do not restrict root.
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = find(tmp_path, "p")
    assert names(found, tmp_path) == ["p/a.png"]
    failures = {os.path.relpath(one.path, tmp_path): (one.code, one.reason) for one in found.failures}
    assert failures == {
        "p/closed": ("folder_unreadable", "Permission denied"),
        "p/gone.png": ("file_unreadable", "image: No such file or directory"),
        "p/loop.png": ("file_unreadable", "image: Too many levels of symbolic links"),
    }


def test_missing_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        find(tmp_path, "nowhere")


def test_names_that_are_not_utf_8_are_found_and_escaped(tmp_path: Path) -> None:
    os.makedirs(os.fsencode(tmp_path) + b"/p")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/p/\xff\n.png")).write_bytes(b"x")
    (image,) = find(tmp_path, "p").images
    assert escape_path(image.path).endswith(r"/p/\xff\n.png")


@given(st.binary(min_size=1, max_size=40))
def test_escaped_names_are_printable(name: bytes) -> None:
    escaped = escape_path(os.fsdecode(name))
    assert escaped.isprintable()
    assert escaped.encode("utf-8")

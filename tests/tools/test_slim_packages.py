"""Packages of the container image: removed files, and stubs of libraries that are linked but not used."""

import ctypes
import importlib.util
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(TOOLS)  # the scripts are not a package
    import slim_packages
    from slim_packages import HEIC, STUBS, SlimError, find
    from stub_library import Library, StubError, make_stub, read_library

MACHINES = {"x86_64": 62, "aarch64": 183}
PACKAGES = (
    "ai_edge_litert",
    "cv2",
    "opencv_python_headless.libs",
    "PIL",
    "pillow.libs",
    "pillow_heif*",
    "_pillow_heif*",
)
SITE = Path(str(importlib.util.find_spec("cv2").origin)).parents[1]  # type: ignore[union-attr]
pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in MACHINES, reason="the image is built on Linux"
)


def library(soname: str, versions: tuple[str, ...] = (), machine: int = 0) -> Library:
    none = frozenset[str]()
    return Library(machine or MACHINES[platform.machine()], soname, none, versions, none, none)


@pytest.mark.parametrize("versions", [(), ("VERSION_1",)])
def test_functions_of_a_stub_return_0(tmp_path: Path, versions: tuple[str, ...]) -> None:
    path = tmp_path / "libstub.so.1"
    path.write_bytes(make_stub(library("libstub.so.1", versions), ["open_it", "close_it"]))
    stub = ctypes.CDLL(str(path))
    assert (stub.open_it(7, b"name"), stub.close_it()) == (0, 0)
    assert not hasattr(stub, "other")


def test_a_stub_without_functions_can_be_loaded(tmp_path: Path) -> None:
    path = tmp_path / "libempty.so"
    path.write_bytes(make_stub(library("libempty.so"), []))
    ctypes.CDLL(str(path))


@pytest.mark.parametrize(
    ("of", "problem"),
    [
        (library("liba.so", machine=40), "expected x86-64 or AArch64, got ELF machine 40"),
        (library("liba.so", ("ONE", "TWO")), "expected at most one version of the symbols, got 2"),
    ],
)
def test_unsupported_libraries(of: Library, problem: str) -> None:
    with pytest.raises(StubError, match=f"liba.so: {problem}"):
        make_stub(of, [])


def test_libraries_of_wheels_are_read() -> None:
    heif, x265 = (read_library(find(SITE, pattern)) for pattern in STUBS[0])
    assert x265.soname in heif.needed
    assert {"x265_cleanup"} <= heif.undefined & x265.defined
    codec = read_library(find(SITE, "opencv_python_headless.libs/libavcodec-*"))
    assert [version.rstrip("0123456789") for version in codec.versions] == ["LIBAVCODEC_"]


def test_missing_libraries_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SlimError, match="expected one file, got 0"):
        find(tmp_path, "cv2/cv2.*.so")
    monkeypatch.setattr(sys, "argv", ["slim_packages.py", str(tmp_path)])
    with pytest.raises(SystemExit, match="slim_packages: pillow_heif"):
        slim_packages.main()


def test_slim_packages_decode_all_formats_but_do_not_encode_heic(tmp_path: Path) -> None:
    """The script itself decodes an image of each format."""
    for path in [path for pattern in PACKAGES for path in SITE.glob(pattern) if path.suffix != ".dist-info"]:
        if path.is_dir():
            shutil.copytree(path, tmp_path / path.name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, tmp_path)
    run(tmp_path, str(TOOLS / "slim_packages.py"), str(tmp_path))
    assert {path.name.split("-")[0] for path in tmp_path.glob("*heif.libs/*")} == {"libde265", "libheif", "libx265"}
    bundled = {path.name.split("-")[0] for path in tmp_path.glob("opencv_python_headless.libs/*")}
    assert {"libavif", "libopenblasp", "libavcodec"} <= bundled
    assert not bundled & {"libvpx", "libcrypto", "libssl"}
    pillow = {path.name.split("-")[0] for path in tmp_path.glob("pillow.libs/*")}
    assert "libtiff" in pillow
    assert not pillow & {"libavif", "libfreetype", "libharfbuzz"}  # the last two are linked with each other
    assert sum(path.stat().st_size for path in tmp_path.glob("*heif.libs/libx265-*")) < 2000
    encode = "import pillow_heif; pillow_heif.from_bytes('RGB', (16, 16), bytes(768)).save('image.heic')"
    assert "Unsupported bit depth" in run(tmp_path, "-c", encode, returncode=1)


def run(packages: Path, *arguments: str, returncode: int = 0) -> str:
    """Run Python with these packages before the installed ones, and return what it writes to stderr."""
    done = subprocess.run(
        [sys.executable, *arguments],
        env={"PYTHONPATH": str(packages), "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=packages,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == returncode, done.stderr
    return done.stderr


def test_the_sample_is_small() -> None:
    assert len(HEIC) < 700

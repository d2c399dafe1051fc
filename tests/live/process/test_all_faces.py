"""Results for all faces of an image: one file per face and format, locally and on a service."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Sample

ALL_FORMATS = ("--format", "png", "--format", "svg", "--format", "json")
LIGHT = ("--output-size", 200)

pytestmark = pytest.mark.usefixtures("face_models")


def make_group(sample: Sample, path: Path, faces: int) -> None:
    path.parent.mkdir(exist_ok=True)
    head = cv2.imdecode(np.frombuffer(sample.photo, np.uint8), cv2.IMREAD_COLOR)[:300, 60:360]
    sides = [300 + 20 * face for face in range(faces)]
    image = np.full((max(sides), sum(sides), 3), 127, np.uint8)
    for number, side in enumerate(sides):
        image[:side, sum(sides[:number]) : sum(sides[: number + 1])] = cv2.resize(head, (side, side))
    path.write_bytes(sample.encode(".png", image))


def names(out: Path) -> list[str]:
    return sorted(path.name for path in out.iterdir() if not path.name.startswith("."))


def read(path: Path) -> dict[str, Any]:
    return {**json.loads(path.read_text()), "processing_time_ms": 0}


def test_each_face_has_its_results(run_process: Callable[..., Any], sample: Sample, tmp_path: Path) -> None:
    image, out = tmp_path / "in" / "group.png", tmp_path / "out"
    make_group(sample, image, 2)
    options = (*LIGHT, "--crop", "face")
    arguments = (image.parent, "--out", out, *ALL_FORMATS, "--face", "all", *options, "--json")
    report = tmp_path / "report"
    done = run_process(*arguments, "--report", report)
    assert (done.status, done.summary["done"], done.summary["failed"]) == (0, 1, []), done.stderr
    expected = [f"group.face-{face}.{suffix}" for face in range(2) for suffix in ("json", "png", "svg")]
    assert names(out) == expected
    (line,) = [json.loads(text) for text in report.read_text().splitlines()]
    assert sorted(line["results"]) == [str(out / name) for name in expected]
    for face in range(2):
        single = tmp_path / f"single-{face}"
        assert run_process(image, "--out", single, *ALL_FORMATS, "--face", face, *options).status == 0
        assert read(single / "group.json") == read(out / f"group.face-{face}.json")
        for suffix in ("svg", "png"):
            assert (single / f"group.{suffix}").read_bytes() == (out / f"group.face-{face}.{suffix}").read_bytes()
    again = run_process(*arguments).summary
    assert (again["done"], again["skipped"]) == (0, 1)
    # Without the results of the largest face, which are written last, the image is not up to date.
    (out / "group.face-0.svg").unlink()
    assert run_process(*arguments).summary["done"] == 1
    assert names(out) == expected
    # An image with fewer faces than before leaves none of the other results.
    make_group(sample, image, 1)
    later_ns = (out / "group.face-0.svg").stat().st_mtime_ns + 10**9
    os.utime(image, ns=(later_ns, later_ns))
    assert run_process(*arguments).summary["done"] == 1
    assert names(out) == expected[:3]


@pytest.mark.parametrize("is_remote", [False, True])
def test_each_face_of_a_landmark_file_has_its_results(
    run_process: Callable[..., Any], service: Any, sample: Sample, tmp_path: Path, *, is_remote: bool
) -> None:
    image, out = tmp_path / "in" / "two.png", tmp_path / "out"
    image.parent.mkdir()
    image.write_bytes(sample.photo)
    whole = np.array(sample.pairs) / 512
    faces = [[{"x": x, "y": y} for x, y in points.tolist()] for points in (0.5 * whole, whole)]
    (image.parent / "two.landmarks.json").write_text(json.dumps({"faceLandmarks": faces}))
    options = (*ALL_FORMATS, "--show-landmarks", *(("--url", service.api) if is_remote else ()))
    assert run_process(image, "--out", out, "--face", "all", *options).status == 0
    assert names(out) == [f"two.face-{face}.{suffix}" for face in range(2) for suffix in ("json", "png", "svg")]
    for face in range(2):
        single = tmp_path / f"single-{face}"
        assert run_process(image, "--out", single, "--face", face, *options).status == 0
        assert read(single / "two.json") == read(out / f"two.face-{face}.json")
        for suffix in ("svg", "png"):
            assert (single / f"two.{suffix}").read_bytes() == (out / f"two.face-{face}.{suffix}").read_bytes()
    assert (out / "two.face-0.png").read_bytes() != (out / "two.face-1.png").read_bytes()


def test_results_overwrite_no_input(run_process: Callable[..., Any], sample: Sample, tmp_path: Path) -> None:
    image, other = tmp_path / "a.png", tmp_path / "a.face-1.png"
    make_group(sample, image, 1)
    make_group(sample, other, 1)
    done = run_process(image, other, "--out", tmp_path, "--format", "png", "--face", "all")
    assert done.status == 2
    assert "would overwrite an input" in done.stderr
    listed = run_process(image, "--out", tmp_path / "out", "--face", "all", "--dry-run")
    assert "a.face-0.svg" in listed.stdout


@pytest.mark.parametrize("value", ["both", "-1", "100", "1.5"])
def test_other_values_are_refused(run_process: Callable[..., Any], sample: Sample, tmp_path: Path, value: str) -> None:
    make_group(sample, tmp_path / "a.png", 1)
    done = run_process(tmp_path / "a.png", "--out", tmp_path / "out", f"--face={value}")
    assert done.status == 2
    assert "face: expected an integer" in done.stderr

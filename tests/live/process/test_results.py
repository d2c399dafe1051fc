"""The command on small images: results, messages and errors."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import orjson
import pytest

from app.service.crop import CropInput, CropService, ImageLimits
from app.service.options import CropOptions
from app.service.serialization import result_to_json

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Sample


ALL_FORMATS = ("--format", "png", "--format", "svg", "--format", "json")


def read_json(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text())
    return {**document, "processing_time_ms": 0}


def read_png(path: Path) -> np.ndarray:
    pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert pixels is not None
    return pixels


def test_results_equal_those_of_the_use_case(
    run_process: Callable[..., Any], make_images: Callable[..., Any], tmp_path: Path
) -> None:
    images, out = make_images(tmp_path / "in" / "x", 3), tmp_path / "out"
    shutil.copy(images[0], tmp_path / "in" / "Ä b.PNG")
    shutil.copy(images[0].with_suffix(".landmarks.json"), tmp_path / "in" / "Ä b.landmarks.json")
    options = ("--upright", "--crop", "face", "--background", "image", "--output-size", 96, "--show-labels")
    done = run_process(tmp_path / "in", "--out", out, *ALL_FORMATS, *options, "--json", "--report", tmp_path / "r")
    assert (done.status, done.summary["done"], done.summary["failed"]) == (0, 4, [])
    service = CropService(ImageLimits())
    chosen = CropOptions(upright=True, crop="face", background="image", output_size=96, show_labels=True)
    for image in images:
        points = np.array(json.loads(image.with_suffix(".landmarks.json").read_text()))
        request = CropInput(image=image.read_bytes(), points=points, segmentation_map=None, options=chosen)
        result = service.process(request)
        path = out / "x" / image.stem
        assert path.with_suffix(".svg").read_bytes() == result.face.svg
        expected = orjson.loads(result_to_json(result))
        assert read_json(path.with_suffix(".json")) == {**expected, "processing_time_ms": 0}
        rendered = read_png(path.with_suffix(".png"))
        # Opaque, because the image fills the frame.
        assert rendered.shape == (result.face.frame.size.height, result.face.frame.size.width, 3)
    assert sorted(path.name for path in out.iterdir()) == [
        ".facial-service.json",
        "x",
        "Ä b.json",
        "Ä b.png",
        "Ä b.svg",
    ]
    lines = [json.loads(line) for line in (tmp_path / "r").read_text().splitlines()]
    assert {line["photo"] for line in lines} == {*map(str, images), str(tmp_path / "in" / "Ä b.PNG")}
    assert {(line["status"], line["landmarks"], len(line["results"])) for line in lines} == {("done", "read", 3)}


def test_second_run_processes_only_new_and_changed_images(
    run_process: Callable[..., Any], make_images: Callable[..., Any], tmp_path: Path
) -> None:
    images, out = make_images(tmp_path / "in", 4), tmp_path / "out"
    arguments = (tmp_path / "in", "--out", out, "--json")
    assert run_process(*arguments).summary["done"] == 4
    before = {path.name: path.stat() for path in out.glob("*.svg")}
    (out / "003.svg").unlink()
    later_ns = before["002.svg"].st_mtime_ns + 1
    os.utime(images[2].with_suffix(".landmarks.json"), ns=(later_ns, later_ns))
    second = run_process(*arguments).summary
    assert (second["done"], second["skipped"]) == (2, 2)
    for name in ("000.svg", "001.svg"):
        after = (out / name).stat()
        assert (after.st_ino, after.st_mtime_ns) == (before[name].st_ino, before[name].st_mtime_ns)
    refused = run_process(*arguments, "--simplify", 2)
    assert (refused.status, refused.stdout) == (2, "")
    assert "simplify changed from 0.5 to 2" in refused.stderr
    forced = run_process(*arguments, "--simplify", 2, "--force").summary
    assert (forced["done"], forced["skipped"]) == (4, 0)


def test_images_that_share_a_stem_get_separate_results(
    run_process: Callable[..., Any], make_images: Callable[..., Any], tmp_path: Path
) -> None:
    for folder in ("p", "q"):
        make_images(tmp_path / folder, 1)
        make_images(tmp_path / folder, 1, ".jpg")
    done = run_process(tmp_path / "p", tmp_path / "q", "--out", tmp_path / "out", "--json")
    assert (done.status, done.summary["done"]) == (0, 4)
    assert "results keep it, as in a.png.svg and a.jpg.svg" in done.stderr
    made = sorted(str(path.relative_to(tmp_path / "out")) for path in tmp_path.glob("out/*/*"))
    assert made == ["p/000.jpg.svg", "p/000.png.svg", "q/000.jpg.svg", "q/000.png.svg"]


def make_bad_images(folder: Path, sample: Sample, good: Path) -> dict[str, str]:
    """Write images to a folder, each with one defect; return the expected error codes by name."""
    points, png = good.with_suffix(".landmarks.json").read_bytes(), good.read_bytes()
    pairs = json.loads(points)
    crafted: dict[str, tuple[bytes, bytes | None, str]] = {
        "truncated": (png[: len(png) // 2], points, "image_truncated"),
        "empty": (b"", points, "image_empty"),
        "text": (b"Dear diary, today I had my picture taken.", points, "image_unsupported_format"),
        "corrupt": (png[:60] + bytes([png[60] ^ 1]) + png[61:], points, "image_corrupt"),
        "huge": (sample.png_file(9000, 9000, b""), points, "image_too_large"),
        "heavy": (png + bytes(200_000), points, "body_too_large"),
        "few": (png, json.dumps(pairs[:100]).encode(), "landmarks_count"),
        "far": (png, json.dumps([[9000, 9000], *pairs[1:]]).encode(), "landmarks_out_of_range"),
        "letter": (png, b"[[1,2],", "invalid_json"),
        "words": (png, b'[["a","b"]]', "field_invalid"),
        "alone": (png, None, "landmarks_missing"),
    }
    for name, (image, landmarks, _) in crafted.items():
        (folder / f"{name}.png").write_bytes(image)
        if landmarks is not None:
            (folder / f"{name}.landmarks.json").write_bytes(landmarks)
    (folder / "dangling.png").symlink_to("nowhere.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "pipe.landmarks.json").write_bytes(points)
    (folder / "closed.png").write_bytes(png)
    (folder / "closed.landmarks.json").mkdir()
    codes = {name: code for name, (_, _, code) in crafted.items()}
    return {**codes, "dangling": "file_unreadable", "pipe": "file_unreadable", "closed": "file_unreadable"}


def test_each_bad_image_is_reported_with_its_code_and_others_are_done(
    run_process: Callable[..., Any], make_images: Callable[..., Any], sample: Sample, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    (good,) = make_images(folder, 1)
    codes = make_bad_images(folder, sample, good)
    arguments = (folder, "--out", tmp_path / "out", "--no-detect")
    done = run_process(*arguments, "--json", "--report", tmp_path / "report", MAX_BODY_BYTES="150000")
    assert done.status == 1
    assert done.codes == {str(folder / f"{name}.png"): code for name, code in codes.items()}
    assert done.summary["done"] == 1
    assert (tmp_path / "out" / "000.svg").exists()
    assert "Traceback" not in done.stderr
    lines = [json.loads(line) for line in (tmp_path / "report").read_text().splitlines()]
    assert {line["photo"]: line.get("code", "") for line in lines} == {**done.codes, str(good): ""}
    # The next run tries failed images again, and processes the repaired one.
    shutil.copy(good, folder / "truncated.png")
    repaired = run_process(*arguments, MAX_BODY_BYTES="150000")
    assert repaired.status == 1
    assert "truncated.png" not in repaired.stderr
    messages = [line for line in repaired.stderr.splitlines() if ": " in line]
    assert len(messages) == len(codes) - 1
    assert any(
        line.endswith("few.png: landmarks_count: landmarks: expected 468 or 478 points, got 100") for line in messages
    )


@pytest.mark.usefixtures("face_models")
def test_missing_landmarks_are_detected(
    run_process: Callable[..., Any], make_images: Callable[..., Any], sample: Sample, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    make_images(folder, 1)
    (folder / "alone.png").write_bytes(sample.photo)
    (folder / "no_face.png").write_bytes(sample.encode(".png", np.full((64, 64, 3), 90, np.uint8)))
    done = run_process(folder, "--out", tmp_path / "out", "--json")
    assert done.codes == {str(folder / "no_face.png"): "no_face"}
    assert (done.summary["done"], done.summary["landmarks_found"]) == (2, 1)
    forced = run_process(folder, "--out", tmp_path / "forced", "--detect", "--face", 1, "--json")
    assert forced.codes[str(folder / "alone.png")] == "face_index"


def test_detection_without_models_fails(
    run_process: Callable[..., Any], make_images: Callable[..., Any], tmp_path: Path
) -> None:
    (image,) = make_images(tmp_path / "in", 1)
    done = run_process(image, "--out", tmp_path / "out", "--detect", "--json", MODELS_DIR=str(tmp_path))
    assert done.codes == {str(image): "detection_unavailable"}


def test_landmarks_and_maps_may_be_in_other_folders(
    run_process: Callable[..., Any], make_images: Callable[..., Any], sample: Sample, tmp_path: Path
) -> None:
    first, second = make_images(tmp_path / "in" / "photos", 2)
    (tmp_path / "in" / "points").mkdir()
    (tmp_path / "maps").mkdir()
    for image in (first, second):
        pairs = json.loads(image.with_suffix(".landmarks.json").read_text())
        side = read_png(image).shape[0]
        normalized = [{"x": x / side, "y": y / side, "z": 0.0, "visibility": 1} for x, y in pairs]
        (tmp_path / "in" / "points" / f"{image.stem}.json").write_text(json.dumps(normalized))
        image.with_suffix(".landmarks.json").unlink()
    (tmp_path / "maps" / "000.png").write_bytes(sample.labels)
    (tmp_path / "maps" / "001.png").write_bytes(sample.labels[:1000])
    done = run_process(
        "in/photos",
        "--out",
        "out",
        "--format",
        "json",
        "--landmarks",
        "{dir}/../points/{stem}.json",
        "--landmark-units",
        "normalized",
        "--segmentation-map",
        "maps/{stem}.png",
        "--json",
        cwd=tmp_path,
    )
    assert done.codes == {"in/photos/001.png": "image_truncated"}
    names = [region["name"] for region in read_json(tmp_path / "out" / "000.json")["regions"]]
    assert "hair" in names
    third = run_process("in/photos", "--out", "o", "--segmentation-map", "none/{stem}.png", "--json", cwd=tmp_path)
    assert set(third.codes.values()) == {"segmentation_map_missing"}
    (tmp_path / "own.json").write_text(json.dumps({"tip": [1, 2, 98, 327]}))
    own = run_process(
        "in/photos/000.png",
        "--out",
        "own",
        "--format",
        "json",
        "--landmarks",
        "in/points/{stem}.json",
        "--landmark-units",
        "normalized",
        "--segmentation-map",
        "own.json",
        cwd=tmp_path,
    )
    assert own.status == 0, own.stderr
    assert list(read_json(tmp_path / "own" / "000.json")["mask_contours"]) == ["1"]


def test_names_that_are_not_utf_8_are_processed_and_escaped(
    run_process: Callable[..., Any], make_images: Callable[..., Any], tmp_path: Path
) -> None:
    (image,) = make_images(tmp_path / "in", 1)
    for name in (b"\xff [red]\x1b[1m.png", b"\xff bad.png"):
        shutil.copy(image, os.fsencode(tmp_path / "in") + b"/" + name)
    (tmp_path / "in" / os.fsdecode(b"\xff [red]\x1b[1m.landmarks.json")).write_bytes(
        image.with_suffix(".landmarks.json").read_bytes()
    )
    done = run_process(tmp_path / "in", "--out", tmp_path / "out", "--no-detect", "--report", tmp_path / "r", "--json")
    assert done.codes == {f"{tmp_path}/in/\\xff bad.png": "landmarks_missing"}
    assert (tmp_path / "out" / os.fsdecode(b"\xff [red]\x1b[1m.svg")).exists()
    named = run_process(os.fsencode(tmp_path / "in") + b"/\xff bad.png", "--out", tmp_path / "o", "--no-detect")
    assert "\\xff bad.png: landmarks_missing" in named.stderr


def test_dry_run_lists_the_work_and_changes_nothing(
    run_process: Callable[..., Any], make_images: Callable[..., Any], tmp_path: Path
) -> None:
    make_images(tmp_path / "in", 2)
    done = run_process("in", "--out", "out", "--dry-run", cwd=tmp_path)
    assert (
        done.stdout
        == "in/000.png -> out/000.svg (000.landmarks.json)\nin/001.png -> out/001.svg (001.landmarks.json)\n"
    )
    assert (done.status, "2 to process, 0 up to date, 0 failed" in done.stderr) == (0, True)
    assert not (tmp_path / "out").exists()
    listed = run_process("in", "--out", "out", "--dry-run", "--json", cwd=tmp_path)
    assert [job["results"] for job in listed.summary["to_do"]] == [["out/000.svg"], ["out/001.svg"]]


def test_run_that_would_overwrite_an_input_is_refused(
    run_process: Callable[..., Any], make_images: Callable[..., Any], tmp_path: Path
) -> None:
    make_images(tmp_path / "in", 1)
    before = (tmp_path / "in" / "000.png").read_bytes()
    for arguments in (["in", "--out", "in"], ["in/000.png", "--out", "in", "--format", "png"]):
        refused = run_process(*arguments, cwd=tmp_path)
        assert refused.status == 2
        assert refused.stderr.startswith("facial-service: in: ")
    assert (tmp_path / "in" / "000.png").read_bytes() == before


def test_unwritable_paths_are_reported(
    run_process: Callable[..., Any], make_images: Callable[..., Any], tmp_path: Path
) -> None:
    make_images(tmp_path / "in" / "x", 1)
    make_images(tmp_path / "in" / "y", 1)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").touch()
    done = run_process("in", "--out", "out", "--json", cwd=tmp_path)
    assert done.codes == {"in/x/000.png": "output_unwritable"}
    (tmp_path / "file").touch()
    refused = run_process("in", "--out", "file", cwd=tmp_path)
    assert (refused.status, refused.stderr) == (1, "facial-service: file: File exists\n")
    report = run_process("in", "--out", "o", "--report", "nowhere/r", cwd=tmp_path)
    assert (report.status, report.stderr) == (1, "facial-service: nowhere/r: No such file or directory\n")


def test_folder_without_images_is_reported(run_process: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    done = run_process("in", "--out", "out", cwd=tmp_path)
    assert (done.status, done.stderr) == (0, "facial-service: no images found in in\n")
    gone = run_process("gone", "--out", "out", cwd=tmp_path)
    assert (gone.status, gone.stderr) == (2, "facial-service: gone: No such file or directory\n")


def test_json_document_contains_the_svg(
    run_process: Callable[..., Any], make_images: Callable[..., Any], tmp_path: Path
) -> None:
    make_images(tmp_path / "in", 1)
    run_process("in", "--out", "out", *ALL_FORMATS, cwd=tmp_path)
    document = read_json(tmp_path / "out" / "000.json")
    assert base64.b64decode(document["svg"]) == (tmp_path / "out" / "000.svg").read_bytes()


def test_terminal_shows_a_progress_bar_and_tables(
    start_in_terminal: Callable[..., tuple[int, str]], make_images: Callable[..., Any], tmp_path: Path
) -> None:
    images = make_images(tmp_path / "in", 9)
    images[3].write_bytes(b"[bold]no image")
    images[3].with_name("[red]x.png").symlink_to("nowhere")
    status, shown = start_in_terminal(tmp_path / "in", "--out", tmp_path / "out")
    assert status == 1
    assert "9/9" in shown
    assert re.search(r"\d+\.\d/s", shown)
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    assert any(line.startswith("done 8 in ") for line in lines)
    assert "failed 2" in lines
    assert any("image_unsupported_format" in line for line in lines)
    assert any("[red]x.png file_unreadable" in line for line in lines)

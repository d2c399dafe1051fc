"""Crop requests: steps, limits and metrics."""

from __future__ import annotations

import re
import time
from collections import Counter
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, get_args

import cv2
import numpy as np
import orjson
import pybase64
import pytest

from app.codec.icc import read_icc_profile
from app.codec.sniff import ImageFormat, ImageInfo, sniff_image
from app.face.errors import (
    FaceIndexError,
    ImageCorruptError,
    ImageEmptyError,
    ImageError,
    ImageTooLargeError,
    ImageTruncatedError,
    InputError,
    LabelMapError,
    LabelMapFormatError,
    LandmarkCountError,
    LandmarkDegenerateError,
    LandmarkNotFiniteError,
    LandmarkRangeError,
    RegionCountError,
    RegionIndexError,
    RegionNameError,
)
from app.face.frame import Size
from app.face.regions import CATALOGUE
from app.face.rendering.svg import read_background
from app.service import crop
from app.service.crop import CropInput, CropService, ImageLimits
from app.service.options import CropOptions
from app.service.png_export import result_to_png
from app.service.serialization import result_to_json, result_warnings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from tests.conftest import Sample

    MakeInput = Callable[..., CropInput]
    Scrape = Callable[[], dict[tuple[str, ...], float]]


@pytest.fixture
def service() -> CropService:
    return CropService(ImageLimits())


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Return the counted landmarks and regions, by type."""
    counted: dict[str, int] = {}
    monkeypatch.setattr(crop, "record_landmarks_processed", lambda count: counted.update(landmarks=count))
    monkeypatch.setattr(crop, "record_regions_generated", lambda kinds: counted.update(Counter(kinds)))
    return counted


def test_results_are_counted_by_image_format(
    service: CropService, make_input: MakeInput, sample: Sample, scrape: Scrape
) -> None:
    for image in (sample.photo, sample.jpeg, sample.jpeg, sample.webp):
        service.process(make_input(image=image))
    with pytest.raises(LandmarkRangeError):
        service.process(make_input(points=[[-1000.0, 0.0]] * 478))
    counted = {labels[0]: value for (name, *labels), value in scrape().items() if name == "images_processed_total"}
    assert counted == {"png": 1, "jpeg": 2, "webp": 1, "avif": 0, "heic": 0}
    assert set(counted) == set(get_args(ImageFormat))


@pytest.mark.parametrize(
    ("given", "steps"),
    [
        ({}, {"sniff": 1}),
        ({"verify": "pixels"}, {"sniff": 1, "decode": 1}),
        ({"segmentation_map": {"mouth": [61, 0, 291]}}, {"sniff": 1}),
        ({"segmentation_map": "labels"}, {"sniff": 2, "decode": 1, "segmentation": 1}),
        ({"segmentation_map": "labels", "verify": "pixels"}, {"sniff": 2, "decode": 2, "segmentation": 1}),
    ],
)
def test_pixels_are_decoded_only_if_necessary(
    service: CropService, make_input: MakeInput, sample: Sample, scrape: Scrape, given: Any, steps: dict[str, int]
) -> None:
    if given.get("segmentation_map") == "labels":
        given = {**given, "segmentation_map": sample.labels}
    result = service.process(make_input(**given))
    counts = {key[1]: value for key, value in scrape().items() if key[0] == "image_processing_duration_seconds_count"}
    assert {step: count for step, count in counts.items() if count} == {**steps, "contours": 1, "svg": 1}
    assert result.face.regions
    assert result.processing_time_ms > 0


@pytest.mark.parametrize(
    ("form", "kind"), [("png", "png"), ("jpeg", "jpeg"), ("webp", "webp"), ("lossless_webp", "webp"), ("photo", "png")]
)
@pytest.mark.parametrize("verify", ["structure", "pixels"])
def test_each_format_is_known(
    service: CropService, make_input: MakeInput, sample: Sample, form: str, kind: str, verify: str
) -> None:
    result = service.process(make_input(image=getattr(sample, form), verify=verify))
    assert result.image == ImageInfo(kind, Size(512, 512))  # type: ignore[arg-type]
    assert [region.name for region in result.face.regions] == [spec.name for spec in CATALOGUE]


def test_normalized_points_mean_the_same(service: CropService, make_input: MakeInput, sample: Sample) -> None:
    in_pixels = service.process(make_input()).face
    fractions = np.array(sample.pairs) / 512
    assert service.process(make_input(points=fractions, landmark_units="normalized")).face.svg == in_pixels.svg


def warnings_of(service: CropService, given: CropInput) -> list[str]:
    return [warning["code"] for warning in result_warnings(service.process(given))]


@pytest.mark.parametrize("size", [512, 2048])
def test_plain_normalized_points_are_recognized(
    service: CropService, make_input: MakeInput, sample: Sample, size: int
) -> None:
    image = sample.encode(".png", np.zeros((size, size), np.uint8))
    given = make_input(image=image, points=np.array(sample.pairs) / 512)
    declared = replace(given, options=CropOptions(landmark_units="normalized"))
    formed = replace(given, are_points_normalized=True)
    results = [service.process(one).face.svg for one in (given, declared, formed)]
    assert results[0] == results[1] == results[2]
    assert [warnings_of(service, one) for one in (given, declared, formed)] == [["landmarks_normalized"], [], []]
    digests = [service.check(one).digest() for one in (given, declared, formed)]
    assert len(set(digests)) == 3, "a cached result has the warnings of its own request"


@pytest.mark.parametrize("points", [[[0.5, 0.5]] * 478, [[0.5, 0.5]] * 477 + [[0.5, 2.5]]])
def test_points_that_are_no_face_are_refused(service: CropService, make_input: MakeInput, points: Any) -> None:
    with pytest.raises(LandmarkDegenerateError):
        service.check(make_input(points=points))


@pytest.mark.parametrize(("face", "expectation"), [(0, 0), (1, 1), (2, pytest.raises(FaceIndexError, match="below 2"))])
def test_one_of_several_sent_faces_is_selected(
    service: CropService, make_input: MakeInput, sample: Sample, face: int, expectation: Any
) -> None:
    faces = np.stack([sample.pairs, np.array(sample.pairs) + 7])
    given = replace(make_input(points=faces), options=CropOptions(face=face))
    with expectation if face == 2 else nullcontext():
        (found,) = service.check(given).faces or ()
        np.testing.assert_allclose(found.landmarks_px, faces[expectation], atol=1e-4)


def test_all_sent_faces_are_selected_up_to_a_limit(service: CropService, make_input: MakeInput, sample: Sample) -> None:
    faces = np.stack([np.array(sample.pairs) + shift for shift in range(33)])
    given = make_input(points=faces[:32], face="all")
    for found, sent in zip(service.check(given).faces or (), faces, strict=False):
        np.testing.assert_allclose(found.landmarks_px, sent, atol=1e-4)
    assert len(service.check(given).faces or ()) == 32
    with pytest.raises(LandmarkCountError, match="at most 32 faces for face=all, got 33"):
        service.check(make_input(points=faces, face="all"))
    assert len(service.check(make_input(points=faces, face=32)).faces or ()) == 1


@pytest.mark.parametrize("face", ["all", 0, 1])
@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda points: points + 1e4, LandmarkRangeError),
        (lambda points: points * np.nan, LandmarkNotFiniteError),
        (lambda points: points * 0 + 9, LandmarkDegenerateError),
        # Faces in one request have the same units.
        (lambda points: points / 512, LandmarkDegenerateError),
    ],
)
def test_an_error_names_the_face(
    service: CropService, make_input: MakeInput, sample: Sample, face: Any, change: Any, error: type[Exception]
) -> None:
    faces = np.stack([sample.pairs, change(np.array(sample.pairs))])
    with nullcontext() if face == 0 else pytest.raises(error) as caught:
        service.check(make_input(points=faces, face=face))
    if caught is not None:
        assert str(caught.value).startswith("face 1: landmarks: " if face == "all" else "landmarks: ")


@pytest.mark.parametrize("kind", ["grey", "rgb", "rgba", "webp"])
def test_equal_channels_are_label_ids(service: CropService, make_input: MakeInput, sample: Sample, kind: str) -> None:
    ids = np.zeros((64, 64), np.uint8)
    ids[10:30, 10:30], ids[40:60, 40:60] = 2, 5
    opaque = np.full_like(ids, 255)
    files = {
        "grey": sample.encode(".png", ids),
        "rgb": sample.encode(".png", np.dstack([ids] * 3)),
        "rgba": sample.encode(".png", np.dstack([*[ids] * 3, opaque])),
        "webp": sample.encode(".webp", np.dstack([ids] * 3), cv2.IMWRITE_WEBP_QUALITY, 101),
    }
    result = service.process(make_input(segmentation_map=files[kind]))
    assert [region.label_id for region in result.face.regions] == [2, 5]
    assert result_warnings(result) == []


def test_the_assignment_of_colours_is_a_warning(service: CropService, make_input: MakeInput, sample: Sample) -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    image[10:30, 10:30], image[40:60, 40:60] = (0, 0, 255), (255, 0, 0)
    (warning,) = result_warnings(service.process(make_input(segmentation_map=sample.encode(".png", image))))
    assert warning["code"] == "label_colours"
    assert "1 = #0000ff, 2 = #ff0000" in warning["message"]


def test_options_reach_contours_and_overlay(service: CropService, make_input: MakeInput) -> None:
    plain = service.process(make_input()).face
    labelled = service.process(make_input(show_labels=True, show_landmarks=True)).face
    coarse = service.process(make_input(simplify=10)).face
    assert (plain.svg.count(b"<text"), labelled.svg.count(b"<text") > 0) == (0, True)
    assert len(coarse.svg) < len(plain.svg) < len(labelled.svg)
    assert b'fill-opacity="0.9"' in service.process(make_input(region_opacity=0.9)).face.svg


@pytest.mark.parametrize(
    ("limits", "change", "expected"),
    [
        (ImageLimits(), {}, nullcontext()),
        (ImageLimits(max_image_pixels=512 * 512), {}, nullcontext()),
        (ImageLimits(max_image_pixels=512 * 512 - 1), {}, pytest.raises(ImageTooLargeError)),
        (ImageLimits(max_image_pixels=512 * 512), {"segmentation_map": (513, 512)}, pytest.raises(ImageTooLargeError)),
        (ImageLimits(landmark_margin=0.5), {"shift": 400}, nullcontext()),
        (ImageLimits(landmark_margin=0), {"shift": 400}, pytest.raises(LandmarkRangeError)),
    ],
)
def test_limits_hold(
    make_input: MakeInput, sample: Sample, limits: ImageLimits, change: Any, expected: AbstractContextManager[Any]
) -> None:
    points = np.array(sample.pairs) + change.get("shift", 0)
    size = change.get("segmentation_map")
    labels = sample.encode(".png", np.ones(size, np.uint8)) if size else None
    with expected:
        CropService(limits).process(make_input(points=points, segmentation_map=labels))


@pytest.mark.parametrize(
    ("build", "error"),
    [
        (lambda _: {"image": b""}, ImageEmptyError),
        (lambda s: {"image": s.png[:-4]}, ImageTruncatedError),
        (lambda s: {"image": s.png_file(512, 512, b"no zlib stream"), "verify": "pixels"}, ImageCorruptError),
        (lambda _: {"segmentation_map": b""}, ImageEmptyError),
        (lambda s: {"segmentation_map": s.labels[:-4]}, ImageTruncatedError),
        (lambda s: {"segmentation_map": s.jpeg}, LabelMapFormatError),
    ],
)
def test_invalid_input_raises(
    service: CropService, make_input: MakeInput, sample: Sample, counts: dict[str, int], build: Any, error: Any
) -> None:
    with pytest.raises(error) as caught:
        service.process(make_input(**build(sample)))
    assert counts == {}
    if issubclass(error, ImageError | LabelMapError):
        file = "segmentation_map" if "segmentation_map" in build(sample) else "image"
        assert str(caught.value).startswith(f"{file}: "), "the error names the file"


def test_damaged_pixels_are_found_only_on_request(service: CropService, make_input: MakeInput, sample: Sample) -> None:
    damaged = sample.png_file(512, 512, b"no zlib stream")
    assert service.process(make_input(image=damaged)).image.size == (512, 512)


def test_landmarks_and_regions_are_counted(
    service: CropService, make_input: MakeInput, sample: Sample, counts: dict[str, int]
) -> None:
    service.process(make_input(points=sample.pairs[:468]))
    assert counts == {"landmarks": 468, **dict.fromkeys((spec.name for spec in CATALOGUE), 1)}
    counts.clear()
    service.process(make_input(segmentation_map={"nose": [1, 2, 98], "mine": [61, 0, 291], "yours": [61, 0, 17]}))
    assert counts == {"landmarks": 478, "nose": 1, "custom": 2}


def test_fault_injection_burns_cpu(make_input: MakeInput) -> None:
    burning, before = CropService(ImageLimits(), fault_work_s=0.2), time.thread_time()
    burning.process(make_input())
    assert time.thread_time() - before >= 0.2


FIELDS: dict[str, dict[str, Any]] = {
    "default": {},
    "options": {"show_labels": True, "region_opacity": 0.75, "stroke_width": 3, "simplify": 2},
    "pixels": {"verify": "pixels"},
    "label map": {"segmentation_map": "labels"},
    "regions": {"segmentation_map": {"z": [50, 101, 36, 205], "nose": [168, 129, 2, 358]}},
}


def with_labels(fields: dict[str, Any], sample: Sample) -> dict[str, Any]:
    return {name: sample.labels if value == "labels" else value for name, value in fields.items()}


@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS)
def test_check_then_run_is_process(
    service: CropService, make_input: MakeInput, sample: Sample, counts: dict[str, int], fields: dict[str, Any]
) -> None:
    request = make_input(**with_labels(fields, sample))
    at_once = orjson.loads(result_to_json(service.process(request)))
    counted_at_once = dict(counts)
    counts.clear()
    checked = service.check(request)
    assert counts == {}, "nothing is counted before the work"
    result = service.run(checked)
    in_steps = orjson.loads(result_to_json(result))
    assert result.processing_time_ms > 0
    assert {**in_steps, "processing_time_ms": 0} == {**at_once, "processing_time_ms": 0}
    assert counts == counted_at_once


@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS)
def test_check_reads_no_pixels_and_run_verifies_no_structure(
    service: CropService, make_input: MakeInput, sample: Sample, scrape: Scrape, fields: dict[str, Any]
) -> None:
    checked = service.check(make_input(**with_labels(fields, sample)))
    steps = {key[1]: value for key, value in scrape().items() if key[0] == "image_processing_duration_seconds_count"}
    files = 2 if fields.get("segmentation_map") == "labels" else 1
    assert {step: count for step, count in steps.items() if count} == {"sniff": files}
    service.run(checked)
    assert scrape()["image_processing_duration_seconds_count", "sniff"] == files


def test_run_reports_its_steps(service: CropService, make_input: MakeInput, sample: Sample) -> None:
    seen: list[str] = []

    @contextmanager
    def note(name: str) -> Iterator[None]:
        seen.append(name)
        yield

    service.run(service.check(make_input(segmentation_map=sample.labels, verify="pixels")), note)
    assert seen == ["decode", "decode", "segmentation", "contours", "svg"]


@pytest.mark.parametrize(
    ("build", "error"),
    [
        (lambda _: {"image": b""}, ImageEmptyError),
        (lambda s: {"image": s.png[:-4]}, ImageTruncatedError),
        (lambda s: {"points": [[7, 7]] * len(s.points)}, LandmarkDegenerateError),
        (lambda s: {"points": s.pairs[:5]}, LandmarkCountError),
        (lambda s: {"segmentation_map": s.labels[:-4]}, ImageTruncatedError),
        (lambda s: {"segmentation_map": s.jpeg}, LabelMapFormatError),
        (lambda s: {"segmentation_map": s.webp}, LabelMapFormatError),
        (lambda s: {"segmentation_map": s.encode(".png", np.ones((4, 4), np.uint16))}, LabelMapFormatError),
        (lambda _: {"segmentation_map": {}}, RegionCountError),
        (lambda _: {"segmentation_map": {"<b>": [1, 2, 3]}}, RegionNameError),
        (lambda _: {"segmentation_map": {"a": [1, 2, 478]}}, RegionIndexError),
        (lambda s: {"points": s.pairs[:468], "segmentation_map": {"a": [1, 2, 470]}}, RegionIndexError),
    ],
)
def test_check_finds_all_problems_that_need_no_pixels(
    service: CropService, make_input: MakeInput, sample: Sample, build: Any, error: type[InputError]
) -> None:
    with pytest.raises(error) as by_check:
        service.check(make_input(**build(sample)))
    with pytest.raises(error) as by_process:
        service.process(make_input(**build(sample)))
    assert str(by_check.value) == str(by_process.value)


@pytest.mark.parametrize(
    ("build", "error"),
    [
        (lambda s: {"image": s.png_file(512, 512, b"no zlib stream"), "verify": "pixels"}, ImageCorruptError),
        (lambda s: {"segmentation_map": s.png_file(8, 8, b"no zlib stream")}, ImageCorruptError),
        (lambda s: {"segmentation_map": s.encode(".png", np.zeros((4, 4), np.uint8))}, LabelMapError),
    ],
)
def test_run_finds_problems_of_pixels(
    service: CropService, make_input: MakeInput, sample: Sample, build: Any, error: type[InputError]
) -> None:
    checked = service.check(make_input(**build(sample)))
    with pytest.raises(error):
        service.run(checked)


def test_run_accepts_memory_views(service: CropService, make_input: MakeInput, sample: Sample) -> None:
    checked = service.check(make_input(segmentation_map=sample.labels, verify="pixels"))
    assert checked.label_image is not None
    viewed = replace(checked, image=memoryview(checked.image), label_image=memoryview(checked.label_image))
    assert service.run(viewed).face.svg == service.run(checked).face.svg
    assert viewed.digest() == checked.digest()


class TestDigest:
    """The digest depends on everything that the result depends on, and on nothing else."""

    def test_equal_content_has_an_equal_digest(
        self, service: CropService, make_input: MakeInput, sample: Sample
    ) -> None:
        def digest(**fields: Any) -> str:
            return service.check(make_input(**fields)).digest()

        assert digest() == digest(image=bytes(bytearray(sample.jpeg)), points=list(sample.pairs))
        assert re.fullmatch("[0-9a-f]{64}", digest())
        fractions = np.array(sample.pairs) / 512
        assert digest(points=np.array(sample.pairs)) == digest(simplify=0.5, show_labels=False)
        assert digest(points=fractions, landmark_units="normalized")

    def test_each_part_changes_the_digest(self, service: CropService, make_input: MakeInput, sample: Sample) -> None:
        moved = np.array(sample.pairs)
        moved[17, 0] += 0.5
        rings = {"a": [61, 0, 291], "b": [50, 101, 36]}
        others: list[dict[str, Any]] = [
            {},
            {"image": sample.png},
            {"image": sample.webp},
            {"points": moved},
            {"points": sample.pairs[:468]},
            {"points": sample.pairs, "face": "all"},
            {"points": np.stack([sample.pairs, moved]), "face": "all"},
            {"points": np.stack([moved, sample.pairs]), "face": "all"},
            {"show_labels": True},
            {"show_landmarks": True},
            {"region_opacity": 0.5},
            {"stroke_width": 2},
            {"simplify": 1},
            {"verify": "pixels"},
            {"segmentation_map": sample.labels},
            {"segmentation_map": sample.encode(".png", np.ones((4, 4), np.uint8))},
            {"segmentation_map": rings},
            {"segmentation_map": dict(reversed(rings.items()))},
            {"segmentation_map": {"a": [0, 61, 291], "b": [50, 101, 36]}},
            {"segmentation_map": {"a": [61, 0, 291, 50], "b": [101, 36, 205]}},
            {"segmentation_map": {"ab": [61, 0, 291], "b": [50, 101, 36]}},
        ]
        digests = [service.check(make_input(**fields)).digest() for fields in others]
        assert len(set(digests)) == len(others)

    def test_boundary_between_files_changes_the_digest(
        self, service: CropService, make_input: MakeInput, sample: Sample
    ) -> None:
        checked = service.check(make_input(segmentation_map=sample.labels))
        whole = bytes(checked.image) + bytes(checked.label_image or b"")
        cut = len(checked.image) + 1
        other = replace(checked, image=whole[:cut], label_image=whole[cut:])
        alone = replace(checked, image=whole, label_image=None, label_info=None)
        assert len({checked.digest(), other.digest(), alone.digest()}) == 3


@pytest.mark.parametrize(("crop", "media_type"), [("none", "image/jpeg"), ("face", "image/png")])
def test_background_keeps_the_colour_profile(
    service: CropService, make_input: MakeInput, sample: Sample, crop: str, media_type: str
) -> None:
    profile = (600).to_bytes(4) + bytes(12) + b"RGB XYZ " + bytes(12) + b"acsp" + bytes(560)
    segment = b"\xff\xe2" + (2 + 14 + len(profile)).to_bytes(2) + b"ICC_PROFILE\0\1\1" + profile
    image = sample.jpeg[:2] + segment + sample.jpeg[2:]
    result = service.process(make_input(image=image, background="image", crop=crop, margin=4))
    background = read_background(result.face.svg)
    assert background is not None
    assert background.media_type == media_type
    embedded = pybase64.b64decode(background.base64)
    found = read_icc_profile(embedded, sniff_image(embedded, max_pixels=10**8))
    assert found is not None
    assert found.data == profile
    png = result_to_png(result, ImageLimits())
    exported = read_icc_profile(png, sniff_image(png, max_pixels=10**8))
    assert exported == found

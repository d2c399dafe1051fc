"""The use case: which steps a request takes, which limits hold, what is counted."""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from app.codec.sniff import ImageInfo
from app.face.errors import (
    ImageCorruptError,
    ImageEmptyError,
    ImageError,
    ImageTooLargeError,
    ImageTruncatedError,
    InputError,
    LabelMapError,
    LabelMapFormatError,
    LandmarkRangeError,
)
from app.face.frame import Size
from app.face.regions import CATALOGUE
from app.service import crop
from app.service.crop import CropInput, CropService, Limits
from app.service.options import CropOptions, OptionUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from tests.conftest import Sample

    MakeInput = Callable[..., CropInput]
    Scrape = Callable[[], dict[tuple[str, ...], float]]


@pytest.fixture
def service() -> CropService:
    return CropService(Limits())


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Give what is counted: landmarks, and regions by their type."""
    counted: dict[str, int] = {}
    monkeypatch.setattr(crop, "record_landmarks_processed", lambda count: counted.update(landmarks=count))
    monkeypatch.setattr(crop, "record_region_generated", lambda kind, count: counted.update({kind: count}))
    return counted


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
def test_pixels_are_decoded_only_where_they_are_needed(
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
        (Limits(), {}, nullcontext()),
        (Limits(max_image_pixels=512 * 512), {}, nullcontext()),
        (Limits(max_image_pixels=512 * 512 - 1), {}, pytest.raises(ImageTooLargeError)),
        (Limits(max_image_pixels=512 * 512), {"segmentation_map": (513, 512)}, pytest.raises(ImageTooLargeError)),
        (Limits(landmark_margin=0.5), {"shift": 400}, nullcontext()),
        (Limits(landmark_margin=0), {"shift": 400}, pytest.raises(LandmarkRangeError)),
    ],
)
def test_limits_hold(
    make_input: MakeInput, sample: Sample, limits: Limits, change: Any, expected: AbstractContextManager[Any]
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
        (lambda _: {"upright": True, "image": b""}, OptionUnavailableError),
    ],
)
def test_what_is_wrong_is_raised(
    service: CropService, make_input: MakeInput, sample: Sample, counts: dict[str, int], build: Any, error: Any
) -> None:
    with pytest.raises(error) as caught:
        service.process(make_input(**build(sample)))
    assert counts == {}
    if issubclass(error, ImageError | LabelMapError):
        file = "segmentation_map" if "segmentation_map" in build(sample) else "image"
        assert str(caught.value).startswith(f"{file}: "), "which of the two files it is"


def test_damaged_pixels_are_found_only_if_asked_for(
    service: CropService, make_input: MakeInput, sample: Sample
) -> None:
    damaged = sample.png_file(512, 512, b"no zlib stream")
    assert service.process(make_input(image=damaged)).image.size == (512, 512)


def test_what_went_into_a_result_is_counted(
    service: CropService, make_input: MakeInput, sample: Sample, counts: dict[str, int]
) -> None:
    service.process(make_input(points=sample.pairs[:468]))
    assert counts == {"landmarks": 468, **dict.fromkeys((spec.name for spec in CATALOGUE), 1)}
    counts.clear()
    service.process(make_input(segmentation_map={"nose": [1, 2, 98], "mine": [61, 0, 291], "yours": [61, 0, 17]}))
    assert counts == {"landmarks": 478, "nose": 1, "custom": 2}


@pytest.mark.parametrize("name", ["upright", "crop", "margin", "background"])
def test_what_is_not_built_is_refused_by_its_name(name: str) -> None:
    value = {"upright": True, "crop": "face", "margin": 1.0, "background": "image"}[name]
    with pytest.raises(OptionUnavailableError, match=f": {name};") as caught:
        CropOptions(**{name: value}).require_available()
    assert isinstance(caught.value, InputError)
    CropOptions(verify="pixels", show_labels=True, upright=False, crop="none").require_available()


def test_fault_injection_burns_cpu(make_input: MakeInput) -> None:
    burning, before = CropService(Limits(), fault_work_s=0.2), time.thread_time()
    burning.process(make_input())
    assert time.thread_time() - before >= 0.2

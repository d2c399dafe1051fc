"""The main use case: a photo and landmarks in, regions out."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.codec.decode import decode_image, decode_label_image
from app.codec.sniff import ImageInfo, sniff_image
from app.codec.verify import verify_structure
from app.face.errors import InputError
from app.face.landmarks import points_to_landmarks_px
from app.face.pipeline import FaceRequest, FaceResult, process_face
from app.observability.events import log_image_processing
from app.observability.recording import (
    image_step,
    record_landmarks_processed,
    record_region_generated,
    track_image_processing,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy as np
    import numpy.typing as npt

    from app.service.options import CropOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What an input may be at most; see the settings of the same names."""

    max_image_pixels: int = 24_000_000
    landmark_margin: float = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class CropInput:
    """A request as it came, in whichever wire format.

    Attributes:
        image: the file's bytes.
        points: ``(N, 2)`` or ``(N, 3)`` float64, in the units that the options name.
        segmentation_map: a label image's bytes, region names to landmark indices, or None for the catalogue.
        options: checked by their structure.
    """

    image: bytes
    points: npt.NDArray[np.float64]
    segmentation_map: bytes | Mapping[str, Sequence[int]] | None
    options: CropOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class CropResult:
    """What came out, with what is known of the photo and how long the work took."""

    image: ImageInfo
    face: FaceResult
    processing_time_ms: float


class CropService:
    """Turns inputs into results, step by step, each timed and counted.

    Args:
        limits: what an input may be at most.
        fault_work_s: CPU that each request burns extra, to rehearse overload.
    """

    def __init__(self, limits: Limits, *, fault_work_s: float = 0.0) -> None:
        self._limits = limits
        self._fault_work_s = fault_work_s

    def process(self, request: CropInput) -> CropResult:
        """Check an input and find its regions.

        Raises:
            InputError: the input is at fault; the subclass says how.
        """
        start = time.perf_counter()
        request.options.require_available()
        image = self._check_image(request.image, decode=request.options.verify == "pixels")
        landmarks_px = points_to_landmarks_px(
            request.points,
            frame=image.size,
            is_normalized=request.options.landmark_units == "normalized",
            margin=self._limits.landmark_margin,
        )
        source = request.segmentation_map
        label_image = self._decode_labels(source) if isinstance(source, bytes) else None
        face = process_face(
            FaceRequest(
                frame=image.size,
                landmarks_px=landmarks_px,
                label_image=label_image,
                region_landmarks=None if isinstance(source, bytes) else source,
                simplify_px=request.options.simplify,
                style=request.options.style(),
            ),
            image_step,
        )
        if label_image is not None:
            height, width = label_image.shape[:2]
            log_image_processing("segmentation", width, height, len(face.regions) + len(face.omitted))
        self._burn()
        _count(len(landmarks_px), face)
        return CropResult(image=image, face=face, processing_time_ms=1000 * (time.perf_counter() - start))

    def _check_image(self, data: bytes, *, decode: bool) -> ImageInfo:
        with _named("image"):
            info = self._sniff(data)
            if decode:
                with image_step("decode"):
                    decode_image(data, info)
        log_image_processing("verified", *info.size, info.format.upper())
        return info

    @track_image_processing("sniff")
    def _sniff(self, data: bytes) -> ImageInfo:
        """Prove a file whole; its header is read first, so that nothing is looked through that is too large."""
        return verify_structure(data, sniff_image(data, max_pixels=self._limits.max_image_pixels))

    def _decode_labels(self, data: bytes) -> npt.NDArray[np.uint8]:
        with _named("segmentation_map"):
            info = self._sniff(data)
            with image_step("decode"):
                return decode_label_image(data, info)

    def _burn(self) -> None:
        if self._fault_work_s:
            end = time.thread_time() + self._fault_work_s
            while time.thread_time() < end:
                pass


@contextmanager
def _named(field: str) -> Iterator[None]:
    """Say which of the two files it is that an error speaks of."""
    try:
        yield
    except InputError as error:
        raise type(error)(f"{field}: {error}") from error


def _count(landmarks: int, face: FaceResult) -> None:
    record_landmarks_processed(landmarks)
    for region_type, count in Counter(region.kind for region in face.regions).items():
        record_region_generated(region_type, count)
    log_image_processing("extracted", len(face.regions))

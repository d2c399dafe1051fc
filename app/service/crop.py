"""The main use case: a photo in, with or without landmarks; regions out."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

import msgspec

from app.codec.decode import check_label_format
from app.codec.sniff import ImageInfo, sniff_image, verify_structure
from app.face.landmarks import MESH_POINTS_WITH_IRISES, points_to_landmarks_px
from app.face.outlines import check_regions
from app.face.pipeline import FaceRequest, FaceResult, OnStep, check_face, process_face
from app.observability.recording import (
    image_step,
    record_image_processed,
    record_landmarks_processed,
    record_region_generated,
    track_image_processing,
)
from app.observability.rich_logging import log_image_processing
from app.service.detector_pool import DetectorPool
from app.service.pixels import choose_frame, decode_labels, decode_pixels, draw_background, named

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    import numpy.typing as npt

    from app.face.detection.landmark_detector import DetectedFace
    from app.face.landmarks import FloatArray
    from app.service.options import CropOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLimits:
    """What an input may be at most; see the settings of the same names."""

    max_image_pixels: int = 24_000_000
    landmark_margin: float = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class CropInput:
    """A request as it came, in whichever wire format.

    Attributes:
        image: the file's bytes.
        points: ``(N, 2)`` or ``(N, 3)`` float64, in the units that the options name; None has them found.
        segmentation_map: a label image's bytes, region names to landmark indices, or None for the catalogue.
        options: checked by their structure.
    """

    image: bytes
    points: npt.NDArray[np.float64] | None
    segmentation_map: bytes | Mapping[str, Sequence[int]] | None
    options: CropOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedInput:
    """A request with everything about it proven that needs no pixels.

    Attributes:
        image: the photo's bytes, whole.
        image_info: what its header says.
        landmarks_px: ``(468, 2)`` or ``(478, 2)`` points in pixels of the photo; None has them found.
        label_image: a label image's bytes, whole.
        label_info: what its header says.
        region_landmarks: region names to landmark indices; with neither this nor a label image, the catalogue.
        options: as they were given.
    """

    image: bytes | memoryview
    image_info: ImageInfo
    landmarks_px: FloatArray | None
    label_image: bytes | memoryview | None = None
    label_info: ImageInfo | None = None
    region_landmarks: Mapping[str, Sequence[int]] | None = None
    options: CropOptions

    @property
    def needs_pixels(self) -> bool:
        """Whether anything has to be decoded; where nothing has, the work takes a millisecond or so."""
        return self.label_image is not None or self.needs_photo

    @property
    def needs_photo(self) -> bool:
        """Whether the photo has to be decoded."""
        return self.landmarks_px is None or self.options.background == "image" or self.options.verify == "pixels"

    def digest(self) -> str:
        """Return the SHA-256 of all that the result depends on, in hexadecimal."""
        # As arrays: in objects, the order of the caller's regions would be lost, and it is that of their ids.
        regions = None if self.region_landmarks is None else [list(self.region_landmarks.items())]
        landmarks = None if self.landmarks_px is None else self.landmarks_px.tobytes()
        about = (len(self.image), landmarks, self.options.plain(), regions)
        total = sha256(msgspec.msgpack.encode(about))
        total.update(self.image)
        if self.label_image is not None:
            total.update(self.label_image)
        return total.hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class CropResult:
    """What came out, with what is known of the photo and how long the work took.

    Attributes:
        image: what the photo's header says.
        face: the regions.
        found: the landmarks as they were found; None where they were sent.
        processing_time_ms: how long it took.
    """

    image: ImageInfo
    face: FaceResult
    found: DetectedFace | None
    processing_time_ms: float


class CropService:
    """Turns inputs into results, step by step, each timed and counted.

    Args:
        limits: what an input may be at most.
        finders: what finds landmarks where none are sent; None for one with the package's own models.
        fault_work_s: CPU that each request burns extra, to rehearse overload.
    """

    def __init__(self, limits: ImageLimits, finders: DetectorPool | None = None, *, fault_work_s: float = 0.0) -> None:
        self._limits = limits
        self._finders = finders or DetectorPool()
        self._fault_work_s = fault_work_s

    def process(self, request: CropInput) -> CropResult:
        """Check an input and find its regions.

        Raises:
            InputError: the input is at fault; the subclass says how.
        """
        start = time.perf_counter()
        return self._run(self.check(request), image_step, start)

    def check(self, request: CropInput) -> CheckedInput:
        """Check everything about an input that needs no pixels.

        Raises:
            InputError: the input is at fault; the subclass says how.
        """
        if request.points is None:
            self._finders.require()
        info = self.check_image(request.image)
        landmarks_px = None
        if request.points is not None:
            landmarks_px = points_to_landmarks_px(
                request.points,
                image_size=info.size,
                is_normalized=request.options.landmark_units == "normalized",
                margin=self._limits.landmark_margin,
            )
        source = request.segmentation_map
        label_image = source if isinstance(source, bytes) else None
        region_landmarks = None if isinstance(source, bytes) else source
        label_info = None
        if label_image is not None:
            with named("segmentation_map"):
                label_info = self._sniff(label_image)
                check_label_format(label_image, label_info)
        if landmarks_px is not None:
            check_face(landmarks_px, region_landmarks)
        elif region_landmarks is not None:
            check_regions(region_landmarks, MESH_POINTS_WITH_IRISES)
        return CheckedInput(
            image=request.image,
            image_info=info,
            landmarks_px=landmarks_px,
            label_image=label_image,
            label_info=label_info,
            region_landmarks=region_landmarks,
            options=request.options,
        )

    def check_image(self, data: bytes) -> ImageInfo:
        """Prove a photo whole, without decoding it.

        Raises:
            ImageError: it is at fault; the subclass says how.
        """
        with named("image"):
            return self._sniff(data)

    def run(self, checked: CheckedInput, on_step: OnStep = image_step) -> CropResult:
        """Find the regions of what has been checked.

        Args:
            checked: what `check` gave, here or in another process.
            on_step: told of each step, where it is needed: ``decode``, ``detect``, ``mesh``, ``iris``, ``warp``,
                ``encode``, ``segmentation``, ``contours``, ``svg``.

        Raises:
            InputError: the pixels are at fault; the subclass says how.
        """
        return self._run(checked, on_step, time.perf_counter())

    def _run(self, checked: CheckedInput, on_step: OnStep, start: float) -> CropResult:
        photo = decode_pixels(checked, on_step)
        log_image_processing("verified", *checked.image_info.size, checked.image_info.format.upper())
        found = None
        landmarks_px = checked.landmarks_px
        if landmarks_px is None:
            found = self._finders.find(photo, on_step, checked.options.face, checked.image_info.exif_orientation)
            landmarks_px = found.landmarks_px
        frame = choose_frame(checked, landmarks_px, self._limits.max_image_pixels)
        background = draw_background(photo, frame, on_step) if checked.options.background == "image" else None
        # Not before the photo's own work, although a label map that is too complex would be refused sooner: decoding is
        # what takes time (0.2 s at 23 Mpx), and both images together would raise the peak memory by a quarter.
        del photo
        label_image = decode_labels(checked, on_step)
        face = process_face(
            FaceRequest(
                image_size=checked.image_info.size,
                landmarks_px=landmarks_px,
                label_image=label_image,
                region_landmarks=checked.region_landmarks,
                simplify_px=checked.options.simplify,
                style=checked.options.style(),
                output=frame,
                background=background,
            ),
            on_step,
        )
        if label_image is not None:
            height, width = label_image.shape[:2]
            log_image_processing("segmentation", width, height, len(face.regions) + len(face.omitted))
        self._burn()
        _count(checked.image_info.format, len(landmarks_px), face)
        elapsed_ms = 1000 * (time.perf_counter() - start)
        return CropResult(image=checked.image_info, face=face, found=found, processing_time_ms=elapsed_ms)

    @track_image_processing("sniff")
    def _sniff(self, data: bytes) -> ImageInfo:
        """Prove a file whole; its header is read first, so that nothing is looked through that is too large."""
        return verify_structure(data, sniff_image(data, max_pixels=self._limits.max_image_pixels))

    def _burn(self) -> None:
        if self._fault_work_s:
            end = time.thread_time() + self._fault_work_s
            while time.thread_time() < end:
                pass


def _count(image_format: str, landmarks: int, face: FaceResult) -> None:
    record_image_processed(image_format)
    record_landmarks_processed(landmarks)
    for region_type, count in Counter(region.kind for region in face.regions).items():
        record_region_generated(region_type, count)
    log_image_processing("extracted", len(face.regions))

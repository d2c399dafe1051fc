"""Crop requests: an image, with or without landmarks, to face regions."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np
import pybase64

from app.codec.decode import (
    check_label_format,
    decode_image,
    decode_image_with_alpha,
    decode_label_image,
    estimate_decoding_bytes,
    list_reductions,
)
from app.codec.decoding_policy import require_decoding
from app.codec.encode import encode_image
from app.codec.icc import read_icc_profile
from app.codec.sniff import MAX_SIDE_PX, ImageInfo, sniff_image, verify_structure
from app.face.detection.landmark_detector import DetectedFace, move_detection
from app.face.errors import ImageTooLargeError, InputError
from app.face.frame import (
    NORMAL_ORIENTATION,
    ByteArray,
    Frame,
    Size,
    drop_opaque_alpha,
    make_frame,
    make_orientation_transform,
    orient_pixels,
    orient_size,
    transform_points,
    warp_image,
)
from app.face.image_pyramid import ImagePyramid
from app.face.landmarks import (
    MESH_POINTS_WITH_IRISES,
    compute_roll_deg,
    look_normalized,
    points_to_depths_px,
    points_to_landmarks_px,
    select_faces,
)
from app.face.outlines import check_regions
from app.face.pipeline import FaceRequest, FaceResult, OnStep, process_faces
from app.face.rendering.svg import EmbeddedImage, combine_svgs
from app.observability.recording import (
    image_step,
    record_image_processed,
    record_landmarks_processed,
    record_regions_generated,
    track_image_processing,
)
from app.observability.rich_logging import (
    log_image_processing,
    log_image_verified,
    log_regions_extracted,
    log_segmentation_decoded,
)
from app.service.detector_pool import DetectorPool

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy.typing as npt

    from app.face.landmarks import DepthArray, FloatArray
    from app.service.options import CropOptions, LandmarkOptions

# Backgrounds of several faces that differ have this fraction of the pixels of a single one, because detecting several
# faces takes as long as encoding the rest.
_SEPARATE_BACKGROUNDS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLimits:
    """Limits of the input; see the settings of the same names."""

    max_image_pixels: int = 64_000_000
    landmark_margin: float = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class CropInput:
    """A request as received, independent of its wire format."""

    image: bytes
    # `(N, 2)` or `(N, 3)`, or `(F, N, 2)` for several faces; None to detect them.
    points: npt.NDArray[np.float64] | None
    are_points_normalized: bool = False  # regardless of the units of the options
    # The content of a label map, landmark indices by region name, or None for the catalogue.
    segmentation_map: bytes | Mapping[str, Sequence[int]] | None
    options: CropOptions


class SentFace(NamedTuple):
    """Landmarks of one face that were sent."""

    landmarks_px: FloatArray  # `(468, 2)` or `(478, 2)` in pixels of the image, stored or displayed
    depths_px: DepthArray | None = None  # of the landmarks; None if they are unknown or not meaningful

    def to_bytes(self) -> tuple[bytes, bytes | None]:
        """Return the content of both arrays."""
        return self.landmarks_px.tobytes(), None if self.depths_px is None else self.depths_px.tobytes()


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedInput:
    """A request that passed all checks that need no pixels."""

    image: bytes | memoryview
    image_info: ImageInfo
    faces: tuple[SentFace, ...] | None  # selected ones of those that were sent; None to detect them
    label_image: bytes | memoryview | None = None
    label_info: ImageInfo | None = None
    # Landmark indices by region name. Without this and a label map, the catalogue is used.
    region_landmarks: Mapping[str, Sequence[int]] | None = None
    options: CropOptions
    are_units_guessed: bool = False  # the landmarks were sent as pixels, and read as normalized

    @property
    def needs_pixels(self) -> bool:
        """Whether an image must be decoded; otherwise, the request takes about a millisecond."""
        return self.label_image is not None or self.needs_image

    @property
    def needs_image(self) -> bool:
        """Whether the image must be decoded."""
        return self.faces is None or self.options.background == "image" or self.options.verify == "pixels"

    @property
    def orientation(self) -> int:
        """The EXIF orientation to apply to the image."""
        return choose_orientation(self.image_info, self.options)

    @property
    def image_size(self) -> Size:
        """Size of the image that all coordinates refer to."""
        return orient_size(self.image_info.size, self.orientation)

    def digest(self) -> str:
        """Return the SHA-256 of everything that the result depends on, in hexadecimal."""
        # A list keeps the order of the regions, which determines their ids.
        regions = None if self.region_landmarks is None else [list(self.region_landmarks.items())]
        points = None if self.faces is None else [face.to_bytes() for face in self.faces]
        parameters = (len(self.image), points, self.options, regions, self.are_units_guessed)
        digest = sha256(msgspec.msgpack.encode(parameters))
        digest.update(self.image)
        if self.label_image is not None:
            digest.update(self.label_image)
        return digest.hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class CropResult:
    """Result of a crop request for one face."""

    image: ImageInfo
    face: FaceResult
    detected: DetectedFace | None  # None if the request contained the landmarks
    orientation: int = NORMAL_ORIENTATION  # the EXIF orientation that was applied to the image
    processing_time_ms: float
    are_units_guessed: bool = False  # see `CheckedInput`

    @property
    def svg(self) -> bytes:
        """The overlay."""
        return self.face.svg


@dataclass(frozen=True, slots=True, kw_only=True)
class CropResults:
    """Results of a crop request for all faces."""

    faces: tuple[CropResult, ...]  # the largest face first, or in the order in which landmarks were sent
    processing_time_ms: float

    @property
    def svg(self) -> bytes:
        """The overlays of all faces in one document; see `combine_svgs`."""
        is_same_frame = _is_one_frame([result.face.frame for result in self.faces])
        return combine_svgs([result.svg for result in self.faces], is_same_frame=is_same_frame)


class _LocatedFace(NamedTuple):
    """Landmarks of one face, sent or detected."""

    landmarks_px: FloatArray
    depths_px: DepthArray | None
    detected: DetectedFace | None


class CropService:
    """The steps from an input to its result, each timed and counted.

    Without detectors, it uses the models inside the package. `fault_work_s` is additional CPU time per request, in
    seconds, to simulate overload.
    """

    def __init__(
        self, limits: ImageLimits, detectors: DetectorPool | None = None, *, fault_work_s: float = 0.0
    ) -> None:
        self.limits = limits
        self.detectors = detectors or DetectorPool()
        self._fault_work_s = fault_work_s

    def process(self, request: CropInput) -> CropResult | CropResults:
        """Check an input and find its regions; the result is `CropResults` if the option `face` is ``all``.

        Raises:
            InputError: the input is invalid; the subclass identifies the problem.
        """
        start = time.perf_counter()
        return self._run(self.check(request), image_step, start)

    def check(self, request: CropInput) -> CheckedInput:
        """Run all checks of an input that need no pixels.

        Raises:
            InputError: the input is invalid; the subclass identifies the problem.
        """
        if request.points is None:
            self.detectors.require_models()
        info = self.check_image(request.image)
        faces, are_units_guessed = None, False
        if request.points is not None:
            faces, are_units_guessed = convert_points(
                request.points,
                request.options,
                orient_size(info.size, choose_orientation(info, request.options)),
                self.limits,
                are_normalized=request.are_points_normalized,
            )
        source = request.segmentation_map
        label_image = source if isinstance(source, bytes) else None
        region_landmarks = None if isinstance(source, bytes) else source
        label_info = None
        if label_image is not None:
            with _errors_of("segmentation_map"):
                label_info = self._sniff(label_image)
                check_label_format(label_image, label_info)
        if region_landmarks is not None:
            check_regions(region_landmarks, len(faces[0].landmarks_px) if faces else MESH_POINTS_WITH_IRISES)
        return CheckedInput(
            image=request.image,
            image_info=info,
            faces=faces,
            label_image=label_image,
            label_info=label_info,
            region_landmarks=region_landmarks,
            options=request.options,
            are_units_guessed=are_units_guessed,
        )

    def check_image(self, data: bytes) -> ImageInfo:
        """Verify the structure of an image without decoding it.

        Raises:
            ImageError: the image is invalid; the subclass identifies the problem.
        """
        with _errors_of("image"):
            return self._sniff(data)

    def run(self, checked: CheckedInput, on_step: OnStep = image_step) -> CropResult | CropResults:
        """Find the regions of a checked input, possibly from another process; see `process`.

        The steps, if they are necessary, are ``decode``, ``detect``, ``mesh``, ``iris``, ``warp``, ``encode``,
        ``segmentation``, ``contours`` and ``svg``. ``detect`` and ``mesh`` are repeated at each scale that is searched.

        Raises:
            InputError: the pixels are invalid; the subclass identifies the problem.
        """
        return self._run(checked, on_step, time.perf_counter())

    def _run(self, checked: CheckedInput, on_step: OnStep, start: float) -> CropResult | CropResults:
        image = _open_image(checked, on_step)
        log_image_verified(*checked.image_info.size, checked.image_info.format)
        located = self._locate_faces(image, checked, on_step)
        frames = _choose_frames(checked, located, self.limits)
        backgrounds = _encode_backgrounds(image, checked, frames, on_step)
        # Decode the label map only now, although one that is too complex would then be rejected later. Both
        # decoded images together would raise peak memory by a quarter.
        del image
        label_image = _decode_labels(checked, on_step)
        requests = [
            FaceRequest(
                image_size=checked.image_size,
                landmarks_px=face.landmarks_px,
                depths_px=face.depths_px,
                label_image=label_image,
                region_landmarks=checked.region_landmarks,
                simplify_px=checked.options.simplify,
                style=checked.options.style(),
                output=frame,
                background=None if backgrounds is None else backgrounds[number],
            )
            for number, (face, frame) in enumerate(zip(located, frames, strict=True))
        ]
        faces = process_faces(requests, on_step)
        if label_image is not None:
            height, width = label_image.shape[:2]
            log_segmentation_decoded(width, height, len(faces[0].regions) + len(faces[0].omitted))
        self._burn()
        _count(checked.image_info.format, faces)
        elapsed_ms = 1000 * (time.perf_counter() - start)
        is_all = checked.options.face == "all"
        results = tuple(
            CropResult(
                image=checked.image_info,
                face=face,
                detected=one.detected,
                orientation=checked.orientation,
                processing_time_ms=elapsed_ms,
                are_units_guessed=checked.are_units_guessed,
            )
            for one, face in zip(located, faces, strict=True)
        )
        return CropResults(faces=results, processing_time_ms=elapsed_ms) if is_all else results[0]

    def _locate_faces(self, image: ImagePyramid, checked: CheckedInput, on_step: OnStep) -> list[_LocatedFace]:
        """Return the selected faces of a request, sent or detected."""
        if checked.faces is not None:
            return [_LocatedFace(*face, None) for face in checked.faces]
        found = find_faces(self.detectors, image, checked.image_info, checked.options, on_step)
        return [_LocatedFace(detected.landmarks_px, detected.depths_px, detected) for detected in found]

    @track_image_processing("sniff")
    def _sniff(self, data: bytes) -> ImageInfo:
        """Verify the structure of a file. Read its header first, so that no file that is too large is scanned."""
        return verify_structure(data, sniff_image(data, max_pixels=self.limits.max_image_pixels))

    def _burn(self) -> None:
        if self._fault_work_s:
            end = time.thread_time() + self._fault_work_s
            while time.thread_time() < end:
                pass


def choose_orientation(info: ImageInfo, options: CropOptions | LandmarkOptions) -> int:
    """Return the EXIF orientation to apply to an image by the options of a request."""
    return info.exif_orientation if options.orientation == "displayed" else NORMAL_ORIENTATION


def find_faces(
    detectors: DetectorPool,
    image: ImagePyramid,
    info: ImageInfo,
    options: CropOptions | LandmarkOptions,
    on_step: OnStep,
) -> tuple[DetectedFace, ...]:
    """Detect the face that the options select, or all faces, in pixels of the image in the orientation of the options.

    Raises:
        InputError: see `DetectorPool.detect`.
    """
    faces = detectors.detect(image, on_step, options.face, info.exif_orientation)
    orientation = choose_orientation(info, options)
    if orientation == NORMAL_ORIENTATION:
        return faces
    transform = make_orientation_transform(info.size, orientation)

    def orient(points: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        return transform_points(points.astype(np.float64), transform)

    boxes = tuple(move_detection(face, orient) for face in faces[0].faces)
    return tuple(
        replace(face, landmarks_px=orient(face.landmarks_px).astype(np.float32), faces=boxes) for face in faces
    )


def convert_points(
    points: npt.NDArray[np.float64], options: CropOptions, size: Size, limits: ImageLimits, *, are_normalized: bool
) -> tuple[tuple[SentFace, ...], bool]:
    """Convert the points of a request to pixels of the image.

    The points are ``(N, 2)`` or ``(N, 3)``, or ``(F, N, 2 or 3)`` for several faces, of which the options select one or
    all. With `are_normalized`, the units of the options are ignored.

    Returns:
        The selected faces, and whether they were read as normalized although the options declare pixels.

    Raises:
        InputError: the points are invalid, the selected face is missing, or all of too many are selected.
    """
    selected = select_faces(points, options.face)
    is_normalized = are_normalized or options.landmark_units == "normalized"
    # All faces have the same units, whichever are selected.
    are_units_guessed = not is_normalized and look_normalized(points)
    is_normalized = is_normalized or are_units_guessed
    faces = []
    for number, face in enumerate(selected):
        with _errors_of(f"face {number}" if len(selected) > 1 else ""):
            landmarks_px = points_to_landmarks_px(
                face, image_size=size, is_normalized=is_normalized, margin=limits.landmark_margin
            )
            compute_roll_deg(landmarks_px)  # raises if the eye corners coincide
        depths_px = points_to_depths_px(face, landmarks_px, image_size=size, is_normalized=is_normalized)
        faces.append(SentFace(landmarks_px, depths_px))
    return tuple(faces), are_units_guessed


def _count(image_format: str, faces: Sequence[FaceResult]) -> None:
    record_image_processed(image_format)
    for face in faces:
        record_landmarks_processed(len(face.landmarks_px))
    kinds = [region.kind for face in faces for region in face.regions]
    record_regions_generated(kinds)
    log_regions_extracted(len(kinds))


@contextmanager
def _errors_of(part: str) -> Iterator[None]:
    """Add a part of the request to the text of an error, because a request may contain two files or several faces."""
    try:
        yield
    except InputError as error:
        if not part:
            raise
        raise type(error)(f"{part}: {error}") from error


def open_image(data: bytes | memoryview, info: ImageInfo, on_step: OnStep) -> ImagePyramid:
    """Return an image whose levels are decoded in the step ``decode`` when they are needed, with alpha."""

    def decode(reduction: int) -> ByteArray:
        require_decoding(estimate_decoding_bytes(info, reduction))
        start = time.perf_counter()
        with _errors_of("image"), on_step("decode"):
            pixels = decode_image_with_alpha(data, info, reduction)
        log_image_processing("decode", pixels.shape, time.perf_counter() - start)
        return pixels

    return ImagePyramid(info.size, decode, list_reductions(info))


def _open_image(checked: CheckedInput, on_step: OnStep) -> ImagePyramid:
    """Open the image, and decode it in full if that is necessary in any case."""
    image = open_image(checked.image, checked.image_info, on_step)
    has_background = checked.options.background == "image"
    is_used = checked.faces is None or has_background
    if is_used and (checked.options.verify == "pixels" or (has_background and checked.options.output_size is None)):
        image.get_level(1)
    elif checked.options.verify == "pixels":
        require_decoding(estimate_decoding_bytes(checked.image_info))
        with _errors_of("image"), on_step("decode"):
            decode_image(checked.image, checked.image_info)
    return image


def _decode_labels(checked: CheckedInput, on_step: OnStep) -> ByteArray | None:
    if checked.label_image is None or checked.label_info is None:
        return None
    require_decoding(estimate_decoding_bytes(checked.label_info))
    with _errors_of("segmentation_map"), on_step("decode"):
        return decode_label_image(checked.label_image, checked.label_info)


def _choose_frames(checked: CheckedInput, faces: Sequence[_LocatedFace], limits: ImageLimits) -> list[Frame]:
    size, framing = checked.image_size, checked.options.framing()
    frames = [make_frame(size, face.landmarks_px, compute_roll_deg(face.landmarks_px), framing) for face in faces]
    if checked.options.background == "image":
        for frame in frames:
            check_output_size("background", frame.size, limits)
        pixels = sum(frame.size.width * frame.size.height for frame in frames)
        limit = limits.max_image_pixels // (1 if _is_one_frame(frames) else _SEPARATE_BACKGROUNDS)
        if pixels > limit:
            raise ImageTooLargeError(
                f"background: expected results of at most {limit} pixels for all {len(frames)} faces together, got "
                f"{pixels}; set crop or output_size"
            )
    return frames


def _is_one_frame(frames: Sequence[Frame]) -> bool:
    return all(np.array_equal(frame.transform, frames[0].transform) for frame in frames)


def check_output_size(field: str, size: Size, limits: ImageLimits) -> None:
    """Check the size of a result that contains pixels because of the option `field`.

    Raises:
        ImageTooLargeError: the frame has more pixels than an image may have.
    """
    if size.width * size.height > limits.max_image_pixels or max(size) > MAX_SIDE_PX:
        limit = f"at most {limits.max_image_pixels} pixels and sides of at most {MAX_SIDE_PX}"
        got = f"{size.width} x {size.height}"
        raise ImageTooLargeError(f"{field}: expected a result of {limit}, got {got}; set crop or output_size")


def _encode_backgrounds(
    image: ImagePyramid, checked: CheckedInput, frames: Sequence[Frame], on_step: OnStep
) -> list[EmbeddedImage] | None:
    """Encode the image in each output frame, as files that the overlays embed, if the options require it."""
    if checked.options.background == "none":
        return None
    profile = read_icc_profile(checked.image, checked.image_info)
    backgrounds: list[EmbeddedImage] = []
    for number, frame in enumerate(frames):
        if number and np.array_equal(frame.transform, frames[0].transform):
            backgrounds.append(backgrounds[0])
            continue
        level = image.get_level(1 / frame.scale)
        with on_step("warp"):
            if frame.is_identity:
                warped = drop_opaque_alpha(orient_pixels(level.pixels, checked.orientation))
            else:
                stored = frame.from_stored(checked.image_info.size, checked.orientation)
                warped = warp_image(level.pixels, stored.reduce(level.reduction))
        with on_step("encode"):
            data, media_type = encode_image(warped, profile)
            backgrounds.append(EmbeddedImage(pybase64.b64encode_as_string(data), media_type))
    return backgrounds

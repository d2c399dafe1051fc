"""Cost of detecting landmarks in photos of phones: the service, the bare steps, and a full decode in the same run."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

import cv2
import numpy as np
from rich.progress import track

from app import PACKAGE_MODELS
from app.codec.sniff import ImageInfo, sniff_image
from app.face.detection.landmark_detector import LandmarkDetector
from app.face.pipeline import no_step
from app.service.crop import open_image
from benchmarks.detection import run_mediapipe_on_files
from benchmarks.inputs import cpu_ms
from benchmarks.variants import read_sample

if TYPE_CHECKING:
    from app.face.frame import ByteArray
    from app.face.image_pyramid import ImagePyramid

ROUNDS = 11
QUALITY = 92


def make_photo(width: int, height: int) -> bytes:
    """Return a JPEG of this size with the sample in the middle, as high as the photo."""
    image = np.full((height, width, 3), 110, np.uint8)
    left = (width - height) // 2
    image[:, left : left + height] = cv2.resize(read_sample().image, (height, height), interpolation=cv2.INTER_CUBIC)
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()


def _decode(data: bytes, flags: int) -> ByteArray:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if image is None:
        raise ValueError("JPEG: decoding failed")
    return image.astype(np.uint8, copy=False)


def _compare(data: bytes, reduced: int) -> dict[str, float]:
    """Return the CPU times of the service's path, of the bare steps with this decoder flag, and of a full decode."""
    cv2.setNumThreads(0)
    detector, info = LandmarkDetector(str(PACKAGE_MODELS)), sniff_image(data, max_pixels=100_000_000)

    def run(image: ImagePyramid | ByteArray) -> None:
        detector.detect(image, no_step)

    def run_service(header: ImageInfo = info) -> None:
        run(open_image(data, header, no_step))

    functions = (run_service, lambda: run(_decode(data, reduced)), lambda: run(_decode(data, cv2.IMREAD_COLOR)))
    rounds = [[cpu_ms(function, 1) for function in functions] for _ in track(range(ROUNDS), "phone")]
    ours, bare, full = (statistics.median(column) for column in zip(*rounds, strict=True))
    return {
        "cpu_ms": round(ours, 2),
        "reference_cpu_ms": round(bare, 2),
        "full_cpu_ms": round(full, 2),
        "ratio": round(ours / bare, 4),
        "ratio_to_full": round(ours / full, 4),
        "rounds": ROUNDS,
    }


def phone_12mp() -> dict[str, float]:
    """CPU time of the landmarks of a 12 Mpx JPEG, compared with a scaled decode and the detector."""
    return _compare(make_photo(4032, 3024), cv2.IMREAD_REDUCED_COLOR_4)


def phone_12mp_mediapipe() -> dict[str, float]:
    """CPU time of the landmarks of a 12 Mpx JPEG, compared with MediaPipe's FaceMesh after a full decode."""
    data = make_photo(4032, 3024)
    before, theirs, after = phone_12mp(), run_mediapipe_on_files({"photo.jpg": data}), phone_12mp()
    ours = statistics.mean(figures["cpu_ms"] for figures in (before, after))
    reference = float(theirs["cpu_ms"]) + float(theirs["decode_cpu_ms"])
    return {
        "cpu_ms": round(ours, 2),
        "reference_cpu_ms": round(reference, 2),
        "decode_cpu_ms": round(float(theirs["decode_cpu_ms"]), 2),
        "ratio": round(ours / reference, 4),
    }


def phone_48mp() -> dict[str, float]:
    """CPU time of the landmarks of a 48 Mpx JPEG, compared with a scaled decode and the detector."""
    return _compare(make_photo(8064, 6048), cv2.IMREAD_REDUCED_COLOR_8)

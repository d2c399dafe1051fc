"""Generate a label map from face landmarks, by default of a different size than the image.

The values are label ids: 0 background, 1 skin, 2 and 3 eyebrows, 4 and 5 eyes, 6 nose, 7 upper lip, 8 mouth interior,
9 lower lip, 10 hair. In each pair, the even id is on the left side of the image. Landmarks do not cover hair, so it is
approximated by an ellipse around the face oval. The output is deterministic.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import orjson

from app.face.frame import Size
from app.face.landmarks import FloatArray, compute_bbox, points_to_landmarks_px
from app.face.regions import CATALOGUE

HERE = Path(__file__).resolve().parent
SKIN, HAIR = 1, 10
FEATURES = range(2, 10)

# Size of the hair ellipse, relative to the face oval: width, extent above its top, extent below its top.
HAIR_WIDTH, HAIR_ABOVE, HAIR_BELOW = 1.55, 0.5, 0.55

# Polygons have a resolution of 1/16 pixel.
SUBPIXEL_BITS = 4


def read_landmarks(path: Path, image_size: Size) -> FloatArray:
    """Read landmarks from ``[{"x": ..., "y": ...}, ...]``, in pixels of the image."""
    points = orjson.loads(path.read_bytes())
    return points_to_landmarks_px([(point["x"], point["y"]) for point in points], image_size=image_size)


def make_labels(landmarks_px: FloatArray, *, image_size: Size, size: Size) -> npt.NDArray[np.uint8]:
    """Return the label map of a face.

    Args:
        landmarks_px: ``(N, 2)`` points in pixels of the image.
        image_size: size of the image in pixels.
        size: size of the label map in pixels.

    Returns:
        ``(size.height, size.width)`` uint8 label ids.
    """
    landmarks = landmarks_px * np.divide(size, image_size, dtype=np.float32)
    rings = {spec.name: landmarks[list(spec.landmarks)] for spec in CATALOGUE}
    labels = np.zeros((size.height, size.width), np.uint8)
    _draw_hair(labels, rings["face_oval"])
    _fill(labels, rings["face_oval"], SKIN)
    for spec in CATALOGUE:
        if spec.label_id in FEATURES:
            _fill(labels, rings[spec.name], spec.label_id)
    return labels


def parse_size(text: str) -> Size:
    """Parse ``WIDTHxHEIGHT``."""
    width, height = (int(side) for side in text.split("x"))
    if min(width, height) < 1:
        raise ValueError(text)
    return Size(width, height)


def _fill(labels: npt.NDArray[np.uint8], ring: FloatArray, label_id: int) -> None:
    # The origin of cv2 is the center of the first pixel, that of landmarks is the corner of the image.
    points = np.rint((ring - 0.5) * (1 << SUBPIXEL_BITS)).astype(np.int32)
    cv2.fillPoly(labels, [points], label_id, shift=SUBPIXEL_BITS)


def _draw_hair(labels: npt.NDArray[np.uint8], oval: FloatArray) -> None:
    x, y, width, height = compute_bbox(oval)
    top, bottom = y - HAIR_ABOVE * height, y + HAIR_BELOW * height
    centre = (round(x + width / 2), round((top + bottom) / 2))
    axes = (round(width * HAIR_WIDTH / 2), round((bottom - top) / 2))
    cv2.ellipse(labels, centre, axes, 0, 0, 360, HAIR, cv2.FILLED)


def main() -> None:
    """Run the command line; see `--help`."""
    parser = argparse.ArgumentParser(
        description="Generate a label map (a greyscale PNG of label ids) from face landmarks.",
        epilog="example: python examples/make_label_map.py --size 384x384 --output examples/astronaut.labels.png",
    )
    parser.add_argument("--image", type=Path, default=HERE / "astronaut.png", help="image; only its size is used")
    parser.add_argument(
        "--landmarks", type=Path, default=HERE / "astronaut.landmarks.json", help="landmarks in pixels of the image"
    )
    parser.add_argument(
        "--size",
        type=parse_size,
        default="384x384",
        help="size of the label map as WIDTHxHEIGHT (default: %(default)s)",
    )
    parser.add_argument("--output", type=Path, default=HERE / "astronaut.labels.png", help="output file")
    arguments = parser.parse_args()
    image = cv2.imread(str(arguments.image))
    if image is None:
        parser.error(f"{arguments.image}: expected a readable image")
    image_size = Size(image.shape[1], image.shape[0])
    landmarks = read_landmarks(arguments.landmarks, image_size)
    labels = make_labels(landmarks, image_size=image_size, size=arguments.size)
    encoded = cv2.imencode(".png", labels, [cv2.IMWRITE_PNG_COMPRESSION, 9])[1]
    arguments.output.write_bytes(encoded.tobytes())
    print(f"{arguments.output}: {labels.shape[1]} x {labels.shape[0]}, labels {np.unique(labels[labels > 0]).tolist()}")


if __name__ == "__main__":
    main()

"""Make a label map from a face's landmarks, as a segmentation model would: by default of another size than the photo.

The map's values are label ids: 1 skin, 2 and 3 eyebrows, 4 and 5 eyes, 6 nose, 7 upper lip, 8 mouth interior,
9 lower lip, 10 hair, 0 background; of a pair the even id is at the picture's left. Landmarks say nothing of hair, so
that it is a guess: an ellipse around the face's oval and above the ears. The same input gives the same labels.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import orjson

from app.face.contours import find_labels
from app.face.frame import Size
from app.face.landmarks import FloatArray, compute_bbox, points_to_landmarks_px
from app.face.regions import CATALOGUE

HERE = Path(__file__).resolve().parent
SKIN, HAIR = 1, 10
FEATURES = range(2, 10)

# Against the oval of the face, which ends at the hairline: how much wider hair is, how far it goes up and down.
HAIR_WIDTH, HAIR_ABOVE, HAIR_BELOW = 1.55, 0.5, 0.55

# Polygons are drawn to a sixteenth of a pixel.
SUBPIXEL_BITS = 4


def read_landmarks(path: Path, photo: Size) -> FloatArray:
    """Read ``[{"x": ..., "y": ...}, ...]`` in pixels of the photo."""
    points = orjson.loads(path.read_bytes())
    return points_to_landmarks_px([(point["x"], point["y"]) for point in points], image_size=photo)


def make_labels(landmarks_px: FloatArray, *, photo: Size, size: Size) -> npt.NDArray[np.uint8]:
    """Draw the labels of a face.

    Args:
        landmarks_px: ``(N, 2)`` points in pixels of the photo.
        photo: Size of the photo in pixels.
        size: Size of the map in pixels.

    Returns:
        ``(size.height, size.width)`` uint8 label ids.
    """
    landmarks = landmarks_px * np.divide(size, photo, dtype=np.float32)
    rings = {spec.name: landmarks[list(spec.landmarks)] for spec in CATALOGUE}
    labels = np.zeros((size.height, size.width), np.uint8)
    _draw_hair(labels, rings["face_oval"])
    _fill(labels, rings["face_oval"], SKIN)
    for spec in CATALOGUE:
        if spec.label_id in FEATURES:
            _fill(labels, rings[spec.name], spec.label_id)
    return labels


def parse_size(text: str) -> Size:
    """Read ``WIDTHxHEIGHT``."""
    width, height = (int(side) for side in text.split("x"))
    if min(width, height) < 1:
        raise ValueError(text)
    return Size(width, height)


def _fill(labels: npt.NDArray[np.uint8], ring: FloatArray, label_id: int) -> None:
    # cv2 counts from pixels' centres, landmarks from the picture's corner.
    points = np.rint((ring - 0.5) * (1 << SUBPIXEL_BITS)).astype(np.int32)
    cv2.fillPoly(labels, [points], label_id, shift=SUBPIXEL_BITS)


def _draw_hair(labels: npt.NDArray[np.uint8], oval: FloatArray) -> None:
    x, y, width, height = compute_bbox(oval)
    top, bottom = y - HAIR_ABOVE * height, y + HAIR_BELOW * height
    centre = (round(x + width / 2), round((top + bottom) / 2))
    axes = (round(width * HAIR_WIDTH / 2), round((bottom - top) / 2))
    cv2.ellipse(labels, centre, axes, 0, 0, 360, HAIR, cv2.FILLED)


def main() -> None:
    """Read the arguments, write the map."""
    parser = argparse.ArgumentParser(
        description="Make a label map (a grey PNG of label ids) from the landmarks of a face.",
        epilog="example: python examples/make_label_map.py --size 384x384 --output examples/astronaut.labels.png",
    )
    parser.add_argument("--photo", type=Path, default=HERE / "astronaut.png", help="the photo, for its size")
    parser.add_argument(
        "--landmarks", type=Path, default=HERE / "astronaut.landmarks.json", help="landmarks in pixels of the photo"
    )
    parser.add_argument(
        "--size", type=parse_size, default="384x384", help="WIDTHxHEIGHT of the map (default: %(default)s)"
    )
    parser.add_argument("--output", type=Path, default=HERE / "astronaut.labels.png", help="where the map goes")
    arguments = parser.parse_args()
    image = cv2.imread(str(arguments.photo))
    if image is None:
        parser.error(f"cannot read the photo {arguments.photo}")
    photo = Size(image.shape[1], image.shape[0])
    labels = make_labels(read_landmarks(arguments.landmarks, photo), photo=photo, size=arguments.size)
    encoded = cv2.imencode(".png", labels, [cv2.IMWRITE_PNG_COMPRESSION, 9])[1]
    arguments.output.write_bytes(encoded.tobytes())
    print(f"{arguments.output}: {labels.shape[1]} x {labels.shape[0]}, labels {find_labels(labels)}")


if __name__ == "__main__":
    main()

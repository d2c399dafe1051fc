"""Generate the request examples of /docs from the sample image, cropped to keep them short.

Example: python examples/make_docs_examples.py app/web/static/examples.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import pybase64

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

HERE = Path(__file__).parent
FACE_XYWH = (150, 30, 144, 160)
MAP_SCALE = 0.5
MOUTH = {"mouth": [61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 409, 270, 269, 267, 0, 37, 39, 40, 185]}


def crop(image: np.ndarray, xywh: tuple[int, int, int, int]) -> np.ndarray:
    """Return the part of an image inside a box."""
    x, y, width, height = xywh
    return image[y : y + height, x : x + width]


def to_base64(image: np.ndarray, extension: str, *options: int) -> str:
    """Encode an image as a file, in base64."""
    return pybase64.b64encode_as_string(cv2.imencode(extension, image, options)[1].tobytes())


def make_examples() -> dict[str, Any]:
    """Return the examples by name, as OpenAPI example objects."""
    image = cv2.imread(str(HERE / "astronaut.png"))
    labels = cv2.imread(str(HERE / "astronaut.labels.png"), cv2.IMREAD_GRAYSCALE)
    if image is None or labels is None:
        raise FileNotFoundError("examples/astronaut.png or examples/astronaut.labels.png")
    points = json.loads((HERE / "astronaut.landmarks.json").read_text())
    x, y, *_ = FACE_XYWH
    landmarks = [[round(point["x"] - x, 1), round(point["y"] - y, 1)] for point in points]
    request = {"image": to_base64(crop(image, FACE_XYWH), ".jpg", cv2.IMWRITE_JPEG_QUALITY, 75), "landmarks": landmarks}
    scale = labels.shape[0] / image.shape[0] * MAP_SCALE
    small = cv2.resize(labels, None, fx=MAP_SCALE, fy=MAP_SCALE, interpolation=cv2.INTER_NEAREST)
    box = tuple(round(side * scale) for side in FACE_XYWH)
    label_image = to_base64(crop(small, box), ".png")
    image_only = {"image": request["image"], "upright": True, "crop": "face", "background": "image", "output_size": 256}
    return {
        "photo_alone": {"summary": "Image without landmarks, levelled and cropped", "value": image_only},
        "catalogue": {"summary": "Image with landmarks", "value": request},
        "label_image": {
            "summary": "Label map of another size",
            "value": {**request, "segmentation_map": label_image, "show_labels": True},
        },
        "regions": {
            "summary": "Custom region",
            "value": {**request, "segmentation_map": MOUTH, "region_opacity": 0.6},
        },
    }


def run(description: str | None, make: Callable[[], dict[str, Any]]) -> None:
    """Run the command line of a generator of examples; see `--help`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="output file")
    target = parser.parse_args().file
    target.write_text(json.dumps(make(), separators=(",", ":")) + "\n")
    print(f"{target}: {target.stat().st_size} bytes")


if __name__ == "__main__":
    run(__doc__, make_examples)

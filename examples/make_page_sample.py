"""Generate the samples of the page at / from the sample image: a portrait, its landmarks, and a collage of faces.

Example: python examples/make_page_sample.py app/web/static/page
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import cv2
import numpy as np

HERE = Path(__file__).parent
# The head with a margin, so that its regions are visible on a phone.
CROP_XYWH = (66, 0, 320, 320)
QUALITY = 88

COLLAGE_SIZE = (720, 400)
COLLAGE_QUALITY = 82
BACKGROUND_BGR = (74, 84, 92)
PAPER_BGR = (246, 248, 250)
BORDER_PX = 14
# For each print: centre, longer side and clockwise rotation, and whether it is mirrored.
PRINTS = (((142, 204), 220, -9.0, False), ((363, 194), 190, 4.0, True), ((579, 206), 210, 14.0, False))


def make_samples(folder: Path) -> list[Path]:
    """Write all files to a directory."""
    image = cv2.imread(str(HERE / "astronaut.png"))
    if image is None:
        raise FileNotFoundError("examples/astronaut.png")
    x, y, width, height = CROP_XYWH
    portrait = np.asarray(image[y : y + height, x : x + width], np.uint8)
    points = json.loads((HERE / "astronaut.landmarks.json").read_text())
    pairs = [[round(point["x"] - x, 2), round(point["y"] - y, 2)] for point in points]
    paths = [folder / name for name in ("astronaut.jpg", "astronaut.landmarks.json", "faces.jpg")]
    _write_jpeg(paths[0], portrait, QUALITY)
    paths[1].write_text(json.dumps(pairs, separators=(",", ":")) + "\n")
    _write_jpeg(paths[2], make_collage(portrait), COLLAGE_QUALITY)
    return paths


def make_collage(portrait: np.ndarray) -> np.ndarray:
    """Return an image of several prints of a portrait.

    Args:
        portrait: ``(H, W, 3)`` uint8 BGR, with equal sides.

    Returns:
        ``(H, W, 3)`` uint8 BGR of `COLLAGE_SIZE`.
    """
    width, height = COLLAGE_SIZE
    collage = np.full((height, width, 3), BACKGROUND_BGR, np.uint8)
    for centre, side, angle, is_mirrored in PRINTS:
        photo = cv2.flip(portrait, 1) if is_mirrored else portrait
        border = BORDER_PX
        sheet = cv2.copyMakeBorder(photo, border, border, border, border, cv2.BORDER_CONSTANT, value=PAPER_BGR)
        middle = (sheet.shape[1] / 2, sheet.shape[0] / 2)
        matrix = cv2.getRotationMatrix2D(middle, -angle, side / portrait.shape[0])
        matrix[:, 2] += np.subtract(centre, middle)
        mask = cv2.warpAffine(np.full(sheet.shape[:2], 1.0, np.float32), matrix, COLLAGE_SIZE)[..., None]
        turned = cv2.warpAffine(sheet, matrix, COLLAGE_SIZE, flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REPLICATE)
        shadow = cv2.GaussianBlur(np.roll(mask[..., 0], (5, 3), (0, 1)), (0, 0), 6)[..., None]
        collage = np.asarray(collage * (1 - 0.45 * shadow) * (1 - mask) + turned * mask, np.uint8)
    return collage


def _write_jpeg(path: Path, image: np.ndarray, quality: int) -> None:
    cv2.imwrite(str(path), image, [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_PROGRESSIVE, 1])


def main() -> None:
    """Run the command line; see `--help`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="output directory")
    for path in make_samples(parser.parse_args().folder):
        print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()

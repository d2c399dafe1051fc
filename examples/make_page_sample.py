"""Generate the sample of the page at /: the head of the sample image as a small JPEG, and its landmarks.

Example: python examples/make_page_sample.py app/web/static/page
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import cv2

HERE = Path(__file__).parent
# The head with a margin, so that its regions are visible on a phone.
CROP_XYWH = (66, 0, 320, 320)
QUALITY = 88


def make_sample(folder: Path) -> list[Path]:
    """Write both files to a directory."""
    image = cv2.imread(str(HERE / "astronaut.png"))
    if image is None:
        raise FileNotFoundError("examples/astronaut.png")
    image_path, landmarks_path = folder / "astronaut.jpg", folder / "astronaut.landmarks.json"
    x, y, width, height = CROP_XYWH
    crop = image[y : y + height, x : x + width]
    cv2.imwrite(str(image_path), crop, [cv2.IMWRITE_JPEG_QUALITY, QUALITY, cv2.IMWRITE_JPEG_PROGRESSIVE, 1])
    points = json.loads((HERE / "astronaut.landmarks.json").read_text())
    pairs = [[round(point["x"] - x, 2), round(point["y"] - y, 2)] for point in points]
    landmarks_path.write_text(json.dumps(pairs, separators=(",", ":")) + "\n")
    return [image_path, landmarks_path]


def main() -> None:
    """Run the command line; see `--help`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="output directory")
    for path in make_sample(parser.parse_args().folder):
        print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()

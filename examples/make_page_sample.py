"""Make the sample that the page at / ships: the head of the sample photo as a small JPEG, and its landmarks.

Example: python examples/make_page_sample.py app/web/static/page
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import cv2

HERE = Path(__file__).parent
# The head with some room around it, so that its regions can be seen on a phone.
CUT_XYWH = (66, 0, 320, 320)
QUALITY = 88


def make_sample(folder: Path) -> list[Path]:
    """Write both files into a folder."""
    photo = cv2.imread(str(HERE / "astronaut.png"))
    if photo is None:
        raise FileNotFoundError("examples/astronaut.png")
    picture, landmarks = folder / "astronaut.jpg", folder / "astronaut.landmarks.json"
    x, y, width, height = CUT_XYWH
    cut = photo[y : y + height, x : x + width]
    cv2.imwrite(str(picture), cut, [cv2.IMWRITE_JPEG_QUALITY, QUALITY, cv2.IMWRITE_JPEG_PROGRESSIVE, 1])
    points = json.loads((HERE / "astronaut.landmarks.json").read_text())
    pairs = [[round(point["x"] - x, 2), round(point["y"] - y, 2)] for point in points]
    landmarks.write_text(json.dumps(pairs, separators=(",", ":")) + "\n")
    return [picture, landmarks]


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the files go")
    for path in make_sample(parser.parse_args().folder):
        print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()

"""Draw the image of the README: the sample image and, next to it, its regions.

Example: python tools/docs/draw_overlay.py docs/overlay.jpg
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
import resvg_py

from app.face.frame import Size
from app.face.landmarks import points_to_landmarks_px
from app.face.pipeline import FaceRequest, process_faces
from app.face.rendering.svg import OverlayStyle

EXAMPLES = Path(__file__).parents[2] / "examples"
SCALE = 3
FACE_XYWH = (136, 24, 176, 176)


def draw() -> np.ndarray:
    """Return the image as ``(H, W, 3)`` uint8 BGR."""
    sample = cv2.imread(str(EXAMPLES / "astronaut.png"))
    if sample is None:
        raise FileNotFoundError("examples/astronaut.png")
    points = json.loads((EXAMPLES / "astronaut.landmarks.json").read_text())
    large = cv2.resize(sample, None, fx=SCALE, fy=SCALE, interpolation=cv2.INTER_CUBIC)
    frame = Size(large.shape[1], large.shape[0])
    landmarks_px = points_to_landmarks_px([[SCALE * p["x"], SCALE * p["y"]] for p in points], image_size=frame)
    style = OverlayStyle(region_opacity=0.4, stroke_width=2)
    svg = process_faces([FaceRequest(image_size=frame, landmarks_px=landmarks_px, style=style)])[0].svg
    overlay = cv2.imdecode(
        np.frombuffer(bytes(resvg_py.svg_to_bytes(svg_string=svg.decode())), np.uint8), cv2.IMREAD_UNCHANGED
    )
    if overlay is None:
        raise ValueError("overlay: rendering failed")
    alpha = overlay[:, :, 3:] / 255.0
    drawn = (overlay[:, :, :3] * alpha + large * (1 - alpha)).astype(np.uint8)
    x, y, width, height = (SCALE * side for side in FACE_XYWH)
    return np.hstack([image[y : y + height, x : x + width] for image in (large, drawn)])


def main() -> None:
    """Write the image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="output file")
    target = parser.parse_args().file
    cv2.imwrite(str(target), draw(), [cv2.IMWRITE_JPEG_QUALITY, 85])
    print(f"{target}: {target.stat().st_size} bytes")


if __name__ == "__main__":
    main()

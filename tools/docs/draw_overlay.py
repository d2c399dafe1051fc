"""Draw the images of the README: the sample image next to its regions, and the result of the first request.

`overlay.jpg` contains a hash of the SVG overlay that it was drawn from, so that --check detects that the renderer, the
sample or its landmarks have changed. `face.svg` needs the face-detection models; a test compares it with the response
to the command in the README.

Example: python tools/docs/draw_overlay.py docs
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
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
OVERLAY, RESULT = "overlay.jpg", "face.svg"
_START_OF_IMAGE, _COMMENT = b"\xff\xd8", b"\xff\xfe"


def read_sample() -> np.ndarray:
    """Return the enlarged sample image as ``(H, W, 3)`` uint8 BGR."""
    sample = cv2.imread(str(EXAMPLES / "astronaut.png"))
    if sample is None:
        raise FileNotFoundError("examples/astronaut.png")
    return cv2.resize(sample, None, fx=SCALE, fy=SCALE, interpolation=cv2.INTER_CUBIC)


def render_overlay(size: Size) -> bytes:
    """Return the SVG overlay of the enlarged sample."""
    points = json.loads((EXAMPLES / "astronaut.landmarks.json").read_text())
    landmarks_px = points_to_landmarks_px([[SCALE * p["x"], SCALE * p["y"]] for p in points], image_size=size)
    style = OverlayStyle(region_opacity=0.4, stroke_width=2)
    return process_faces([FaceRequest(image_size=size, landmarks_px=landmarks_px, style=style)])[0].svg


def compute_fingerprint(svg: bytes) -> bytes:
    """Return a JPEG comment with a hash of everything that the image is drawn from."""
    inputs = svg + (EXAMPLES / "astronaut.png").read_bytes()
    content = f"sha256 of overlay and sample: {hashlib.sha256(inputs).hexdigest()}".encode()
    return _COMMENT + (len(content) + 2).to_bytes(2, "big") + content


def draw(large: np.ndarray, svg: bytes) -> bytes:
    """Return the JPEG: the face, and the face with the overlay."""
    overlay = cv2.imdecode(
        np.frombuffer(bytes(resvg_py.svg_to_bytes(svg_string=svg.decode())), np.uint8), cv2.IMREAD_UNCHANGED
    )
    if overlay is None:
        raise ValueError("overlay: rendering failed")
    alpha = overlay[:, :, 3:] / 255.0
    drawn = (overlay[:, :, :3] * alpha + large * (1 - alpha)).astype(np.uint8)
    x, y, width, height = (SCALE * side for side in FACE_XYWH)
    both = np.hstack([image[y : y + height, x : x + width] for image in (large, drawn)])
    jpeg = cv2.imencode(".jpg", both, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()
    return _START_OF_IMAGE + compute_fingerprint(svg) + jpeg[len(_START_OF_IMAGE) :]


def write_result(target: Path) -> None:
    """Write the SVG that the first command of the README returns."""
    options = ("--detect", "--background", "image", "--crop", "face", "--format", "svg")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "app", "process", str(EXAMPLES / "astronaut.png"), "--out", folder, *options]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603 - a fixed command
        shutil.copyfile(Path(folder) / "astronaut.svg", target)


def main() -> None:
    """Write the images, or with --check exit with 1 if the overlay is out of date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="output folder")
    parser.add_argument("--check", action="store_true", help="only compare; fail if the overlay is out of date")
    arguments = parser.parse_args()
    target = arguments.folder / OVERLAY
    large = read_sample()
    svg = render_overlay(Size(large.shape[1], large.shape[0]))
    if arguments.check:
        if compute_fingerprint(svg) not in target.read_bytes():
            sys.exit(f"out of date: {target}; run `make generate`")
        return
    target.write_bytes(draw(large, svg))
    write_result(arguments.folder / RESULT)
    for path in (target, arguments.folder / RESULT):
        print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()

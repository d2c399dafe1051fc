"""Regenerate the golden overlays after an intended change.

    python tests/golden/regenerate.py                       # writes tests/golden/*.svg
    python tests/golden/regenerate.py --preview FOLDER      # also writes previews over the sample image

The tests compare structure, coordinates and rendered images with these files, not bytes.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import orjson
import resvg_py

from app.face.frame import Frame, Framing, Size, make_frame, warp_image
from app.face.landmarks import compute_roll_deg
from app.face.pipeline import FaceRequest, process_faces
from app.face.rendering.svg import OverlayStyle

HERE = Path(__file__).resolve().parent
EXAMPLES = HERE.parents[1] / "examples"
PREVIEW_ZOOM = 6

CUSTOM_REGIONS = {
    "right cheekbone": [117, 118, 101, 205, 187, 147, 123],
    "left cheekbone": [346, 352, 376, 411, 425, 330, 347],
    "philtrum": [2, 326, 393, 267, 0, 37, 167, 97],
    "point": [4, 4, 4],
}


def _load_landmarks() -> npt.NDArray[np.float32]:
    points = orjson.loads((EXAMPLES / "astronaut.landmarks.json").read_bytes())
    return np.array([(point["x"], point["y"]) for point in points], np.float32)


def _load_labels() -> npt.NDArray[np.uint8]:
    labels = cv2.imread(str(EXAMPLES / "astronaut.labels.png"), cv2.IMREAD_UNCHANGED)
    assert labels is not None
    return labels.astype(np.uint8)


def _request(**fields: object) -> FaceRequest:
    return FaceRequest(**{"image_size": Size(512, 512), "landmarks_px": _load_landmarks(), **fields})  # type: ignore[arg-type]


def _frame(**framing: Any) -> Frame:
    landmarks_px = _load_landmarks()
    return make_frame(Size(512, 512), landmarks_px, compute_roll_deg(landmarks_px), Framing(**framing))


CASES: dict[str, Callable[[], FaceRequest]] = {
    "catalogue": _request,
    "catalogue_labels": lambda: _request(
        style=OverlayStyle(show_labels=True, show_landmarks=True, region_opacity=0.5, stroke_width=1.0)
    ),
    "label_map": lambda: _request(label_image=_load_labels()),
    "custom_regions": lambda: _request(region_landmarks=CUSTOM_REGIONS, simplify_px=0),
    "upright_cropped": lambda: _request(output=_frame(is_upright=True, is_cropped=True, longer_side=400)),
    "upright_label_map": lambda: _request(label_image=_load_labels(), output=_frame(is_upright=True)),
}


def render_case(name: str) -> bytes:
    """Render the overlay of a case with the current code."""
    return process_faces([CASES[name]()])[0].svg


def rasterize(svg: bytes, zoom: int = 1) -> npt.NDArray[np.float64]:
    """Render an overlay to ``(H, W, 4)`` BGRA, 0 to 255, with text only if it is enlarged."""
    # Fonts differ between machines, so images for comparison contain no text.
    png = resvg_py.svg_to_bytes(
        svg_string=svg.decode(), zoom=zoom, skip_system_fonts=zoom == 1, sans_serif_family="DejaVu Sans"
    )
    image = cv2.imdecode(np.frombuffer(bytes(png), np.uint8), cv2.IMREAD_UNCHANGED)
    assert image is not None
    return image.astype(np.float64)


def _write_preview(name: str, svg: bytes, folder: Path) -> None:
    image = cv2.imread(str(EXAMPLES / "astronaut.png"))
    assert image is not None
    image = warp_image(image.astype(np.uint8), CASES[name]().output or Frame(Size(512, 512)))[:, :, :3]
    image = cv2.resize(image, None, fx=PREVIEW_ZOOM, fy=PREVIEW_ZOOM, interpolation=cv2.INTER_CUBIC)
    overlay = rasterize(svg, PREVIEW_ZOOM)
    alpha = overlay[..., 3:] / 255
    over = image * (1 - alpha) + overlay[..., :3] * alpha
    face = over[15 * PREVIEW_ZOOM : 200 * PREVIEW_ZOOM, 60 * PREVIEW_ZOOM : 390 * PREVIEW_ZOOM]
    cv2.imwrite(str(folder / f"{name}.png"), np.clip(face, 0, 255).astype(np.uint8))


def main() -> None:
    """Write all cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preview", type=Path, metavar="FOLDER", help="folder for preview images")
    preview = parser.parse_args().preview
    for name in CASES:
        svg = render_case(name)
        (HERE / f"{name}.svg").write_bytes(svg)
        if preview is not None:
            preview.mkdir(parents=True, exist_ok=True)
            _write_preview(name, svg, preview)


if __name__ == "__main__":
    main()

"""Write the golden overlays again, after a change that is meant to change them.

    python tests/golden/regenerate.py                    # writes tests/golden/*.svg
    python tests/golden/regenerate.py --look FOLDER      # also writes pictures over the sample photo, to look at

The tests compare structure, coordinates and the rendered picture with these files, never bytes.
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

from app.face.frame import Frame, Framing, Size, make_frame, warp_photo
from app.face.landmarks import compute_roll_deg
from app.face.overlay import OverlayStyle
from app.face.pipeline import FaceRequest, process_face

HERE = Path(__file__).resolve().parent
EXAMPLES = HERE.parents[1] / "examples"
LOOK_ZOOM = 6

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
    return FaceRequest(**{"frame": Size(512, 512), "landmarks_px": _load_landmarks(), **fields})  # type: ignore[arg-type]


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
    """Draw the overlay of a case as the product does now."""
    return process_face(CASES[name]()).svg


def render_picture(svg: bytes, zoom: int = 1) -> npt.NDArray[np.float64]:
    """Render an overlay to ``(H, W, 4)`` BGRA, 0 to 255, with text only where it is enlarged to be looked at."""
    # Fonts differ between machines; pictures that are compared must not.
    png = resvg_py.svg_to_bytes(
        svg_string=svg.decode(), zoom=zoom, skip_system_fonts=zoom == 1, sans_serif_family="DejaVu Sans"
    )
    picture = cv2.imdecode(np.frombuffer(bytes(png), np.uint8), cv2.IMREAD_UNCHANGED)
    assert picture is not None
    return picture.astype(np.float64)


def _look(name: str, svg: bytes, folder: Path) -> None:
    photo = cv2.imread(str(EXAMPLES / "astronaut.png"))
    assert photo is not None
    photo = warp_photo(photo.astype(np.uint8), CASES[name]().output or Frame(Size(512, 512)))[:, :, :3]
    photo = cv2.resize(photo, None, fx=LOOK_ZOOM, fy=LOOK_ZOOM, interpolation=cv2.INTER_CUBIC)
    picture = render_picture(svg, LOOK_ZOOM)
    alpha = picture[..., 3:] / 255
    over = photo * (1 - alpha) + picture[..., :3] * alpha
    face = over[15 * LOOK_ZOOM : 200 * LOOK_ZOOM, 60 * LOOK_ZOOM : 390 * LOOK_ZOOM]
    cv2.imwrite(str(folder / f"{name}.png"), np.clip(face, 0, 255).astype(np.uint8))


def main() -> None:
    """Write every case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--look", type=Path, metavar="FOLDER", help="where to put pictures to look at")
    look = parser.parse_args().look
    for name in CASES:
        svg = render_case(name)
        (HERE / f"{name}.svg").write_bytes(svg)
        if look is not None:
            look.mkdir(parents=True, exist_ok=True)
            _look(name, svg, look)


if __name__ == "__main__":
    main()

"""Reference program of `run`: process a crop request without any overhead.

It is one ASGI function under uvicorn. It performs the same steps with the same libraries and the same face pipeline,
but has no framework, threads, limits, error handling, metrics or logs.

Example: uvicorn benchmarks.reference:app --port 8001
"""

from __future__ import annotations

import functools
from typing import Any

import cv2
import msgspec
import numpy as np
import orjson
import pybase64
from python_multipart.multipart import MultipartParser, parse_options_header

from app import PACKAGE_MODELS
from app.codec.sniff import ImageInfo, sniff_image, verify_structure
from app.face.detection.landmark_detector import LandmarkDetector
from app.face.landmarks import FloatArray, points_to_landmarks_px
from app.face.pipeline import FaceRequest, no_step, process_faces


class Point(msgspec.Struct):
    """A landmark."""

    x: float
    y: float


class Body(msgspec.Struct):
    """A JSON body without options."""

    image: str
    landmarks: list[Point] | None = None


_BODY = msgspec.json.Decoder(Body)
_POINTS = msgspec.json.Decoder(list[Point])


@functools.cache
def landmark_detector() -> LandmarkDetector:
    """Load the models once."""
    cv2.setNumThreads(0)
    return LandmarkDetector(str(PACKAGE_MODELS))


def detect(image: bytes) -> np.ndarray:
    """Decode an image and detect the landmarks of its face."""
    pixels = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR)
    if pixels is None:
        raise ValueError("image: decoding failed")
    return landmark_detector().detect(pixels.astype(np.uint8, copy=False), no_step)[0].landmarks_px


def process(image: bytes, points: list[Point] | None) -> bytes:
    """Return the JSON document of an image; detect its landmarks if there are none."""
    info, landmarks_px = check(image, points)
    return render(info, detect(image) if landmarks_px is None else landmarks_px, is_detected=landmarks_px is None)


def check(image: bytes, points: list[Point] | None) -> tuple[ImageInfo, FloatArray | None]:
    """Verify the image file, and return its header and its landmarks, if any."""
    info = verify_structure(image, sniff_image(image, max_pixels=24_000_000))
    if points is None:
        return info, None
    return info, points_to_landmarks_px(np.array([(point.x, point.y) for point in points]), image_size=info.size)


def render(info: ImageInfo, landmarks_px: FloatArray, *, is_detected: bool = False) -> bytes:
    """Trace contours, render the SVG and return the JSON document."""
    (face,) = process_faces([FaceRequest(image_size=info.size, landmarks_px=landmarks_px)])
    regions = [
        {
            "id": region.label_id,
            "name": region.name,
            "colour": region.colour,
            "area_px": region.area_px,
            "bbox": region.bbox,
            "contours": [polygon.outer for polygon in region.polygons],
            "holes": [],
        }
        for region in face.regions
    ]
    document = {
        "svg": pybase64.b64encode_as_string(face.svg),
        "mask_contours": {str(region.label_id): region.polygons[0].outer for region in face.regions},
        "regions": regions,
        "regions_detected": len(regions),
        "image": {"width": info.size.width, "height": info.size.height, "format": info.format},
        "face": {"roll_deg": face.roll_deg, "interocular_px": face.interocular_px, "bbox": face.bbox},
        "transform": face.frame.transform,
    }
    if is_detected:
        document["landmarks"] = face.landmarks_px
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def from_json(body: bytes) -> bytes:
    """Process a JSON body."""
    request = _BODY.decode(body)
    return process(pybase64.b64decode(request.image, validate=True), request.landmarks)


def from_multipart(body: bytes, content_type: bytes) -> bytes:
    """Process a multipart body with an image and, optionally, its landmarks."""
    return process(*read_multipart(body, content_type))


def read_multipart(body: bytes, content_type: bytes) -> tuple[bytes, list[Point] | None]:
    """Return the image and its landmarks, if any."""
    parts: list[bytes] = []
    parser = MultipartParser(
        parse_options_header(content_type)[1][b"boundary"],
        {"on_part_data": lambda data, start, end: parts.append(data[start:end])},
    )
    parser.write(body)
    parser.finalize()
    return parts[0], _POINTS.decode(parts[1]) if len(parts) > 1 else None


async def read_body(receive: Any) -> bytes:
    """Read the whole body of a request."""
    chunks = []
    while True:
        message = await receive()
        chunks.append(message["body"])
        if not message["more_body"]:
            return b"".join(chunks)


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Read the whole body and respond with the result."""
    if scope["type"] != "http":
        return
    body = await read_body(receive)
    content_type = dict(scope["headers"])[b"content-type"]
    result = from_json(body) if content_type == b"application/json" else from_multipart(body, content_type)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(result)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": result})

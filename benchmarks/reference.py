"""The smallest honest program that does the same steps as a crop request: the yardstick of `run.py`.

One ASGI function under uvicorn, with the same libraries and the product's own steps on the face, and nothing else: no
framework, no threads, no limits, no errors told, no metrics, no logs. What the product costs beyond this is the price
of being a service.

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

from app.codec.sniff import ImageInfo, sniff_image, verify_structure
from app.face.detection.landmark_detector import LandmarkDetector
from app.face.landmarks import FloatArray, points_to_landmarks_px
from app.face.pipeline import FaceRequest, no_step, process_face
from benchmarks.cases import models


class Point(msgspec.Struct):
    """A landmark."""

    x: float
    y: float


class Body(msgspec.Struct):
    """The JSON body, defaults only."""

    image: str
    landmarks: list[Point] | None = None


_BODY = msgspec.json.Decoder(Body)
_POINTS = msgspec.json.Decoder(list[Point])


@functools.cache
def finder() -> LandmarkDetector:
    """Read the models, once."""
    cv2.setNumThreads(0)
    return LandmarkDetector(models())


def find(image: bytes) -> np.ndarray:
    """Decode the photo, and find the landmarks of its face."""
    pixels = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR)
    if pixels is None:
        raise ValueError("the photo does not decode")
    return finder().detect(pixels.astype(np.uint8, copy=False), no_step).landmarks_px


def answer(image: bytes, points: list[Point] | None) -> bytes:
    """Structure check, contours, SVG and the JSON document; landmarks where there are none."""
    info, landmarks_px = check(image, points)
    return draw(info, find(image) if landmarks_px is None else landmarks_px, is_found=landmarks_px is None)


def check(image: bytes, points: list[Point] | None) -> tuple[ImageInfo, FloatArray | None]:
    """Structure of the photo's file, and the landmarks if there are any."""
    info = verify_structure(image, sniff_image(image, max_pixels=24_000_000))
    if points is None:
        return info, None
    return info, points_to_landmarks_px(np.array([(point.x, point.y) for point in points]), image_size=info.size)


def draw(info: ImageInfo, landmarks_px: FloatArray, *, is_found: bool = False) -> bytes:
    """Contours, SVG and the JSON document."""
    face = process_face(FaceRequest(image_size=info.size, landmarks_px=landmarks_px))
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
    if is_found:
        document["landmarks"] = face.landmarks_px
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def from_json(body: bytes) -> bytes:
    """Answer a JSON body."""
    request = _BODY.decode(body)
    return answer(pybase64.b64decode(request.image, validate=True), request.landmarks)


def from_multipart(body: bytes, content_type: bytes) -> bytes:
    """Answer a multipart body of a photo and, if there are any, its landmarks."""
    return answer(*read_multipart(body, content_type))


def read_multipart(body: bytes, content_type: bytes) -> tuple[bytes, list[Point] | None]:
    """Return the photo and, if there are any, its landmarks."""
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
    """Read the whole body, answer it."""
    if scope["type"] != "http":
        return
    body = await read_body(receive)
    content_type = dict(scope["headers"])[b"content-type"]
    result = from_json(body) if content_type == b"application/json" else from_multipart(body, content_type)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(result)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": result})

"""The result as the JSON document that callers read, the same from the synchronous route and from a task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import pybase64

from app.face.contours import COORDINATE_DECIMALS, measure_rings
from app.face.frame import transform_points
from app.face.landmarks import compute_bbox

if TYPE_CHECKING:
    from app.codec.sniff import ImageInfo
    from app.face.detection.landmark_detector import DetectedFace
    from app.face.frame import Frame
    from app.face.regions import Region
    from app.service.crop import CropResult

UPRIGHT_ORIENTATION = 1
CONFIDENCE_DECIMALS = 4


def result_to_json(result: CropResult) -> bytes:
    """Write a result; contours keep the digits they were rounded to."""
    face = result.face
    frame = face.frame
    document = {
        "svg": pybase64.b64encode_as_string(face.svg),
        "mask_contours": {str(region.label_id): _largest(region) for region in face.regions},
        "regions": [_region_document(region) for region in face.regions],
        "regions_detected": len(face.regions),
        "omitted": [{"id": gone.label_id, "name": gone.name, "reason": gone.reason} for gone in face.omitted],
        "image": image_document(result.image),
        "face": face_document(face.roll_deg, face.interocular_px, face.bbox),
        "landmarks": face.landmarks_px if result.found is not None or not frame.is_identity else None,
        "detection": None if result.found is None else detection_document(result.found, frame),
        "output": {"width": frame.size.width, "height": frame.size.height},
        "transform": frame.transform,
        "inverse_transform": frame.inverse,
        "warnings": result_warnings(result),
        "processing_time_ms": round(result.processing_time_ms, 3),
    }
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def _largest(region: Region) -> Any:
    if len(region.polygons) == 1:
        return region.polygons[0].outer
    # All at once: a noisy label map has thousands of polygons, and measuring one takes as long as measuring a hundred.
    areas, _ = measure_rings([polygon.outer for polygon in region.polygons])
    return region.polygons[int(np.argmax(areas))].outer


def _region_document(region: Region) -> dict[str, Any]:
    return {
        "id": region.label_id,
        "name": region.name,
        "area_px": region.area_px,
        "bbox": region.bbox,
        "contours": [polygon.outer for polygon in region.polygons],
        "holes": [
            {"parent": index, "contour": hole}
            for index, polygon in enumerate(region.polygons)
            for hole in polygon.holes
        ],
    }


def image_document(image: ImageInfo) -> dict[str, Any]:
    """Write what is known of the photo."""
    return {
        "width": image.size.width,
        "height": image.size.height,
        "format": image.format,
        "exif_orientation": image.exif_orientation,
    }


def face_document(roll_deg: float, interocular_px: float, bbox: tuple[float, float, float, float]) -> dict[str, Any]:
    """Write the measures of a face."""
    return {
        "roll_deg": round(roll_deg, 2),
        "interocular_px": round(interocular_px, 2),
        "bbox": [round(side, COORDINATE_DECIMALS) for side in bbox],
    }


def detection_document(found: DetectedFace, frame: Frame) -> dict[str, Any]:
    """Write what was found: how sure, which face, and the boxes of all of them in a frame."""
    return {
        "confidence": round(found.faces[found.index].confidence, CONFIDENCE_DECIMALS),
        "presence": round(found.presence, CONFIDENCE_DECIMALS),
        "face": found.index,
        "faces": [
            {"bbox": _move_box(face.box, frame), "confidence": round(face.confidence, CONFIDENCE_DECIMALS)}
            for face in found.faces
        ],
    }


def _move_box(box: tuple[float, float, float, float], frame: Frame) -> list[float]:
    """Put the upright box of a face into a frame; turned, it is the upright box around the turned one."""
    x, y, width, height = box
    corners = np.array([[x, y], [x + width, y], [x, y + height], [x + width, y + height]])
    return [round(side, COORDINATE_DECIMALS) for side in compute_bbox(transform_points(corners, frame.transform))]


def result_warnings(result: CropResult) -> list[dict[str, str]]:
    """List what the caller may not expect of a result, each with a stable code."""
    warnings = image_warnings(result.image)
    if result.face.omitted:
        message = f"{len(result.face.omitted)} regions came to fewer than 3 points or to no area; see omitted."
        warnings.append({"code": "regions_omitted", "message": message})
    return warnings


def image_warnings(image: ImageInfo) -> list[dict[str, str]]:
    """List what the caller may not expect of a photo."""
    orientation = image.exif_orientation
    if orientation == UPRIGHT_ORIENTATION:
        return []
    message = (
        f"The file asks viewers to turn the picture (EXIF orientation {orientation}). Landmarks, contours and "
        "overlay refer to the pixels as they are stored, unturned."
    )
    return [{"code": "exif_orientation", "message": message}]

"""The result as the JSON document that callers read, the same from the synchronous route and from a task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
import pybase64

from app.face.contours import Polygon, compute_area_px

if TYPE_CHECKING:
    from app.face.pipeline import FaceResult, Region
    from app.service.crop import CropResult

UPRIGHT_ORIENTATION = 1


def result_to_json(result: CropResult) -> bytes:
    """Write a result; contours keep the digits they were rounded to."""
    face = result.face
    document = {
        "svg": pybase64.b64encode_as_string(face.svg),
        "mask_contours": {str(region.label_id): _largest(region) for region in face.regions},
        "regions": [_region_document(region) for region in face.regions],
        "regions_detected": len(face.regions),
        "omitted": [{"id": gone.label_id, "name": gone.name, "reason": gone.reason} for gone in face.omitted],
        "image": {
            "width": result.image.size.width,
            "height": result.image.size.height,
            "format": result.image.format,
            "exif_orientation": result.image.exif_orientation,
        },
        "face": _face_document(face),
        "transform": face.transform,
        "warnings": result_warnings(result),
        "processing_time_ms": round(result.processing_time_ms, 3),
    }
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def _largest(region: Region) -> Any:
    if len(region.polygons) == 1:
        return region.polygons[0].outer
    return max(region.polygons, key=lambda polygon: compute_area_px(Polygon(polygon.outer, ()))).outer


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


def _face_document(face: FaceResult) -> dict[str, Any]:
    return {
        "roll_deg": round(face.roll_deg, 2),
        "interocular_px": round(face.interocular_px, 2),
        "bbox": [round(side, 1) for side in face.bbox],
    }


def result_warnings(result: CropResult) -> list[dict[str, str]]:
    """List what the caller may not expect of a result, each with a stable code."""
    warnings = []
    orientation = result.image.exif_orientation
    if orientation != UPRIGHT_ORIENTATION:
        message = (
            f"The file asks viewers to turn the picture (EXIF orientation {orientation}). Landmarks, contours and "
            "overlay refer to the pixels as they are stored, unturned."
        )
        warnings.append({"code": "exif_orientation", "message": message})
    if result.face.omitted:
        message = f"{len(result.face.omitted)} regions came to fewer than 3 points or to no area; see omitted."
        warnings.append({"code": "regions_omitted", "message": message})
    return warnings

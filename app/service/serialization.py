"""JSON documents of results, the same for synchronous requests and tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import pybase64

from app.face.contours import COORDINATE_DECIMALS, measure_rings
from app.face.frame import orient_size, transform_points
from app.face.landmarks import MAX_FACES, MAX_FRONTAL_DEG, compute_bbox
from app.service.crop import CropResult, CropResults

if TYPE_CHECKING:
    import numpy.typing as npt

    from app.codec.sniff import ImageInfo
    from app.face.detection.landmark_detector import DetectedFace
    from app.face.frame import Frame
    from app.face.regions import Region

CONFIDENCE_DECIMALS = 4


def result_to_json(result: CropResult | CropResults) -> bytes:
    """Serialize a result as a JSON object, or the results of all faces as an array."""
    if isinstance(result, CropResults):
        return b"".join((b"[", b",".join(map(_crop_to_json, result.faces)), b"]"))
    return _crop_to_json(result)


def _crop_to_json(result: CropResult) -> bytes:
    face = result.face
    frame = face.frame
    document = {
        "svg": pybase64.b64encode_as_string(face.svg),
        "mask_contours": {str(region.label_id): _largest_contour(region) for region in face.regions},
        "regions": [_region_to_dict(region) for region in face.regions],
        "regions_detected": len(face.regions),
        "omitted": [{"id": region.label_id, "name": region.name, "reason": region.reason} for region in face.omitted],
        "image": image_to_dict(result.image, result.orientation),
        "face": face_to_dict(face.roll_deg, face.interocular_px, face.bbox, face.yaw_pitch_deg),
        "landmarks": landmarks_to_json(face.landmarks_px, face.depths_px)
        if result.detected is not None or not frame.is_identity
        else None,
        "detection": None if result.detected is None else detection_to_dict(result.detected, frame),
        "output": {"width": frame.size.width, "height": frame.size.height},
        "transform": frame.transform,
        "inverse_transform": frame.inverse,
        "warnings": result_warnings(result),
        "processing_time_ms": round(result.processing_time_ms, 3),
    }
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def _largest_contour(region: Region) -> Any:
    if len(region.polygons) == 1:
        return region.polygons[0].outer
    # Measure all at once, because a noisy label map has thousands of polygons, and one takes as long as a hundred.
    areas, _ = measure_rings([polygon.outer for polygon in region.polygons])
    return region.polygons[int(np.argmax(areas))].outer


def _region_to_dict(region: Region) -> dict[str, Any]:
    return {
        "id": region.label_id,
        "name": region.name,
        "colour": region.colour,
        "area_px": region.area_px,
        "bbox": region.bbox,
        "contours": [polygon.outer for polygon in region.polygons],
        "holes": [
            {"parent": index, "contour": hole}
            for index, polygon in enumerate(region.polygons)
            for hole in polygon.holes
        ],
    }


def image_to_dict(image: ImageInfo, orientation: int) -> dict[str, Any]:
    """Return the properties of an image to which this EXIF orientation was applied; 1 for none."""
    size = orient_size(image.size, orientation)
    return {
        "width": size.width,
        "height": size.height,
        "format": image.format,
        "exif_orientation": image.exif_orientation,
    }


def landmarks_to_json(
    landmarks: npt.NDArray[np.floating],
    depths: npt.NDArray[np.floating] | None,
    decimals: int = COORDINATE_DECIMALS,
) -> Any:
    """Return rounded landmarks as JSON values: ``{x, y, z}`` if their depths are known, otherwise ``[x, y]``."""
    if depths is None:
        return np.round(landmarks, decimals)
    # In double precision, because the text of a number of single precision has more decimals. Adding 0.0 turns -0.0
    # into 0.0.
    points = np.round(np.column_stack((landmarks, depths)).astype(np.float64), decimals) + 0.0
    return [{"x": x, "y": y, "z": z} for x, y, z in points.tolist()]


def face_to_dict(
    roll_deg: float,
    interocular_px: float,
    bbox: tuple[float, float, float, float],
    yaw_pitch_deg: tuple[float, float] | None = None,
) -> dict[str, Any]:
    """Return the measures of a face."""
    pose = {}
    if yaw_pitch_deg is not None:
        pose = {"yaw_deg": round(yaw_pitch_deg[0], 2), "pitch_deg": round(yaw_pitch_deg[1], 2)}
    return {
        "roll_deg": round(roll_deg, 2),
        **pose,
        "interocular_px": round(interocular_px, 2),
        "bbox": [round(side, COORDINATE_DECIMALS) for side in bbox],
    }


def detection_to_dict(detected: DetectedFace, frame: Frame) -> dict[str, Any]:
    """Return the confidence and index of a detected face, and the boxes of all faces in a frame."""
    return {
        "confidence": round(detected.faces[detected.index].confidence, CONFIDENCE_DECIMALS),
        "presence": round(detected.presence, CONFIDENCE_DECIMALS),
        "face": detected.index,
        "faces": [
            {"bbox": _box_to_frame(face.box, frame), "confidence": round(face.confidence, CONFIDENCE_DECIMALS)}
            for face in detected.faces
        ],
    }


def _box_to_frame(box: tuple[float, float, float, float], frame: Frame) -> list[float]:
    """Return the axis-aligned box around a box that is transformed to a frame."""
    x, y, width, height = box
    corners = np.array([[x, y], [x + width, y], [x, y + height], [x + width, y + height]])
    return [round(side, COORDINATE_DECIMALS) for side in compute_bbox(transform_points(corners, frame.transform))]


def warning_codes(result: CropResult | CropResults) -> list[str]:
    """List the codes of the warnings about a result, or about the results of all faces, each once."""
    results = result.faces if isinstance(result, CropResults) else (result,)
    return list(dict.fromkeys(warning["code"] for one in results for warning in result_warnings(one)))


def result_warnings(result: CropResult) -> list[dict[str, str]]:
    """List the warnings about a result, each with a stable code."""
    warnings = [
        *image_warnings(result.image, result.orientation),
        *detection_warnings(result.detected),
        *pose_warnings(result.face.yaw_pitch_deg),
    ]
    if result.are_units_guessed:
        message = (
            "All landmarks are between -1 and 2, so they were read as normalized coordinates. Set landmark_units to "
            "normalized."
        )
        warnings.append({"code": "landmarks_normalized", "message": message})
    if result.face.label_colours:
        assigned = ", ".join(f"{label_id} = {colour}" for label_id, colour in result.face.label_colours.items())
        message = f"The label map contains colours. Label ids follow ascending RGB values: {assigned}."
        warnings.append({"code": "label_colours", "message": message})
    if result.face.omitted:
        message = f"{len(result.face.omitted)} regions have fewer than 3 points or no area; see omitted."
        warnings.append({"code": "regions_omitted", "message": message})
    return warnings


def detection_warnings(detected: DetectedFace | None) -> list[dict[str, str]]:
    """List the warnings about the detection of a face; None if its landmarks were sent."""
    if detected is None or detected.are_all_examined:
        return []
    message = (
        f"More than {MAX_FACES} candidates for faces were found. The others were not examined, so faces may be missing."
    )
    return [{"code": "faces_omitted", "message": message}]


def pose_warnings(yaw_pitch_deg: tuple[float, float] | None) -> list[dict[str, str]]:
    """List the warnings about the pose of a face; None if it is unknown."""
    if yaw_pitch_deg is None or max(map(abs, yaw_pitch_deg)) <= MAX_FRONTAL_DEG:
        return []
    yaw_deg, pitch_deg = yaw_pitch_deg
    message = (
        f"The face is turned by more than {MAX_FRONTAL_DEG:g} degrees (yaw {yaw_deg:.0f}, pitch {pitch_deg:.0f}), so "
        "its hidden side is less accurate."
    )
    return [{"code": "not_frontal", "message": message}]


def image_warnings(image: ImageInfo, orientation: int) -> list[dict[str, str]]:
    """List the warnings about an image to which this EXIF orientation was applied; 1 for none."""
    if orientation == image.exif_orientation:
        return []
    message = (
        f"The image has EXIF orientation {image.exif_orientation}, so viewers rotate or mirror it. Landmarks, contours "
        "and the overlay refer to the pixels as stored. Set orientation to displayed for a result as viewers show it."
    )
    return [{"code": "exif_orientation", "message": message}]

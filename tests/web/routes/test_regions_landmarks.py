"""Requests without landmarks: the landmarks route, the crop route and tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest

from app.web.schemas import CropResponse, LandmarksResponse
from benchmarks import variants

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import httpx
    from fastapi import FastAPI

    from tests.conftest import Sample

    Call = Callable[..., httpx.Response]
    MakeApp = Callable[..., FastAPI]
    Run = Callable[..., Any]

CROP = "/api/v1/frontal/crop"
LANDMARKS = "/api/v1/frontal/landmarks"
JSON = {"content-type": "application/json"}
ALLOWED = 0.04

pytestmark = pytest.mark.usefixtures("face_models")


def bodies(sample: Sample, image: bytes, **options: Any) -> dict[str, dict[str, Any]]:
    """Build the same request in both wire formats, without landmarks."""
    fields = sample.fields(image=image, **options)
    del fields["landmarks"]
    texts = {name: msgspec.json.encode(value).strip(b'"') for name, value in options.items()}
    form = sample.form(image=image, landmarks=None, **texts)
    return {
        "json": {"content": msgspec.json.encode(fields), "headers": JSON},
        "multipart": {"content": form, "headers": {"content-type": sample.multipart}},
    }


def to_pixels(landmarks: list[dict[str, float]]) -> np.ndarray:
    return np.array([(point["x"], point["y"]) for point in landmarks])


def error_of(landmarks_px: np.ndarray) -> float:
    return variants.compute_error(landmarks_px, variants.read_sample().landmarks_px)


@pytest.mark.parametrize("wire", ["json", "multipart"])
def test_landmarks_are_returned(make_app: MakeApp, call: Call, sample: Sample, wire: str) -> None:
    app = make_app()
    response = call(app, path=LANDMARKS, **bodies(sample, sample.photo)[wire])
    assert response.status_code == 200, response.text
    found = msgspec.json.decode(response.content, type=LandmarksResponse)
    assert msgspec.to_builtins(found) == response.json(), "every member is documented"
    assert error_of(to_pixels(response.json()["landmarks"])) <= ALLOWED
    shares = bodies(sample, sample.photo, landmark_units="normalized")[wire]
    normalized = call(app, path=LANDMARKS, **shares).json()["landmarks"]
    assert error_of(to_pixels(normalized) * 512) <= ALLOWED
    plain = bodies(sample, sample.photo, landmark_units="pixels")[wire]
    by_query = call(app, path=f"{LANDMARKS}?landmark_units=normalized", **plain).json()["landmarks"]
    assert by_query == call(app, path=LANDMARKS, **shares).json()["landmarks"], "the query takes precedence"


@pytest.mark.parametrize("wire", ["json", "multipart"])
def test_crop_detects_landmarks(make_app: MakeApp, call: Call, sample: Sample, wire: str) -> None:
    options = {"upright": True, "crop": "face", "background": "image", "output_size": 300, "margin": 0.1}
    response = call(make_app(), **bodies(sample, sample.photo, **options)[wire])
    assert response.status_code == 200, response.text
    found = msgspec.json.decode(response.content, type=CropResponse)
    assert msgspec.to_builtins(found) == response.json()
    assert found.landmarks is not None
    inverse = np.array(found.inverse_transform)
    image_px = to_pixels(response.json()["landmarks"]) @ inverse[:, :2].T + inverse[:, 2]
    assert error_of(image_px) <= ALLOWED
    assert max(found.output.width, found.output.height) == 300
    assert abs(found.face.roll_deg) <= 0.5


def test_the_same_landmarks_give_the_same_regions(make_app: MakeApp, call: Call, sample: Sample) -> None:
    app = make_app()
    found = call(app, **bodies(sample, sample.photo)["json"]).json()
    sent = call(app, content=sample.json(image=sample.photo, landmarks=found["landmarks"]), headers=JSON).json()
    assert (found["regions"], found["svg"]) == (sent["regions"], sent["svg"])


def test_sent_depths_are_those_of_the_result(make_app: MakeApp, call: Call, sample: Sample) -> None:
    """Depths that were found and are sent again give the same pose, and are scaled with the result."""
    app = make_app()
    found = call(app, **bodies(sample, sample.photo)["json"]).json()
    for options, factor in (({"output_size": 1024}, 2.0), ({"upright": True}, 1.0)):
        body = sample.json(image=sample.photo, landmarks=found["landmarks"], **options)
        sent = call(app, content=body, headers=JSON).json()
        depths = np.array([[one["z"] for one in document["landmarks"]] for document in (found, sent)])
        assert np.abs(depths[0] * factor - depths[1]).max() <= 0.11
        for name in ("yaw_deg", "pitch_deg"):
            assert sent["face"][name] == pytest.approx(found["face"][name], abs=0.5)


@pytest.mark.parametrize("depth", [{}, {"z": None}, {"z": 0.0}, {"z": 7}])
def test_without_meaningful_depths_landmarks_are_pairs(
    make_app: MakeApp, call: Call, sample: Sample, depth: dict[str, Any]
) -> None:
    points = [{**point, **depth} for point in sample.points]
    found = call(make_app(), content=sample.json(landmarks=points, upright=True), headers=JSON).json()
    assert np.array(found["landmarks"]).shape == (478, 2)
    assert found["face"].keys() == {"roll_deg", "interocular_px", "bbox"}
    assert found["warnings"] == []


def test_a_mirrored_image_mirrors_yaw(make_app: MakeApp, call: Call, sample: Sample) -> None:
    image = variants.read_sample().image
    for pixels, sign in ((image, 1), (np.ascontiguousarray(image[:, ::-1]), -1)):
        body = bodies(sample, sample.encode(".png", pixels))["json"]
        face = call(make_app(), path=LANDMARKS, **body).json()["face"]
        assert abs(face["yaw_deg"]) <= 8
        assert sign * face["roll_deg"] == pytest.approx(3, abs=2)
        assert face["pitch_deg"] == pytest.approx(-11, abs=4)


@pytest.mark.parametrize(("yaw_deg", "is_frontal"), [(0, True), (30, True), (-30, True), (40, False), (-40, False)])
@pytest.mark.parametrize("path", [CROP, f"{CROP}?upright=true&crop=face"])
def test_turned_faces_have_a_warning(
    make_app: MakeApp, call: Call, sample: Sample, path: str, yaw_deg: float, is_frontal: bool
) -> None:
    app = make_app()
    found = call(app, **bodies(sample, sample.photo)["json"]).json()
    points = np.array([(one["x"], one["y"], one["z"]) for one in found["landmarks"]])
    centre = points.mean(axis=0)
    angle = np.radians(found["face"]["yaw_deg"] - yaw_deg)
    rotation = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    turned = (points - centre) @ rotation.T + centre
    response = call(app, path=path, content=sample.json(image=sample.photo, landmarks=turned.tolist()), headers=JSON)
    assert response.json()["face"]["yaw_deg"] == pytest.approx(yaw_deg, abs=3)
    codes = [warning["code"] for warning in response.json()["warnings"]]
    assert codes == ([] if is_frontal else ["not_frontal"])
    assert response.headers.get("x-warnings") == (None if is_frontal else "not_frontal")


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        (lambda _: {"content": b"{}", "headers": JSON}, 422, "field_missing"),
        (lambda s: bodies(s, s.jpeg)["json"], 422, "no_face"),
        (lambda s: bodies(s, s.jpeg)["multipart"], 422, "no_face"),
        (lambda s: bodies(s, s.photo, face=1)["json"], 422, "face_index"),
        (lambda s: bodies(s, s.photo, face=1)["multipart"], 422, "face_index"),
        (lambda s: bodies(s, s.photo, face=-1)["json"], 422, "field_invalid"),
        (lambda s: bodies(s, s.photo[:-4])["json"], 422, "image_truncated"),
        (lambda s: bodies(s, s.png_file(64, 64, b"no zlib"))["json"], 422, "image_corrupt"),
        (lambda s: {"content": s.json(), "headers": JSON}, 422, "field_unknown"),
        (lambda s: {"content": s.form(), "headers": {"content-type": s.multipart}}, 422, "field_unknown"),
        (lambda s: bodies(s, s.photo, upright=True)["json"], 422, "field_unknown"),
        (lambda s: {**bodies(s, s.photo)["json"], "params": {"crop": "face"}}, 422, "parameter_invalid"),
        (lambda s: {**bodies(s, s.photo)["json"], "params": {"face": "first"}}, 422, "field_invalid"),
        (
            lambda s: {**bodies(s, s.photo)["json"], "headers": {**JSON, "accept": "image/svg+xml"}},
            406,
            "not_acceptable",
        ),
        (lambda s: {**bodies(s, s.photo)["json"], "headers": {}}, 415, "unsupported_media_type"),
        (
            lambda s: {**bodies(s, s.photo)["json"], "headers": {"content-type": "application/json" + ";" * 2000}},
            415,
            "unsupported_media_type",
        ),
    ],
)
def test_invalid_requests_have_their_codes(
    make_app: MakeApp, call: Call, sample: Sample, change: Callable[[Sample], Any], status: int, code: str
) -> None:
    response = call(make_app(), path=LANDMARKS, **change(sample))
    assert (response.status_code, response.json()["code"]) == (status, code), response.text


def test_an_api_key_is_required(make_app: MakeApp, call: Call, sample: Sample) -> None:
    app = make_app(api_keys="first-key")
    assert call(app, path=LANDMARKS, **bodies(sample, sample.photo)["json"]).status_code == 401


def test_without_models_every_route_reports_it(make_app: MakeApp, call: Call, sample: Sample, tmp_path: Path) -> None:
    app = make_app(models_dir=tmp_path)
    for path in (LANDMARKS, CROP):
        response = call(app, path=path, **bodies(sample, sample.photo)["json"])
        assert (response.status_code, response.json()["code"]) == (422, "detection_unavailable")
        assert "MODELS_DIR" in response.json()["detail"]
    assert call(app, content=sample.json(upright=True), headers=JSON).status_code == 200


def test_tasks_detect_landmarks(with_tasks: Run, sample: Sample) -> None:
    async def scenario(tasks: Any) -> None:
        await tasks.start_worker()
        body = bodies(sample, sample.photo, upright=True, crop="face", background="image")["json"]["content"]
        task = await tasks.succeed(body)
        assert error_of(_to_image_coordinates(task["result"])) <= ALLOWED
        taken = (await tasks.submit(bodies(sample, sample.jpeg)["json"]["content"])).json()
        failed = (await tasks.status(taken["task_id"], "?wait=30")).json()
        assert (failed["status"], failed["error"]["code"]) == ("FAILURE", "no_face")

    with_tasks(scenario)


def test_a_task_that_no_worker_can_process_is_rejected_at_once(with_tasks: Run, sample: Sample, tmp_path: Path) -> None:
    async def scenario(tasks: Any) -> None:
        response = await tasks.submit(bodies(sample, sample.photo)["json"]["content"])
        assert (response.status_code, response.json()["code"]) == (422, "detection_unavailable")

    with_tasks(scenario, models_dir=tmp_path)


def _to_image_coordinates(result: dict[str, Any]) -> np.ndarray:
    inverse = np.array(result["inverse_transform"])
    return to_pixels(result["landmarks"]) @ inverse[:, :2].T + inverse[:, 2]

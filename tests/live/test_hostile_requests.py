"""Invalid requests: JSON, forms and HTTP headers, sent to two workers.

A row has a name, a request, and the code of the response, whose status is in the table of problems. Names, keys and
values of callers contain ``CANARY``, which no response and no log line may repeat. A request that is invalid for the
synchronous route is also invalid as a task.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
import pytest

from app.web.problems import INPUT_STATUS, PROBLEMS
from tests.live.conftest import Attacker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import Sample

    Build = Callable[[Sample], Any]

pytestmark = pytest.mark.live

CANARY = "QXcanaryQX"
MIB = 1024 * 1024
JSON = "application/json"


def first(sample: Sample, *point: Any) -> list[Any]:
    """Replace the first landmark."""
    return [list(point), *sample.pairs[1:]]


def member(sample: Sample, text: str) -> bytes:
    """Add a member, as text, to the first landmark."""
    points = orjson.dumps(sample.points).replace(b"{", b"{" + text.encode("utf-8", "surrogateescape") + b",", 1)
    return sample.json(landmarks=[]).replace(b'"landmarks":[]', b'"landmarks":' + points)


def text(sample: Sample, more: str) -> bytes:
    """Append text to a valid request."""
    return sample.json()[:-1] + more.encode("utf-8", "surrogateescape") + b"}"


def coordinate(sample: Sample, number: str) -> bytes:
    """Replace the first coordinate, as text."""
    return sample.json().replace(b'"landmarks":[[', f'"landmarks":[[{number},1.0],['.encode())


def normalized(sample: Sample, point: list[float]) -> bytes:
    return sample.json(landmarks=[point, *[[0.5, 0.5]] * 477], landmark_units="normalized")


def region(sample: Sample, name: str, indices: Any = (61, 0, 291, 17), landmarks: Any = None) -> bytes:
    return sample.json(segmentation_map={name: indices}, landmarks=landmarks or sample.pairs)


BODIES: list[tuple[str, Build, str]] = [
    # Not JSON.
    ("empty", lambda _: b"", "invalid_json"),
    ("blank", lambda _: b" \n", "invalid_json"),
    ("cut in half", lambda s: s.json()[: len(s.json()) // 2], "invalid_json"),
    ("trailing text", lambda s: s.json() + CANARY.encode(), "invalid_json"),
    ("two documents", lambda s: s.json() * 2, "invalid_json"),
    ("trailing comma", lambda s: text(s, ","), "invalid_json"),
    ("comment", lambda s: text(s, f"/* {CANARY} */"), "invalid_json"),
    ("single quotes", lambda s: s.json().replace(b'"', b"'"), "invalid_json"),
    ("invalid utf-8 in a field's name", lambda s: text(s, f',"{CANARY}\udcff":1'), "invalid_json"),
    ("control character", lambda s: text(s, f',"verify":"{CANARY}\0"'), "invalid_json"),
    ("escape that is none", lambda s: text(s, f',"verify":"{CANARY}\\q"'), "invalid_json"),
    ("lone surrogate", lambda s: text(s, f',"verify":"\\ud800{CANARY}"'), "invalid_json"),
    ("NaN", lambda s: coordinate(s, "NaN"), "invalid_json"),
    ("Infinity", lambda s: coordinate(s, "Infinity"), "invalid_json"),
    ("minus Infinity", lambda s: coordinate(s, "-Infinity"), "invalid_json"),
    ("NaN as an option", lambda s: text(s, ',"simplify":NaN'), "invalid_json"),
    ("deep image", lambda s: text(s, ',"image":' + "[" * 100_000), "invalid_json"),
    ("deep map", lambda s: text(s, ',"segmentation_map":' + '{"a":' * 100_000), "invalid_json"),
    ("deep member", lambda s: member(s, '"v":' + "[" * 50_000 + "]" * 50_000), "invalid_json"),
    # Not an object, or with missing or unknown fields.
    ("null", lambda _: b"null", "field_invalid"),
    ("list", lambda s: b"[" + s.json() + b"]", "field_invalid"),
    ("text", lambda _: f'"{CANARY}"'.encode(), "field_invalid"),
    ("deep list", lambda _: b"[" * 100_000, "field_invalid"),
    ("no fields", lambda _: b"{}", "field_missing"),
    ("no image", lambda s: orjson.dumps({"landmarks": s.pairs}), "field_missing"),
    ("point without y", lambda s: s.json(landmarks=[{"x": 1.0}, *s.points[1:]]), "field_missing"),
    ("unknown field", lambda s: s.json(**{CANARY: CANARY}), "field_unknown"),
    ("misspelt option", lambda s: s.json(show_label=True), "field_unknown"),
    # Wrong types and values.
    ("image a number", lambda s: s.json(image=1), "field_invalid"),
    ("image null", lambda s: s.json(image=None), "field_invalid"),
    ("image an object", lambda s: s.json(image={CANARY: CANARY}), "field_invalid"),
    ("landmarks an object", lambda s: s.json(landmarks={CANARY: 1}), "field_invalid"),
    ("landmarks a text", lambda s: s.json(landmarks=CANARY), "field_invalid"),
    ("landmarks of numbers", lambda s: s.json(landmarks=[1, 2, 3]), "field_invalid"),
    ("coordinate a text", lambda s: s.json(landmarks=first(s, CANARY, 1.0)), "field_invalid"),
    ("coordinate null", lambda s: s.json(landmarks=first(s, None, 1.0)), "field_invalid"),
    ("coordinate true", lambda s: s.json(landmarks=first(s, True, 1.0)), "field_invalid"),
    ("coordinate of 5,000 digits", lambda s: coordinate(s, "9" * 5000), "field_invalid"),
    ("coordinate 1e999", lambda s: coordinate(s, "1e999"), "field_invalid"),
    ("point of one number", lambda s: s.json(landmarks=first(s, 1.0)), "field_invalid"),
    ("point of four numbers", lambda s: s.json(landmarks=first(s, 1.0, 2.0, 3.0, 4.0)), "field_invalid"),
    ("a million points", lambda s: s.json(landmarks=[[1, 2]] * 1_000_000), "field_invalid"),
    ("a point of 5 million numbers", lambda s: s.json(landmarks=[[1] * 5_000_000]), "field_invalid"),
    ("a member of 5 million lists", lambda s: member(s, '"v":[' + "[]," * 5_000_000 + "1]"), "field_invalid"),
    ("option a text", lambda s: s.json(region_opacity=CANARY), "field_invalid"),
    ("option a number for true", lambda s: s.json(show_labels=1), "field_invalid"),
    ("option of no choice", lambda s: s.json(landmark_units=CANARY), "field_invalid"),
    ("option like an error's text", lambda s: s.json(verify=f"unknown field `{CANARY}` - at `$.x`"), "field_invalid"),
    ("opacity above 1", lambda s: s.json(region_opacity=1.01), "field_invalid"),
    ("stroke below 0", lambda s: s.json(stroke_width=-0.1), "field_invalid"),
    ("stroke 1e308", lambda s: s.json(stroke_width=1e308), "field_invalid"),
    ("simplify 1e999", lambda s: text(s, ',"simplify":1e999'), "field_invalid"),
    ("upright a text", lambda s: s.json(upright=CANARY), "field_invalid"),
    ("crop of no choice", lambda s: s.json(crop=CANARY), "field_invalid"),
    ("margin below 0", lambda s: s.json(margin=-0.1), "field_invalid"),
    ("output too small", lambda s: s.json(output_size=15), "field_invalid"),
    ("output too large", lambda s: s.json(output_size=4097), "field_invalid"),
    ("face below 0", lambda s: s.json(face=-1), "field_invalid"),
    # Base64.
    ("url-safe base64", lambda s: s.json(image="-_" * 8), "image_encoding"),
    ("base64 without padding", lambda s: s.json(image="QUJDRA"), "image_encoding"),
    ("base64 with line breaks", lambda s: s.json(image="QUJD\r\nQUJD"), "image_encoding"),
    ("base64 with spaces", lambda s: s.json(image="QUJD QUJD"), "image_encoding"),
    ("base64 beyond its padding", lambda s: s.json(image="QQ==QQ=="), "image_encoding"),
    ("text for base64", lambda s: s.json(image=f"é{CANARY}"), "image_encoding"),
    ("data URL without base64", lambda s: s.json(image=f"data:image/png,{CANARY}"), "image_encoding"),
    ("data URL without data", lambda s: s.json(image="data:image/png;base64"), "image_encoding"),
    ("map in wrong base64", lambda s: s.json(segmentation_map=f"data:{CANARY}"), "image_encoding"),
    # Landmarks.
    *[(f"{n} points", lambda s, n=n: s.json(landmarks=(s.pairs * 3)[:n]), "landmarks_count") for n in (0, 1, 467, 479)],
    ("1,000 points", lambda s: s.json(landmarks=(s.pairs * 3)[:1000]), "landmarks_count"),
    ("1e308", lambda s: s.json(landmarks=first(s, 1e308, 1.0)), "landmarks_not_finite"),
    ("minus 1e308", lambda s: s.json(landmarks=first(s, 1.0, -1e308)), "landmarks_not_finite"),
    ("1e39", lambda s: s.json(landmarks=first(s, 1e39, 1.0)), "landmarks_not_finite"),
    ("1e308, normalized", lambda s: normalized(s, [1e308, 1.0]), "landmarks_not_finite"),
    ("far outside", lambda s: s.json(landmarks=first(s, 5000.0, 1.0)), "landmarks_out_of_range"),
    ("far outside below 0", lambda s: s.json(landmarks=first(s, 1.0, -400.0)), "landmarks_out_of_range"),
    ("pixels declared as normalized", lambda s: normalized(s, [100.0, 1.0]), "landmarks_out_of_range"),
    ("one point 478 times", lambda s: s.json(landmarks=[[9.0, 9.0]] * 478), "landmarks_degenerate"),
    # Regions by landmarks.
    ("region of markup", lambda s: region(s, f"<script>{CANARY}</script>"), "region_name"),
    ("region of an entity", lambda s: region(s, f"&{CANARY};"), "region_name"),
    ("region without a name", lambda s: region(s, ""), "region_name"),
    ("region with a blank name", lambda s: region(s, "   "), "region_name"),
    ("region with a long name", lambda s: region(s, CANARY * 7), "region_name"),
    ("region with a line break", lambda s: region(s, f"{CANARY}\n"), "region_name"),
    ("no region", lambda s: s.json(segmentation_map={}), "region_count"),
    ("65 regions", lambda s: s.json(segmentation_map={f"r{n}": [1, 2, 3] for n in range(65)}), "region_count"),
    ("index of no landmark", lambda s: region(s, CANARY, [1, 2, 478]), "region_landmarks"),
    ("index of a missing iris", lambda s: region(s, CANARY, [1, 2, 470], s.pairs[:468]), "region_landmarks"),
    ("negative index", lambda s: region(s, CANARY, [1, 2, -1]), "region_landmarks"),
    ("two indices", lambda s: region(s, CANARY, [1, 2]), "region_landmarks"),
    ("1,025 indices", lambda s: region(s, CANARY, [1, 2, 3, 4, 5] * 205), "region_landmarks"),
    ("index true", lambda s: region(s, CANARY, [1, 2, True]), "field_invalid"),
    ("index 3.0", lambda s: region(s, CANARY, [1, 2, 3.0]), "field_invalid"),
    ("index a text", lambda s: region(s, CANARY, [1, 2, CANARY]), "field_invalid"),
    ("index of 5,000 digits", lambda s: text(s, ',"segmentation_map":{"a":[1,2,' + "9" * 5000 + "]}"), "field_invalid"),
    ("region a text", lambda s: region(s, CANARY, CANARY), "field_invalid"),
    ("regions a list", lambda s: s.json(segmentation_map=[[1, 2, 3]]), "field_invalid"),
    ("regions true", lambda s: s.json(segmentation_map=True), "field_invalid"),
]  # fmt: skip

FORMS: list[tuple[str, Build, str]] = [
    ("empty", lambda _: b"", "invalid_multipart"),
    ("not closed", lambda s: s.form()[:-30], "invalid_multipart"),
    ("cut inside a part's head", lambda s: s.form()[:40], "invalid_multipart"),
    ("another boundary", lambda s: s.form().replace(b"--limit", b"--other"), "invalid_multipart"),
    ("nothing but text", lambda _: CANARY.encode() * 100, "invalid_multipart"),
    ("part with a long head", lambda s: s.parts(s.part("image", b"", f"X: {CANARY * 1000}\r\n")), "invalid_multipart"),
    ("part with many headers", lambda s: s.parts(s.part("image", b"", f"X: {CANARY}\r\n" * 50)), "invalid_multipart"),
    ("no part", lambda s: s.parts(), "field_missing"),
    ("no image", lambda s: s.form(image=None), "field_missing"),
    ("part without a name", lambda s: s.parts(b"Content-Type: text/plain\r\n\r\n" + CANARY.encode()), "field_unknown"),
    ("part of an unknown name", lambda s: s.form((CANARY, CANARY.encode())), "field_unknown"),
    ("image twice", lambda s: s.form(("image", s.jpeg)), "field_duplicate"),
    ("option twice", lambda s: s.form(("simplify", b"1"), ("simplify", b"1")), "field_duplicate"),
    ("empty image", lambda s: s.form(image=b""), "image_empty"),
    ("landmarks not JSON", lambda s: s.form(landmarks=CANARY.encode()), "invalid_json"),
    ("landmarks cut in half", lambda s: s.form(landmarks=s.landmarks[:5000]), "invalid_json"),
    ("landmarks an object", lambda s: s.form(landmarks=f'{{"{CANARY}":1}}'.encode()), "field_invalid"),
    ("a million points", lambda s: s.form(landmarks=b"[" + b"[1,2]," * 1_000_000 + b"[1,2]]"), "field_invalid"),
    ("map of a cut object", lambda s: s.form(segmentation_map=b'{"a":[1,2'), "invalid_json"),
    ("map with a region of markup", lambda s: s.form(segmentation_map=b'{"<script>":[1,2,3]}'), "region_name"),
    ("option of no choice", lambda s: s.form(verify=CANARY.encode()), "field_invalid"),
    ("option NaN", lambda s: s.form(region_opacity=b"nan"), "field_invalid"),
    ("option infinite", lambda s: s.form(simplify=b"inf"), "field_invalid"),
    ("option not UTF-8", lambda s: s.form(verify=b"\xff" + CANARY.encode()), "field_invalid"),
]  # fmt: skip

FORM = "multipart/form-data"
CROP = "/api/v1/frontal/crop"
SUBMIT = f"{CROP}/submit"
NO_TASK = "0" * 32
STATUS = f"/status/{NO_TASK}"
LARGE = 17 * MIB


def request(content: Any = b"", kind: str = JSON, *, method: str = "POST", path: str = "", **headers: str) -> Any:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return {"content": content, "headers": {"content-type": kind, **named}, "method": method, "path": CROP + path}


REQUESTS: list[tuple[str, Build, str]] = [
    ("no content type", lambda s: {**request(s.json()), "headers": {}}, "unsupported_media_type"),
    ("text", lambda s: request(s.json(), "text/plain"), "unsupported_media_type"),
    ("like JSON", lambda s: request(s.json(), f"application/json{CANARY}"), "unsupported_media_type"),
    ("a form of a browser's", lambda _: request(b"a=b", "application/x-www-form-urlencoded"), "unsupported_media_type"),
    ("gzip", lambda s: request(s.json(), content_encoding="gzip"), "unsupported_media_type"),
    ("no boundary", lambda s: request(s.form(), FORM), "invalid_multipart"),
    ("empty boundary", lambda s: request(s.form(), f"{FORM}; boundary="), "invalid_multipart"),
    ("long boundary", lambda s: request(s.form(), f"{FORM}; boundary={CANARY * 50}"), "invalid_multipart"),
    ("form declared as JSON", lambda s: request(s.form()), "invalid_json"),
    ("JSON declared as a form", lambda s: request(s.json(), s.multipart), "invalid_multipart"),
    ("wants a GIF", lambda s: request(s.json(), accept="image/gif"), "not_acceptable"),
    ("wants nothing on offer", lambda s: request(s.json(), accept="*/*;q=0"), "not_acceptable"),
    ("wants what is no type", lambda s: request(s.json(), accept=CANARY), "not_acceptable"),
    ("wants too much", lambda s: request(s.json(), accept='a/b;"' + ";" * 30_000), "not_acceptable"),
    ("too large, declared", lambda _: request(b" " * LARGE), "body_too_large"),
    ("too large, not declared", lambda _: request([b" " * MIB] * 17), "body_too_large"),
    ("too large a form", lambda s: request(s.form(image=bytes(LARGE)), s.multipart), "body_too_large"),
    ("unknown path", lambda s: request(s.json(), path="ped"), "not_found"),
    ("path with a slash more", lambda s: request(s.json(), path="/"), "not_found"),
    *[
        (f"{method} instead of POST", lambda _, method=method: request(method=method), "method_not_allowed")
        for method in ("GET", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
    ],
    ("an unknown method", lambda _: request(method="PROPFIND"), "method_unknown"),
    *[
        (f"query {query}", lambda s, query=query: request(s.json(), path=f"?{query}"), code)
        for query, code in (
            (f"{CANARY}=1", "parameter_invalid"),
            ("show_labels=true&show_labels=true", "parameter_invalid"),
            ("image=QUJD", "parameter_invalid"),
            (f"landmark_units={CANARY}", "field_invalid"),
            ("region_opacity=nan", "field_invalid"),
            ("stroke_width=inf", "field_invalid"),
            ("simplify=%ff", "field_invalid"),
            ("simplify=1_000", "field_invalid"),
            (f"crop={CANARY}", "field_invalid"),
            ("margin=5", "field_invalid"),
            ("output_size=1.5", "field_invalid"),
        )
    ],
    # Tasks.
    *[
        (f"{method} {path}", lambda _, method=method, path=path: request(method=method, path=path), code)
        for method, path, code in (
            ("GET", "/submit", "method_not_allowed"),
            ("PUT", "/submit", "method_not_allowed"),
            ("DELETE", "/submit", "task_unknown"),  # not a valid task id
            ("POST", STATUS, "method_not_allowed"),
            ("POST", f"/{NO_TASK}", "method_not_allowed"),
            ("GET", f"/{NO_TASK}", "method_not_allowed"),
            ("GET", "/status", "method_not_allowed"),
            ("GET", "/status/", "not_found"),
            ("DELETE", f"{STATUS}?wait=1", "parameter_invalid"),
        )
    ],
    *[
        (f"{method} {prefix} {name}", lambda _, method=method, path=path: request(method=method, path=path), code)
        for method, prefix in (("GET", "/status/"), ("DELETE", "/status/"), ("DELETE", "/"))
        for name, path, code in (
            ("none", prefix + NO_TASK, "task_unknown"),
            ("in capitals", prefix + "A" * 32, "task_unknown"),
            ("with a digit more", prefix + "0" * 33, "task_unknown"),
            ("10,000 digits", prefix + "0" * 10_000, "task_unknown"),
            ("with a line break", prefix + NO_TASK + "%0A", "task_unknown"),
            ("NUL", prefix + "%00", "task_unknown"),
            ("bytes that are no text", prefix + "%FF%FE", "task_unknown"),
            ("star", prefix + "*", "task_unknown"),
            ("greater-than", prefix + "%3E", "task_unknown"),
            ("with dots", prefix + "result." + "0" * 64, "task_unknown"),
            ("with a slash", prefix + "0/0", "not_found"),
            ("with an escaped slash", prefix + "0%2F0", "not_found"),
        )
    ],
    *[
        (f"wait {wait[:9]}", lambda _, wait=wait: request(method="GET", path=f"{STATUS}?{wait}"), code)
        for wait, code in (
            ("wait=nan", "parameter_invalid"),
            ("wait=inf", "parameter_invalid"),
            ("wait=-1", "parameter_invalid"),
            ("wait=1e9", "parameter_invalid"),
            ("wait=1_0", "parameter_invalid"),
            ("wait=" + "9" * 10_000, "parameter_invalid"),
            ("wait=", "parameter_invalid"),
            ("wait=1&wait=1", "parameter_invalid"),
            ("show_labels=true", "parameter_invalid"),
            ("wait=60", "task_unknown"),
        )
    ],
    *[
        (f"key {name}", lambda s, key=key: request(s.json(), path="/submit", idempotency_key=key), "parameter_invalid")
        for name, key in (
            ("empty", ""),
            ("of two words", f"{CANARY} {CANARY}"),
            ("too long", CANARY * 26),
            ("not closed", f'"{CANARY}'),
            ("with parameters", f'"{CANARY}";a=1'),
            ("with a tab", f"{CANARY}\t{CANARY}"),
            ("that is no ASCII", f"{CANARY}é".encode()),
        )
    ],
    ("wait with a body", lambda _: request([b" " * MIB], method="GET", path=STATUS + "?wait=1"), "body_too_large"),
]  # fmt: skip


def rows(table: list[tuple[str, Build, str]]) -> list[Any]:
    return [pytest.param(build, code, id=name.replace(" ", "-")) for name, build, code in table]


def status_of(code: str) -> int:
    return PROBLEMS[code][0] if code in PROBLEMS else INPUT_STATUS


@pytest.fixture(scope="module")
def attacker(run_service: Callable[..., Any], sample: Sample, wait_until: Callable[..., Any]) -> Iterator[Attacker]:
    """Return an attacker of a dedicated service with two workers and tasks."""
    with run_service(WORKERS=2, TASK_WORKERS=1, ENABLE_TASKS="true", LOG_LEVELS="images=WARNING") as target:
        found = Attacker(target, sample.json())
        wait_until(
            lambda: found.send(method="GET", path=CROP + STATUS, headers={}).status_code == 404,
            limit_s=30,
            what="the queue",
        )
        yield found


@pytest.mark.parametrize("path", [CROP, SUBMIT])
@pytest.mark.parametrize(("build", "code"), rows(BODIES))
def test_json_is_refused(attacker: Attacker, sample: Sample, build: Build, code: str, path: str) -> None:
    answer = attacker.send(build(sample), headers={"content-type": JSON}, path=path)
    attacker.require_problem(answer, status_of(code), code, CANARY)
    attacker.require_service()


@pytest.mark.parametrize("path", [CROP, SUBMIT])
@pytest.mark.parametrize(("build", "code"), rows(FORMS))
def test_form_is_refused(attacker: Attacker, sample: Sample, build: Build, code: str, path: str) -> None:
    answer = attacker.send(build(sample), headers={"content-type": sample.multipart}, path=path)
    attacker.require_problem(answer, status_of(code), code, CANARY)
    attacker.require_service()


@pytest.mark.parametrize(("build", "code"), rows(REQUESTS))
def test_request_is_refused(attacker: Attacker, sample: Sample, build: Build, code: str) -> None:
    sent = build(sample)
    paths = [sent["path"]]
    if sent["method"] == "POST" and sent["path"].partition("?")[0] == CROP:
        paths.append(sent["path"].replace(CROP, SUBMIT))
    for path in paths:
        attacker.require_problem(attacker.send(**{**sent, "path": path}), status_of(code), code, CANARY)
    attacker.require_service()


def test_requests_left_no_trace(attacker: Attacker) -> None:
    attacker.require_service()
    attacker.require_quiet_log(CANARY)
    attacker.require_bounded_memory(128 * MIB)

"""Multipart bodies: valid ones are parsed, and invalid ones raise problems that echo nothing."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.face.errors import InputError
from app.service.options import OPTION_NAMES, CropOptions
from app.web.json_body import FIELDS
from app.web.multipart_body import options_from_text, parse_multipart, split_parts
from app.web.problems import ProblemError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

CANARY = "QXcanaryQX"
TYPE = "multipart/form-data; boundary=limit"
DEFAULTS = {name: getattr(CropOptions(), name) for name in OPTION_NAMES}
GOOD = {"image": b"\x89PNG\r\n", "landmarks": b"[[1,2],[3,4]]"}


def problem(code: str) -> AbstractContextManager[Any]:
    return pytest.raises(ProblemError, check=lambda error: error.code == code and CANARY not in error.detail)


def part(name: str, value: bytes, *headers: str) -> bytes:
    head = "\r\n".join([f'Content-Disposition: form-data; name="{name}"', *headers])
    return head.encode() + b"\r\n\r\n" + value


def form(*parts: bytes) -> bytes:
    return b"".join(b"--limit\r\n" + part + b"\r\n" for part in parts) + b"--limit--\r\n"


def form_of(**values: bytes) -> bytes:
    return form(*(part(name, value) for name, value in values.items()))


FILES = (
    st.binary()
    | st.lists(st.sampled_from([b"\r", b"\n", b"-", b"--", b"\r\n--", b"limi", b"\r\n--limi", b"x"])).map(b"".join)
).filter(lambda value: b"\r\n--limit" not in b"\r\n" + value)


@given(st.dictionaries(st.sampled_from(FIELDS), FILES), st.randoms())
def test_parts_are_returned_unchanged(values: dict[str, bytes], random: Any) -> None:
    names = list(values)
    random.shuffle(names)
    assert split_parts(form_of(**{name: values[name] for name in names}), TYPE) == values


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data; boundary=limit",
        'multipart/form-data; boundary="limit"',
        "multipart/form-data;boundary=limit; charset=utf-8",
        "Multipart/Form-Data; charset=utf-8; boundary=limit",
    ],
)
def test_boundary_is_parsed(content_type: str) -> None:
    assert split_parts(form_of(**GOOD), content_type) == GOOD


@pytest.mark.parametrize(
    "raw",
    [
        b'content-disposition: form-data; name="image"\r\n\r\nx',
        b'Content-Type: image/png\r\nContent-Disposition: form-data; name="image"; filename="a b.png"\r\n\r\nx',
        b'Content-Disposition: form-data; filename="name=\\"landmarks\\""; name="image"\r\n\r\nx',
        b"Content-Disposition: form-data; name=image\r\nContent-Length: 1\r\n\r\nx",
    ],
)
def test_parts_of_various_clients_are_parsed(raw: bytes) -> None:
    assert split_parts(form(raw), TYPE) == {"image": b"x"}


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"This is a multi-part message in MIME format.\r\n" + form_of(**GOOD), id="preamble"),
        pytest.param(b"\r\n" + form_of(**GOOD), id="empty preamble"),
        pytest.param(b"--limited\r\nx\r\n--lim\r\n" + form_of(**GOOD), id="preamble like a boundary"),
        pytest.param(form_of(**GOOD) + b"epilogue\r\n--limit\r\n\r\n", id="epilogue"),
        pytest.param(form_of(**GOOD).removesuffix(b"\r\n"), id="no line break at the end"),
        pytest.param(form_of(**GOOD).replace(b"--limit\r\n", b"--limit \t \r\n"), id="blanks after a boundary"),
        pytest.param(form_of(**GOOD).replace(b"--limit--", b"--limit-- \t"), id="blanks after the last boundary"),
        pytest.param(form_of(**GOOD).replace(b"; name", b";\r\n\tname"), id="folded header"),
        pytest.param(
            form_of(**GOOD).replace(b"Content-Disposition: ", b"CONTENT-DISPOSITION:"), id="header in capitals"
        ),
        pytest.param(
            form(
                part("image", b"iVBO\r\nRw0K\r\n", "MIME-Version: 1.0", "Content-Transfer-Encoding: Base64"),
                part("landmarks", b"[[1,2=\r\n],[3,4]]", "Content-Transfer-Encoding: quoted-printable"),
            ),
            id="transfer encodings",
        ),
        pytest.param(
            form(
                part("image", GOOD["image"], "Content-Transfer-Encoding: binary"), part("landmarks", GOOD["landmarks"])
            ),
            id="no transfer encoding",
        ),
    ],
)
def test_every_form_of_rfc_2046_is_parsed(body: bytes) -> None:
    assert split_parts(body, TYPE) == GOOD


@pytest.mark.parametrize("boundary", ["a b", "a'()+_,-./:=?", "x" * 70])
def test_every_character_of_a_boundary_is_allowed(boundary: str) -> None:
    body = form_of(**GOOD).replace(b"limit", boundary.encode())
    assert split_parts(body, f'multipart/form-data; boundary="{boundary}"') == GOOD


OCTETS = "Content-Type: application/octet-stream"
EMPTY_PARTS = {
    "empty": lambda name: part(name, b""),
    "blank": lambda name: part(name, b" \r\n"),
    "headers only": lambda name: part(name, b"").removesuffix(b"\r\n"),
    "no file": lambda name: part(f'{name}"; filename="', b"", OCTETS),
    "no file name": lambda name: part(f'{name}"; filename="', b"x", OCTETS),
}


@pytest.mark.parametrize("name", [name for name in FIELDS if name != "image"])
@pytest.mark.parametrize("kind", EMPTY_PARTS)
def test_an_empty_optional_part_counts_as_absent(name: str, kind: str) -> None:
    empty, image = EMPTY_PARTS[kind](name), part("image", GOOD["image"])
    for body in (form(image, empty), form(empty, image, EMPTY_PARTS["empty"](name))):
        request = parse_multipart(body, TYPE)
        assert (request.image, request.points, request.segmentation_map) == (GOOD["image"], None, None)
        assert {field: getattr(request.options, field) for field in OPTION_NAMES} == DEFAULTS


def test_a_filled_part_is_kept_beside_empty_ones() -> None:
    empty = part("simplify", b"")
    assert parse_multipart(form(empty, part("image", b"x"), part("simplify", b"2"), empty), TYPE).options.simplify == 2


def test_an_image_without_a_file_name_is_kept() -> None:
    assert parse_multipart(form(part('image"; filename="', b"x")), TYPE).image == b"x"


def test_a_valid_form_is_parsed() -> None:
    request = parse_multipart(form_of(**GOOD, simplify=b"2", show_labels=b"true", verify=b"pixels"), TYPE)
    assert request.image == GOOD["image"]
    assert request.points.tolist() == [[1, 2], [3, 4]]
    assert request.segmentation_map is None
    assert request.options == CropOptions(simplify=2, show_labels=True, verify="pixels")


@pytest.mark.parametrize(
    ("part", "read"),
    [
        (b"\x89PNG", b"\x89PNG"),
        (b"", None),
        (b"\r\n", None),
        (b'{"a":[1,2,3]}', {"a": [1, 2, 3]}),
        (b' \n{"a":[]}', {"a": []}),
        (b'\xef\xbb\xbf{"a":[]}', {"a": []}),
    ],
)
def test_map_is_a_file_or_an_object(part: bytes, read: Any) -> None:
    assert parse_multipart(form_of(**GOOD, segmentation_map=part), TYPE).segmentation_map == read


@pytest.mark.parametrize(
    ("body", "content_type", "code"),
    [
        (form_of(**GOOD), "multipart/form-data", "invalid_multipart"),
        (form_of(**GOOD), "multipart/form-data; boundary=", "invalid_multipart"),
        (form_of(**GOOD), "multipart/form-data; boundary=" + "x" * 300, "invalid_multipart"),
        (form_of(**GOOD), "multipart/form-data; boundary=\u0101", "invalid_multipart"),
        (form_of(**GOOD), "multipart/form-data; boundary=other", "invalid_multipart"),
        (b"", TYPE, "invalid_multipart"),
        (CANARY.encode(), TYPE, "invalid_multipart"),
        (form_of(**GOOD)[:-6], TYPE, "invalid_multipart"),
        (form_of(**GOOD)[:30], TYPE, "invalid_multipart"),
        (form(part("image", b"", f"X: {CANARY * 1000}")), TYPE, "invalid_multipart"),
        (form(part("image", b"\r\n--limitx" * 70)), TYPE, "invalid_multipart"),
        (form(part("image", b"", *[f"X: {CANARY}"] * 20)), TYPE, "invalid_multipart"),
        (form(b"Content-Type: text/plain\r\n\r\n"), TYPE, "field_unknown"),
        (form(part(CANARY, b"")), TYPE, "field_unknown"),
        (form(part("image\xff", b"")), TYPE, "field_unknown"),
        (form(part("image", b"1"), part("image", b"1")), TYPE, "field_duplicate"),
        (form_of(), TYPE, "field_missing"),
        (form_of(image=b"", landmarks=b"["), TYPE, "invalid_json"),
        (form(b"Content-Disposition: form-data\r\n"), TYPE, "field_unknown"),
        (form(part("image", b"x")).replace(b"\r\n\r\n", b"\r\n"), TYPE, "invalid_multipart"),
        (form(part("image", b"A", "Content-Transfer-Encoding: base64")), TYPE, "invalid_multipart"),
        (form(part("image", b"x", "Content-Transfer-Encoding: uuencode")), TYPE, "invalid_multipart"),
        (form_of(landmarks=b"[]"), TYPE, "field_missing"),
        (form_of(**{**GOOD, "landmarks": CANARY.encode()}), TYPE, "invalid_json"),
        (form_of(**{**GOOD, "landmarks": b"[" + b"[1,2]," * 100_001 + b"[1,2]]"}), TYPE, "field_invalid"),
        (form_of(**GOOD, segmentation_map=b'{"a"'), TYPE, "invalid_json"),
        (form_of(**GOOD, verify=CANARY.encode()), TYPE, "field_invalid"),
        (form_of(**GOOD, verify=b"\xff"), TYPE, "field_invalid"),
    ],
)
def test_invalid_bodies_have_their_codes(body: bytes, content_type: str, code: str) -> None:
    with problem(code):
        parse_multipart(body, content_type)


@given(
    st.binary()
    | st.lists(
        st.sampled_from(
            [
                *(
                    b"--limit",
                    b"--",
                    b"\r\n",
                    b"\r",
                    b"\n",
                    b"Content-Disposition:",
                    b" form-data",
                    b";",
                    b"name=",
                    b'"',
                ),
                *(b"image", b"landmarks", b"\\", b"*", b"*0=", b"utf-8''", b"%ff", b"\xff", b"[[1,2]]", b"{", b"X: y"),
            ]
        ),
        max_size=30,
    ).map(b"".join),
    st.just(TYPE) | st.text(max_size=30).map(lambda more: f"multipart/form-data; boundary={more}"),
)
def test_arbitrary_bytes_raise_only_problems(body: bytes, content_type: str) -> None:
    with suppress(ProblemError, InputError):
        parse_multipart(body, content_type)


@pytest.mark.parametrize(
    ("texts", "read"),
    [
        ({}, nullcontext(CropOptions())),
        ({"show_labels": "true", "show_landmarks": "0"}, nullcontext(CropOptions(show_labels=True))),
        ({"region_opacity": "1", "stroke_width": b"0.5"}, nullcontext(CropOptions(region_opacity=1, stroke_width=0.5))),
        ({"landmark_units": "normalized"}, nullcontext(CropOptions(landmark_units="normalized"))),
        ({"show_labels": ""}, problem("field_invalid")),
        ({"show_labels": "yes"}, problem("field_invalid")),
        ({"region_opacity": "nan"}, problem("field_invalid")),
        ({"region_opacity": "-0.1"}, problem("field_invalid")),
        ({"simplify": "inf"}, problem("field_invalid")),
        ({"simplify": "1_0"}, problem("field_invalid")),
        ({"simplify": CANARY}, problem("field_invalid")),
        ({"verify": CANARY}, problem("field_invalid")),
        ({"verify": b"\xff"}, problem("field_invalid")),
    ],
)
def test_options_are_parsed_from_text(texts: dict[str, Any], read: AbstractContextManager[Any]) -> None:
    with read as expected:
        assert options_from_text(texts, "query", CropOptions) == expected


@given(st.dictionaries(st.sampled_from(CropOptions.__struct_fields__), st.text() | st.binary()))
def test_arbitrary_text_raises_only_problems(texts: dict[str, Any]) -> None:
    with suppress(ProblemError):
        options = options_from_text(texts, "query", CropOptions)
        assert 0 <= options.region_opacity <= 1
        assert 0 <= options.simplify <= 1000

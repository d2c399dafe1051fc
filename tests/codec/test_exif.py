import struct
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.codec.exif import read_orientation


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("prefix", [b"", b"Exif\0\0"])
def test_read_orientation_of_a_valid_block(make: SimpleNamespace, order: str, orientation: int, prefix: bytes) -> None:
    block = prefix + make.exif.tiff(orientation, order=order)
    assert read_orientation(memoryview(block)) == orientation


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(lambda _: b"", id="empty"),
        pytest.param(lambda _: b"Exif\0\0", id="prefix only"),
        pytest.param(lambda exif: exif.tiff(0), id="orientation 0"),
        pytest.param(lambda exif: exif.tiff(9), id="orientation 9"),
        pytest.param(lambda exif: exif.tiff(65_535), id="orientation 65535"),
        pytest.param(lambda exif: exif.tiff(6, tag=0x0113), id="another tag"),
        pytest.param(lambda exif: exif.tiff(6, kind=7), id="another type"),
        pytest.param(lambda exif: exif.tiff(6, count=2), id="two values"),
        pytest.param(lambda exif: exif.tiff(6, offset=0), id="directory inside the header"),
        pytest.param(lambda exif: exif.tiff(6, offset=2**32 - 1), id="directory far outside"),
        pytest.param(lambda exif: b"XX" + exif.tiff(6)[2:], id="no byte order"),
        pytest.param(lambda exif: b"II\0*" + exif.tiff(6)[4:], id="number of the other byte order"),
        pytest.param(lambda exif: exif.tiff(6)[:24], id="cut inside the entry"),
        pytest.param(lambda _: b"II*\0" + struct.pack("<IH", 8, 65_535), id="more entries than bytes"),
    ],
)
def test_read_orientation_of_a_malformed_block_is_upright(
    make: SimpleNamespace, build: Callable[[SimpleNamespace], bytes]
) -> None:
    assert read_orientation(memoryview(build(make.exif))) == 1


@given(st.binary(max_size=80), st.sampled_from([b"", b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08", b"Exif\0\0II*\0"]))
def test_read_orientation_of_any_bytes_is_valid(block: bytes, start: bytes) -> None:
    assert read_orientation(memoryview(start + block)) in range(1, 9)

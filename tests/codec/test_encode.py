import cv2
import numpy as np
import pytest

from app.codec.encode import encode_drawing, encode_picture
from app.codec.sniff import sniff_image
from app.codec.verify import verify_structure


@pytest.mark.parametrize(("channels", "media_type", "kind"), [(3, "image/jpeg", "jpeg"), (4, "image/png", "png")])
@pytest.mark.parametrize("shape", [(1, 1), (7, 300), (64, 64)])
def test_transparency_decides_the_format(shape: tuple[int, int], channels: int, media_type: str, kind: str) -> None:
    picture = np.full((*shape, channels), 90, np.uint8)
    data, told = encode_picture(picture)
    info = verify_structure(data, sniff_image(data, max_pixels=10_000))
    assert (told, info.format, info.size) == (media_type, kind, shape[::-1])
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert decoded is not None
    assert decoded.shape == picture.shape
    assert np.abs(decoded.astype(int) - picture).max() <= 2


def test_a_drawing_is_kept_as_it_is_and_small() -> None:
    picture = np.zeros((200, 300, 4), np.uint8)
    picture[50:150, 100:200] = 10, 200, 30, 90
    data = encode_drawing(picture)
    info = verify_structure(data, sniff_image(data, max_pixels=60_000))
    assert (info.format, info.size) == ("png", (300, 200))
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert decoded is not None
    assert (decoded == picture).all()
    assert len(data) < picture.nbytes / 50

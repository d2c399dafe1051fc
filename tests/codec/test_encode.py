import time
from collections.abc import Callable

import cv2
import numpy as np
import pytest

from app.codec.encode import encode_image, encode_overlay_png
from app.codec.sniff import sniff_image, verify_structure


@pytest.mark.parametrize(("channels", "media_type", "kind"), [(3, "image/jpeg", "jpeg"), (4, "image/png", "png")])
@pytest.mark.parametrize("shape", [(1, 1), (7, 300), (64, 64)])
def test_transparency_decides_the_format(shape: tuple[int, int], channels: int, media_type: str, kind: str) -> None:
    image = np.full((*shape, channels), 90, np.uint8)
    data, actual_type = encode_image(image)
    info = verify_structure(data, sniff_image(data, max_pixels=10_000))
    assert (actual_type, info.format, info.size) == (media_type, kind, shape[::-1])
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert decoded is not None
    assert decoded.shape == image.shape
    assert np.abs(decoded.astype(int) - image).max() <= 2


@pytest.mark.parametrize("channels", [3, 4])
def test_overlay_png_is_lossless_and_small(channels: int) -> None:
    image = np.zeros((200, 300, channels), np.uint8)
    image[50:150, 100:200] = (10, 200, 30, 90)[:channels]
    data = encode_overlay_png(list(cv2.split(image)))
    info = verify_structure(data, sniff_image(data, max_pixels=60_000))
    assert (info.format, info.size) == ("png", (300, 200))
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert decoded is not None
    assert (decoded == image).all()
    assert len(data) < image.nbytes / 50


def test_large_transparent_image_is_lossless_in_every_band() -> None:
    image = np.random.default_rng(0).integers(0, 256, (1500, 1100, 4), np.uint8)
    data, _ = encode_image(image)
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert decoded is not None
    assert (decoded == image).all()


def test_transparent_noise_is_encoded_quickly() -> None:
    image = np.random.default_rng(0).integers(0, 256, (1500, 1500, 4), np.uint8)

    def cost(call: Callable[[], object]) -> float:
        times = []
        for _ in range(3):
            start = time.thread_time()
            call()
            times.append(time.thread_time() - start)
        return min(times)

    file = np.frombuffer(cv2.imencode(".png", image, (cv2.IMWRITE_PNG_COMPRESSION, 1))[1], np.uint8)
    # libpng takes twenty times as long to encode as to decode.
    assert cost(lambda: encode_image(image)) < 6 * cost(lambda: cv2.imdecode(file, cv2.IMREAD_UNCHANGED))

"""Search for the most expensive request that the service accepts.

A request is described by genes: type and size of the image, type and density of the label map, regions, options. The
search mutates the worst requests found so far. It is seeded and bounded, and measures the CPU time of the whole use
case, from the body to the response document, in addition to that of decoding the files. The worst requests are saved.
`python -m benchmarks.run --only worst_request` sends them to a running service.

Example: python -m benchmarks.worst_request --seed 7 --seconds 300
"""

from __future__ import annotations

import argparse
import functools
import http.client
import io
import json
import random
import statistics
import struct
import threading
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import msgspec
import numpy as np
import pillow_heif

from app.face.errors import InputError
from app.service.crop import CropService, ImageLimits
from app.service.png_export import result_to_png
from app.service.serialization import result_to_json
from app.web.json_body import FIELDS
from app.web.multipart_body import parse_multipart
from app.web.problems import ProblemError
from benchmarks import inputs
from benchmarks.processes import TIMEOUT_S, service

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy.typing as npt

    Genes = dict[str, Any]
    Pixels = npt.NDArray[np.uint8]

SAVED = Path(__file__).parent / "worst_requests.json"
SAMPLE = Path(__file__).parent.parent / "examples"
MAX_BODY_BYTES = 16 * 1024 * 1024
MAX_PIXELS = 64_000_000
MAX_WEBP_SIDE = 16_383
KEEP = 8
ROUNDS = 3
CALLERS = 4
LOAD_S = 60.0
SAMPLE_PAUSE_S = 0.05
BOUNDARY = "8f2c1d0b7a"
MULTIPART = f"multipart/form-data; boundary={BOUNDARY}"
GENES: dict[str, tuple[Any, ...]] = {
    "image": (
        "png",
        "png_paeth",
        "png_noise",
        "png_alpha",
        "png16",
        "png16_alpha",
        "png_interlaced",
        "jpeg",
        "jpeg_noise",
        "jpeg_progressive",
        "webp",
        "webp_lossless",
        "webp_alpha",
        "avif",
        "avif_alpha",
        "heic",
        "heic_alpha",
    ),
    "pixels": (0.25, 1, 4, 8, 16, 24, 32, 48, 64),
    "aspect": (0.0056, 0.1, 1.0, 1.5, 60.0),
    "content": ("flat", "face", "faces", "blocks", "noise"),
    "exif": (1, 3, 6),
    "map": ("none", "zigzag", "speckle", "spread", "colours", "noise", "comb", "rings"),
    "map_pixels": (0.0001, 0.05, 0.5, 4, 24, 64),
    "density": (0.05, 0.2, 0.5, 1.0),
    "labels": (1, 8, 16, 64, 150, 255),
    "regions": (0, 16, 64),
    "landmarks": (True, False),
    "landmark_spread": (0.05, 1.0, 1.4),
    "simplify": (0.0, 0.01, 0.5, 3.0, 1000.0),
    "show_labels": (True, False),
    "show_landmarks": (True, False),
    "verify": ("structure", "pixels"),
    "upright": (True, False),
    "crop": ("none", "face"),
    "margin": (0.0, 0.25, 4.0),
    "output_size": (None, 16, 1024, 4096),
    "background": ("none", "image"),
    "face": (0, "all"),
    "stroke_width": (None, 0.4, 64),
    "accept": ("application/json", "image/png"),
}
OPTIONS = (
    "simplify",
    "show_labels",
    "show_landmarks",
    "verify",
    "upright",
    "crop",
    "margin",
    "output_size",
    "background",
    "face",
    "stroke_width",
)


def sides(megapixels: float, aspect: float) -> tuple[int, int]:
    """Return width and height of an image with at most this many pixels."""
    pixels = min(megapixels * 1e6, MAX_PIXELS)
    height = max(8, min(65_535, round((pixels / aspect) ** 0.5)))
    return max(8, min(65_535, int(pixels // height))), height


@functools.lru_cache(maxsize=4)
def content(kind: str, width: int, height: int) -> Pixels:
    """Return a BGR image with the content."""
    generator = np.random.default_rng(0)
    if kind == "flat":
        return np.full((height, width, 3), 100, np.uint8)
    if kind == "noise":
        return generator.integers(0, 256, (height, width, 3), np.uint8)
    sample = cv2.imread(str(SAMPLE / "astronaut.png"))
    if sample is None:
        raise FileNotFoundError("examples/astronaut.png")
    if kind == "faces":
        sample = np.tile(sample, (6, 6, 1))
    if kind == "blocks":
        # Compresses well, so that the largest images fit into a body.
        return cv2.resize(sample // 16 * 16, (width, height), interpolation=cv2.INTER_NEAREST).astype(np.uint8)
    return cv2.resize(sample, (width, height), interpolation=cv2.INTER_LINEAR).astype(np.uint8, copy=False)


@functools.lru_cache(maxsize=4)
def encode_image(kind: str, name: str, width: int, height: int, orientation: int) -> bytes:
    """Encode the image of a request."""
    if kind.startswith("webp"):
        width, height = min(width, MAX_WEBP_SIDE), min(height, MAX_WEBP_SIDE)
    pixels = content(name, width, height)
    if kind.endswith("_alpha"):
        alpha = content("noise" if name == "noise" else "blocks", width, height)[:, :, 0]
        pixels = np.dstack((pixels, alpha // 32 * 32 if kind.startswith("png") else alpha)).astype(np.uint8)
    if kind.startswith("jpeg"):
        quality = 50 if kind == "jpeg_noise" or name == "noise" else 95
        options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_PROGRESSIVE, int(kind == "jpeg_progressive")]
        if kind == "jpeg_progressive":
            options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
        return set_orientation(cv2.imencode(".jpg", pixels, options)[1].tobytes(), orientation)
    if kind.startswith("webp"):
        return cv2.imencode(".webp", pixels, [cv2.IMWRITE_WEBP_QUALITY, 101 if kind == "webp_lossless" else 20])[
            1
        ].tobytes()
    if kind.startswith("avif"):
        options = [cv2.IMWRITE_AVIF_QUALITY, 40, cv2.IMWRITE_AVIF_SPEED, 10]
        return cv2.imencode(".avif", pixels, options)[1].tobytes()
    if kind.startswith("heic"):
        file = io.BytesIO()
        mode = "BGRA" if kind == "heic_alpha" else "BGR"
        image = pillow_heif.from_bytes(mode, (width, height), pixels.tobytes())
        image.save(file, quality=30, enc_params={"preset": "ultrafast"})
        return file.getvalue()
    row_filter = 4 if kind in {"png_paeth", "png16", "png16_alpha", "png_interlaced"} else 1
    return write_png(pixels, depth=16 if "16" in kind else 8, row_filter=row_filter, is_interlaced="inter" in kind)


def set_orientation(jpeg: bytes, orientation: int) -> bytes:
    """Insert an EXIF segment with an orientation."""
    block = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0) + bytes(4)
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(block)) + block + jpeg[2:]


def write_png(pixels: Pixels, *, depth: int = 8, row_filter: int = 0, is_interlaced: bool = False) -> bytes:
    """Encode a PNG whose rows all declare the same filter, without applying it to the pixels."""
    height, width = pixels.shape[:2]
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]  # noqa: PLR2004 - a grey image has two dimensions
    samples = np.repeat(pixels.reshape(height, width, channels), depth // 8, axis=2)
    passes = (
        ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
        if is_interlaced
        else ((0, 0, 1, 1),)
    )
    compressor = zlib.compressobj(1)
    data = b""
    for x, y, step_x, step_y in passes:
        part = samples[y::step_y, x::step_x]
        if part.size:
            rows = part.reshape(len(part), -1)
            data += compressor.compress(np.insert(rows, 0, row_filter, axis=1).tobytes())
    data += compressor.flush()
    colour = {1: 0, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, int(is_interlaced))
    chunks = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(part)) + kind + part + struct.pack(">I", zlib.crc32(kind + part)) for kind, part in chunks
    )


def encode_map(genes: Genes) -> bytes:
    """Encode the label map of a request."""
    width, height = sides(genes["map_pixels"], genes["aspect"])
    return _MAPS[genes["map"]](width, height, genes["density"], genes["labels"])


def _zigzag(width: int, height: int, density: float, labels: int) -> bytes:
    # The right edge of every row differs from that of the row before, in as many columns as the limits allow.
    grid = np.zeros((height, width), np.uint8)
    edges = max(1, round(3 * density))
    for edge in range(edges):
        left, right = width * edge // edges, width * (edge + 1) // edges
        middle = (left + right) // 2
        ends = middle + ((right - middle - 2) * (1 - np.arange(height) / height)).astype(int) * (np.arange(height) % 2)
        grid[:, left:right] = (np.arange(left, right) < ends[:, None]) * (1 + edge % labels)
    return write_png(grid)


def _speckle(width: int, height: int, density: float, labels: int) -> bytes:
    side = max(1, int(170 * density**0.5))
    width, height = max(width, 3 * side), max(height, 3 * side)
    grid = np.zeros((height, width), np.uint8)
    ids = np.random.default_rng(0).integers(1, labels + 1, (side, side)).astype(np.uint8)
    for row in range(2):
        for column in range(2):
            grid[row : 3 * side : 3, column : 3 * side : 3] = ids
    return write_png(grid)


def _spread(width: int, height: int, _density: float, labels: int) -> bytes:
    grid = np.zeros((height, width), np.uint8)
    ids = np.arange(1, labels + 1, dtype=np.uint8)[: grid.size // 4]
    grid.reshape(-1)[: len(ids)] = ids
    grid.reshape(-1)[-len(ids) :] = ids[::-1]
    return write_png(grid)


def _colours(width: int, height: int, density: float, labels: int) -> bytes:
    grid = np.zeros((height, width, 3), np.uint8)
    bands = min(height, 199_000, round(labels * 100 * density) + 1)
    ids = np.arange(height) * bands // height % labels
    grid[:] = np.stack((ids * 37 % 256, ids * 101 % 256, 1 + ids), axis=1)[:, None]
    return write_png(grid, row_filter=0)


def _noise(width: int, height: int, density: float, labels: int) -> bytes:
    generator = np.random.default_rng(0)
    grid = np.zeros((height, width), np.uint8)
    grid[height // 8 : -height // 8, width // 8 : -width // 8] = 1
    count = int(min(15_000, grid.size / 8) * density)
    grid.reshape(-1)[generator.integers(0, grid.size, count)] = generator.integers(0, labels + 1, count)
    return write_png(grid)


def _comb(width: int, height: int, density: float, _labels: int) -> bytes:
    # Teeth along the rows: few runs, long contours.
    grid = np.zeros((height, width), np.uint8)
    grid[:, : max(1, width // 20)] = 1
    grid[:: max(2, round(2 / density)), :] = 1
    return write_png(grid)


def _rings(width: int, height: int, density: float, labels: int) -> bytes:
    grid = np.zeros((height, width), np.uint8)
    for number in range(int(min(60 * density, width / 8, height / 8))):
        inset = 3 * number
        cv2.rectangle(grid, (inset, inset), (width - 1 - inset, height - 1 - inset), number % labels + 1, 1)
    return write_png(grid)


_MAPS: Mapping[str, Callable[[int, int, float, int], bytes]] = {
    "zigzag": _zigzag,
    "speckle": _speckle,
    "spread": _spread,
    "colours": _colours,
    "noise": _noise,
    "comb": _comb,
    "rings": _rings,
}


def build_image(genes: Genes) -> bytes:
    """Encode the image of a request."""
    width, height = sides(genes["pixels"], genes["aspect"])
    return encode_image(genes["image"], genes["content"], width, height, genes["exif"])


def build(genes: Genes) -> bytes:
    """Return the multipart body of a request."""
    parts: dict[str, bytes] = {
        "image": build_image(genes),
        "landmark_units": b"normalized",
    }
    if genes["landmarks"]:
        points = json.loads((SAMPLE / "astronaut.landmarks.json").read_text())
        scale = genes["landmark_spread"] / 512
        shift = 0.5 - 0.5 * genes["landmark_spread"]
        moved = [{axis: min(1.24, shift + point[axis] * scale) for axis in "xy"} for point in points]
        parts["landmarks"] = json.dumps(moved).encode()
    if genes["map"] != "none":
        parts["segmentation_map"] = encode_map(genes)
    elif genes["regions"]:
        generator = random.Random(0)  # noqa: S311 - reproducible
        names = {f"region_{n}": [generator.randrange(468) for _ in range(1024)] for n in range(genes["regions"])}
        parts["segmentation_map"] = json.dumps(names).encode()
    for name in OPTIONS:
        if genes.get(name) is not None:
            parts[name] = str(genes[name]).lower().encode()
    if unknown := parts.keys() - set(FIELDS):
        raise ValueError(f"expected fields of the API, got {unknown}")
    head = '--%s\r\nContent-Disposition: form-data; name="%s"\r\n\r\n'
    body = b"".join((head % (BOUNDARY, name)).encode() + value + b"\r\n" for name, value in parts.items())
    return body + f"--{BOUNDARY}--\r\n".encode()


def measure(service: CropService, genes: Genes) -> tuple[float, str]:
    """Return the CPU time of one request in addition to decoding its files, in seconds, and its outcome."""
    body = build(genes)
    if len(body) > MAX_BODY_BYTES:
        return 0.0, "body_too_large"
    start = time.process_time()
    try:
        result = service.process(parse_multipart(body, MULTIPART))
        if read_accept(genes) == "image/png":
            result_to_png(result, service.limits, is_request=True)
        else:
            result_to_json(result)
        outcome = "ok"
    except (InputError, ProblemError) as error:
        outcome = error.code
    return time.process_time() - start - measure_decoding(genes), outcome


def read_accept(genes: Genes) -> str:
    """Return the Accept header of a request; older saved requests have none."""
    return str(genes.get("accept", "*/*"))


def mutate(genes: Genes, generator: random.Random) -> Genes:
    """Change a few genes."""
    changed = dict(genes)
    for name in generator.sample(sorted(GENES), generator.choice((1, 1, 2, 3, 6))):
        changed[name] = generator.choice(GENES[name])
    return changed


def measure_decoding(genes: Genes) -> float:
    """Return the CPU time of decoding the files of a request with OpenCV or libheif alone, in seconds."""
    files = [build_image(genes), *([encode_map(genes)] if genes["map"] != "none" else [])]
    start = time.process_time()
    for file in files:
        if file[4:12] == b"ftypheic":
            np.asarray(pillow_heif.open_heif(file))  # OpenCV does not decode it
        else:
            cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_UNCHANGED)
    return time.process_time() - start


def worst_request() -> dict[str, float]:
    """CPU time of the saved request that costs most in addition to decoding its files, regardless of the response.

    `seconds` is the CPU time of the most expensive request, `decoding_s` that of decoding its files with OpenCV alone
    in the same run, and `ratio` the ratio of the two.
    """
    cv2.setNumThreads(0)
    costs = []
    with service(WORKERS="1") as server:
        post(server.port, *inputs.small_request())
        for genes in json.loads(SAVED.read_text()):
            body, rounds, bare = build(genes), [], []
            for _ in range(ROUNDS):
                before = server.cpu_s()
                post(server.port, body, MULTIPART, accept=read_accept(genes))
                rounds.append(server.cpu_s() - before)
                bare.append(measure_decoding(genes))
            costs.append((min(rounds), min(bare)))  # other load can only increase it
    total_s, decoding_s = max(costs)
    return {
        "added_s": round(max(cost - bare for cost, bare in costs), 3),
        "seconds": round(total_s, 3),
        "decoding_s": round(decoding_s, 3),
        "ratio": round(total_s / decoding_s, 2),
        "requests": len(costs),
    }


def worst_request_others() -> dict[str, float]:
    """Latency of the sample while four other callers at different addresses send the saved requests in turn."""
    bodies = [build(genes) for genes in json.loads(SAVED.read_text())]
    sample = inputs.multipart_request()
    stop = threading.Event()
    sent = [0] * CALLERS

    def send_worst(number: int) -> None:
        while not stop.is_set():
            body = bodies[(number * len(bodies) // CALLERS + sent[number]) % len(bodies)]
            post(server.port, body, MULTIPART, source=f"127.0.0.{number + 2}")
            sent[number] += 1

    with service(WORKERS="2") as server:
        post(server.port, *sample)
        threads = [threading.Thread(target=send_worst, args=(number,)) for number in range(CALLERS)]
        for thread in threads:
            thread.start()
        times, failed = [], 0
        end = time.monotonic() + LOAD_S
        try:
            while time.monotonic() < end:
                start = time.monotonic()
                failed += post(server.port, *sample, source="127.0.0.9") != http.client.OK
                times.append(time.monotonic() - start)
                time.sleep(SAMPLE_PAUSE_S)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    return {
        "p99_s": round(statistics.quantiles(times, n=100)[-1], 3),
        "p50_s": round(statistics.median(times), 3),
        "requests": len(times),
        "failed": failed,
        "worst_sent": sum(sent),
    }


def post(port: int, body: bytes, content_type: str, source: str = "127.0.0.1", accept: str = "*/*") -> int:
    """Send one request on a new connection, and return the status; 0 if the connection failed."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S, source_address=(source, 0))
    try:
        connection.request("POST", "/api/v1/frontal/crop", body, {"Content-Type": content_type, "Accept": accept})
        response = connection.getresponse()
        response.read()
    except (OSError, http.client.HTTPException):
        return 0
    else:
        return response.status
    finally:
        connection.close()


def search(seed: int, seconds: float, saved: list[Genes]) -> list[tuple[float, str, Genes]]:
    """Return the worst requests found, most expensive first."""
    generator = random.Random(seed)  # noqa: S311 - reproducible
    cv2.setNumThreads(0)
    service = CropService(ImageLimits())
    found: list[tuple[float, str, Genes]] = []
    seen: set[bytes] = set()
    pending = list(saved)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if pending:
            genes = pending.pop()
        elif found and generator.random() < 0.8:  # noqa: PLR2004 - mostly near the worst requests
            genes = mutate(generator.choice(found)[2], generator)
        else:
            genes = {name: generator.choice(values) for name, values in GENES.items()}
        key = msgspec.json.encode(genes)
        if key in seen:
            continue
        seen.add(key)
        cost, outcome = measure(service, genes)
        if len(found) < KEEP or cost > found[-1][0]:
            again, outcome = measure(service, genes)
            found.append((min(cost, again), outcome, genes))
            found.sort(key=lambda one: -one[0])
            del found[KEEP:]
            print(f"maximum {found[0][0]:.3f} s; new {min(cost, again):.3f} s, {outcome}", flush=True)
    print(f"{len(seen)} requests tried")
    return found


def main() -> None:
    """Search, and save the worst requests found."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.worst_request",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the random choices (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=120, help="duration of the search (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=SAVED, help="file for the worst requests (default: %(default)s)")
    arguments = parser.parse_args()
    saved = json.loads(arguments.output.read_text()) if arguments.output.exists() else []
    found = search(arguments.seed, arguments.seconds, saved)
    arguments.output.write_text(json.dumps([genes for _, _, genes in found], indent=1) + "\n")
    for cost, outcome, genes in found:
        print(f"{cost:.3f} s  {outcome}  {json.dumps(genes)}")


if __name__ == "__main__":
    main()

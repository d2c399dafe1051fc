"""The sample photo with its landmarks and label map, as bytes and as requests; small files of every format."""

from __future__ import annotations

import base64
import struct
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, settings
from prometheus_client import values

from app import PACKAGE_MODELS
from app.main import install_metrics
from app.observability import metrics, multiprocess
from app.service.crop import CropInput
from app.service.detector_pool import DetectorPool
from app.service.options import CropOptions
from app.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

# No time limit per example, because other programs use the machine too.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")

# Folders and files of this folder that `make test` leaves out, so that it takes at most 6 minutes on two idle cores:
# those that take longest, or are least likely to fail alone. `make test-all` runs them too.
SLOW = (
    "benchmarks/test_documented_day.py",
    "browser",
    "e2e",
    "chart/test_combinations.py",
    "chart/test_helm_versions.py",
    "chart/test_monitoring.py",
    "chart/test_nats.py",
    "chart/test_network.py",
    "chart/test_references.py",
    "chart/test_render.py",
    "chart/test_subchart.py",
    "chart/test_upgrades.py",
    "contracts/test_compose.py",
    "contracts/test_image.py",
    "contracts/test_rules_scenarios.py",
    "contracts/test_sbom.py",
    "face/test_contours.py",
    "live/doctor",
    "live/process",
    "live/test_addresses.py",
    "live/test_alerts.py",
    "live/test_api_clients.py",
    "live/test_callers.py",
    "live/test_console.py",
    "live/test_counters.py",
    "live/test_dashboards.py",
    "live/test_documented_commands.py",
    "live/test_embedded.py",
    "live/test_error_codes.py",
    "live/test_exporter_connections.py",
    "live/test_fairness.py",
    "live/test_file_descriptors.py",
    "live/test_hostile_connections.py",
    "live/test_hostile_images.py",
    "live/test_hostile_requests.py",
    "live/test_memory.py",
    "live/test_metrics_storage.py",
    "live/test_monitor.py",
    "live/test_normal_traffic.py",
    "live/test_openapi.py",
    "live/test_processes.py",
    "live/test_prometheus.py",
    "live/test_queue_cluster.py",
    "live/test_queue_wait.py",
    "live/test_restart.py",
    "live/test_slow_readers.py",
    "live/test_slow_senders.py",
    "live/test_stopping.py",
    "live/test_storage.py",
    "live/test_tasks_campaign.py",
    "live/test_tasks_faults.py",
    "live/test_tasks_recovery.py",
    "live/test_tracing.py",
    "service/test_orientation.py",
    "supervisor/test_managed_processes.py",
    "tasks/test_connection.py",
    "tasks/test_damaged_consumers.py",
    "tasks/test_other_clients.py",
    "tasks/test_queue.py",
    "tasks/test_worker.py",
    "web/routes/test_all_faces.py",
)

EXAMPLES = Path(__file__).parents[1] / "examples"
BOUNDARY = "limit-9f2c"
SIDE = 512


@pytest.hookimpl(tryfirst=True)  # before tests are deselected by their markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the slow tests."""
    root = Path(__file__).parent
    for item in items:
        if item.path.relative_to(root).as_posix().startswith(SLOW):
            item.add_marker(pytest.mark.slow)


@dataclass(frozen=True)
class Sample:
    """A photo of one face, 512 x 512, with 478 landmarks in pixels and a label map of another size.

    Attributes:
        photo: the photo, a PNG of 0.8 MB.
        landmarks: a JSON list of objects with x and y, in pixels.
        labels: a grey PNG of label ids.
    """

    photo: bytes
    landmarks: bytes
    labels: bytes

    @cached_property
    def points(self) -> list[dict[str, float]]:
        """The landmarks as the list of objects that the file holds."""
        points: list[dict[str, float]] = orjson.loads(self.landmarks)
        return points

    @cached_property
    def pairs(self) -> list[list[float]]:
        """The landmarks as pairs."""
        return [[point["x"], point["y"]] for point in self.points]

    @cached_property
    def pixels(self) -> np.ndarray:
        """The photo with most of its detail gone, so that its files are small."""
        small = cv2.resize(cv2.imdecode(np.frombuffer(self.photo, np.uint8), cv2.IMREAD_COLOR), (32, 32))
        return cv2.resize(small, (SIDE, SIDE), interpolation=cv2.INTER_NEAREST)

    @cached_property
    def png(self) -> bytes:
        """A small PNG of the photo."""
        return self.encode(".png", self.pixels)

    @cached_property
    def jpeg(self) -> bytes:
        """A small JPEG of the photo."""
        return self.encode(".jpg", self.pixels, cv2.IMWRITE_JPEG_QUALITY, 50)

    @cached_property
    def webp(self) -> bytes:
        """A small lossy WebP of the photo."""
        return self.encode(".webp", self.pixels, cv2.IMWRITE_WEBP_QUALITY, 50)

    @cached_property
    def lossless_webp(self) -> bytes:
        """A small lossless WebP of the photo."""
        return self.encode(".webp", self.pixels, cv2.IMWRITE_WEBP_QUALITY, 101)

    def fields(self, **fields: Any) -> dict[str, Any]:
        """Build the fields of a good request around the small JPEG, with some replaced or added; bytes as base64."""
        given = {"image": self.jpeg, "landmarks": self.pairs, **fields}
        return {
            name: base64.b64encode(value).decode() if isinstance(value, bytes) else value
            for name, value in given.items()
        }

    def json(self, **fields: Any) -> bytes:
        """Build the body of a good JSON request, with some fields replaced or added."""
        return orjson.dumps(self.fields(**fields))

    def form(self, *more: tuple[str, bytes], **fields: bytes | None) -> bytes:
        """Build the body of a good multipart request; None leaves a part out, and ``more`` comes last."""
        given = {"image": self.jpeg, "landmarks": self.landmarks, **fields}
        parts = [(name, value) for name, value in given.items() if value is not None]
        return self.parts(*(self.part(name, value) for name, value in [*parts, *more]))

    @staticmethod
    def encode(extension: str, pixels: np.ndarray, *settings: int) -> bytes:
        """Write pixels as a file."""
        return cv2.imencode(extension, pixels, settings)[1].tobytes()

    @staticmethod
    def png_chunk(kind: bytes, content: bytes = b"") -> bytes:
        """Build a chunk with a right checksum."""
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    @classmethod
    def png_file(cls, width: int, height: int, data: bytes, *, depth: int = 8, colour: int = 0) -> bytes:
        """Build a PNG around compressed data that need not fit its header."""
        header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
        chunks = (b"IHDR", header), (b"IDAT", data), (b"IEND", b"")
        return b"\x89PNG\r\n\x1a\n" + b"".join(cls.png_chunk(*chunk) for chunk in chunks)

    @staticmethod
    def part(name: str, value: bytes, headers: str = "") -> bytes:
        """Build one part of a form."""
        return f'Content-Disposition: form-data; name="{name}"\r\n{headers}\r\n'.encode() + value

    @staticmethod
    def parts(*parts: bytes) -> bytes:
        """Put parts between the boundaries of ``multipart``."""
        return (
            b"".join(f"--{BOUNDARY}\r\n".encode() + part + b"\r\n" for part in parts) + f"--{BOUNDARY}--\r\n".encode()
        )

    @property
    def multipart(self) -> str:
        """The content type of ``form``."""
        return f"multipart/form-data; boundary={BOUNDARY}"


@pytest.fixture(scope="session")
def sample() -> Sample:
    """Give the sample."""
    return Sample(
        photo=(EXAMPLES / "astronaut.png").read_bytes(),
        landmarks=(EXAMPLES / "astronaut.landmarks.json").read_bytes(),
        labels=(EXAMPLES / "astronaut.labels.png").read_bytes(),
    )


@pytest.fixture(scope="session")
def face_models() -> Path:
    """Give the folder of the models; tests that need them are skipped if they are not installed."""
    if not DetectorPool().has_models:
        pytest.skip("no models; `make models` gets them")
    return PACKAGE_MODELS


@pytest.fixture
def scrape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[tuple[str, ...], float]]:
    """Enable metrics, and return a function that reads them: name and label values, in the order of the labels."""
    monkeypatch.setattr(values, "ValueClass", values.ValueClass)
    monkeypatch.setattr(metrics, "_objects", {})
    monkeypatch.setattr(multiprocess, "_identity", "worker-0")
    monkeypatch.setenv(multiprocess.DIRECTORY_VARIABLE, "")
    folder = install_metrics(Settings(prometheus_multiproc_dir=tmp_path / "values"))

    def read() -> dict[tuple[str, ...], float]:
        return {
            (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
            for family in multiprocess.scrape_registry(folder).collect()
            for sample in family.samples
        }

    return read


@pytest.fixture(scope="session")
def make_input(sample: Sample) -> Callable[..., CropInput]:
    """Give ``make_input(image=…, points=…, segmentation_map=…, **options)``, each the sample's unless given."""

    def make(
        *, image: bytes | None = None, points: Any = None, segmentation_map: Any = None, **options: Any
    ) -> CropInput:
        return CropInput(
            image=sample.jpeg if image is None else image,
            points=np.array(sample.pairs if points is None else points, np.float64),
            segmentation_map=segmentation_map,
            options=CropOptions(**options),
        )

    return make

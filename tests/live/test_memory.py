"""The largest images, sent by several callers at once, fit into the chart's default memory limit."""

from __future__ import annotations

import os
import re
import threading
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import httpx
import numpy as np
import pytest
import yaml

from app.settings import MIB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from tests.conftest import Sample
    from tests.live.conftest import RunningService

pytestmark = pytest.mark.live

CROP = "/api/v1/frontal/crop"
VALUES = Path(__file__).parents[2] / "charts" / "facial-service" / "values.yaml"
CGROUPS = Path("/sys/fs/cgroup")
SIDE = 8000
CALLERS = 4
ROUNDS = 2
LIMIT_S = 120.0


class LimitedCgroup:
    """A control group with a memory limit, version 1 or 2."""

    def __init__(self, limit: int) -> None:
        lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
        self.is_v1 = any("memory" in controllers.split(",") for _, controllers, _ in lines)
        root = CGROUPS / "memory" if self.is_v1 else CGROUPS
        own = next(path for _, names, path in lines if ("memory" in names.split(",") if self.is_v1 else not names))
        self.home = root / own.lstrip("/")
        self.folder = root / f"facial-service-test-{os.getpid()}"
        self.folder.mkdir()
        try:
            (self.folder / ("memory.limit_in_bytes" if self.is_v1 else "memory.max")).write_text(str(limit))
        except OSError:
            self.folder.rmdir()
            raise

    @contextmanager
    def started_inside(self) -> Iterator[None]:
        """Let processes that start in the block belong to the group."""
        (self.folder / "cgroup.procs").write_text(str(os.getpid()))
        try:
            yield
        finally:
            (self.home / "cgroup.procs").write_text(str(os.getpid()))

    def count_kills(self) -> int:
        text = (self.folder / ("memory.oom_control" if self.is_v1 else "memory.events")).read_text()
        found = re.search(r"oom_kill (\d+)", text)
        assert found is not None
        return int(found[1])

    def peak_bytes(self) -> int:
        return int((self.folder / ("memory.max_usage_in_bytes" if self.is_v1 else "memory.peak")).read_text())


@pytest.fixture
def cgroup() -> Iterator[LimitedCgroup]:
    """A control group with the memory limit of the chart's API pods."""
    limit = yaml.safe_load(VALUES.read_text())["api"]["resources"]["limits"]["memory"]
    try:
        group = LimitedCgroup(int(limit.removesuffix("Mi")) * MIB)
    except OSError as error:
        pytest.skip(f"no control group can be created: {error}")
    yield group
    group.folder.rmdir()


@pytest.fixture(scope="module")
def largest_png() -> bytes:
    """A PNG of 64 megapixels with transparency, which needs the most memory."""
    row = np.arange(SIDE, dtype=np.uint8)
    image = np.dstack([np.broadcast_to(row, (SIDE, SIDE))] * 4)
    return cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()


@pytest.mark.parametrize(
    ("options", "accept"),
    [
        ({"background": b"image", "output_size": b"256"}, "*/*"),
        ({"verify": b"pixels", "show_labels": b"true"}, "image/png"),  # an overlay of 64 megapixels
    ],
)
def test_the_largest_images_of_several_callers_fit_into_the_memory_limit(
    run_service: Callable[..., AbstractContextManager[RunningService]],
    cgroup: LimitedCgroup,
    largest_png: bytes,
    sample: Sample,
    options: dict[str, bytes],
    accept: str,
) -> None:
    small = sample.form()
    large = sample.form(image=largest_png, **options)
    statuses: list[int] = []
    is_done = threading.Event()
    with ExitStack() as stack:
        with cgroup.started_inside():
            service = stack.enter_context(run_service(WORKERS=2))
        before = {process.pid for process in service.workers()}

        def client_of(number: int) -> httpx.Client:
            transport = httpx.HTTPTransport(local_address=f"127.0.0.{number + 2}")
            headers = {"Content-Type": sample.multipart, "Accept": accept}
            return httpx.Client(base_url=service.api, transport=transport, headers=headers, timeout=LIMIT_S)

        def send_large(number: int) -> None:
            with client_of(number) as client:
                # Cheap requests first, so that the express thread may take the next ones.
                bodies = [small] * 5 + [large] * ROUNDS
                statuses.extend(client.post(CROP, content=body).status_code for body in bodies)

        def send_small() -> None:
            with client_of(CALLERS) as client:
                while not is_done.is_set():
                    statuses.append(client.post(CROP, content=small).status_code)

        other = threading.Thread(target=send_small)
        threads = [threading.Thread(target=send_large, args=(number,)) for number in range(CALLERS)]
        for thread in (other, *threads):
            thread.start()
        for thread in threads:
            thread.join()
        is_done.set()
        other.join()
        assert set(statuses) == {200}
        assert cgroup.count_kills() == 0
        assert {process.pid for process in service.workers()} == before
        assert cgroup.peak_bytes() > 2 * 4 * SIDE * SIDE, "both workers decoded images"

"""Images sent to a running service: the same results as locally, through restarts and overload of the service."""

from __future__ import annotations

import json
import random
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Sample
    from tests.live.conftest import RunningService

pytestmark = pytest.mark.live

COUNT = 24
KEY, WRONG = "QXright-key", "QXwrong-key"
ALL_FORMATS = ("--format", "png", "--format", "svg", "--format", "json")


def contents(out: Path) -> dict[str, bytes | dict[str, Any]]:
    """Return every result, without the processing time in JSON documents."""
    return {
        str(path.relative_to(out)): {**json.loads(path.read_bytes()), "processing_time_ms": 0}
        if path.suffix == ".json"
        else path.read_bytes()
        for path in out.rglob("[!.]*.*")
    }


def free_port() -> int:
    """Return a free port outside the range of outgoing connections, so that none takes it before the service."""
    for port in random.sample(range(10_000, 20_000), 1000):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise OSError("no port is free")


@pytest.fixture(scope="module")
def images(make_images: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("remote") / "in"
    make_images(folder, COUNT)
    return folder


@pytest.mark.parametrize(
    "options",
    [
        ("--show-landmarks", "--stroke-width", "2.5"),
        ("--upright", "--crop", "face", "--background", "image", "--show-labels", "--show-landmarks"),
        ("--segmentation-map", "{dir}/../{stem}.labels.png", "--simplify", "0"),
        ("--face", "all", "--upright", "--crop", "face", "--background", "image"),
    ],
)
def test_results_equal_those_of_a_local_run(
    service: RunningService,
    run_process: Callable[..., Any],
    make_images: Callable[..., Any],
    sample: Sample,
    tmp_path: Path,
    options: tuple[str, ...],
) -> None:
    for image in make_images(tmp_path / "in", 3):
        (tmp_path / f"{image.stem}.labels.png").write_bytes(sample.labels)
    local, remote = tmp_path / "local", tmp_path / "remote"
    for out, how in ((local, ()), (remote, ("--url", service.api + "/"))):
        done = run_process(tmp_path / "in", "--out", out, *ALL_FORMATS, *options, *how)
        assert done.status == 0, done.stderr
    results = contents(remote)
    assert len(results) == 9
    assert results == contents(local)


@pytest.mark.usefixtures("face_models")
def test_service_detects_landmarks(
    service: RunningService, run_process: Callable[..., Any], sample: Sample, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "face.png").write_bytes(sample.photo)
    (folder / "bad.png").write_bytes(sample.photo)
    (folder / "bad.landmarks.json").write_text("[[1,2]]")
    for out, how in (("local", ()), ("remote", ("--url", service.api))):
        done = run_process(folder, "--out", tmp_path / out, *ALL_FORMATS, "--show-landmarks", "--json", *how)
        assert done.codes == {str(folder / "bad.png"): "landmarks_count"}
        assert (done.summary["done"], done.summary["landmarks_found"]) == (1, 1)
    assert contents(tmp_path / "local") == contents(tmp_path / "remote")


def test_run_continues_after_a_restart_of_the_service(
    run_service: Callable[..., Any],
    start_process: Callable[..., Any],
    wait_until: Callable[..., Any],
    images: Path,
    tmp_path: Path,
) -> None:
    port, out = free_port(), tmp_path / "out"
    settings = {"PORT": port, "WORKERS": 1, "FAULT_WORK_S": 0.05}
    with run_service(**settings):
        process = start_process(images, "--out", out, "--url", f"http://127.0.0.1:{port}", "--json")
        wait_until(lambda: len(list(out.glob("*.svg"))) >= 2, limit_s=60, what="first results")
    assert process.poll() is None
    with run_service(**settings):
        stdout, _ = process.communicate(timeout=120)
    summary = json.loads(stdout)
    assert (process.returncode, summary["done"], summary["failed"]) == (0, COUNT, [])


def test_service_at_capacity_processes_every_image(
    run_service: Callable[..., Any], run_process: Callable[..., Any], images: Path, tmp_path: Path
) -> None:
    with run_service(WORKERS=1, MAX_CONCURRENCY=1, FAULT_WORK_S=0.05) as service:
        done = run_process(images, "--out", tmp_path / "out", "--url", service.api, "--jobs", 4, "--json")
        assert service.wait_for_lines(lambda line: line.get("status") == 503)
    assert (done.status, done.summary["done"], done.summary["failed"]) == (0, COUNT, [])


def test_unreachable_service_ends_the_run_and_the_next_run_resumes(
    run_service: Callable[..., Any],
    start_process: Callable[..., Any],
    run_process: Callable[..., Any],
    wait_until: Callable[..., Any],
    images: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    with run_service(WORKERS=1, FAULT_WORK_S=0.05) as service:
        arguments = (images, "--out", out, "--url", service.api, "--stall-timeout", 1, "--json")
        process = start_process(*arguments)
        wait_until(lambda: len(list(out.glob("*.svg"))) >= 2, limit_s=60, what="first results")
    stdout, _ = process.communicate(timeout=60)
    summary = json.loads(stdout)
    assert process.returncode == 1
    assert summary["error"].startswith("no progress for 1 s (--stall-timeout): service is unreachable: ")
    assert summary["done"] + summary["not_begun"] + len(summary["failed"]) == COUNT
    assert summary["not_begun"] > 0
    done = run_process(images, "--out", out, "--json").summary  # A local run: results are the same.
    assert (done["skipped"], done["done"]) == (summary["done"], COUNT - summary["done"])


def test_api_key_is_required_and_never_printed(
    run_service: Callable[..., Any], run_process: Callable[..., Any], images: Path, tmp_path: Path
) -> None:
    with run_service(WORKERS=1, API_KEYS=KEY) as service:
        arguments = (images, "--out", tmp_path / "out", "--url", service.api, "--json")
        for key in ("", WRONG):
            refused = run_process(*arguments, FACIAL_SERVICE_API_KEY=key)
            assert (refused.status, refused.summary["not_begun"]) == (1, COUNT)
            assert f"facial-service: {service.api}: 401 unauthorized: " in refused.stderr
            assert WRONG not in refused.stdout + refused.stderr
        assert run_process(*arguments, FACIAL_SERVICE_API_KEY=KEY).summary["done"] == COUNT
    odd = run_process(*arguments, FACIAL_SERVICE_API_KEY="QX\x01two words")
    assert (odd.status, odd.stdout) == (2, "")
    assert odd.stderr.startswith("facial-service: FACIAL_SERVICE_API_KEY: ")
    assert "QX" not in odd.stderr
    hidden = "".join(path.read_text() for path in (tmp_path / "out").glob(".*"))
    assert KEY not in hidden


@pytest.mark.parametrize(
    ("url", "status", "message"),
    [
        ("http://127.0.0.1:{port}", 1, "service is unreachable: "),
        ("http://no.such.host.invalid", 1, "service is unreachable: "),
        ("127.0.0.1:{port}", 2, "--url: expected a URL such as http://127.0.0.1:8000"),
        ("ftp://127.0.0.1", 2, "--url: expected a URL such as http://127.0.0.1:8000"),
        ("http://", 2, "--url: expected a URL such as http://127.0.0.1:8000"),
        ("http://a..b", 1, "service is unreachable: "),
        ("http://[::1", 2, "--url: expected a URL such as http://127.0.0.1:8000"),
        ("http://127.0.0.1\x01", 2, "--url: expected a URL such as http://127.0.0.1:8000"),
        ("http://127.0.0.1:x", 2, "--url: expected a URL such as http://127.0.0.1:8000"),
        ("http://QXuser:QXsecret@127.0.0.1:{port}", 2, "--url: expected a URL such as http://127.0.0.1:8000"),
    ],
)
def test_unreachable_or_invalid_url_is_reported(
    run_process: Callable[..., Any], images: Path, tmp_path: Path, url: str, status: int, message: str
) -> None:
    done = run_process(images, "--out", tmp_path / "out", "--url", url.format(port=free_port()), "--stall-timeout", 0.5)
    assert done.status == status
    assert f"facial-service: {message}" in done.stderr or (status == 1 and message in done.stderr)
    assert "QX" not in done.stderr
    assert "Traceback" not in done.stderr


def test_another_service_ends_the_run(
    service: RunningService, run_process: Callable[..., Any], images: Path, tmp_path: Path
) -> None:
    done = run_process(images, "--out", tmp_path / "out", "--url", service.metrics, "--json")
    assert (done.status, done.summary["not_begun"]) == (1, COUNT)
    assert "404" in done.summary["error"]

"""Photos sent to a running service: the results of this machine, whatever the service goes through meanwhile."""

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
    """Read every result; documents without the time that they took."""
    return {
        str(path.relative_to(out)): {**json.loads(path.read_bytes()), "processing_time_ms": 0}
        if path.suffix == ".json"
        else path.read_bytes()
        for path in out.rglob("[!.]*.*")
    }


def free_port() -> int:
    """Find a port that no outgoing connection takes before a service does."""
    for port in random.sample(range(10_000, 20_000), 1000):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise OSError("no port is free")


@pytest.fixture(scope="module")
def photos(make_photos: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("against") / "in"
    make_photos(folder, COUNT)
    return folder


@pytest.mark.parametrize(
    "options",
    [
        ("--show-landmarks", "--stroke-width", "2.5"),
        ("--upright", "--crop", "face", "--background", "image", "--show-labels", "--show-landmarks"),
        ("--segmentation-map", "{dir}/../{stem}.labels.png", "--simplify", "0"),
    ],
)
def test_results_are_those_of_this_machine(
    service: RunningService,
    run_process: Callable[..., Any],
    make_photos: Callable[..., Any],
    sample: Sample,
    tmp_path: Path,
    options: tuple[str, ...],
) -> None:
    for photo in make_photos(tmp_path / "in", 3):
        (tmp_path / f"{photo.stem}.labels.png").write_bytes(sample.labels)
    here, there = tmp_path / "here", tmp_path / "there"
    for out, how in ((here, ()), (there, ("--against", service.api + "/"))):
        done = run_process(tmp_path / "in", "--out", out, *ALL_FORMATS, *options, *how)
        assert done.status == 0, done.stderr
    made = contents(there)
    assert len(made) == 9
    assert made == contents(here)


@pytest.mark.usefixtures("face_models")
def test_landmarks_are_found_by_the_service(
    service: RunningService, run_process: Callable[..., Any], sample: Sample, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "face.png").write_bytes(sample.photo)
    (folder / "bad.png").write_bytes(sample.photo)
    (folder / "bad.landmarks.json").write_text("[[1,2]]")
    for out, how in (("here", ()), ("there", ("--against", service.api))):
        done = run_process(folder, "--out", tmp_path / out, *ALL_FORMATS, "--show-landmarks", "--json", *how)
        assert done.codes == {str(folder / "bad.png"): "landmarks_count"}
        assert (done.summary["done"], done.summary["landmarks_found"]) == (1, 1)
    assert contents(tmp_path / "here") == contents(tmp_path / "there")


def test_a_restart_of_the_service_is_waited_for(
    run_service: Callable[..., Any],
    start_process: Callable[..., Any],
    wait_until: Callable[..., Any],
    photos: Path,
    tmp_path: Path,
) -> None:
    port, out = free_port(), tmp_path / "out"
    settings = {"PORT": port, "WORKERS": 1, "FAULT_WORK_S": 0.05}
    with run_service(**settings):
        process = start_process(photos, "--out", out, "--against", f"http://127.0.0.1:{port}", "--json")
        wait_until(lambda: len(list(out.glob("*.svg"))) >= 2, limit_s=60, what="first results")
    assert process.poll() is None
    with run_service(**settings):
        stdout, _ = process.communicate(timeout=120)
    summary = json.loads(stdout)
    assert (process.returncode, summary["done"], summary["failed"]) == (0, COUNT, [])


def test_a_service_that_is_full_gets_every_photo_in_the_end(
    run_service: Callable[..., Any], run_process: Callable[..., Any], photos: Path, tmp_path: Path
) -> None:
    with run_service(WORKERS=1, MAX_CONCURRENCY=1, FAULT_WORK_S=0.05) as service:
        done = run_process(photos, "--out", tmp_path / "out", "--against", service.api, "--jobs", 4, "--json")
        assert service.wait_for_lines(lambda line: line.get("status") == 503)
    assert (done.status, done.summary["done"], done.summary["failed"]) == (0, COUNT, [])


def test_a_service_that_stays_away_ends_the_run_and_the_next_goes_on(
    run_service: Callable[..., Any],
    start_process: Callable[..., Any],
    run_process: Callable[..., Any],
    wait_until: Callable[..., Any],
    photos: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    with run_service(WORKERS=1, FAULT_WORK_S=0.05) as service:
        arguments = (photos, "--out", out, "--against", service.api, "--patience", 1, "--json")
        process = start_process(*arguments)
        wait_until(lambda: len(list(out.glob("*.svg"))) >= 2, limit_s=60, what="first results")
    stdout, _ = process.communicate(timeout=60)
    summary = json.loads(stdout)
    assert process.returncode == 1
    assert summary["error"].startswith("nothing was done for 1 s: the service does not answer: ")
    assert summary["done"] + summary["not_begun"] + len(summary["failed"]) == COUNT
    assert summary["not_begun"] > 0
    done = run_process(photos, "--out", out, "--json").summary  # in place this time: the results are the same
    assert (done["skipped"], done["done"]) == (summary["done"], COUNT - summary["done"])


def test_a_key_is_asked_for_and_never_told(
    run_service: Callable[..., Any], run_process: Callable[..., Any], photos: Path, tmp_path: Path
) -> None:
    with run_service(WORKERS=1, API_KEYS=KEY) as service:
        arguments = (photos, "--out", tmp_path / "out", "--against", service.api, "--json")
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
    notes = "".join(path.read_text() for path in (tmp_path / "out").glob(".*"))
    assert KEY not in notes


@pytest.mark.parametrize(
    ("url", "status", "sentence"),
    [
        ("http://127.0.0.1:{port}", 1, "no service answers there: "),
        ("http://no.such.host.invalid", 1, "no service answers there: "),
        ("127.0.0.1:{port}", 2, "--against: expected a URL such as http://127.0.0.1:8000"),
        ("ftp://127.0.0.1", 2, "--against: expected a URL such as http://127.0.0.1:8000"),
        ("http://", 2, "--against: expected a URL such as http://127.0.0.1:8000"),
        ("http://a..b", 1, "no service answers there: "),
        ("http://[::1", 2, "--against: expected a URL such as http://127.0.0.1:8000"),
        ("http://127.0.0.1\x01", 2, "--against: expected a URL such as http://127.0.0.1:8000"),
        ("http://127.0.0.1:x", 2, "--against: expected a URL such as http://127.0.0.1:8000"),
        ("http://QXuser:QXsecret@127.0.0.1:{port}", 2, "--against: expected a URL such as http://127.0.0.1:8000"),
    ],
)
def test_no_service_is_told_by_a_sentence(
    run_process: Callable[..., Any], photos: Path, tmp_path: Path, url: str, status: int, sentence: str
) -> None:
    done = run_process(photos, "--out", tmp_path / "out", "--against", url.format(port=free_port()), "--patience", 0.5)
    assert done.status == status
    assert f"facial-service: {sentence}" in done.stderr or (status == 1 and sentence in done.stderr)
    assert "QX" not in done.stderr
    assert "Traceback" not in done.stderr


def test_what_is_no_such_service_ends_the_run(
    service: RunningService, run_process: Callable[..., Any], photos: Path, tmp_path: Path
) -> None:
    done = run_process(photos, "--out", tmp_path / "out", "--against", service.metrics, "--json")
    assert (done.status, done.summary["not_begun"]) == (1, COUNT)
    assert "404" in done.summary["error"]

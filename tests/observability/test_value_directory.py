"""The directory of the metric files: locked by one instance, and removed after its end."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from app.observability import value_directory

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _own_claim(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr(value_directory, "_held", -1)
    monkeypatch.setattr(value_directory, "PREDECESSOR_S", 0.2)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield
    if value_directory._held >= 0:
        os.close(value_directory._held)


def instance_that_dies() -> Path:
    """Make a folder in a process that ends without removing it."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        folder = value_directory.make()
        (folder / "counter_worker-0.db").write_bytes(b"values")
        os.write(write, os.fsencode(folder))
        os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        return Path(os.fsdecode(pipe.read()))


def test_folder_of_a_dead_instance_is_removed() -> None:
    left = instance_that_dies()
    assert left.is_dir()
    made = value_directory.make()
    assert not left.exists()
    assert made.is_dir()


def test_folder_with_files_of_others_stays() -> None:
    left = instance_that_dies()
    (left / "notes.txt").touch()
    value_directory.make()
    assert [file.name for file in left.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("name", ["facial-service", "facial-service-metrics-", "facial-service-metrics-a.b", "other"])
def test_folders_of_others_stay(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir(mode=0o700)
    (folder / "counter_worker-0.db").touch()
    value_directory.make()
    assert (folder / "counter_worker-0.db").exists()


def test_links_and_shared_folders_stay(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir(mode=0o700)
    (target / "counter_worker-0.db").touch()
    (tmp_path / "facial-service-metrics-link").symlink_to(target)
    shared = tmp_path / "facial-service-metrics-shared"
    shared.mkdir()
    shared.chmod(0o777)
    value_directory.make()
    assert (target / "counter_worker-0.db").exists()
    assert shared.exists()


def test_folder_of_a_running_instance_stays_until_its_last_process_ends() -> None:
    made = value_directory.make()
    child = os.fork()
    if not child:  # a worker that outlives its master
        signal.pause()
    os.close(value_directory._held)
    value_directory._held = -1
    value_directory.remove_stale(made.parent)
    assert made.exists()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    value_directory.remove_stale(made.parent)
    assert not made.exists()


def test_named_folder_has_one_instance(tmp_path: Path) -> None:
    folder = tmp_path / "named"
    value_directory.claim(folder)
    assert value_directory.claim(folder) == folder, "the same process may claim it again"
    child = os.fork()
    if not child:
        value_directory._held = -1  # like another program, without the descriptor of the first
        try:
            value_directory.claim(folder)
        except OSError as error:
            os._exit(0 if "in use by another instance" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_named_folder_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(value_directory, "PREDECESSOR_S", 60)
    folder = tmp_path / "named"
    folder.mkdir()
    read, write = os.pipe()
    child = os.fork()
    if not child:
        value_directory.claim(folder)
        os.write(write, b"x")
        time.sleep(0.3)
        os._exit(0)
    os.read(read, 1)
    assert value_directory.claim(folder) == folder
    os.waitpid(child, 0)

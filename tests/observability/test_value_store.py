"""Metric files and values: the format of prometheus_client, damaged files, and values that cannot be written."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.multiprocess import MultiProcessCollector

from app.observability import metrics, multiprocess, recording, value_store
from app.observability.value_store import CorruptFileError, StoredValue, ValueFile, ValueStore, read_file, series_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Scrape = Callable[[], dict[Any, float]]

KEYS = [mmap_key("a_total", "a_total", ["x"], [text], "Help.") for text in ("", "1", "12", "123", "é", "a" * 3000)]
LANDMARKS = ("landmarks_processed_total",)


def counter(store: ValueStore, name: str = "a_total") -> StoredValue:
    return StoredValue(store, "counter", mmap_key(name, name, [], [], "Help."), "")


def test_library_reads_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "counter_worker-0.db"
    file = ValueFile(path)
    for number, key in enumerate(KEYS):
        index = file.find(key)
        assert file.numbers[index] == 0
        file.numbers[index], file.numbers[index + 1] = number + 0.5, 7.0
        file.changed.append(index)
    file.flush()
    expected = [(key, number + 0.5, 7.0) for number, key in enumerate(KEYS)]
    assert [entry[:3] for entry in MmapedDict.read_all_values_from_file(path)] == expected
    assert read_file(path) == expected


def test_files_of_the_library_are_continued(tmp_path: Path) -> None:
    path = tmp_path / "counter_worker-0.db"
    library = MmapedDict(str(path))
    for key in KEYS:
        library.write_value(key, 3.0, 0.0)
    library.close()
    file = ValueFile(path)
    assert [file.numbers[file.find(key)] for key in KEYS] == [3.0] * len(KEYS)


def test_library_merges_to_the_same_values(scrape: Scrape, tmp_path: Path) -> None:
    for slot in ("worker-0", "worker-1"):
        multiprocess.set_identity(slot)
        recording.record_landmarks_processed(478)
        metrics.child("api_requests_in_progress", "POST", "/x").inc()
        metrics.child("api_request_duration_seconds", "POST", "/x").observe(0.2)
    library = {
        (sample.name, *[value for _, value in sorted(sample.labels.items())]): sample.value
        for family in MultiProcessCollector(None, path=str(tmp_path / "values")).collect()
        for sample in family.samples
    }
    assert library.items() <= scrape().items()
    assert library[LANDMARKS] == 956
    assert library["api_request_duration_seconds_count", "/x", "POST"] == 2


def test_record_changes_the_same_values_as_the_library(scrape: Scrape) -> None:
    labels = ("POST", "/x")
    amounts = (0.0, 0.005, 0.0050001, 0.1, 7.0, 1e9)  # on a bound, between bounds, and above the highest

    def values() -> dict[Any, float]:
        return {key: value for key, value in scrape().items() if key[0].startswith(("api_request", "regions"))}

    def difference(before: dict[Any, float]) -> dict[Any, float]:
        return {key: value - before.get(key, 0.0) for key, value in values().items()}

    histogram = metrics.child("api_request_duration_seconds", *labels)
    gauge = metrics.child("api_requests_in_progress", *labels)
    counter_of_regions = metrics.child("regions_generated_total", "nose")
    start = values()
    for amount in amounts:
        histogram.observe(amount)
    gauge.inc()
    counter_of_regions.inc(3)
    by_library, start = difference(start), values()
    multiprocess.record([(series_of(histogram), amount) for amount in amounts])
    regions = series_of(counter_of_regions)
    multiprocess.record([(series_of(gauge), 1), (regions, 1), (regions, 2)])
    assert difference(start) == pytest.approx(by_library)
    assert by_library["api_request_duration_seconds_count", "/x", "POST"] == len(amounts)


def test_values_of_a_request_are_written_together(scrape: Scrape, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    pwrite = os.pwrite

    def counted(descriptor: int, data: bytes, position: int) -> int:
        sizes.append(len(data))
        return pwrite(descriptor, data, position)

    def request() -> None:
        with recording.deferred():
            for step in ("parse", "sniff", "contours", "svg", "document"):
                with recording.image_step(step):
                    pass
            for region in ("skin", "nose", "left_eye", "right_eye", "upper_lip", "lower_lip"):
                recording.record_region_generated(region)
            recording.record_landmarks_processed(478)
            recording.record_response("POST", "/x", "200", duration_s=0.1)
            assert not sizes, "a value was written before the response"

    request()
    sizes.clear()
    monkeypatch.setattr(os, "pwrite", counted)
    request()
    assert 1 <= len(sizes) <= 6, sizes
    assert scrape()[LANDMARKS] == 2 * 478


def test_blocks_are_allocated(tmp_path: Path) -> None:
    path = tmp_path / "counter_worker-0.db"
    file = ValueFile(path)
    for number in range(600):
        file.find(mmap_key("a_total", "a_total", ["x"], ["a" * 100 + str(number)], "Help."))
    found = path.stat()
    assert found.st_size == 2 * value_store.INITIAL_BYTES
    assert 512 * found.st_blocks >= found.st_size


@given(st.binary(max_size=400), st.integers(0, 200))
def test_any_bytes_are_read_or_rejected(tmp_path_factory: pytest.TempPathFactory, noise: bytes, at: int) -> None:
    path = tmp_path_factory.mktemp("noise") / "counter_worker-0.db"
    file = ValueFile(path)
    for key in KEYS[:3]:
        file.find(key)
    file.close()
    with path.open("r+b") as written:
        written.seek(at)
        written.write(noise)
    with contextlib.suppress(CorruptFileError):
        assert len(read_file(path)) < 1000
    again = ValueFile(path)  # reset if it is corrupt
    again.find(KEYS[0])
    again.close()
    read_file(path)


@pytest.mark.parametrize("content", [b"\xff" * 65536, b"\x10", b"\x00\x00\x01\x00" + bytes(12), b"garbage" * 1000])
def test_corrupt_file_does_not_affect_others(
    scrape: Scrape, tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    recording.record_landmarks_processed(478)
    corrupt = tmp_path / "values" / "counter_worker-9.db"
    corrupt.write_bytes(content)
    with caplog.at_level(logging.ERROR):
        counted = scrape()
    assert counted[LANDMARKS] == 478
    assert counted["multiprocess_unreadable_files",] == 1
    assert str(corrupt) in caplog.text
    multiprocess.set_identity("worker-9")  # its successor resets the file
    recording.record_landmarks_processed(478)
    counted = scrape()
    assert counted[LANDMARKS] == 956
    assert counted["multiprocess_unreadable_files",] == 0


def test_other_file_types_are_skipped(scrape: Scrape, tmp_path: Path) -> None:
    recording.record_landmarks_processed(478)
    folder = tmp_path / "values"
    os.mkfifo(folder / "counter_worker-5.db")
    (folder / "counter_worker-6.db").mkdir()
    (folder / "counter_worker-7.db").symlink_to("/dev/zero")
    assert scrape()[LANDMARKS] == 478


def remove(folder: Path) -> None:
    shutil.rmtree(folder)


def rename(folder: Path) -> None:
    folder.rename(folder.with_name("renamed"))


def empty(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def truncate(folder: Path) -> None:
    for file in folder.iterdir():
        os.truncate(file, 0)


def overwrite(folder: Path) -> None:
    for file in folder.iterdir():
        file.write_bytes(b"garbage" * 10_000)


@pytest.mark.parametrize("damage", [remove, rename, empty, truncate, overwrite])
def test_damage_is_repaired_without_loss(scrape: Scrape, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    recording.record_landmarks_processed(478)
    damage(tmp_path / "values")
    recording.record_landmarks_processed(478)
    scrape()  # does not fail
    multiprocess.maintain()
    recording.record_landmarks_processed(478)
    counted = scrape()
    assert counted[LANDMARKS] == 3 * 478
    assert counted["multiprocess_unreadable_files",] == 0
    assert not multiprocess.is_failing()


def test_folder_replaced_by_a_file(scrape: Scrape, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "values"
    shutil.rmtree(folder)
    folder.touch()
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            multiprocess.maintain()
            recording.record_landmarks_processed(478)
        assert multiprocess.is_failing()
        assert scrape()["multiprocess_files",] == 0
        folder.unlink()
        multiprocess.maintain()
    assert not multiprocess.is_failing()
    assert scrape()[LANDMARKS] == 3 * 478
    lines = [record.getMessage() for record in caplog.records if "etrics of" in record.getMessage()]
    assert ["cannot be written" in line for line in lines] == [True, False], lines
    assert "Not a directory" in lines[0]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EMFILE, errno.EROFS, errno.EACCES])
def test_values_are_kept_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    slot = "worker-0"
    store = ValueStore(tmp_path, lambda: slot)
    first = counter(store)
    first.inc(1)

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as broken:
        for name in ("open", "posix_fallocate", "pwrite"):
            broken.setattr(os, name, fail)
        first.inc(1)
        assert store.is_failing
        second = counter(store, "b_total")
        second.inc(5)
        store.maintain()
        assert store.is_failing
        assert (first.get(), second.get()) == (2, 5)
    store.maintain()
    assert not store.is_failing
    assert [value for _, value, _ in read_file(tmp_path / "counter_worker-0.db")] == [2, 5]


def test_process_that_starts_without_room_continues_counters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slots = ["worker-0"]
    store = ValueStore(tmp_path, lambda: slots[0])
    value = counter(store)
    value.inc(40)
    slots[0] = "worker-1"
    value.inc(7)
    with monkeypatch.context() as full:
        full.setattr(os, "posix_fallocate", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        slots[0] = "worker-0"  # the successor of the first
        value.inc(2)
        assert store.is_failing
    store.maintain()
    assert [entry[1] for entry in read_file(tmp_path / "counter_worker-0.db")] == [42]
    assert [entry[1] for entry in read_file(tmp_path / "counter_worker-1.db")] == [7]


def test_live_gauge_starts_at_zero(tmp_path: Path) -> None:
    key = mmap_key("g", "g", [], [], "Help.")
    for _ in range(2):  # the file of the first was not removed, because the directory was read-only
        gauge = StoredValue(ValueStore(tmp_path, lambda: "worker-0"), "gauge", key, "livesum")
        gauge.inc(1)
    assert [value for _, value, _ in read_file(tmp_path / "gauge_livesum_worker-0.db")] == [1]

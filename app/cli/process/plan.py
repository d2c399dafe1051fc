"""What a run is to do: each photo with what belongs to it and where its results go, and what needs no work."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from app.cli.process.inputs import explain, show
from app.cli.process.jobs import Job
from app.cli.process.naming import fill_pattern, name_results
from app.cli.process.outputs import OutputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from app.cli.process.inputs import Found, Photo
    from app.cli.process.jobs import Format
    from app.cli.process.outputs import OutputFolder

BESIDE = os.path.join("{dir}", "{stem}.landmarks.json")


class Failure(NamedTuple):
    """A photo, or a folder, that there is no result of."""

    path: str
    code: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is asked for.

    Attributes:
        inputs: photos and folders.
        formats: of the results.
        landmarks: pattern of the files that landmarks are in.
        label_map: pattern of the files that segmentation maps are in; None for none.
        detect: find landmarks: always, never, or where there is no file (None).
    """

    inputs: Sequence[str]
    formats: tuple[Format, ...]
    landmarks: str = BESIDE
    label_map: str | None = None
    detect: bool | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done.

    Attributes:
        jobs: photos without all of their results.
        done: jobs whose results are all there.
        failed: what cannot even be begun.
    """

    jobs: list[Job] = field(default_factory=list)
    done: list[Job] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)

    @property
    def is_renamed(self) -> bool:
        """Whether there are photos of one name, so that their results have the whole names."""
        return any(_stem_of_result(job) == os.path.basename(job.photo) for job in (*self.jobs, *self.done))


def _stem_of_result(job: Job) -> str:
    return os.path.splitext(os.path.basename(job.results[0]))[0]


def make_plan(wish: Wish, found: Found, out: OutputFolder) -> Plan:
    """Pair photos with what belongs to them, and set apart those that are done.

    Args:
        wish: what is asked for.
        found: the photos there are.
        out: where results go.

    Raises:
        OutputError: a result would take the place of an input.
    """
    plan = Plan(failed=[Failure(*one) for one in found.unreadable])
    names = name_results([(photo.sub, os.path.basename(photo.path)) for photo in found.photos])
    sources: set[str] = set()
    for number, (photo, name) in enumerate(zip(found.photos, names, strict=True)):
        results = tuple(os.path.join(out.path, f"{name}.{suffix}") for suffix in wish.formats)
        paired = _pair(photo, wish)
        sources.add(_real(photo.path))
        if isinstance(paired, Failure):
            plan.failed.append(paired)
            continue
        sources.update(_real(path) for path in (paired.landmarks, paired.label_map) if path is not None)
        job = Job(number, photo.path, paired.landmarks, paired.label_map, results)
        is_done = out.is_done(results, max(photo.changed_ns, paired.changed_ns))
        (plan.done if is_done else plan.jobs).append(job)
    _spare_inputs(plan, sources)
    return plan


def _spare_inputs(plan: Plan, sources: set[str]) -> None:
    for job in (*plan.jobs, *plan.done):
        for result in job.results:
            if _real(result) in sources:
                raise OutputError(
                    f"{show(result)} is an input, and a result would take its place; choose another --out"
                )


class _Pair(NamedTuple):
    landmarks: str | None
    label_map: str | None
    changed_ns: int


def _pair(photo: Photo, wish: Wish) -> _Pair | Failure:
    """Find what belongs to a photo, and when that was last changed."""
    landmarks, label_map, changed_ns = None, None, 0
    try:
        if wish.detect is not True:
            path = fill_pattern(wish.landmarks, photo.path, photo.sub)
            stamp = _stamp(path)
            if stamp is not None:
                landmarks, changed_ns = path, stamp
            elif wish.detect is False:
                return Failure(photo.path, "landmarks_missing", "landmarks: expected a file of them, got none")
        if wish.label_map is not None:
            path = fill_pattern(wish.label_map, photo.path, photo.sub)
            stamp = _stamp(path)
            if stamp is None:
                return Failure(photo.path, "segmentation_map_missing", "segmentation_map: expected a file, got none")
            label_map, changed_ns = path, max(changed_ns, stamp)
    except OSError as error:
        return Failure(photo.path, "file_unreadable", f"landmarks or segmentation_map: {explain(error)}")
    return _Pair(landmarks, label_map, changed_ns)


def _stamp(path: str) -> int | None:
    try:
        return os.stat(path).st_mtime_ns
    except (FileNotFoundError, NotADirectoryError):
        return None


def _real(path: str) -> str:
    folder, name = os.path.split(path)
    return os.path.join(_real_folder(folder), name)


@lru_cache(maxsize=64)
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)

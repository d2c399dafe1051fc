"""What is to be done and what came of it, as it goes between processes; loads none of what does the work."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

    from app.service.options import CropOptions


class Format(StrEnum):
    """A kind of result."""

    SVG = "svg"
    JSON = "json"
    PNG = "png"


class Job(NamedTuple):
    """One photo to be done.

    Attributes:
        number: which one.
        photo: its path.
        landmarks: path of its landmarks; None has them found.
        label_map: path of its segmentation map, if it has one.
        results: path of each result, in the order of the recipe's formats.
    """

    number: int
    photo: str
    landmarks: str | None
    label_map: str | None
    results: tuple[str, ...]


class Outcome(NamedTuple):
    """What came of a job.

    Attributes:
        number: of the job.
        seconds: how long it took.
        code: what was wrong; empty where it is done.
        reason: likewise, as a sentence.
    """

    number: int
    seconds: float
    code: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How every photo is done.

    Attributes:
        options: as the API takes them.
        formats: of the results.
        max_bytes: the most that the files of one photo may have together.
        max_image_pixels: see the setting.
        landmark_margin: likewise.
        models: folder of the models; None for the package's own.
        fault_work_s: see the setting.
        fault_poison_region: likewise.
    """

    options: CropOptions
    formats: tuple[Format, ...]
    max_bytes: int
    max_image_pixels: int
    landmark_margin: float
    models: Path | None
    fault_work_s: float = 0.0
    fault_poison_region: str = ""


class RunError(Exception):
    """Nothing more can be done, whichever photo it is; the text says why."""


class Fault(Exception):  # noqa: N818 - what is wrong with a photo is no error of the program
    """What is wrong with a photo.

    Args:
        code: stable, for programs.
        reason: for people.
    """

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason

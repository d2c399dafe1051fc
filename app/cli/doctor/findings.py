"""What a check finds: one part of it looked at, how that is, and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from app.cli.doctor.parts import PARTS


class Status(StrEnum):
    """How something is; the worse, the later."""

    OK = "ok"
    SKIPPED = "skipped"
    NOTE = "note"
    WARNING = "warning"
    ERROR = "error"

    @property
    def rank(self) -> int:
        """Its place from good to bad."""
        return list(Status).index(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: the part of a check, one of `parts.PARTS`.
        status: how it is.
        looked_at: which variable, file, address, … it was.
        found: what was found there.
        expected: what should have been; not empty in a warning or an error.
        advice: what to do; likewise.

    Raises:
        ValueError: there is no such part, or a warning or an error does not say what to do.
    """

    name: str
    status: Status
    looked_at: str
    found: str
    expected: str = ""
    advice: str = ""

    def __post_init__(self) -> None:
        if self.name not in PARTS:
            raise ValueError(f"no part of a check: {self.name}")
        if self.status in {Status.WARNING, Status.ERROR} and not (self.expected and self.advice):
            raise ValueError(f"{self.name}: a {self.status} says what was expected, and what to do")


def ok(name: str, looked_at: str, found: str) -> Finding:
    """Say that something is as it should be."""
    return Finding(name=name, status=Status.OK, looked_at=looked_at, found=found)


def skipped(name: str, looked_at: str, why: str) -> Finding:
    """Say why something was not looked at."""
    return Finding(name=name, status=Status.SKIPPED, looked_at=looked_at, found=why)


def note(name: str, looked_at: str, found: str, advice: str = "") -> Finding:
    """Tell something worth knowing that need not be wrong."""
    return Finding(name=name, status=Status.NOTE, looked_at=looked_at, found=found, advice=advice)


def warning(name: str, looked_at: str, found: str, *, expected: str, advice: str) -> Finding:
    """Tell what will hurt some day, or hurts some callers."""
    return Finding(name=name, status=Status.WARNING, looked_at=looked_at, found=found, expected=expected, advice=advice)


def error(name: str, looked_at: str, found: str, *, expected: str, advice: str) -> Finding:
    """Tell what keeps the service, or a part of it, from working."""
    return Finding(name=name, status=Status.ERROR, looked_at=looked_at, found=found, expected=expected, advice=advice)


def mebibytes(size: float) -> str:
    """Write an amount of memory or storage.

    Example:
        >>> mebibytes(17 * 2**20), mebibytes(2.25 * 2**30), mebibytes(512)
        ('17 MiB', '2.25 GiB', '0.5 KiB')
    """
    for unit, name in ((2**30, "GiB"), (2**20, "MiB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}" if size / unit < 1000 else f"{size / unit:.0f} {name}"  # noqa: PLR2004
    return f"{size / 1024:.3g} KiB"

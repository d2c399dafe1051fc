"""The names of the checks; apart from these, for the command line knows them before anything else is loaded."""

from __future__ import annotations

from enum import StrEnum


class Check(StrEnum):
    """A check, by the name it is chosen and reported by; a name that was given once stays."""

    SETTINGS = "settings"
    PORTS = "ports"
    QUEUE = "queue"
    MODELS = "models"
    METRIC_FILES = "metric-files"
    CLOCK = "clock"
    LIMITS = "limits"
    SERVICE = "service"
    DISK = "disk"
    PYTHON = "python"

    @property
    def module(self) -> str:
        """The module that holds the check."""
        return f"app.cli.doctor.check_{self.value.replace('-', '_')}"

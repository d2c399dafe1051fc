"""What all checks share: settings, environment, and the instance that runs here, which is asked once."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import psutil

from app.cli.doctor.instance import Instance, look_around

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from app.settings import Settings

LOOK_LIMIT_S = 6.0


@dataclass(frozen=True, slots=True)
class WrongSetting:
    """A variable with a value that its setting does not take; ``name`` is ``settings`` where it is about several."""

    name: str
    message: str


@dataclass(frozen=True)
class Context:
    """What is looked at.

    Attributes:
        settings: of the deployment; where a variable is wrong, the setting's default in its place.
        environment: all variables, for what is no setting.
        wrong: variables that the settings do not take.
        cgroup_root: where the kernel shows the limits of the container.
        temporary: the folder for temporary files; None where none can be written.
    """

    settings: Settings
    environment: Mapping[str, str]
    wrong: tuple[WrongSetting, ...]
    cgroup_root: Path
    temporary: Path | None
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def instance(self) -> Instance:
        """The instance that runs here, if one does; looked for once, when it is asked for first.

        Raises:
            TimeoutError: it could not be found out in time.
        """
        with self._lock:
            looking = self._looking
        return looking.result(timeout=LOOK_LIMIT_S)

    @property
    def is_in_container(self) -> bool:
        """Whether the service has a container of its own: in a pod, or where it is the first process."""
        if "KUBERNETES_SERVICE_HOST" in self.environment:
            return True
        try:
            return "facial-service" in " ".join(psutil.Process(1).cmdline())
        except psutil.Error:
            return False

    @cached_property
    def _looking(self) -> Future[Instance]:
        found: Future[Instance] = Future()

        def look() -> None:
            try:
                found.set_result(look_around(self.settings))
            except Exception as error:  # noqa: BLE001 - told to whoever asks
                found.set_exception(error)

        threading.Thread(target=look, name="doctor-instance", daemon=True).start()
        return found

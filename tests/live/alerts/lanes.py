"""Order of the faults: a concurrent lane for each release, and one for a fault that takes minutes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.live.alerts import faults
from tests.live.alerts.releases import PLACES, THREADS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.alerting import Monitoring
    from tests.live.alerts.rehearsal import Rehearsal
    from tests.live.alerts.releases import Fleet, Release

# Namespace of an additional scrape with a longer timeout: a scrape with a timeout of one second, like the others,
# cannot take more than two.
PATIENT = "patient"
PATIENCE = "5s"
DELAY_S = 3.0
# The threshold of the alert is an age, not a window, so that it is not shortened.
AGE_LIMIT_S = 450.0


def patient_job(address: str) -> dict[str, Any]:
    """Return a scrape job with a longer timeout and its own namespace."""
    labels = {"job": "facial-service", "namespace": PATIENT}
    targets = [{"targets": [address], "labels": labels}]
    return {"job_name": PATIENT, "scrape_interval": PATIENCE, "scrape_timeout": PATIENCE, "static_configs": targets}


class Lanes:
    """Sequences of faults, each for its own thread.

    Attributes:
        demand: fault that depends on the machine; it reports the CPU time that it got.
    """

    def __init__(self, rehearsal: Rehearsal, wait_until: Callable[..., Any], folder: Path, relay: faults.Relay) -> None:
        self._relay = relay
        self._under = rehearsal.under
        self._settle = rehearsal.settle
        self._wait_until = wait_until
        self._folder = folder
        self.demand = faults.LargePhotos(callers=THREADS)

    def side_by_side(self, fleet: Fleet, monitoring: Monitoring) -> Iterator[Callable[[], None]]:
        """Yield the lanes that start after normal traffic has raised no alert."""
        yield lambda: self._break_alone(fleet.alone)
        yield lambda: self._break_busy(fleet.busy, monitoring)
        yield lambda: self._break_apart(fleet)

    def age(self, alone: Release) -> None:
        """Suspend the task process for five minutes, from the start."""
        hanging = faults.hanging_with_a_task(alone, self._wait_until)
        with self._under("a task process hangs, and there is a task", alone.place, hanging, limit_s=AGE_LIMIT_S):
            pass
        self._settle(alone.place)

    def occupy(self, busy: Release) -> None:
        """Saturate the CPU; runs last, because the other lanes need CPU time too."""
        with self._under("one caller per thread sends large images", busy.place, self.demand.of(busy)):
            pass
        self._settle(busy.place)

    def _break_alone(self, alone: Release) -> None:
        under, place = self._under, alone.place
        with under("callers send damaged images", place, faults.damaged_images(alone)):
            pass
        left = faults.files_left_behind(alone, self._folder / "values")
        with (
            under("API processes are killed one after the other", place, faults.workers_killed(alone)),
            under("files of exited processes remain", place, left),
            under("a metric file is damaged", place, faults.damaged_metric_file(self._folder / "values")),
        ):
            pass
        with under("responses to scrapes are delayed", PATIENT, self._relay.delaying(DELAY_S)):
            pass
        self._settle(PATIENT)

    def _break_busy(self, busy: Release, monitoring: Monitoring) -> None:
        under, place = self._under, busy.place
        with under("the API is stopped", place, busy.api.stopped()):
            pass
        with under("Prometheus no longer finds the API", place, monitoring.blind_to(busy.address)):
            pass
        with under("the only process has no file descriptors", place, faults.without_file_descriptors(busy)):
            pass
        with under("the exporter is killed repeatedly", place, faults.exporter_killed(busy)):
            pass
        with under("more large images arrive than there are slots", place, faults.LargePhotos(PLACES + 8).of(busy)):
            pass
        self._settle(place)

    def _break_apart(self, fleet: Fleet) -> None:
        under, apart, place = self._under, fleet.apart, fleet.apart.place
        with under("the queue's server is killed", place, faults.killed(fleet.queue, self._wait_until)):
            pass
        with under("the workers' user is unknown to the queue", place, faults.shut_out(fleet.queue)):
            pass
        with (
            under("callers submit images that do not decode", place, faults.damaged_tasks(apart)),
            under("results exceed the storage", place, faults.large_results(apart)),
        ):
            pass
        with under("tasks kill their worker", place, faults.poison(apart, fleet.queue)):
            pass
        self._settle(place)
        with under("the workers are stopped", place, apart.workers.stopped()):
            with under("callers keep submitting tasks", place, faults.many_tasks(apart, apart.sample.jpeg)):
                pass
            with under("callers keep submitting large images", place, faults.many_tasks(apart, apart.sample.photo)):
                pass
        self._settle(place)

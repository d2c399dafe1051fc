"""One run of the command, from the search for images to the exit status."""

from __future__ import annotations

import signal
import sys
import threading
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Final

from app.cli.process.inputs import escape_path, find_images, os_error_text
from app.cli.process.jobs import JobConfig, RunError, plan_jobs
from app.cli.process.outputs import OutputFolder
from app.cli.process.report import (
    Progress,
    plan_document,
    print_ignored,
    print_json,
    print_line,
    print_plan,
    print_summary,
    record_all,
)
from app.cli.settings import caller_settings_or_exit, settings_or_exit
from app.codec.sniff import is_heic_supported
from app.service.options import OPTION_NAMES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from types import FrameType

    from app.cli.process.jobs import Plan, Selection
    from app.cli.process.local_pool import LocalPool
    from app.cli.process.remote_pool import RemotePool
    from app.service.options import CropOptions
    from app.settings import Settings

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_SIGNAL: Final = 128
REQUESTS_PER_CORE: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """How to run.

    Attributes:
        out: results folder.
        jobs: number of images to process at a time; None for the default.
        url: URL of a service; None to process locally.
        stall_timeout_s: how long to wait while the service makes no progress.
        is_forced: replace all results.
        is_dry_run: only list what the run would do.
        is_json: print a machine-readable summary.
        report: path of the report file; None for no report.
    """

    out: str
    jobs: int | None
    url: str | None
    stall_timeout_s: float
    is_forced: bool
    is_dry_run: bool
    is_json: bool
    report: str | None


class StopEvent(threading.Event):
    """Event that is set by the first stop signal.

    Attributes:
        signal_number: the signal; None before it arrives.
    """

    def __init__(self) -> None:
        super().__init__()
        self.signal_number: int | None = None

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """Handle a stop signal.

        Raises:
            KeyboardInterrupt: this is not the first one.
        """
        if self.is_set():
            raise KeyboardInterrupt
        self.signal_number = number
        self.set()


@contextmanager
def _stop_on_signals() -> Iterator[StopEvent]:
    stop = StopEvent()
    before = {number: signal.signal(number, stop.handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run(selection: Selection, options: RunOptions, crop_options: CropOptions) -> int:
    """Process the selected images, and report the outcome.

    Args:
        selection: images and results.
        options: how to run.
        crop_options: options of the API.

    Returns:
        The exit status.

    Raises:
        OutputError: the results folder cannot be used.
        OSError: an input, the results folder or the report cannot be read or written.
    """
    settings = settings_or_exit()
    try:
        # A service may decode HEIC even if this machine cannot.
        has_heic = options.url is not None or is_heic_supported()
        found = find_images(selection.inputs, options.out, has_heic=has_heic)
    except (FileNotFoundError, FileExistsError) as error:
        print_line(f"{escape_path(str(error.filename))}: {os_error_text(error)}")
        return EXIT_USAGE
    if not (found.images or found.failures):
        print_line(f"no images found in {', '.join(map(escape_path, selection.inputs))}")
        print_ignored(found.ignored)
        return 0
    with closing(OutputFolder(options.out)) as folder:
        if not options.is_dry_run:
            folder.lock()
        folder.check_manifest(
            _manifest_options(selection, crop_options), is_forced=options.is_forced, is_dry_run=options.is_dry_run
        )
        plan = plan_jobs(selection, found, folder)
        if plan.has_full_names:
            print_line("some images differ only in their suffix; results keep it, as in a.png.svg and a.jpg.svg")
        if not options.is_dry_run:
            return _execute(plan, _make_pool(selection, options, crop_options, settings), options)
        if options.is_json:
            print_json(plan_document(plan))
        else:
            print_plan(plan)
        return EXIT_FAILED if plan.failures else 0


def _manifest_options(selection: Selection, crop_options: CropOptions) -> dict[str, Any]:
    """Return everything that results depend on except for the input files."""
    return {
        "format": [str(one) for one in selection.formats],
        "landmarks": escape_path(selection.landmarks),
        "segmentation_map": None if selection.label_map is None else escape_path(selection.label_map),
        "detect": selection.detect,
        **{name: getattr(crop_options, name) for name in OPTION_NAMES},
    }


def _make_pool(
    selection: Selection, options: RunOptions, crop_options: CropOptions, settings: Settings
) -> LocalPool | RemotePool:
    from app.settings import count_usable_cores  # noqa: PLC0415 - `--help` loads no settings

    config = JobConfig(
        options=crop_options,
        formats=selection.formats,
        max_bytes=settings.max_body_bytes,
        max_image_pixels=settings.max_image_pixels,
        landmark_margin=settings.landmark_margin,
        models=settings.models_dir,
        fault_work_s=settings.fault_work_s,
        fault_poison_region=settings.fault_poison_region,
    )
    cores = count_usable_cores()
    if options.url is None:
        from app.cli.process.local_pool import LocalPool  # noqa: PLC0415 - load only the pool in use

        return LocalPool(config, options.jobs or cores)
    from app.cli.process.remote_pool import RemotePool  # noqa: PLC0415 - as above

    return RemotePool(
        config,
        url=options.url,
        key=caller_settings_or_exit().facial_service_api_key.get_secret_value(),
        size=options.jobs or REQUESTS_PER_CORE * cores,
        stall_timeout_s=options.stall_timeout_s,
    )


def _execute(plan: Plan, pool: LocalPool | RemotePool, options: RunOptions) -> int:
    error = ""
    report: AbstractContextManager[IO[bytes] | None] = nullcontext()
    if options.report is not None:
        report = open(options.report, "wb", buffering=0)  # noqa: SIM115 - it is entered below
    is_terminal = sys.stderr.isatty()
    with report as file, _stop_on_signals() as stop:
        progress = Progress(plan, file)
        if plan.jobs:
            try:
                with closing(pool.run(iter(plan.jobs), stop)) as outcomes:  # type: ignore[type-var]  # generators
                    record_all(progress, outcomes, is_terminal=is_terminal)
            except RunError as exception:
                error = str(exception)
            except KeyboardInterrupt:
                pass  # The second signal: the next run processes the jobs that this one started.
        progress.stop_clock()
    print_summary(progress, is_terminal=is_terminal)
    number = stop.signal_number
    if options.is_json:
        stopped = None if number is None else signal.Signals(number).name
        print_json(progress.document(out=escape_path(options.out), stopped=stopped, error=error or None))
    if error:
        print_line(f"{options.url}: {error}" if options.url else error)
    if progress.remaining:
        print_line("to resume, run the same command again")
    if number is not None and progress.remaining:
        return EXIT_SIGNAL + number
    return EXIT_FAILED if error or progress.failures else 0

"""One run, from what is asked for to its exit status."""

from __future__ import annotations

import signal
import sys
import time
from contextlib import closing, nullcontext
from dataclasses import KW_ONLY, dataclass
from typing import IO, TYPE_CHECKING, Any, Final, Protocol

import orjson

from app.cli.process.inputs import explain, find_photos, show
from app.cli.process.jobs import Recipe, RunError
from app.cli.process.outputs import OutputFolder
from app.cli.process.plan import make_plan
from app.cli.process.report import Tally, plan_document, print_line, print_plan, print_summary, watch
from app.cli.process.stop import Stop, heed_signals
from app.cli.settings import caller_settings_or_exit, settings_or_exit
from app.service.options import OPTION_NAMES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from app.cli.process.jobs import Job, Outcome
    from app.cli.process.plan import Plan, Wish
    from app.service.options import CropOptions
    from app.settings import Settings

FAILED: Final = 1
USAGE: Final = 2
SIGNALLED: Final = 128
IN_FLIGHT_PER_CORE: Final = 2
TELL_S: Final = 0.1


class Pool(Protocol):
    """Does jobs."""

    def run(self, jobs: Iterator[Job], stop: Stop) -> Iterator[Outcome]:
        """Do them, in any order, until there are no more or it is to stop."""


@dataclass(frozen=True, slots=True)
class Manner:
    """How to run, beside what to do.

    Attributes:
        jobs: how many at a time; None for what suits.
        against: URL of a service; None for this machine.
        patience_s: how long to wait for that.
        is_again: do what is done already, too.
        is_dry: only list what would be done.
        is_json: print the summary for programs.
        report: file of what came of each photo.
    """

    jobs: int | None
    against: str | None
    patience_s: float
    _: KW_ONLY
    is_again: bool
    is_dry: bool
    is_json: bool
    report: str | None


def run(wish: Wish, out: str, manner: Manner, options: CropOptions) -> int:
    """Do what is asked for, and tell of it.

    Args:
        wish: which photos, and what of them.
        out: folder of the results.
        manner: how.
        options: as the API takes them.

    Returns:
        The exit status.

    Raises:
        OutputError: the folder of results cannot be used.
        OSError: an input, the folder or the report cannot be read or written.
    """
    settings = settings_or_exit()
    try:
        found = find_photos(wish.inputs, out)
    except (FileNotFoundError, FileExistsError) as error:
        print_line(f"{show(str(error.filename))}: {explain(error)}")
        return USAGE
    if not (found.photos or found.unreadable):
        print_line(f"no photos in {', '.join(map(show, wish.inputs))}")
        return 0
    with closing(OutputFolder(out)) as folder:
        if not manner.is_dry:
            folder.hold()
        folder.claim(_to_notes(wish, options), is_again=manner.is_again, is_dry=manner.is_dry)
        plan = make_plan(wish, found, folder)
        if plan.is_renamed:
            print_line("photos of the same name but for the suffix: results keep it, as in a.png.svg and a.jpg.svg")
        if manner.is_dry:
            return _show(plan, manner)
        try:
            pool = _make_pool(wish, manner, options, settings)
        except RunError as error:
            print_line(f"--against: {error}")
            return USAGE
        return _work(plan, pool, manner, out)


def _to_notes(wish: Wish, options: CropOptions) -> dict[str, Any]:
    """Return what results depend on, beside the photos."""
    return {
        "format": [str(one) for one in wish.formats],
        "landmarks": show(wish.landmarks),
        "segmentation_map": None if wish.label_map is None else show(wish.label_map),
        "detect": wish.detect,
        **{name: getattr(options, name) for name in OPTION_NAMES},
    }


def _show(plan: Plan, manner: Manner) -> int:
    if manner.is_json:
        _print_json(plan_document(plan))
    else:
        print_plan(plan)
        print_line(f"{len(plan.jobs)} to do, {len(plan.done)} done already, {len(plan.failed)} failed")
    return FAILED if plan.failed else 0


def _make_pool(wish: Wish, manner: Manner, options: CropOptions, settings: Settings) -> Pool:
    from app.settings import count_usable_cores  # noqa: PLC0415 - `--help` reads no settings

    recipe = Recipe(
        options=options,
        formats=wish.formats,
        max_bytes=settings.max_body_bytes,
        max_image_pixels=settings.max_image_pixels,
        landmark_margin=settings.landmark_margin,
        models=settings.models_dir,
        fault_work_s=settings.fault_work_s,
        fault_poison_region=settings.fault_poison_region,
    )
    cores = count_usable_cores()
    if manner.against is None:
        from app.cli.process.local import LocalPool  # noqa: PLC0415 - only where it is used

        return LocalPool(recipe, manner.jobs or cores)
    from app.cli.process.remote import RemotePool  # noqa: PLC0415 - as above

    return RemotePool(
        recipe,
        url=manner.against,
        key=caller_settings_or_exit().facial_service_api_key.get_secret_value(),
        size=manner.jobs or IN_FLIGHT_PER_CORE * cores,
        patience_s=manner.patience_s,
    )


def _work(plan: Plan, pool: Pool, manner: Manner, out: str) -> int:
    error = ""
    report: AbstractContextManager[IO[bytes] | None] = nullcontext()
    if manner.report is not None:
        report = open(manner.report, "wb", buffering=0)  # noqa: SIM115 - it is entered below
    is_terminal = sys.stderr.isatty()
    with report as log, heed_signals() as stop:
        tally = Tally(plan, log)
        if plan.jobs:
            try:
                _watch(tally, pool.run(iter(plan.jobs), stop), is_terminal=is_terminal)
            except RunError as trouble:
                error = str(trouble)
            except KeyboardInterrupt:
                pass  # told twice: what was begun is left, and is done the next time
        tally.end()
        number = stop.signal_number
    print_summary(tally, is_terminal=is_terminal)
    if manner.is_json:
        stopped = None if number is None else signal.Signals(number).name
        _print_json(tally.document(out=show(out), stopped=stopped, error=error or None))
    if error:
        print_line(f"{manner.against}: {error}" if manner.against else error)
    if tally.left:
        print_line("the same command again goes on where this run stopped")
    if number is not None and tally.left:
        return SIGNALLED + number
    return FAILED if error or tally.failed else 0


def _watch(tally: Tally, outcomes: Iterator[Outcome], *, is_terminal: bool) -> None:
    context, teller = watch(tally, is_terminal=is_terminal)
    told = 0.0
    with context, closing(outcomes):  # type: ignore[type-var]  # both pools give generators
        for outcome in outcomes:
            tally.note(outcome)
            if (now := time.monotonic()) - told > TELL_S:
                told = now
                teller.tell()
        teller.tell()


def _print_json(document: dict[str, Any]) -> None:
    sys.stdout.write(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode() + "\n")

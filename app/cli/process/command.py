"""``facial-service process``: the command and its options."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Annotated, Any, NoReturn

import msgspec
import typer
from typer.core import TyperCommand

from app.cli.process.inputs import explain, show
from app.cli.process.jobs import Format
from app.cli.process.naming import check_pattern, is_service_url
from app.cli.process.options import to_crop_options, with_crop_options
from app.cli.process.outputs import BusyError, OutputError
from app.cli.process.plan import BESIDE, Wish
from app.cli.process.report import print_line
from app.cli.process.run import FAILED, USAGE, Manner, run

PATIENCE_S = 60.0
AGAINST = "--against"
WORKLESS = {"-h", "--help", "--dry-run"}

Photos = Annotated[list[str], typer.Argument(metavar="PHOTO…", show_default=False, help="Photos, and folders of them.")]
Out = Annotated[str, typer.Option(metavar="DIR", help="Folder of the results; made if it is not there.")]
Formats = Annotated[
    list[Format] | None,
    typer.Option("--format", show_default="svg", help="Kind of result; may be given again for several."),
]
Landmarks = Annotated[
    str | None,
    typer.Option(
        metavar="PATTERN",
        show_default=BESIDE,
        help="Where a photo's landmarks are, with {dir}, {stem}, {name} and {sub} of the photo; without a file there, "
        "they are found.",
    ),
]
LabelMap = Annotated[
    str | None,
    typer.Option(metavar="PATTERN", help="Where a photo's segmentation map is, likewise; each photo has to have one."),
]
Detect = Annotated[
    bool | None,
    typer.Option("--detect/--no-detect", show_default=False, help="Always find landmarks, or never."),
]
Jobs = Annotated[
    int | None,
    typer.Option(min=1, max=256, show_default="usable cores; twice as many with --against", help="How many at a time."),
]
Against = Annotated[
    str | None,
    typer.Option(metavar="URL", help="Have a running service do it; FACIAL_SERVICE_API_KEY is its key, if it asks."),
]
Patience = Annotated[
    float,
    typer.Option(metavar="SECONDS", min=0, max=86400, help="How long to wait for a service that does nothing."),
]
Again = Annotated[bool, typer.Option("--again", help="Do everything again, whatever is there.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only list what would be done.")]
Json = Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")]
Report = Annotated[
    str | None, typer.Option(metavar="FILE", help="Write a JSON line for each photo that is done or fails.")
]


class ProcessCommand(TyperCommand):
    """Starts what does the work while the command line is still read: either takes as long as hundreds of photos."""

    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **extra: Any) -> Any:
        """Read the command line."""
        is_completion = bool(extra.get("resilient_parsing"))
        if not is_completion and not any(one in WORKLESS or one.startswith(AGAINST) for one in args):
            from app.cli.process.local import start_server  # noqa: PLC0415 - only where it is used

            with suppress(OSError):  # it is tried again when it is needed, and told then
                start_server()
        return super().make_context(info_name, args, *rest, **extra)


@with_crop_options
def process(  # noqa: PLR0913 - one a documented option
    photos: Photos,
    *,
    out: Out,
    formats: Formats = None,
    landmarks: Landmarks = None,
    segmentation_map: LabelMap = None,
    detect: Detect = None,
    jobs: Jobs = None,
    against: Against = None,
    patience: Patience = PATIENCE_S,
    again: Again = False,
    dry_run: DryRun = False,
    is_json: Json = False,
    report: Report = None,
    **options: Any,
) -> None:
    """Find the regions in photos and folders of photos, on all cores, or by a running service.

    A run that was stopped goes on where it was when it is started again; what is done already is passed over.
    """
    if detect and landmarks is not None:
        _end(USAGE, "--detect, --landmarks: expected one of them, got both")
    _check_patterns(landmarks, segmentation_map)
    if against is not None and not is_service_url(against):
        _end(USAGE, "--against: expected a URL such as http://127.0.0.1:8000, without a user name; got something else")
    wish = Wish(
        inputs=photos,
        formats=tuple(one for one in Format if one in (formats or [Format.SVG])),
        landmarks=BESIDE if landmarks is None else landmarks,
        label_map=segmentation_map,
        detect=detect,
    )
    manner = Manner(jobs, against, patience, is_again=again, is_dry=dry_run, is_json=is_json, report=report)
    _run(wish, out, manner, options)


def _run(wish: Wish, out: str, manner: Manner, options: dict[str, Any]) -> NoReturn:
    try:
        sys.exit(run(wish, out, manner, to_crop_options(options)))
    except msgspec.ValidationError as error:
        _end(USAGE, str(error))
    except OutputError as error:
        _end(FAILED if isinstance(error, BusyError) else USAGE, f"{show(out)}: {error}")
    except OSError as error:
        place = f"{show(str(error.filename))}: " if error.filename else ""
        _end(FAILED, f"{place}{explain(error)}")


def _check_patterns(landmarks: str | None, segmentation_map: str | None) -> None:
    for name, pattern in (("--landmarks", landmarks), ("--segmentation-map", segmentation_map)):
        try:
            check_pattern(pattern or "")
        except ValueError as error:
            _end(USAGE, f"{name}: {error}")


def _end(status: int, text: str) -> NoReturn:
    print_line(text)
    sys.exit(status)

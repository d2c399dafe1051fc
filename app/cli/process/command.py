"""The command line of ``facial-service process``, and one run, from the search for images to the exit status."""

from __future__ import annotations

import inspect
import signal
import sys
import threading
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Annotated, Any, Final, NoReturn, get_type_hints

import msgspec
import typer

from app.cli.common import EXIT_FAILED, EXIT_USAGE, caller_settings_or_exit, exit_with_error, settings_or_exit
from app.cli.process.inputs import escape_path, find_images, os_error_text
from app.cli.process.jobs import LANDMARKS_PATTERN, Format, JobConfig, RunError, Selection, check_pattern, plan_jobs
from app.cli.process.outputs import FolderInUseError, OutputError, OutputFolder
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
from app.cli.typer_adapter import EagerCommand, replace_parameters
from app.service.options import OPTION_NAMES, CropOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from types import FrameType

    from app.cli.process.jobs import Plan
    from app.cli.process.local_pool import LocalPool
    from app.cli.process.remote_pool import RemotePool
    from app.settings import Settings

EXIT_SIGNAL: Final = 128
REQUESTS_PER_CORE: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """How to run."""

    out: str  # results folder
    jobs: int | None  # number of images to process at a time; None for the default
    url: str | None  # URL of a service; None to process locally
    stall_timeout_s: float  # how long to wait while the service makes no progress
    is_forced: bool
    is_dry_run: bool  # only list what the run would do
    is_json: bool  # print a machine-readable summary
    report: str | None  # path of the report file; None for no report


class StopEvent(threading.Event):
    """Event that is set by the first stop signal."""

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
    """Process the selected images, report the outcome, and return the exit status.

    Raises:
        OutputError: the results folder cannot be used.
        OSError: an input, the results folder or the report cannot be read or written.
    """
    from app.codec.sniff import is_heic_supported  # noqa: PLC0415 - `--help` loads no image libraries

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


STALL_TIMEOUT_S = 60.0
API_PANEL = "API options"
URL = "--url"
# Options with which no local worker starts.
WITHOUT_WORKERS = {"-h", "--help", "--dry-run"}

Images = Annotated[list[str], typer.Argument(metavar="IMAGE", show_default=False, help="Images and folders of images.")]
Out = Annotated[str, typer.Option(metavar="DIR", help="Results folder; created if it is missing.")]
Formats = Annotated[
    list[Format] | None,
    typer.Option("--format", metavar="|".join(Format), show_default="svg", help="Result format; repeatable."),
]
Landmarks = Annotated[
    str | None,
    typer.Option(
        metavar="PATTERN",
        show_default=LANDMARKS_PATTERN,
        help="Path of an image's landmark file, with the placeholders {dir}, {stem}, {name} and {sub}. If the file is "
        "missing, landmarks are detected.",
    ),
]
LabelMap = Annotated[
    str | None,
    typer.Option(
        metavar="PATTERN",
        help="Path of an image's segmentation map, with the same placeholders. If set, every image must have one.",
    ),
]
Detect = Annotated[
    bool | None,
    typer.Option(
        "--detect/--no-detect",
        show_default="images without a landmark file",
        help="Detect landmarks in every image, or in none.",
    ),
]
Jobs = Annotated[
    int | None,
    typer.Option(
        metavar="NUMBER",
        min=1,
        max=256,
        show_default=f"usable cores; twice as many with {URL}",
        help="Maximum number of images processed concurrently.",
    ),
]
Url = Annotated[
    str | None,
    typer.Option(
        URL,
        metavar="URL",
        help="Process the images on this running service. The environment variable FACIAL_SERVICE_API_KEY sets the "
        "API key.",
    ),
]
StallTimeout = Annotated[
    float,
    typer.Option(
        metavar="SECONDS",
        min=0,
        max=86400,
        help=f"With {URL}: how long to wait while the service is unreachable or at capacity.",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace all results, even those created with different options.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only list what the run would do.")]
Json = Annotated[bool, typer.Option("--json", help="Print the summary, or the list of a dry run, as JSON.")]
Report = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="Write a JSON line to this file for each processed or failed image."),
]


class ProcessCommand(EagerCommand):
    """Starts the fork server before typer parses the command line: both take as long as hundreds of images."""

    def prepare(self, arguments: list[str]) -> None:
        """Start the fork server, if local workers will run."""
        if not any(argument in WITHOUT_WORKERS or argument.startswith(URL) for argument in arguments):
            from app.cli.process.local_pool import start_fork_server  # noqa: PLC0415 - only if it is used

            with suppress(OSError):  # The pool tries again, and reports the error.
                start_fork_server()


def with_crop_options(command: Callable[..., None]) -> Callable[..., None]:
    """Replace the ``**options`` of a command with an option for each field of `CropOptions`."""
    signature = inspect.signature(command, eval_str=True)
    own = [one for one in signature.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
    schemas = msgspec.json.schema(CropOptions)["$defs"][CropOptions.__name__]["properties"]
    added = [_to_parameter(name, hint, schemas[name]) for name, hint in get_type_hints(CropOptions).items()]
    return replace_parameters(command, own + added)


def _to_parameter(name: str, annotation: Any, schema: dict[str, Any]) -> inspect.Parameter:
    """Return the parameter of an option from its type and its JSON schema."""
    bounds = next(one for one in schema.get("anyOf", [schema]) if one.get("type") != "null")
    option = typer.Option(
        metavar={"integer": "INTEGER", "number": "NUMBER"}.get(bounds.get("type", "")),
        min=bounds.get("minimum"),
        max=bounds.get("maximum"),
        help=schema["description"],
        rich_help_panel=API_PANEL,
    )
    default = schema["default"]
    forms = schema.get("anyOf", [])
    if any("enum" in form for form in forms):
        # Typer has no options of several types. The conversion to `CropOptions` validates the text.
        option.metavar = "|".join(name for form in forms for name in form.get("enum", [form.get("type", "").upper()]))
        annotation = str
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=default, annotation=Annotated[annotation, option])


@with_crop_options
def process(  # noqa: PLR0913 - one parameter per documented option
    images: Images,
    *,
    out: Out,
    formats: Formats = None,
    landmarks: Landmarks = None,
    segmentation_map: LabelMap = None,
    detect: Detect = None,
    jobs: Jobs = None,
    url: Url = None,
    stall_timeout: StallTimeout = STALL_TIMEOUT_S,
    force: Force = False,
    dry_run: DryRun = False,
    is_json: Json = False,
    report: Report = None,
    **options: Any,
) -> None:
    """Find the face regions in images and folders of images, on all local cores or on a running service.

    To resume a stopped run, start it again: images whose results are up to date are skipped.
    """
    if detect and landmarks is not None:
        exit_with_error("--detect, --landmarks: expected at most one of them, got both")
    _check_pattern("--landmarks", landmarks)
    _check_pattern("--segmentation-map", segmentation_map)
    _check_url(url)
    try:
        crop_options = msgspec.convert(options, CropOptions, strict=False)  # as in the API
    except msgspec.ValidationError as error:
        from app.web.msgspec_errors import validation_problem  # noqa: PLC0415 - only if there is an error

        exit_with_error(validation_problem(error, "options", OPTION_NAMES).detail)
    selection = Selection(
        inputs=images,
        formats=tuple(one for one in Format if one in (formats or [Format.SVG])),
        landmarks=LANDMARKS_PATTERN if landmarks is None else landmarks,
        label_map=segmentation_map,
        detect=detect,
        has_all_faces=crop_options.face == "all",
    )
    run_options = RunOptions(
        out=out,
        jobs=jobs,
        url=url,
        stall_timeout_s=stall_timeout,
        is_forced=force,
        is_dry_run=dry_run,
        is_json=is_json,
        report=report,
    )
    _run(selection, run_options, crop_options)


def _run(selection: Selection, run_options: RunOptions, crop_options: CropOptions) -> NoReturn:
    try:
        sys.exit(run(selection, run_options, crop_options))
    except OutputError as error:
        status = EXIT_FAILED if isinstance(error, FolderInUseError) else EXIT_USAGE
        exit_with_error(f"{escape_path(run_options.out)}: {error}", status)
    except OSError as error:
        path = f"{escape_path(str(error.filename))}: " if error.filename else ""
        exit_with_error(f"{path}{os_error_text(error)}", EXIT_FAILED)


def _check_pattern(option: str, pattern: str | None) -> None:
    try:
        check_pattern(pattern or "")
    except ValueError as error:
        exit_with_error(f"{option}: {error}")


def _check_url(url: str | None) -> None:
    if url is None:
        return
    from app.cli.process.remote_pool import is_service_url  # noqa: PLC0415 - only if it is used

    if not is_service_url(url):
        # Do not repeat the URL, because it may contain a password.
        exit_with_error(f"{URL}: expected a URL such as http://127.0.0.1:8000, without credentials, got other text")

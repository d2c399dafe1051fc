"""The models that find faces: the files, and whether OpenCV can use them."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from app.cli.doctor.children import ChildError, run_python
from app.cli.doctor.findings import Finding, Status, error, mebibytes, ok, skipped, warning
from app.face.detection.model_files import KNOWN_FILES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from app.cli.doctor.context import Context

# `app.service.faces` says the same, and loads OpenCV.
PACKAGE_MODELS = Path(__file__).parents[2] / "models"
RUN_S = 7.0
_RUN = "from app.cli.doctor.run_models import main; main(sys.argv[1])"
_MEND = (
    "put the right files there (`make models` in a checkout; the image has them), or set MODELS_DIR to where they are"
)


def run(context: Context) -> Iterator[Finding]:
    """Look at the files, then run them."""
    given = context.settings.models_dir
    folder = PACKAGE_MODELS if given is None else given
    missing = [name for name in KNOWN_FILES if not (folder / name).is_file()]
    if len(missing) == len(KNOWN_FILES) and given is None:
        yield warning(
            "models.files",
            str(folder),
            "there are none: requests have to bring landmarks",
            expected="the four models that find faces",
            advice=_MEND,
        )
    elif missing:
        yield error(
            "models.files",
            f"MODELS_DIR {folder}" if given is not None else str(folder),
            f"not there: {', '.join(missing)}; requests without landmarks are refused",
            expected="the four models that find faces",
            advice=_MEND,
        )
    if missing:
        yield skipped("models.detection", str(folder), "there is nothing to run")
        return
    findings = [_judge(folder / name) for name in KNOWN_FILES]
    yield from findings
    if not any("be read" in finding.found for finding in findings if finding.status is Status.ERROR):
        yield _run_models(folder)


def _judge(file: Path) -> Finding:
    known = KNOWN_FILES[file.name]
    try:
        size, digest = file.stat().st_size, hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as fault:
        return error(
            "models.files",
            str(file),
            f"cannot be read: {os.strerror(fault.errno or 0)}",
            expected="a file that the service's user can read",
            advice=f"chmod a+r {file}",
        )
    if digest == known.sha256:
        return ok("models.files", file.name, f"{mebibytes(size)}, the right hash")
    if size == known.size:
        found = f"{size} bytes, as it should have, with another hash (sha256 {digest[:12]}…)"
    else:
        found = f"{size} bytes, sha256 {digest[:12]}…"
    return warning(
        "models.files",
        str(file),
        f"not the file that this version was made with: {found}",
        expected=f"{known.size} bytes, sha256 {known.sha256[:12]}…",
        advice=_MEND,
    )


def _run_models(folder: Path) -> Finding:
    part, expected = "models.detection", "all four read and run, and no face found in a picture without one"
    try:
        said = run_python(_RUN, str(folder), limit_s=RUN_S).splitlines()
    except ChildError as fault:
        steps = [line.removeprefix("begin ") for line in fault.output.splitlines() if line.startswith("begin ")]
        place = steps[-1] if steps else str(folder)
        return error(part, place, f"OpenCV cannot use it: {fault}", expected=expected, advice=_MEND)
    troubles = [line.removeprefix("trouble ") for line in said if line.startswith("trouble ")]
    if troubles:
        return error(part, str(folder), "; ".join(troubles), expected=expected, advice=_MEND)
    return ok(part, str(folder), "all four run; no face in a picture without one")

"""Generate the tables of the documentation from the tables of the service.

Example: python tools/docs/generate.py --check
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import scaling_tables
from pydantic import SecretStr

from app.cli.doctor.catalogue import CATALOGUE, Check
from app.face.errors import PUBLIC_CODES
from app.face.regions import REGIONS, RegionSpec
from app.observability.metrics import METRICS
from app.service.options import CropOptions
from app.settings import Settings
from app.web import openapi
from app.web.problems import INPUT_STATUS, PROBLEMS, TASK_ERRORS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

ROOT = Path(__file__).parents[2]
DOCUMENTS = tuple(
    ROOT / "docs" / f"{name}.md"
    for name in ("api", "doctor", "errors", "metrics", "performance", "regions", "scaling", "settings")
)
LATEST = ROOT / "benchmarks" / "latest.json"
# Benchmarks in the documentation: their names, and what they measure. A name with a dot is one figure, without a ratio.
BENCHMARKS = {
    "request_multipart": "form with landmarks and a PNG of 0.8 MB",
    "request_json": "the same as JSON",
    "label_map": "label map of 1024 × 1024 with 10 labels, instead of regions traced from landmarks",
    "photo_only": "PNG of 512 × 512 without landmarks, so that the face is detected",
    "detect_ms": "face detection alone, on a decoded image",
    "phone_12mp": "JPEG of 12 megapixels without landmarks: decoding and detection",
    "phone_48mp": "JPEG of 48 megapixels, the same",
    "task_overhead": "task with an image of 1 MB: API and worker together",
    "tasks_per_second.per_second": "tasks per second, with an image of 1 MB",
    "light_tasks_per_second.per_second": "tasks per second, with a small image",
    "process_rate.per_second": "images per second of `facial-service process`, with landmarks",
    "process_rate_found.per_second": "images per second of `facial-service process`, with detection",
    "ready_s.seconds": "seconds from the start to readiness",
    "rss_mb_per_worker.with_models_megabytes": "MB of memory of a worker process, with the models",
}
_BLOCK = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def markdown_table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """Return a Markdown table."""
    lines = [head, ("---",) * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def settings_table() -> str:
    """Return the table of settings."""
    rows = (
        (f"`{name.upper()}`", _default(field), field.description or "") for name, field in Settings.model_fields.items()
    )
    return markdown_table(("variable", "default", "meaning"), rows)


def _default(field: Any) -> str:
    value = field.default
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if field.default_factory is not None:
        return "" if field.default_factory is dict else "cores"
    if value in (None, "", ()):
        return ""
    if isinstance(value, tuple):
        return f"`{','.join(f'{bound:.10g}' for bound in value)}`"
    return f"`{_text(value)}`"


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def metrics_table() -> str:
    """Return the table of metrics."""
    rows = (
        (f"`{spec.name}`", spec.kind, ", ".join(f"`{name}`" for name in spec.labels), spec.help) for spec in METRICS
    )
    return markdown_table(("metric", "type", "labels", "meaning"), rows)


def labels_table() -> str:
    """Return the table of metric labels and their values. A label with different values has the metrics of each."""
    metrics: dict[tuple[str, str], list[str]] = {}
    for spec in METRICS:
        for label, known in spec.labels.items():
            metrics.setdefault((label, _label_text(known)), []).append(f"`{spec.name}`")
    count = Counter(label for label, _ in metrics)
    rows = (
        (f"`{label}`" + (f" of {', '.join(names)}" if count[label] > 1 else ""), text)
        for (label, text), names in sorted(metrics.items())
    )
    return markdown_table(("label", "values"), rows)


def _label_text(known: str | tuple[str, ...]) -> str:
    return known if isinstance(known, str) else ", ".join(f"`{value}`" for value in known)


def options_table() -> str:
    """Return the table of request options."""
    schemas = openapi.option_schemas()
    defaults = {name: schemas[name].get("default") for name in CropOptions.__struct_fields__}
    rows = (
        (f"`{name}`", "" if default is None else f"`{_text(default)}`", schemas[name]["description"])
        for name, default in defaults.items()
    )
    return markdown_table(("option", "default", "meaning"), rows)


def errors_table() -> str:
    """Return the table of error codes."""
    requests = ((f"`{code}`", str(status), title) for code, (status, title) in PROBLEMS.items())
    inputs = ((f"`{code}`", str(INPUT_STATUS), _first_line(error.__doc__)) for code, error in PUBLIC_CODES.items())
    tasks = ((f"`{code}`", "in a task", title) for code, title in TASK_ERRORS.items())
    return markdown_table(("code", "status", "meaning"), [*requests, *inputs, *tasks])


def _first_line(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0].rstrip(".")


def _outline(spec: RegionSpec) -> str:
    return " ".join(map(str, spec.landmarks)) or "in label maps only"


def regions_table() -> str:
    """Return the table of regions and their landmarks."""
    rows = (
        (str(spec.label_id), f"`{spec.name}`", f"`{spec.colour}`", _outline(spec))
        for spec in sorted(REGIONS, key=lambda spec: spec.label_id)
    )
    return markdown_table(("label", "region", "colour", "landmarks, in order"), rows)


def doctor_table(check: Check) -> str:
    """Return the table of the findings of a doctor check, without the finding about the check itself."""
    rows = (
        (f"`{name}`", entry.subject, entry.results, f"{entry.remedy[:1].upper()}{entry.remedy[1:]}.")
        for name, entry in CATALOGUE.items()
        if name.startswith(f"{check}.") and not name.endswith(".check")
    )
    return markdown_table(("finding", "what is checked", "problems", "what to do"), rows)


def _three_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"  # noqa: PLR2004 - as in the name


def performance_table() -> str:
    """Return the table of measured figures."""
    latest = json.loads(LATEST.read_text(encoding="utf-8"))
    rows = []
    for name, title in BENCHMARKS.items():
        benchmark, _, figure = name.partition(".")
        measured = latest["results"][benchmark]
        value = _three_digits(measured[figure]) if figure else f"{_three_digits(measured['cpu_ms'])} ms"
        budget = latest["budgets"].get(benchmark, {}).get("ratio")
        rows.append((title, value, f"{measured['ratio']:.2f}" if "ratio" in measured else "", f"{budget or ''}"))
    return markdown_table(("what", "measured", "ratio to the reference", "budget of the ratio"), rows)


def scaling_table(name: str) -> str:
    """Return a table of the capacity model."""
    return markdown_table(*scaling_tables.TABLES[name]())


TABLES: dict[str, Callable[[], str]] = {
    "settings": settings_table,
    "metrics": metrics_table,
    "labels": labels_table,
    "options": options_table,
    "errors": errors_table,
    "performance": performance_table,
    "regions": regions_table,
    **{name: partial(scaling_table, name) for name in scaling_tables.TABLES},
    **{f"doctor_{check.name.lower()}": partial(doctor_table, check) for check in Check},
}


def fill(text: str) -> str:
    """Replace the content of every generated block of a document."""
    return _BLOCK.sub(lambda match: match[1] + TABLES[match[2]]() + match[3], text)


def main() -> None:
    """Write the tables, or with --check exit with 1 if a document is out of date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only compare; fail if a document is out of date")
    is_check = parser.parse_args().check
    stale = []
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        if (new := fill(text)) != text:
            stale.append(path.relative_to(ROOT))
            if not is_check:
                path.write_text(new, encoding="utf-8")
    if stale and is_check:
        sys.exit(f"out of date: {', '.join(map(str, stale))}; run `make generate`")


if __name__ == "__main__":
    main()

"""The examples of docs/logging.md are correct."""

from __future__ import annotations

import doctest
import logging
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.main import install_metrics
from app.observability import metrics, multiprocess, rich_logging
from app.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "logging.md"


class PrintHandler(logging.Handler):
    """Prints the component and message of each record, on the output that doctest compares."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stdout.write(f"{record.levelname} {record.name.rpartition('.')[2]} {record.getMessage()}\n")


def test_examples_are_correct(
    scrape: Callable[[], dict[tuple[str, ...], float]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(metrics, "_SPECS", dict(metrics._SPECS))
    monkeypatch.setattr(metrics, "_added", [])
    folders: list[Path] = []

    def start_recording() -> None:
        folders.append(install_metrics(Settings(prometheus_multiproc_dir=tmp_path / "again")))

    def value(name: str, **labels: str) -> float:
        if not folders:
            return scrape()[name, *labels.values()]
        found = multiprocess.scrape_registry(folders[0]).get_sample_value(name, labels)
        assert found is not None
        return found

    root = logging.getLogger("facial")
    monkeypatch.setattr(root, "propagate", False)
    monkeypatch.setattr(root, "handlers", [PrintHandler()])
    monkeypatch.setattr(root, "level", logging.INFO)
    for component in rich_logging.COMPONENTS:  # other tests may have configured them
        monkeypatch.setattr(rich_logging.get_logger(component), "level", logging.NOTSET)
    root.manager._clear_cache()  # type: ignore[attr-defined]
    given: dict[str, Any] = {"start_recording": start_recording, "value": value}
    results = doctest.testfile(str(PAGE), module_relative=False, globs=given, encoding="utf-8")
    assert (results.failed, results.attempted > 15) == (0, True)


def test_pictures_exist_and_have_no_external_resources() -> None:
    pictures = re.findall(r"\]\((console-\w+\.svg)\)", PAGE.read_text(encoding="utf-8"))
    assert pictures == ["console-dark.svg", "console-light.svg"]
    texts = [(PAGE.parent / name).read_text(encoding="utf-8") for name in pictures]
    for text in texts:
        addresses = set(re.findall(r"\w+://[^\s\"'<)&,]+", text)) - {"http://www.w3.org/2000/svg"}
        assert all(address.startswith("http://127.0.0.1:") for address in addresses), "of the service"
        assert not re.search(r"@import|<script|<image|href=|url\((?!#)", text)
    start, end = (re.sub(r"<[^>]*>|&#160;|\s", " ", text) for text in texts)
    for words in ("Task started", "Task success", "Image decoding error", "landmarks_count"):
        assert words in re.sub(" +", " ", start)
    assert "ZeroDivisionError" in end
    assert re.sub(" +", " ", end).count("Stopping: work in progress") == 1

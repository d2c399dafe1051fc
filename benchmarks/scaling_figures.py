"""The measured figures of docs/scaling.md: one JSON file, updated section by section."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

FIGURES = Path(__file__).parent / "scaling.json"


def load(path: Path = FIGURES) -> dict[str, Any]:
    """Return all sections by name."""
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def store(path: Path, section: str, figures: Any) -> None:
    """Replace one section, and note when and on how many cores it was measured."""
    document = load(path) if path.exists() else {}
    measured = time.strftime("%Y-%m-%d", time.gmtime())
    document[section] = {"measured": measured, "cores": os.cpu_count(), "figures": figures}
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")

"""The lines that tell a person at a terminal what happens to an image or a task.

Those about images are debugging aids: in a cluster the access line and the metrics say the same at a tenth of the cost,
so the ``images`` component starts at WARNING there (see `rich_logging.configure_logging`).
"""

from __future__ import annotations

import logging
from typing import Literal

from app.observability.rich_logging import get_logger

_images = get_logger("images")
_tasks = get_logger("tasks")

SHORT_ID = 8

ImageEvent = Literal["verified", "faces", "segmentation", "extracted"]
_TEXT: dict[ImageEvent, str] = {
    "verified": "🖼️ Image verified: %d×%d %s",
    "faces": "👤 Faces found: %d",
    "segmentation": "🗺️ Segmentation map decoded: %d×%d, %d labels",
    "extracted": "✅ Extracted %d regions",
}


def log_image_processing(event: ImageEvent, *values: object) -> None:
    """Tell of one step; ``values`` are sizes, counts and formats, never what is in the picture.

    Example:
        >>> log_image_processing("verified", 512, 512, "PNG")
    """
    if _images.isEnabledFor(logging.INFO):
        _images.info(_TEXT[event], *values, extra={"event": event})


def log_task_started(task_id: str, task_type: str, *, attempt: int = 1) -> None:
    """Tell that work on a task begins."""
    extra = {"event": "started", "task_id": task_id, "type": task_type, "attempt": attempt}
    again = f", attempt {attempt}" if attempt > 1 else ""
    _tasks.info("📋 Task started %s %s%s", task_id[:SHORT_ID], task_type, again, extra=extra)


def log_task_succeeded(task_id: str, duration_s: float) -> None:
    """Tell that a task has its result."""
    extra = {"event": "succeeded", "task_id": task_id, "duration_ms": round(1000 * duration_s, 2)}
    _tasks.info("✅ Task success %s %.2fs", task_id[:SHORT_ID], duration_s, extra=extra)


def log_task_failed(task_id: str, code: str, reason: str) -> None:
    """Tell that a task ended without a result, for a reason that repeats nothing of what was sent."""
    extra = {"event": "failed", "task_id": task_id, "code": code}
    _tasks.warning("❌ Task %s failed: %s", task_id[:SHORT_ID], reason, extra=extra)


def log_task_retried(task_id: str, reason: str, delay_s: float) -> None:
    """Tell that a task is left for another attempt."""
    extra = {"event": "retried", "task_id": task_id, "delay_s": delay_s}
    _tasks.warning("🔁 Task %s again in %.1fs: %s", task_id[:SHORT_ID], delay_s, reason, extra=extra)

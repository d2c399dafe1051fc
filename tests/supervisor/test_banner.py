"""What is said at the start."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.settings import Settings
from app.supervisor.banner import _describe_landmarks, _describe_tasks


@pytest.mark.parametrize(
    ("settings", "is_embedded", "text"),
    [
        (Settings(enable_tasks=False), False, "off (ENABLE_TASKS=false)"),
        (Settings(task_workers=3, data_dir=Path("/data")), True, "processes: 3; queue in /data/"),
        (
            Settings(nats_url="nats://u:secret@queue:4222"),
            False,
            "queue on nats://queue:4222; its workers run elsewhere",
        ),
    ],
)
def test_tasks_in_the_banner(settings: Settings, is_embedded: bool, text: str) -> None:
    assert _describe_tasks(settings, is_queue_embedded=is_embedded) == text


@pytest.mark.usefixtures("face_models")
def test_landmarks_in_the_banner(tmp_path: Path) -> None:
    assert _describe_landmarks(Settings()) == "found where they are left out"
    assert _describe_landmarks(Settings(models_dir=tmp_path)).startswith("have to be sent")

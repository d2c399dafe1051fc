"""Start-up messages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.settings import Settings
from app.supervisor.banner import _describe_landmarks, _describe_tasks, describe_servers, sample_command, url_of


@pytest.mark.parametrize(
    ("settings", "is_embedded", "text"),
    [
        (Settings(enable_tasks=False), False, "off (ENABLE_TASKS=false)"),
        (Settings(task_workers=3, data_dir=Path("/data")), True, "3 worker processes; embedded queue in /data/"),
        (
            Settings(nats_url="nats://u:secret@queue:4222"),
            False,
            "queue on nats://queue:4222; task workers run separately",
        ),
    ],
)
def test_tasks_in_the_banner(settings: Settings, is_embedded: bool, text: str) -> None:
    assert _describe_tasks(settings, is_queue_embedded=is_embedded) == text


@pytest.mark.usefixtures("face_models")
def test_landmarks_in_the_banner(tmp_path: Path) -> None:
    assert _describe_landmarks(Settings()) == "detected if a request has none"
    assert _describe_landmarks(Settings(models_dir=tmp_path)).startswith("required")


@pytest.mark.parametrize(
    ("address", "url"),
    [
        (("127.0.0.1", 8000), "http://127.0.0.1:8000"),
        (("0.0.0.0", 8000), "http://127.0.0.1:8000"),  # noqa: S104 - not bound
        (("::1", 8000, 0, 0), "http://[::1]:8000"),
    ],
)
def test_url_of_an_address_can_be_opened(address: tuple[Any, ...], url: str) -> None:
    assert url_of(address) == url


def test_servers_are_described_without_credentials() -> None:
    settings = Settings(nats_url="nats://user:secret@one:4222,tls://[::1]:4223")
    assert describe_servers(settings) == "nats://one:4222, tls://[::1]:4223"


def test_sample_command_is_one_simple_command() -> None:
    command = sample_command("http://127.0.0.1:8000")
    assert command.startswith("curl -fsS ")
    assert command.endswith(" http://127.0.0.1:8000/api/v1/frontal/crop")

"""Hooks of the master around a fork."""

import gc
from types import SimpleNamespace
from unittest.mock import Mock

from app.supervisor.application import pre_fork


def test_objects_before_the_fork_are_excluded_from_collections() -> None:
    arbiter, worker = Mock(), SimpleNamespace()
    before = gc.get_freeze_count()
    try:
        pre_fork(arbiter, worker)  # type: ignore[arg-type]
        arbiter.assign_slot.assert_called_once_with(worker)
        assert gc.get_freeze_count() > before + 1_000
    finally:
        gc.unfreeze()

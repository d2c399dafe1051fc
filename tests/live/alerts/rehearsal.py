"""Brings faults about, and notes when each alert that a fault is to raise came and went."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from tests.alerting import Notice, Webhook

FIRE_LIMIT_S = 150.0
RESOLVE_LIMIT_S = 150.0


@dataclass
class Row:
    """One alert under one fault.

    Attributes:
        rule: the alert's, as `alerting.alert_rules` calls it.
        fault: what was broken, in words.
        place: the namespace of the alert.
        began: when it was broken.
        fired: the first notification; None where none came.
        removed: when the fault began to be removed.
        resolved_at: when the last alert of the rule was resolved; None where one was not.
    """

    rule: str
    fault: str
    place: str
    began: float
    fired: Notice | None = None
    removed: float | None = None
    resolved_at: float | None = None

    @property
    def seconds_to_fire(self) -> float | None:
        """From the fault to the notification."""
        return None if self.fired is None else self.fired.at - self.began

    @property
    def seconds_to_resolve(self) -> float | None:
        """From the beginning of the fault's removal to the notification."""
        if self.resolved_at is None or self.removed is None:
            return None
        return self.resolved_at - self.removed


class Rehearsal:
    """Faults, some of them side by side.

    Args:
        webhook: what hears of alerts.
        faults: what each one is to raise.

    Attributes:
        rows: what was seen so far.
    """

    def __init__(self, webhook: Webhook, faults: Mapping[str, Sequence[str]]) -> None:
        self._webhook = webhook
        self._faults = faults
        self.rows: list[Row] = []

    @contextmanager
    def under(
        self, name: str, place: str, fault: AbstractContextManager[None], *, limit_s: float = FIRE_LIMIT_S
    ) -> Iterator[None]:
        """Break something, run the block, and mend it once every alert has come that is to come.

        Args:
            name: of the fault, in the table.
            place: the namespace of the alerts.
            fault: what breaks it and mends it.
            limit_s: how long to wait for the alerts.
        """
        rules = self._faults[name]
        self._webhook.wait_for(lambda: not any(self._is_firing(rule, place) for rule in rules), limit_s=limit_s)
        rows = [Row(rule, name, place, time.monotonic()) for rule in rules]
        self.rows += rows
        with fault:
            yield
            self._await_notices(rows, limit_s)
            removed = time.monotonic()
            for row in rows:
                row.removed = removed

    def settle(self, place: str) -> None:
        """Wait until everything is well again in a place."""
        for row in self.rows:
            if row.place == place and row.removed is not None and row.fired is not None and row.resolved_at is None:
                self._await_end(row)

    def _is_firing(self, rule: str, place: str) -> bool:
        return bool(self._webhook.firing(rule, place))

    def _await_notices(self, rows: list[Row], limit_s: float) -> None:
        """Wait until all fire at once: one that came and went while another was waited for is to come again."""
        self._webhook.wait_for(lambda: all(self._is_firing(row.rule, row.place) for row in rows), limit_s=limit_s)
        for row in rows:
            notices = self._webhook.notices(row.rule, row.place)
            row.fired = next((notice for notice in notices if notice.is_firing and notice.at >= row.began), None)

    def _await_end(self, row: Row) -> None:
        self._webhook.wait_for(lambda: self._end_of(row) is not None, limit_s=RESOLVE_LIMIT_S)
        row.resolved_at = self._end_of(row)

    def _end_of(self, row: Row) -> float | None:
        """Return when the last alert of a rule was resolved, the first time after the removal: they may come again."""
        firing: set[frozenset[tuple[str, str]]] = set()
        ended = None
        for notice in self._webhook.notices(row.rule, row.place):
            if ended is not None and notice.at > (row.removed or 0):
                break
            labels = frozenset(notice.labels.items())
            firing = firing | {labels} if notice.is_firing else firing - {labels}
            ended = None if firing else notice.at
        return ended

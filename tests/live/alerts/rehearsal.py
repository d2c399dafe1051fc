"""Rehearsal of faults, which records when each expected alert fires and resolves."""

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
        rule: name of the alert in `alerting.alert_rules`.
        fault: description of the fault.
        place: namespace of the alert.
        began: start of the fault.
        fired: first notification; None if there was none.
        removed: start of the fault's removal.
        resolved_at: when the last alert of the rule was resolved; None if one was not.
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
        """Seconds from the fault to the notification."""
        return None if self.fired is None else self.fired.at - self.began

    @property
    def seconds_to_resolve(self) -> float | None:
        """Seconds from the start of the fault's removal to the notification."""
        if self.resolved_at is None or self.removed is None:
            return None
        return self.resolved_at - self.removed


class Rehearsal:
    """Faults, some of them concurrent.

    Args:
        webhook: webhook that receives the notifications.
        faults: alerts that each fault must raise.

    Attributes:
        rows: results so far.
    """

    def __init__(self, webhook: Webhook, faults: Mapping[str, Sequence[str]]) -> None:
        self._webhook = webhook
        self._faults = faults
        self.rows: list[Row] = []

    @contextmanager
    def under(
        self, name: str, place: str, fault: AbstractContextManager[None], *, limit_s: float = FIRE_LIMIT_S
    ) -> Iterator[None]:
        """Cause a fault, run the block, and remove the fault when all expected alerts have fired.

        Args:
            name: name of the fault in the table.
            place: namespace of the alerts.
            fault: context that causes and removes the fault.
            limit_s: time limit for the alerts.
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
        """Wait until a namespace has no firing alert."""
        for row in self.rows:
            if row.place == place and row.removed is not None and row.fired is not None and row.resolved_at is None:
                self._await_end(row)

    def _is_firing(self, rule: str, place: str) -> bool:
        return bool(self._webhook.firing(rule, place))

    def _await_notices(self, rows: list[Row], limit_s: float) -> None:
        """Wait until all alerts fire at the same time; one that has resolved meanwhile must fire again."""
        self._webhook.wait_for(lambda: all(self._is_firing(row.rule, row.place) for row in rows), limit_s=limit_s)
        for row in rows:
            notices = self._webhook.notices(row.rule, row.place)
            row.fired = next((notice for notice in notices if notice.is_firing and notice.at >= row.began), None)

    def _await_end(self, row: Row) -> None:
        self._webhook.wait_for(lambda: self._end_of(row) is not None, limit_s=RESOLVE_LIMIT_S)
        row.resolved_at = self._end_of(row)

    def _end_of(self, row: Row) -> float | None:
        """Return when the last alert of a rule was first resolved after the removal; it may fire again later."""
        firing: set[frozenset[tuple[str, str]]] = set()
        ended = None
        for notice in self._webhook.notices(row.rule, row.place):
            if ended is not None and notice.at > (row.removed or 0):
                break
            labels = frozenset(notice.labels.items())
            firing = firing | {labels} if notice.is_firing else firing - {labels}
            ended = None if firing else notice.at
        return ended

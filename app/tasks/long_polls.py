"""How many requests of a process may wait for the end of a task, and whose."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from app.service.admission import SaturatedError

if TYPE_CHECKING:
    from collections.abc import Iterator

# Each takes a subscription and some 20 KB.
MAX_LONG_POLLS: Final = 512
# A notice of a change can be missed, between servers of a cluster and while the connection is interrupted. So each
# record is read again once a second, or all of them together at this rate.
RECHECK_S: Final = 1.0
RECHECKS_PER_S: Final = 50


class LongPoll:
    """One request that waits.

    Attributes:
        caller: whose request it is.
        is_over: whether it should return what it knows, because another caller needs its slot.
    """

    def __init__(self, caller: str) -> None:
        self.caller = caller
        self.is_over = False


class LongPolls:
    """The requests that wait, bounded and shared between callers.

    If all slots are taken, a caller takes over the newest one of the caller with the most, unless that would leave the
    other with fewer.
    """

    def __init__(self) -> None:
        self._polls: dict[LongPoll, None] = {}  # in the order of their arrival
        self._held = Counter[str]()

    @property
    def recheck_s(self) -> float:
        """Seconds after which a request reads its record again."""
        return max(RECHECK_S, len(self._polls) / RECHECKS_PER_S)

    @contextmanager
    def enter(self, caller: str) -> Iterator[LongPoll]:
        """Hold a slot for the duration of the block.

        Raises:
            SaturatedError: every slot is taken, and none can be taken over.
        """
        if self._held.total() >= MAX_LONG_POLLS:
            self._take_over(caller)
        poll = LongPoll(caller)
        self._polls[poll] = None
        self._held[caller] += 1
        try:
            yield poll
        finally:
            del self._polls[poll]
            if not poll.is_over:
                self._release(caller)

    def _take_over(self, caller: str) -> None:
        largest, count = self._held.most_common(1)[0]
        if count < self._held[caller] + 2:
            raise SaturatedError
        victim = next(poll for poll in reversed(self._polls) if poll.caller == largest and not poll.is_over)
        victim.is_over = True
        self._release(largest)

    def _release(self, caller: str) -> None:
        self._held[caller] -= 1
        if not self._held[caller]:
            del self._held[caller]

"""The view as it runs: a round of scrapes at each interval, and what is made of it."""

from __future__ import annotations

import asyncio
import math
import sys
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import orjson
from rich.console import Console

from app.cli.monitor.feed import Feed, clock
from app.cli.monitor.history import History
from app.cli.monitor.moment import summarize
from app.cli.monitor.panels import View
from app.cli.monitor.screen import draw_screen
from app.cli.monitor.terminal import Screen, ending_signals

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from rich.console import RenderableType

    from app.cli.monitor.feed import Target
    from app.cli.monitor.figures import Figures

OK: Final = 0
BAD: Final = 1
INTERRUPTED: Final = 130
HINT: Final = "q quits"
AWAY: Final = "away"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the user asked for.

    Attributes:
        targets: the instances.
        interval_s: between two rounds of scrapes.
        window_s: how far back rates and quantiles look.
        timeout_s: how long an instance may take to answer.
        is_once: whether one picture is enough.
        is_json: whether a program reads it.
    """

    targets: Sequence[Target]
    interval_s: float
    window_s: float
    timeout_s: float
    is_once: bool
    is_json: bool


class Watch:
    """One run of the command.

    Args:
        options: what was asked for.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self._history = History()
        self._figures: Figures | None = None
        self._answered: Figures | None = None  # the last ones with somebody to answer
        self._console = Console(highlight=False, markup=False, emoji=False)
        self._is_plain = self._console.options.ascii_only

    async def run(self) -> int:
        """Run until the user ends it, or once.

        Returns:
            The command's exit code.
        """
        me = asyncio.current_task()
        if me is None:
            raise RuntimeError("expected to run in a task")
        options = self._options
        with ending_signals(me.cancel):
            try:
                async with Feed(options.targets, timeout_s=options.timeout_s, window_s=options.window_s) as feed:
                    if options.is_once:
                        return await self._once(feed)
                    if options.is_json or not sys.stdout.isatty() or self._console.is_dumb_terminal:
                        await self._print_each(feed)
                    else:
                        await self._show(feed, me)
            except asyncio.CancelledError:  # by a signal or a key: nobody else knows of this task
                return INTERRUPTED if options.is_once else OK
        return OK

    async def _rounds(self, feed: Feed) -> AsyncIterator[int]:
        """Scrape at each interval, and give the number of the round; rounds that are missed are left out."""
        began, interval_s = clock(), self._options.interval_s
        due, number = 0, 0
        while True:
            await asyncio.sleep(max(0.0, began + due * interval_s - clock()))
            await feed.scrape()
            now = clock()
            self._figures = summarize(
                feed.instances,
                at=now,
                when=datetime.now(UTC).astimezone(),
                began=began,
                interval_s=interval_s,
                window_s=self._options.window_s,
            )
            self._history.add(self._figures, feed.instances)
            if self._figures.state != AWAY:
                self._answered = self._figures
            yield number
            number += 1
            due = max(due + 1, math.ceil((clock() - began) / interval_s))

    async def _once(self, feed: Feed) -> int:
        wait = Console(stderr=True).status(f"a second scrape in {self._options.interval_s:g} s")
        with wait:
            async for number in self._rounds(feed):
                if number == 1:
                    break
        self._print()
        figures = self._figures
        if figures is None:
            raise RuntimeError("expected figures after two rounds")
        for instance in figures.instances:
            if instance.state == "away":
                sys.stderr.write(f"facial-service: {instance.name}: {instance.reason}\n")
        return BAD if {one.state for one in figures.instances} != {"ready"} else OK

    async def _print_each(self, feed: Feed) -> None:
        async for number in self._rounds(feed):
            if number:  # the first round has no rates
                self._print()

    def _print(self) -> None:
        if self._figures is None:
            return
        if self._options.is_json:
            sys.stdout.write(orjson.dumps(self._figures).decode() + "\n")
        else:
            self._console.print(self._draw(self._console.width, None), "")
        sys.stdout.flush()

    async def _show(self, feed: Feed, me: asyncio.Task[object]) -> None:
        screen = Screen(self._console, lambda width, height: self._draw(width, height, HINT), me.cancel)
        with screen.open():
            screen.refresh()
            async for _ in self._rounds(feed):
                screen.refresh()

    def _draw(self, width: int, height: int | None, hint: str = "") -> RenderableType:
        if self._figures is None:
            return "facial-service: waiting for the first answer"
        now = shown = self._figures
        if now.state == AWAY and self._answered is not None:
            last, kept = self._answered, ("state", "problems", "instances", "time", "view_s")
            shown = replace(last, **{name: getattr(now, name) for name in kept})
        return draw_screen(View(shown, self._history, self._is_plain), width, height, hint=hint)


def watch(options: Options) -> int:
    """Run the view.

    Returns:
        0; with ``--once``, 1 where an instance is away or not ready, and 130 where it was interrupted.
    """
    return asyncio.run(Watch(options).run())

"""Run of the monitor: the scrape loop, its output, and the terminal that it draws on."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import sys
import termios
import tty
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import orjson
from rich.console import Console

from app.cli.monitor.scraper import Scraper, clock
from app.cli.monitor.screen import View, draw_screen
from app.cli.monitor.snapshot import READY, UNREACHABLE, History, build_snapshot

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from rich.console import RenderableType

    from app.cli.monitor.scraper import Target
    from app.cli.monitor.snapshot import Snapshot

OK: Final = 0
NOT_ALL_READY: Final = 1
INTERRUPTED: Final = 130
HINT: Final = "q quits"
QUIT_KEYS: Final = frozenset(b"qQ")
_QUIT_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(kw_only=True)
class Watch:
    """One run of the monitor, with the options of the command."""

    targets: Sequence[Target]
    interval_s: float  # time between scrapes
    window_s: float  # look-back window for rates and quantiles
    timeout_s: float  # response timeout of an instance
    is_once: bool  # whether to print one frame and exit
    is_json: bool

    def __post_init__(self) -> None:
        self._history = History()
        self._latest: Snapshot | None = None
        self._reachable: Snapshot | None = None  # the last one with a reachable instance
        self._console = Console(highlight=False, markup=False, emoji=False)

    async def run(self) -> int:
        """Run until the user quits, and return the exit status.

        It is 0. With ``--once``, it is 1 if an instance is unreachable or not ready, and 130 after an interruption.
        """
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("expected to run in a task")
        scraper = Scraper(self.targets, timeout_s=self.timeout_s, window_s=self.window_s)
        with _call_on_signals(task.cancel):
            try:
                async with aclosing(scraper):
                    if self.is_once:
                        return await self._print_once(scraper)
                    if self.is_json or not sys.stdout.isatty() or self._console.is_dumb_terminal:
                        await self._print_each(scraper)
                    else:
                        await self._show(scraper, task.cancel)
            except asyncio.CancelledError:  # only a signal or the quit key cancels this task
                return INTERRUPTED if self.is_once else OK
        return OK

    async def _snapshots(self, scraper: Scraper) -> AsyncIterator[Snapshot]:
        """Scrape once per interval and yield snapshots. Intervals that a slow scrape misses are skipped."""
        started_at, interval_s = clock(), self.interval_s
        due = 0
        while True:
            await asyncio.sleep(max(0.0, started_at + due * interval_s - clock()))
            await scraper.scrape()
            self._latest = build_snapshot(
                scraper.instances,
                at=clock(),
                time=datetime.now(UTC).astimezone(),
                started_at=started_at,
                interval_s=interval_s,
                window_s=self.window_s,
            )
            self._history.add(self._latest, scraper.instances)
            if self._latest.state != UNREACHABLE:
                self._reachable = self._latest
            yield self._latest
            due = max(due + 1, math.ceil((clock() - started_at) / interval_s))

    async def _print_once(self, scraper: Scraper) -> int:
        snapshots = self._snapshots(scraper)
        with Console(stderr=True).status(f"Next scrape in {self.interval_s:g} s"):
            await anext(snapshots)  # rates need two scrapes
            snapshot = await anext(snapshots)
        self._print(snapshot)
        for instance in snapshot.instances:
            if instance.state == UNREACHABLE:
                sys.stderr.write(f"facial-service: {instance.name}: {instance.reason}\n")
        return OK if all(instance.state == READY for instance in snapshot.instances) else NOT_ALL_READY

    async def _print_each(self, scraper: Scraper) -> None:
        snapshots = self._snapshots(scraper)
        await anext(snapshots)  # rates need two scrapes
        async for snapshot in snapshots:
            self._print(snapshot)

    def _print(self, snapshot: Snapshot) -> None:
        if self.is_json:
            sys.stdout.write(orjson.dumps(snapshot).decode() + "\n")
        else:
            self._console.print(self._draw(self._console.width, None), "")
        sys.stdout.flush()

    async def _show(self, scraper: Scraper, on_quit: Callable[[], object]) -> None:
        screen = _Terminal(self._console, lambda width, height: self._draw(width, height, HINT), on_quit)
        with screen.open():
            screen.refresh()
            async for _ in self._snapshots(scraper):
                screen.refresh()

    def _draw(self, width: int, height: int | None, hint: str = "") -> RenderableType:
        if self._latest is None:
            return "facial-service: waiting for the first response"
        shown = self._latest
        if shown.state == UNREACHABLE and self._reachable is not None:  # keep the last values on the screen
            current = ("state", "problems", "instances", "time", "view_s")
            shown = replace(self._reachable, **{name: getattr(shown, name) for name in current})
        return draw_screen(View(shown, self._history, self._console.options.ascii_only), width, height, hint=hint)


@contextmanager
def _call_on_signals(on_quit: Callable[[], object]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    for number in _QUIT_SIGNALS:
        loop.add_signal_handler(number, on_quit)
    try:
        yield
    finally:
        for number in _QUIT_SIGNALS:
            loop.remove_signal_handler(number)


class _Terminal:
    """Full-screen terminal that redraws on resize, suspends on Ctrl-Z, and is restored on exit.

    `draw` is called with the width and the height, and `on_quit` when the user presses the quit key.
    """

    def __init__(
        self, console: Console, draw: Callable[[int, int], RenderableType], on_quit: Callable[[], object]
    ) -> None:
        self._console = console
        self._draw = draw
        self._on_quit = on_quit
        self._keyboard = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else None
        self._saved: list[Any] | None = None  # settings of the keyboard

    @contextmanager
    def open(self) -> Iterator[None]:
        """Switch to the alternate screen, and restore the terminal at the end."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGWINCH, self.refresh)
        loop.add_signal_handler(signal.SIGTSTP, self._suspend)
        self._enter()
        if self._keyboard is not None:
            loop.add_reader(self._keyboard, self._read_keys, self._keyboard)
        try:
            yield
        finally:
            if self._keyboard is not None:
                loop.remove_reader(self._keyboard)
            self._restore()
            loop.remove_signal_handler(signal.SIGTSTP)
            loop.remove_signal_handler(signal.SIGWINCH)

    def refresh(self) -> None:
        """Draw the screen at the terminal's current size."""
        width, height = self._console.size
        self._console.update_screen(self._draw(width, height))

    def _enter(self) -> None:
        if self._keyboard is not None:
            self._saved = termios.tcgetattr(self._keyboard)
            tty.setcbreak(self._keyboard)  # deliver keys at once, without echo
        self._console.set_alt_screen(enable=True)
        self._console.show_cursor(show=False)

    def _restore(self) -> None:
        with suppress(OSError):  # the terminal window may have been closed
            self._console.show_cursor(show=True)
            self._console.set_alt_screen(enable=False)
        if self._keyboard is not None and self._saved is not None:
            with suppress(OSError, termios.error):
                termios.tcsetattr(self._keyboard, termios.TCSADRAIN, self._saved)

    def _suspend(self) -> None:
        """Restore the terminal and stop the process; continue after `fg`."""
        self._restore()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._enter()
        self.refresh()

    def _read_keys(self, keyboard: int) -> None:
        keys = os.read(keyboard, 64)
        if not keys:
            asyncio.get_running_loop().remove_reader(keyboard)
        elif QUIT_KEYS & frozenset(keys):
            self._on_quit()

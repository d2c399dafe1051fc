"""Processes beside the workers that the master keeps: started, started again when they end, stopped in their turn."""

from __future__ import annotations

import mmap
import os
import signal
import sys
import time
from types import MappingProxyType
from typing import TYPE_CHECKING, NoReturn, Protocol

from app.observability.rich_logging import get_logger
from app.settings import read_environment
from app.supervisor.parent import end_with_parent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

log = get_logger("server")

# At least this long between two starts, doubled while the process does not stay.
PAUSE_S, PAUSE_MAX_S, STEADY_S = 0.5, 30.0, 60.0
QUICK_STOP_S = 3.0  # what a companion gets where the stop is to be quick
ORPHANS_S = 5.0  # what the children of one that died get to notice it
POLL_S = 0.02
NOTHING: Mapping[str, str] = MappingProxyType({})


class Held(Protocol):
    """Something that the master holds open, such as a listening socket or a lock."""

    def close(self) -> None:
        """Let go of it in this process."""


class Companion:
    """One process, forked from the master into a session of its own, where a terminal's Ctrl-C does not reach it.

    On Linux it is told to end when the master dies, however that dies.

    Args:
        name: in lines, in metrics (the label ``process``) and in the process's title.
        run: what the process does; it ends when this returns or raises.
        needs: what it needs of that which the master holds open; it closes the rest.
        stop_limit_s: how long an orderly end may take.
        quick_signal: what ends it at once, but still in order.
        is_early: whether it is started before the workers.
        is_up: whether it does already what it is for; workers wait a moment for one that is started before them.
        hint: where to read why it ended.
    """

    def __init__(  # noqa: PLR0913 - each has its say in how the process is kept
        self,
        name: str,
        run: Callable[[], None],
        *,
        needs: Iterable[Held] = (),
        stop_limit_s: float,
        quick_signal: signal.Signals = signal.SIGTERM,
        is_early: bool = True,
        is_up: Callable[[], bool] = lambda: True,
        hint: str = "",
    ) -> None:
        self.name = name
        self.pid = 0
        self.needs = tuple(needs)
        self.is_early = is_early
        self.is_up = is_up
        self._run = run
        self._stop_limit_s = stop_limit_s
        self._quick_signal = quick_signal
        self._hint = hint
        self._group = 0
        self._ended_at = 0.0
        self._next = 0.0
        self._pause = PAUSE_S
        self._is_stopping = False
        self._restart_flag = mmap.mmap(-1, 1)  # shared with the processes that are forked afterwards
        self._kill_at = 0.0  # while it restarts on request

    def request_restart(self) -> None:
        """Ask the master, from any of its processes, to restart this one."""
        self._restart_flag[0] = 1

    def keep(self, leave: Callable[[Companion], None]) -> None:
        """Start the process unless it runs or ended just now; called again and again.

        Args:
            leave: closes, in the new process, what it shall not hold of the master's.
        """
        now = time.monotonic()
        self._restart_if_requested(now)
        if self.is_alive() or now < self._next or not self._are_orphans_gone(now):
            return
        is_steady = now - self._next > STEADY_S
        self._pause = PAUSE_S if is_steady else min(2 * self._pause, PAUSE_MAX_S)
        self._next = now + self._pause
        self._start(leave)

    def is_alive(self) -> bool:
        """Tell whether the process runs; log its end, once, where nobody has asked for it."""
        if not self.pid:
            return False
        try:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:  # gunicorn collects every child, and came first
            ended, status = self.pid, None
        if not ended:
            return True
        pid, self.pid, self._ended_at = self.pid, 0, time.monotonic()
        if self._kill_at:
            self._kill_at = 0.0
            log.info("%s ended to be restarted (pid %d)", self.name, pid)
        elif not self._is_stopping:
            how = describe_status(status)
            hint = f"; see {self._hint}" if self._hint else ""
            fields = {"companion": self.name, "pid": pid, "how": how}
            log.error("%s ended unexpectedly: %s (pid %d)%s", self.name, how, pid, hint, extra=fields)
        return False

    def stop(self, is_hurried: Callable[[], bool]) -> None:
        """Ask the process to end, wait for it, and end it by force when its time is up.

        Args:
            is_hurried: whether it has to be quick; asked again and again, for that may change.
        """
        self._is_stopping = True
        limit, is_quick = time.monotonic() + self._stop_limit_s, False
        if not is_hurried():  # gunicorn drops a signal that comes close behind SIGTERM
            self._signal(signal.SIGTERM)
        while self.is_alive():
            if is_hurried() and not is_quick:
                is_quick, limit = True, min(limit, time.monotonic() + QUICK_STOP_S)
                self._signal(self._quick_signal)
            if time.monotonic() > limit:
                log.error("%s does not end; killing it", self.name)
                self._kill_group()
                limit = time.monotonic() + self._stop_limit_s
            time.sleep(POLL_S)
        self._kill_group()

    def _restart_if_requested(self, now: float) -> None:
        if self._restart_flag[0]:
            self._restart_flag[0] = 0
            if self.is_alive() and not self._kill_at:
                log.warning("Restarting %s (pid %d)", self.name, self.pid)
                self._kill_at = now + self._stop_limit_s
                self._signal(self._quick_signal)
        elif self._kill_at and now > self._kill_at:
            log.error("%s does not end; killing it", self.name)
            self._signal(signal.SIGKILL)

    def _start(self, leave: Callable[[Companion], None]) -> None:
        master = os.getpid()
        # A signal that comes between the fork and the child's own arrangements would run the master's handlers there.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self.pid = os.fork()
            if not self.pid:
                self._become(master, before, leave)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._group = self.pid

    def _become(self, master: int, mask: set[int], leave: Callable[[Companion], None]) -> NoReturn:
        status = 1
        try:
            os.setsid()
            for number in filter(_has_handler, signal.valid_signals()):
                signal.signal(number, signal.SIG_DFL)
            end_with_parent(master, self._quick_signal)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            leave(self)
            self._run()
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        except Exception:
            log.exception("%s failed", self.name)
        finally:
            sys.stderr.flush()
            os._exit(status)  # past the master's own exit handlers, which are not this process's to run

    def _signal(self, number: int) -> None:
        if self.is_alive():  # just collected, a process id could be somebody else's
            os.kill(self.pid, number)

    def _are_orphans_gone(self, now: float) -> bool:
        """Tell whether nobody writes any more under the names that the next one's children take over."""
        try:
            if self._group:
                os.killpg(self._group, 0)
        except (ProcessLookupError, PermissionError):
            self._group = 0
        if self._group and now - self._ended_at > ORPHANS_S:
            self._kill_group()
        return not self._group

    def _kill_group(self) -> None:
        group, self._group = self._group, 0
        if group:
            try:
                os.killpg(group, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                return


def execute(
    command: Sequence[str], *, keep: Sequence[int], output: Path, defaults: Mapping[str, str] = NOTHING
) -> NoReturn:
    """Become another program, which gets some open files of this one and writes into a file.

    Args:
        command: the program's path, then its arguments.
        keep: descriptors that stay open.
        output: gets what it writes to standard output and error, behind what is there.
        defaults: environment variables to set unless this process has them, because an operator set them.

    Raises:
        OSError: the program or the file cannot be opened.
    """
    nothing = os.open(os.devnull, os.O_RDONLY)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for descriptor, standard in ((nothing, 0), (file, 1), (file, 2)):
        os.dup2(descriptor, standard)
    for descriptor in keep:
        os.set_inheritable(descriptor, True)
    os.execve(command[0], list(command), {**defaults, **read_environment()})  # noqa: S606 - no shell is the point


def describe_status(status: int | None) -> str:
    """Say how a process ended, from what ``waitpid`` gave."""
    if status is None:
        return "status unknown"
    if not os.WIFSIGNALED(status):
        return f"exit status {os.WEXITSTATUS(status)}"
    number = os.WTERMSIG(status)
    return next((known.name for known in signal.Signals if known == number), f"signal {number}")


def _has_handler(number: int) -> bool:
    return callable(signal.getsignal(number))

"""Child processes supervised by the master, in addition to its workers."""

from __future__ import annotations

import mmap
import os
import signal
import sys
import time
from types import MappingProxyType
from typing import TYPE_CHECKING, NoReturn, Protocol

from app.observability.recording import record_child_exit
from app.observability.rich_logging import get_logger
from app.settings import read_environment
from app.supervisor.processes import describe_exit, end_with_parent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

log = get_logger("server")

# Minimum time between two starts. It doubles while the process exits within `STEADY_S` of its start (a crash loop). A
# process that ran for longer is restarted at once, however often it is killed.
PAUSE_S, PAUSE_MAX_S, STEADY_S = 0.5, 30.0, 5.0
QUICK_STOP_S = 3.0  # time limit of a quick stop
ORPHANS_S = 5.0  # time for the children of a process that died to end by themselves
POLL_S = 0.02
NO_VARIABLES: Mapping[str, str] = MappingProxyType({})


class Closeable(Protocol):
    """A resource that the master keeps open, such as a listening socket or a lock."""

    def close(self) -> None:
        """Close it in this process."""


class ManagedProcess:
    """A process forked from the master into its own session, which a terminal's Ctrl-C does not reach.

    On Linux the kernel ends it when the master dies for any reason.

    Args:
        name: used in log lines, in metrics (the label ``process``) and as the process title.
        run: function to run; the process ends when it returns or raises.
        needs: resources of the master that the process keeps open; it closes the others.
        stop_limit_s: time limit of an orderly stop.
        quick_signal: signal that stops the process quickly but in order.
        is_early: whether to start it before the workers.
        is_up: returns whether the process is usable; workers wait a moment for processes that start before them.
        hint: path of the process's log.
    """

    def __init__(  # noqa: PLR0913 - each one changes how the process is supervised
        self,
        name: str,
        run: Callable[[], None],
        *,
        needs: Iterable[Closeable] = (),
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
        self._started_at = 0.0
        self._ended_at = 0.0
        self._next = 0.0
        self._pause = PAUSE_S
        self._is_stopping = False
        self._restart_flag = mmap.mmap(-1, 1)  # shared with the processes that are forked afterwards
        self._kill_at = 0.0  # non-zero during a requested restart

    def request_restart(self) -> None:
        """Ask the master to restart the process; any process of the instance may call this."""
        self._restart_flag[0] = 1

    def keep_running(self, close_unneeded: Callable[[ManagedProcess], None]) -> None:
        """Start the process unless it is running or ended a moment ago; called about once a second.

        `close_unneeded` is called in the new process to close the master's resources that it does not need.
        """
        now = time.monotonic()
        self._restart_if_requested(now)
        if self.is_alive() or now < self._next or not self._have_orphans_ended(now):
            return
        self._started_at = now
        self._start(close_unneeded)

    def is_alive(self) -> bool:
        """Return whether the process is running; log once if it exited unexpectedly."""
        if not self.pid:
            return False
        try:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            code = os.waitstatus_to_exitcode(status) if ended else None
        except ChildProcessError:  # gunicorn reaps every child, and was first
            ended, code = self.pid, None
        if not ended:
            return True
        pid, self.pid, self._ended_at = self.pid, 0, time.monotonic()
        self._next = self._started_at + self._pause
        is_steady = self._ended_at - self._started_at > STEADY_S
        self._pause = PAUSE_S if is_steady else min(2 * self._pause, PAUSE_MAX_S)
        if self._kill_at:
            self._kill_at = 0.0
            log.info("%s stopped and will be restarted (pid %d)", self.name, pid)
        elif not self._is_stopping:
            how = describe_exit(code)
            hint = f"; see {self._hint}" if self._hint else ""
            fields = {"child": self.name, "pid": pid, "how": how}
            log.error("%s exited unexpectedly (pid %d): %s%s", self.name, pid, how, hint, extra=fields)
            record_child_exit(self.name)
        return False

    def stop(self, is_hurried: Callable[[], bool]) -> None:
        """Ask the process to stop, wait for it, and kill it at the time limit.

        `is_hurried` returns whether to stop quickly; it is called repeatedly, because that may change.
        """
        self._is_stopping = True
        limit, is_quick = time.monotonic() + self._stop_limit_s, False
        if not is_hurried():  # gunicorn drops a signal that closely follows SIGTERM
            self._signal(signal.SIGTERM)
        while self.is_alive():
            if is_hurried() and not is_quick:
                is_quick, limit = True, min(limit, time.monotonic() + QUICK_STOP_S)
                self._signal(self._quick_signal)
            if time.monotonic() > limit:
                log.error("%s did not stop in time; killing it", self.name)
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
            log.error("%s did not stop in time; killing it", self.name)
            self._signal(signal.SIGKILL)

    def _start(self, close_unneeded: Callable[[ManagedProcess], None]) -> None:
        master = os.getpid()
        # A signal between the fork and the child's own set-up would run the master's handlers in the child.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self.pid = os.fork()
            if not self.pid:
                self._run_child(master, before, close_unneeded)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._group = self.pid

    def _run_child(self, master: int, mask: set[int], close_unneeded: Callable[[ManagedProcess], None]) -> NoReturn:
        status = 1
        try:
            os.setsid()
            for number in filter(_has_handler, signal.valid_signals()):
                signal.signal(number, signal.SIG_DFL)
            end_with_parent(master, self._quick_signal)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            close_unneeded(self)
            self._run()
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        except Exception:
            log.exception("%s failed", self.name)
        finally:
            sys.stderr.flush()
            os._exit(status)  # skips the master's exit handlers, which this process must not run

    def _signal(self, number: int) -> None:
        if self.is_alive():  # the process id of a reaped process may belong to another one
            os.kill(self.pid, number)

    def _have_orphans_ended(self, now: float) -> bool:
        """Return whether all processes of the previous group have ended; kill them after `ORPHANS_S`.

        The children of the next process write their metrics under the same names.
        """
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
    command: Sequence[str], *, keep: Sequence[int], output: Path, defaults: Mapping[str, str] = NO_VARIABLES
) -> NoReturn:
    """Replace this process with another program, whose output is appended to a file.

    The program inherits the descriptors `keep`, and the variables `defaults` unless the operator has set them.

    Raises:
        OSError: the program or the file cannot be opened.
    """
    null = os.open(os.devnull, os.O_RDONLY)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for descriptor, standard in ((null, 0), (file, 1), (file, 2)):
        os.dup2(descriptor, standard)
    for descriptor in keep:
        os.set_inheritable(descriptor, True)
    os.execve(command[0], list(command), {**defaults, **read_environment()})  # noqa: S606 - no shell is intended


def _has_handler(number: int) -> bool:
    return callable(signal.getsignal(number))

"""The end of a parent process, and the description of exits."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from app.supervisor.processes import describe_exit, end_with_parent


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux signals the children of a process that ends")
def test_process_ends_with_its_parent() -> None:
    read, write = os.pipe()
    parent = os.fork()
    if not parent:
        master = os.getpid()
        child = os.fork()
        if not child:
            end_with_parent(master, signal.SIGKILL)
            os.write(write, b"x")
            signal.pause()
            os._exit(0)
        os.read(read, 1)
        os.kill(master, signal.SIGKILL)
    os.close(write)
    os.waitpid(parent, 0)
    assert os.read(read, 1) == b"", "no process has the other end open"
    os.close(read)


def test_process_whose_parent_has_ended_does_not_start() -> None:
    with pytest.raises(SystemExit):
        end_with_parent(os.getppid() + 1, signal.SIGUSR2)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (0, "exit status 0"),
        (3, "exit status 3"),
        (-9, "killed by SIGKILL (possibly out of memory)"),
        (-11, "killed by SIGSEGV"),
        (-40, "killed by signal 40"),
        (None, "exit status unknown"),
    ],
)
def test_description_of_an_exit(code: int | None, text: str) -> None:
    assert describe_exit(code) == text

"""The command line: one module a verb."""

import os
import signal

if os.getpid() == 1:
    # The kernel drops a signal for which a container's first process has no handler. Until the master has its own, and
    # in commands that have none, a container would run on until its grace is up, and be killed.
    for _number in (signal.SIGTERM, signal.SIGQUIT):
        signal.signal(_number, lambda number, _: os._exit(128 + number))

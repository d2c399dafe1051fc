"""Command line of the service."""

import os
import signal

if os.getpid() == 1:
    # The kernel discards signals for process 1 of a container unless it has a handler for them. Without this one, the
    # container would ignore SIGTERM until the master has installed its handlers, and in commands without handlers.
    for _number in (signal.SIGTERM, signal.SIGQUIT):
        signal.signal(_number, lambda number, _: os._exit(128 + number))

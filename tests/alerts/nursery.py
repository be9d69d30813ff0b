"""A service whose lives begin at once: a parent imports everything and forks for each line that it is sent.

It has neither threads nor a loop when it forks, for importing starts nothing (tests/test_architecture.py). A life ends
with its parent.
"""

import ctypes
import os
import signal
import sys
from typing import Final

from services.alerts.main import build
from shared.process import main

PR_SET_PDEATHSIG: Final = 1


def _live(parent: int) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    main(build)


def serve() -> None:
    """Begin a life for each line of the standard input, and tell its process id."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the dead are gone at once
    parent = os.getpid()
    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            _live(parent)
        sys.stdout.write(f"{child}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()

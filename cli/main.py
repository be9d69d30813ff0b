"""The entry point: parse, find the gateway, run the command, and turn what goes wrong into a line and an exit code."""

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cli.commands import COMMANDS, doctor
from cli.gateway import Failure, Gateway, Place, beside
from cli.parser import build

if TYPE_CHECKING:
    import httpx

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None, transport: "httpx.BaseTransport | None" = None) -> int:
    """Run the command line; return the exit code. `transport` is for tests."""
    asked = build().parse_args(arguments)
    if asked.run == doctor.__name__:  # it needs no gateway, which may be what is broken
        return doctor(beside(), asked)
    try:
        with Gateway(Place.find(asked.url, asked.key), transport) as gateway:
            return COMMANDS[asked.run](gateway, asked)
    except Failure as failure:
        sys.stderr.write(f"openbell: {failure}\n")
        return failure.code
    except KeyboardInterrupt:
        sys.stderr.write("\nopenbell: interrupted; a run that was started goes on (openbell runs list)\n")
        return INTERRUPTED
    except BrokenPipeError:  # the reader, say `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0

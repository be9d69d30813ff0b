import argparse
import asyncio
import logging
import secrets
import shutil
import signal
import sys
from pathlib import Path

import uvloop

from shared import logs
from tests.chaos.ledger import report
from tests.chaos.ledger.driver import Options, run
from tests.chaos.ledger.faults import KILLS, OTHERS


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="make chaos ARGS=...", description="The ledger under chaos (docs/chaos.md).")
    parser.add_argument("--seed", type=int, help="draws events and faults; a fresh one by default")
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=480, help="how long events are sent and faults happen")
    parser.add_argument("--settle", type=float, default=100, help="how long it may take until all is settled, at most")
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--only", action="append", default=[], choices=[*KILLS, *OTHERS], help="these faults only")
    parser.add_argument("--out", type=Path, default=Path(".bench/chaos-ledger.json"))
    return parser.parse_args()


async def main() -> int:
    """Run; return 1 when anything is wrong."""
    asked = arguments()
    task = asyncio.current_task()
    if task is not None:  # so that what was started is stopped
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    seed = secrets.randbelow(1_000_000) if asked.seed is None else asked.seed
    options = Options(seed, asked.events, asked.kills, asked.seconds, asked.settle, asked.replicas, tuple(asked.only))
    outcome = await run(options)
    report.write(outcome, asked.out)
    sys.stdout.write(report.text(outcome) + "\n")
    if outcome.holds:
        shutil.rmtree(outcome.logs, ignore_errors=True)
    return 0 if outcome.holds else 1


if __name__ == "__main__":
    logs.configure("WARNING")
    # A producer that is given up leaves futures that nobody awaits: its messages are sent again by the next one.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        sys.exit(runner.run(main()))

"""The long run of the simulation.

    python -m tests.chaos.simulation --seeds 1000 --from 0     a thousand drawn plans
    python -m tests.chaos.simulation --awaits                  the small plans, a crash at every await of the process
    python -m tests.chaos.simulation --plan '{...}'            one plan, as a failure printed it; tells all it did

Exit code 1 when a run broke a promise; the first `--most` failures are told.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from time import monotonic

from tests.chaos.simulation.database import Server
from tests.chaos.simulation.plan import CALM, HOLDING, Plan, random_plan
from tests.chaos.simulation.run import Report, simulate
from tests.chaos.simulation.schema import simulating
from tests.infra import postgres_server


def main() -> int:
    """Run what the arguments say; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.simulation")
    parser.add_argument("--seeds", type=int, default=0, help="how many drawn plans")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first seed")
    parser.add_argument("--awaits", action="store_true", help="crash the small plans at every await")
    parser.add_argument("--plan", help="a plan as JSON")
    parser.add_argument("--most", type=int, default=3, help="stop after so many failures")
    given = parser.parse_args()
    failed = runs = 0
    began = monotonic()
    with postgres_server() as dsn, simulating(dsn) as server:
        for report in _reports(given, server):
            runs += 1
            if given.plan:
                _say("\n".join(report.trace))
            if report.wrong:
                failed += 1
                _say(report.explain() + "\n")
            if failed >= given.most:
                break
            if runs % 100 == 0:
                _say(f"{runs} runs, {failed} failed, {monotonic() - began:.0f} s")
    _say(f"{runs} runs in {monotonic() - began:.0f} s, {failed} failed")
    return 1 if failed else 0


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _reports(given: argparse.Namespace, server: Server) -> Iterator[Report]:
    if given.plan:
        yield simulate(Plan.from_json(given.plan), server)
    for seed in range(given.first, given.first + given.seeds):
        yield simulate(random_plan(seed), server)
    if given.awaits:
        for plan in (CALM, HOLDING):
            for step in range(simulate(plan, server).steps):
                yield simulate(replace(plan, crash_at=step), server)


if __name__ == "__main__":
    sys.exit(main())

"""The result of a run: what was found, as rows of the benchmark table and as text."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.chaos.ledger.monitor import Watched
from tests.chaos.ledger.verify import SHOWN, Findings


@dataclass(frozen=True, slots=True)
class Asked:
    """What the run was to do; its bars."""

    seed: int
    events: int
    kills: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What it did."""

    asked: Asked
    found: Findings
    watched: Watched
    kills: Counter[str]
    faults: Counter[str]
    mid_transaction: int
    renewals: int
    took_s: float
    settled_s: float
    logs: Path

    @property
    def holds(self) -> bool:
        """Whether nothing is wrong."""
        return not self.found.violations and all(row["holds"] for row in rows(self))


def rows(outcome: Outcome) -> list[dict[str, Any]]:
    """Return the rows {metric, value, unit, baseline, ratio, bar, goal, holds}."""
    found, asked = outcome.found, outcome.asked
    wrong = {kind: len(found.violations.get(kind, ())) for kind in ("lost", "duplicated", "reordered")}
    others = sum(len(shown) for kind, shown in found.violations.items() if kind not in wrong)
    table = [
        _row("seed", asked.seed, ""),
        _row("events in (distinct, acknowledged by Kafka)", found.events_in, "events", at_least=asked.events),
        _row("kills", sum(outcome.kills.values()), "kills", at_least=asked.kills),
        _row("lost", wrong["lost"], "events", at_most=0),
        _row("duplicated", wrong["duplicated"], "events", at_most=0),
        _row("reordered", wrong["reordered"], "pairs", at_most=0),
        _row("other violations", others, "", at_most=0),
        _row("whole run", round(outcome.took_s, 1), "s", at_most=asked.seconds),
        _row("effects", found.effects, "effects"),
        _row("records in the log, both hops", found.log_records, "records"),
        _row("parked at least once, dead included", found.parked, "events"),
        _row("dead, each as it must", found.dead, "events"),
        _row("credits relayed again", found.credits_relayed_again, "records"),
        _row("paid outside", found.paid, "payouts"),
        _row("payouts left unknown", found.payouts_unknown, "payouts"),
        _row("stopped in the middle of a transaction", outcome.mid_transaction, "times"),
        _row("producers of the driver given up", outcome.renewals, "times"),
        _row("longest stall: nothing took effect", round(outcome.watched.longest_stall_s, 1), "s"),
        _row("longest time that a partition's position stood", round(outcome.watched.longest_standing_s, 1), "s"),
        _row("most records behind", outcome.watched.most_behind, "records"),
        _row("settled after the last fault", round(outcome.settled_s, 1), "s"),
    ]
    table += [_row(f"killed: {kind}", count, "kills") for kind, count in sorted(outcome.kills.items())]
    table += [_row(f"fault: {kind}", count, "times") for kind, count in sorted(outcome.faults.items())]
    for kind, seconds in sorted(outcome.watched.recoveries.items()):
        table.append(_row(f"recovery, median: {kind}", round(sorted(seconds)[len(seconds) // 2], 1), "s"))
        table.append(_row(f"recovery, longest: {kind}", round(max(seconds), 1), "s"))
    return table


def _row(
    metric: str, value: float, unit: str, *, at_least: float | None = None, at_most: float | None = None
) -> dict[str, Any]:
    bar = at_least if at_most is None else at_most
    holds = (at_least is None or value >= at_least) and (at_most is None or value <= at_most)
    return {
        "metric": metric,
        "value": value,
        "unit": unit,
        "baseline": None,
        "ratio": None,
        "bar": bar,
        "goal": bar,
        "holds": holds,
    }


def write(outcome: Outcome, file: Path) -> None:
    """Write the rows as JSON."""
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(rows(outcome), indent=2) + "\n")


def text(outcome: Outcome) -> str:
    """Return the report as it is printed."""
    table = rows(outcome)
    width = max(len(row["metric"]) for row in table)
    lines = [f"{row['metric']:<{width}}  {row['value']:>10} {row['unit']:<8}{_bar(row)}" for row in table]
    for kind, shown in outcome.found.violations.items():
        lines += ["", f"{kind}: {len(shown)}", *_some(shown)]
    lines += ["", f"logs of all processes: {outcome.logs}"]
    lines.append("nothing lost, nothing twice, nothing out of order" if outcome.holds else "FAILED")
    return "\n".join(lines)


def _bar(row: dict[str, Any]) -> str:
    if row["bar"] is None:
        return ""
    return f" (bar {row['bar']}: {'holds' if row['holds'] else 'BROKEN'})"


def _some(shown: Sequence[str]) -> list[str]:
    more = [f"  ... and {len(shown) - SHOWN} more"] if len(shown) > SHOWN else []
    return [*(f"  {line}" for line in shown[:SHOWN]), *more]

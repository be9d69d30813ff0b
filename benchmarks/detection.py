"""How fast the detector judges contracts, on one core, against a plain loop over contracts.

The full synthetic market (`benchmarks.market`) lies in memory as decoded events. "detection" is everything from
there to scores: laying the chains end to end, the rule, the checks of every row, the change since the last
snapshot, the score. "detection, told" also makes the events' objects. "decode and detection" starts from the bytes as
they travel. The baselines start where these do and are a plain loop over the rows, without the checks, on a part of the
market: a contract costs the same anywhere. The bar is for detection; decoding has none of its own.
Time is CPU time of one thread without I/O, so that a busy machine does not change the result much.

    .venv/bin/python -m benchmarks.detection
"""

import math
import os
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final
from uuid import UUID

import numpy as np
import pyarrow as pa

from benchmarks.market import CONTRACTS, OPENING, bodies, market
from services.detector.domain.rule import SIDES, Chains, Found, Ints, Rule, detect, side_of_quote
from services.detector.domain.scoring import POINTS, SIDE_SHARES, describe, score
from services.detector.domain.snapshots import Snapshot, compare
from shared.contracts.data import ChainCollected

BAR: Final = 1_000_000.0  # contracts a second on one core
ROUNDS: Final = 5
BASELINE_CONTRACTS: Final = 100_000
_ANY_ID: Final = UUID(int=0)

Judged = dict[str, float]
"""Contract -> score."""


def run() -> list[dict[str, Any]]:
    """Measure; return a row a metric."""
    earlier, now = market(minute=0), market(minute=1)
    travelling = bodies(now)
    with one_core():
        known = _known(earlier)
        quiet = _seconds(lambda: _judge(now, known))
        told = _seconds(lambda: describe(*_judge(now, known)[:2]))
        part = _part(now)
        volumes = {event.header.symbol: dict(_pairs(known[event.header.symbol])) for event in part}
        slow = _seconds(lambda: plainly(part, volumes)) / sum(event.contracts.num_rows for event in part)
        whole = _seconds(lambda: _judge(_decoded(travelling), known))
        some = bodies(part)
        slow_whole = _seconds(lambda: plainly(_decoded(some), volumes))
        slow_whole /= sum(event.contracts.num_rows for event in part)
    assert _agree(_scores(part, known), plainly(part, volumes)), "the arrays and the loop disagree"
    baseline = 1 / slow
    return [
        _row("detection, contracts on one core", CONTRACTS / quiet, baseline, BAR),
        _row("detection, told as events' objects, contracts on one core", CONTRACTS / told, baseline, BAR),
        _row("decode and detection, contracts on one core", CONTRACTS / whole, 1 / slow_whole),
    ]


def _row(metric: str, value: float, baseline: float, bar: float | None = None) -> dict[str, Any]:
    return {
        "metric": metric,
        "value": round(value),
        "unit": "contracts/s",
        "baseline": round(baseline),
        "ratio": round(value / baseline, 1),
        "bar": bar and round(bar),
        "goal": None,
        "holds": bar is None or value >= bar,
    }


def _judge(events: Sequence[ChainCollected], known: Mapping[str, Snapshot]) -> tuple[Found, Ints, Any]:
    chains = Chains.of([(event.header, event.contracts) for event in events])
    found = detect(chains, Rule())
    change, _ = compare(chains, found, known)
    return found, change, score(found, change)[1]


def _decoded(travelling: Sequence[bytes]) -> list[ChainCollected]:
    """Return the events as the detector's consumer reads them."""
    return [ChainCollected.from_bytes(body, id=_ANY_ID, time=OPENING) for body in travelling]


def _known(events: Sequence[ChainCollected]) -> dict[str, Snapshot]:
    chains = Chains.of([(event.header, event.contracts) for event in events])
    return compare(chains, detect(chains, Rule()), {})[1]


def _scores(events: Sequence[ChainCollected], known: Mapping[str, Snapshot]) -> Judged:
    found, _, scores = _judge(events, known)
    return dict(zip(found.contracts.to_pylist(), scores.tolist(), strict=True))


def _agree(one: Judged, other: Judged) -> bool:
    """Say whether the contracts are the same and the scores too, up to the rounding of six parts."""
    return one.keys() == other.keys() and all(abs(one[name] - other[name]) < 0.07 for name in one)


def _pairs(snapshot: Snapshot) -> list[tuple[str, int]]:
    return list(zip(snapshot.contracts.to_pylist(), snapshot.volume.tolist(), strict=True))


def _part(events: Sequence[ChainCollected]) -> list[ChainCollected]:
    """Return the first chains that make up the baseline's number of contracts."""
    sizes = np.cumsum([event.contracts.num_rows for event in events])
    return list(events[: int(np.searchsorted(sizes, BASELINE_CONTRACTS)) + 1])


def _seconds(work: Callable[[], object]) -> float:
    """Return the CPU time of the cheapest of `ROUNDS` runs: what it takes when nothing else has the core."""
    took: list[float] = []
    for _ in range(ROUNDS):
        started = time.process_time()
        work()
        took.append(time.process_time() - started)
    return min(took)


def plainly(chains: Sequence[ChainCollected], volumes: Mapping[str, Mapping[str, int]]) -> Judged:
    """Apply Barchart's rule and score what meets it, a contract at a time."""
    judged: Judged = {}
    for event in chains:
        before = volumes[event.header.symbol]
        for each in event.contracts.to_pylist():
            volume, interest, last = each["volume"], each["open_interest"], each["last"]
            if volume > 500 and interest > 100 and last > 0.10 and volume / interest >= 1.25:
                change = max(0, int(volume) - before.get(each["contract"], 0))
                judged[each["contract"]] = _plain_score(event, each, change)
    return judged


def _plain_score(event: ChainCollected, each: Mapping[str, Any], change: int) -> float:
    volume, interest, close = each["volume"], each["open_interest"], event.header.close
    away = each["strike"] - close if each["right"] == "C" else close - each["strike"]
    (side,) = side_of_quote(*(np.array([each[name]]) for name in ("bid", "ask", "last")))
    curves = {
        "volume_oi": math.log(volume / interest / 1.25) / math.log(20 / 1.25),
        "premium": math.log10(volume * each["last"] * 100 / 10_000) / 2,
        "otm": away / close * 100 / 15,
        "dte": 2.0 ** (-(each["expiration"] - event.header.session).days / 30),
        "side": SIDE_SHARES[SIDES[side]],
        "change": change / interest / 1.25,
    }
    return round(sum(round(POINTS[name] * min(1.0, max(0.0, curve)), 2) for name, curve in curves.items()), 2)


@contextmanager
def one_core() -> Generator[None]:
    """Keep this process on one core, and its libraries on one thread."""
    cores, threads = os.sched_getaffinity(0), pa.cpu_count()
    os.sched_setaffinity(0, {max(cores)})
    pa.set_cpu_count(1)
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
        pa.set_cpu_count(threads)


if __name__ == "__main__":
    for line in run():
        print(line)

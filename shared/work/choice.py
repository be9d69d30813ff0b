"""Of the rows that are due, which ones a claim takes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from shared.db import Row

FEW: Final = 16
"""So many that cannot wait are claimed at once beside those that can."""
LOOK_PAST: Final = 100
"""So many rows more than are wanted are looked at in one claim, for those whose lane is taken by one before them."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The rows that were chosen, and whether another claim may find more."""

    rows: list[Row]
    more: bool


def looked_at(free: int) -> int:
    """Return how many rows are looked at for so many that are wanted."""
    return min(free * 4, free + LOOK_PAST)


def choose(rows: Sequence[Row], free: int, can_wait: Callable[[Row], bool], let_in: int) -> Choice:
    """Take the first `free` rows, at most one of each lane, and of those that can wait at most `let_in`.

    Those that can wait come behind all others.
    """
    chosen: list[Row] = []
    lanes: set[str] = set()
    waiting = 0
    for row in rows:
        lane: str | None = row["lane"]
        if len(chosen) == free:
            break
        if lane is not None and lane in lanes:
            continue
        if can_wait(row):
            if waiting == let_in:
                break
            waiting += 1
        if lane is not None:
            lanes.add(lane)
        chosen.append(row)
    cut_off = len(chosen) == free or len(rows) == looked_at(free)
    others_left = len(chosen) - waiting < sum(not can_wait(row) for row in rows)
    return Choice(chosen, cut_off and (others_left or waiting < let_in))

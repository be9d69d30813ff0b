"""What rings together: by what, and when it is told. Pure.

The first of a group waits `wait_s` for others. What comes after is told `interval_s` after the message before it at the
soonest, and what nobody acknowledges again every `repeat_s`, for a day.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal

from services.alerts.domain.routing import ANY, TEST, Ring
from services.alerts.domain.text import SIMULATED_MARK

By = Literal["kind", "symbol"]

REPEATS_FOR: Final = timedelta(days=1)
MOST_LINES: Final = 20


@dataclass(frozen=True, slots=True)
class Grouping:
    """How what rings of a kind is grouped; ANY is every kind that is not critical. Groups never mix kinds."""

    kind: str
    by: By
    wait_s: int
    interval_s: int
    repeat_s: int | None

    def key(self, ring: Ring) -> str:
        """Return what the members of a group have in common, besides their kind."""
        return ring.symbol or "" if self.by == "symbol" else ""

    def due_at(self, flushed_at: datetime | None, now: datetime) -> datetime:
        """Return when a group is told whose first new member rings now."""
        soonest = now + timedelta(seconds=self.wait_s)
        return soonest if flushed_at is None else max(soonest, flushed_at + timedelta(seconds=self.interval_s))


def grouping_of(groupings: Sequence[Grouping], ring: Ring) -> Grouping | None:
    """Return how something that rings is grouped; None: it is told by itself."""
    if ring.kind == TEST or ring.digest:
        return None
    for one in groupings:
        if one.kind == ring.kind:
            return one
    return None if ring.critical else next((one for one in groupings if one.kind == ANY), None)


def title_of(kind: str, key: str, titles: Sequence[str], *, again: bool) -> str:
    """Return a group in one line."""
    mark = SIMULATED_MARK if any(title.startswith(SIMULATED_MARK) for title in titles) else ""
    one = "alert" if kind == "activity" else kind.replace("_", " ")
    what = one if len(titles) == 1 else f"{one} messages" if one != "alert" else "alerts"
    about = f"{key}: " if key else ""
    return f"{mark}{about}{len(titles)} {what}{', not acknowledged yet' if again else ''}"


def lines_of(titles: Sequence[str]) -> tuple[str, ...]:
    """Return a group's members, a line each, and how many more there are."""
    more = len(titles) - MOST_LINES
    return (*titles[:MOST_LINES], *([f"and {more} more"] if more > 0 else ()))

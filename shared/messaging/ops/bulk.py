"""Many failed jobs at once: choose them, count them, then retry or discard them lane by lane.

The rows are chosen once, when the action is asked for; what fails later is not among them. A batch is some rows of one
lane in one transaction with the count of what was done, so that an action cut short goes on where it stood. With a rate
a batch is a few seconds' rows, and the next one waits for its time: what is not reached yet fences no key, and a
cancelled action leaves it as it is. The rate spreads due times; rows of one key stay in one batch and follow their head
without a pause, and the pace counts them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Literal
from uuid import UUID

from sqlalchemy import text

from shared.db import Row, Tx
from shared.messaging.failed import NOTES, Lane, settle_heads
from shared.messaging.lane import lane_of_row, lock_lane
from shared.messaging.ops.jobs import FailedJobs
from shared.messaging.ops.rows import BRIEF, CHOSEN, Filter

Verb = Literal["retry", "discard"]

BATCH: Final = 500
LEAD_S: Final = 5.0
"""How long before its due time a row begins to wait."""
SAMPLE: Final = 10

_RUNNABLE: Final = "(cast(:notes as text[]) is null or coalesce(error_code, '') <> all(cast(:notes as text[])))"
_COUNT: Final = text(
    f"""
    select consumer, status, error_code, count(*) as rows from failed_jobs where {CHOSEN} and {_RUNNABLE}
    group by consumer, status, error_code order by rows desc
    """  # noqa: S608 - constants of ours
)
_SAMPLE: Final = text(
    f"select {BRIEF} from failed_jobs where {CHOSEN} and {_RUNNABLE} order by id limit :limit"  # noqa: S608 - constants
)
_CHOOSE: Final = text(
    f"""
    select id, consumer, topic, partition, key, record_offset from failed_jobs where {CHOSEN} and {_RUNNABLE}
    order by id limit :cap
    """  # noqa: S608 - constants of ours
)
_PLACES: Final = text(
    """
    select j.id, j.consumer, j.topic, j.partition, j.key, j.record_offset
    from unnest(cast(:ids as uuid[])) with ordinality r(id, n) join failed_jobs j on j.id = r.id order by r.n
    """
)
_LOCK: Final = text(
    f"""
    select id, key, record_offset from failed_jobs
    where id = any(cast(:ids as uuid[])) and status = any(cast(:statuses as text[])) and {_RUNNABLE}
    order by record_offset for update
    """  # noqa: S608 - constants of ours
)
_RETRY: Final = text(
    """
    update failed_jobs f set status = 'waiting', due_at = case when f.key is null then r.due end, updated_at = :now,
           resolved_by = :actor
    from unnest(cast(:ids as uuid[]), cast(:dues as timestamptz[])) r(id, due) where f.id = r.id
    """
)
_DISCARD: Final = text(
    """
    update failed_jobs set status = 'discarded', due_at = null, updated_at = :now, resolved_by = :actor,
           resolution = :reason
    where id = any(cast(:ids as uuid[]))
    """
)


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be done: to which rows, at how many a second, for which reason (discard)."""

    verb: Verb
    chosen: Filter
    actor: str
    rate: float | None = None
    reason: str | None = None

    @property
    def pace(self) -> timedelta:
        """The time between two rows."""
        return timedelta(seconds=1 / self.rate) if self.rate else timedelta(0)

    @property
    def lead(self) -> timedelta:
        """How long before its time a batch may begin: a retried row has a due time, a discarded one is gone at once."""
        return timedelta(seconds=LEAD_S if self.verb == "retry" else 0)

    @property
    def size(self) -> int:
        """How many rows a batch has, unless the last one's key has more."""
        seconds = LEAD_S if self.verb == "retry" else 1
        return min(BATCH, max(1, int(self.rate * seconds))) if self.rate else BATCH

    @property
    def notes(self) -> list[str] | None:
        """Codes of rows that cannot be meant."""
        return sorted(NOTES) if self.verb == "retry" else None


class Bulk:
    """Acts on many failed jobs of one service."""

    def __init__(self, failed_jobs: FailedJobs) -> None:
        self._failed_jobs = failed_jobs

    async def preview(self, tx: Tx, order: Order, cap: int) -> dict[str, Any]:
        """Return what the order would do: counts, a sample of rows, and how long it takes. Changes nothing."""
        params = {**order.chosen.params(), "notes": order.notes}
        groups = [dict(row) for row in await tx.fetch(_COUNT, **params)]
        sample = await tx.fetch(_SAMPLE, **params, limit=SAMPLE)
        matched = sum(group["rows"] for group in groups)
        selected = min(matched, cap)
        return {
            "matched": matched,
            "selected": selected,
            "groups": groups,
            "sample": [self._failed_jobs.brief(row) for row in sample],
            "takes_s": round(selected / order.rate, 1) if order.rate else 0.0,
        }

    async def choose(self, tx: Tx, order: Order, cap: int) -> list[UUID]:
        """Return the rows that are meant, the oldest `cap`, lane by lane; a key's rows together, in their order."""
        rows = await tx.fetch(_CHOOSE, **order.chosen.params(), notes=order.notes, cap=cap)
        first: dict[Any, int] = {}
        for row in rows:
            first.setdefault(_key(row), len(first))
        return [row["id"] for row in sorted(rows, key=lambda row: (lane_of_row(row), first[_key(row)], row[-1]))]

    async def batch(  # noqa: PLR0917 - where the order stands
        self, tx: Tx, order: Order, ids: Sequence[UUID], position: int, start: datetime, now: datetime
    ) -> tuple[int, int]:
        """Act on the next rows from `position` on, of one lane; return (the position after them, rows done).

        What is retried runs from `start` on, at the order's rate.
        """
        rows = await tx.fetch(_PLACES, ids=list(ids[position : position + BATCH]))
        if not rows:
            return min(len(ids), position + BATCH), 0
        lane = lane_of_row(rows[0])
        mine = _first(rows, order.size)
        after = ids.index(mine[-1], position) + 1
        await lock_lane(tx, lane)
        params = {"statuses": list(order.chosen.statuses), "notes": order.notes}
        found = await tx.fetch(_LOCK, ids=mine, **params)
        if found:
            await self._act(tx, order, lane, found, {one: n for n, one in enumerate(mine)}, start, now)
        return after, len(found)

    async def _act(  # noqa: PLR0917 - one batch's facts
        self,
        tx: Tx,
        order: Order,
        lane: Lane,
        rows: Sequence[Row],
        places: dict[UUID, int],
        start: datetime,
        now: datetime,
    ) -> None:
        ids = [row["id"] for row in rows]
        if order.verb == "discard":
            await tx.execute(_DISCARD, ids=ids, now=now, actor=order.actor, reason=order.reason)
            await settle_heads(tx, lane, {row["key"]: now for row in rows if row["key"] is not None}, now)
            return
        dues = [start + places[row["id"]] * order.pace for row in rows]
        await tx.execute(_RETRY, ids=ids, dues=dues, now=now, actor=order.actor)
        heads: dict[bytes, datetime] = {}
        for row, due in zip(rows, dues, strict=True):
            if row["key"] is not None:
                heads.setdefault(row["key"], due)
        await settle_heads(tx, lane, heads, now, ids)


def _first(rows: Sequence[Row], size: int) -> list[UUID]:
    """Return the first rows' ids: of one lane, `size` of them and what else the last one's key has."""
    for n, row in enumerate(rows):
        cut = n >= size and _key(row) != _key(rows[n - 1])
        if cut or lane_of_row(row) != lane_of_row(rows[0]):
            return [one["id"] for one in rows[:n]]
    return [row["id"] for row in rows]


def _key(row: Row) -> Any:
    place = (row["consumer"], row["topic"], row["partition"])
    return (*place, row["id"]) if row["key"] is None else (*place, row["key"])

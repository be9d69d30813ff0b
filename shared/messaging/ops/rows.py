"""Rows of `failed_jobs`: how they are chosen, and how a key's order is kept when a person acts on them.

The rule that every action keeps: of a key's waiting rows only the lowest has a due time. `settle_heads` restores it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

from sqlalchemy import text

from shared.db import Row, Tx
from shared.messaging.lane import LOCK_LANE, Lanes, lane_space
from shared.messaging.record import Record, lane_of

Status = Literal["waiting", "held", "dead", "resolved", "discarded"]
OPEN: Final[tuple[Status, ...]] = ("waiting", "held", "dead")

BRIEF: Final = """
    id, consumer, topic, partition, record_offset, key, job_type, event_id, status, attempts, due_at, error_code,
    error_message, fingerprint, failed_at, updated_at, resolved_by, resolution
"""
BRIEF_NAMES: Final = tuple(name.strip() for name in BRIEF.split(","))
CHOSEN: Final = """
    status = any(cast(:statuses as text[]))
    and (cast(:consumer as text) is null or consumer = :consumer)
    and (cast(:fingerprint as text) is null or fingerprint = :fingerprint)
    and (cast(:code as text) is null or error_code = :code)
    and (cast(:since as timestamptz) is null or failed_at >= :since)
    and (cast(:until as timestamptz) is null or failed_at < :until)
"""
"""The condition of a `Filter`; its parameters are `Filter.params()`."""

_HEADS: Final = text(
    """
    with keyed as (
        select k.key, k.due, (
            select h.id from failed_jobs h
            where h.consumer = :consumer and h.topic = :topic and h.partition = :partition and h.key = k.key
              and h.status in ('waiting', 'held')
            order by h.record_offset limit 1
        ) as head
        from unnest(cast(:keys as bytea[]), cast(:dues as timestamptz[])) k(key, due)
    )
    update failed_jobs f
    set due_at = case when f.id <> k.head then null
                      when f.id = any(cast(:chosen as uuid[])) then k.due
                      else coalesce(f.due_at, k.due) end,
        updated_at = :now
    from keyed k
    where f.consumer = :consumer and f.topic = :topic and f.partition = :partition and f.key = k.key
      and f.status = 'waiting' and (f.id = k.head or f.due_at is not null)
    """
)


@dataclass(frozen=True, slots=True)
class By:
    """Who acts, and in which request."""

    actor: str
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class Filter:
    """Which rows are meant. Times are of the first failure: `since` included, `until` not."""

    statuses: Sequence[str] = OPEN
    consumer: str | None = None
    fingerprint: str | None = None
    code: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    def params(self) -> dict[str, Any]:
        """Return the parameters of `CHOSEN`."""
        return {
            "statuses": list(self.statuses),
            "consumer": self.consumer,
            "fingerprint": self.fingerprint,
            "code": self.code,
            "since": self.since,
            "until": self.until,
        }


def lane_of_row(row: Row) -> tuple[str, str, int, int]:
    """Return (consumer, topic, partition, lane) of a row."""
    record = Record(row["topic"], row["partition"], row["record_offset"], row["key"], None, ())
    return row["consumer"], row["topic"], row["partition"], lane_of(record, Lanes.count)


async def lock_lane(tx: Tx, lane: tuple[str, str, int, int]) -> None:
    """Lock a lane as its consumer does: until the commit nothing runs there, nor parks behind a key of it."""
    consumer, topic, partition, number = lane
    await tx.execute(LOCK_LANE, space=lane_space(consumer, topic, partition), lane=number)


async def settle_heads(
    tx: Tx,
    lane: tuple[str, str, int, int],
    dues: Mapping[bytes, datetime],
    now: datetime,
    chosen: Sequence[Any] = (),
) -> None:
    """Give the lowest open row of each key its due time, if it waits, and take it from all others.

    `dues` says when each key's head runs. A head that is not among `chosen` (ids) keeps the due time that it has.
    The lane must be locked.
    """
    if dues:
        await tx.execute(
            _HEADS,
            consumer=lane[0],
            topic=lane[1],
            partition=lane[2],
            keys=list(dues),
            dues=list(dues.values()),
            chosen=list(chosen),
            now=now,
        )

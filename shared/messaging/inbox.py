"""The inbox: an event's row says that a consumer has dealt with it, done or parked, never both.

Partitioned by the day of the event's time. `KEEP_DAYS` outlives topic retention plus the longest hold; an event
from outside the window parks, it never silently runs.

Making and dropping a day locks out every insert for a moment: it would rather give up than wait for a long one.
"""

from datetime import UTC, date, datetime, timedelta
from typing import Final

from sqlalchemy import text

from shared.db import Tx

KEEP_DAYS: Final = 35  # the longest retention of a topic (30 days) and some; a test compares them
AHEAD_DAYS: Final = 2
_PAST: Final = timedelta(days=KEEP_DAYS - 1)
_AHEAD: Final = timedelta(days=1 - AHEAD_DAYS)

_PARTITIONS: Final = text(
    """
    select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid
    where i.inhparent = cast('inbox' as regclass)
    """
)


def day_of(time: datetime) -> date:
    """Return the inbox day of an event's time."""
    return time.astimezone(UTC).date()


def in_window(time: datetime, now: datetime) -> bool:
    """Tell whether an event of that time may still be told apart from one seen before."""
    return _AHEAD <= now - time <= _PAST


async def roll(tx: Tx, now: datetime) -> None:
    """Make the window's days and drop those that fell out of it. Safe to run at any time, by several at once."""
    await tx.execute(text("select pg_advisory_xact_lock(cast(hashtext(current_schema() || '/inbox') as bigint))"))
    await tx.execute(text("set local lock_timeout = '2s'"))
    today = day_of(now)
    wanted = {
        f"inbox_{day:%Y%m%d}": day for day in (today + timedelta(days=n) for n in range(-KEEP_DAYS, AHEAD_DAYS + 1))
    }
    existing = {row["relname"] for row in await tx.fetch(_PARTITIONS)}
    for name in sorted(wanted.keys() - existing):
        day = wanted[name]
        await tx.execute(
            text(f"create table {name} partition of inbox for values from ('{day}') to ('{day + timedelta(days=1)}')")
        )
    for name in sorted(existing - wanted.keys()):
        await tx.execute(text(f"drop table {name}"))

"""Months of `webhooks`, by when the provider made the event. What belongs to none lies in the default partition."""

from datetime import UTC, date, datetime, time
from typing import Final

from sqlalchemy import text

from shared import retention
from shared.db import Tx
from shared.retention import Transaction, slice_of

AHEAD: Final = 2

_LOCK: Final = text("select pg_advisory_xact_lock(hashtextextended(current_schema() || '/' || :table, 0))")
_PARTITIONS: Final = text("""
    select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid
    where i.inhparent = cast(cast(:table as text) as regclass)""")


def month(day: date, ahead: int = 0) -> date:
    """Return the first day of the month `ahead` months after `day`'s."""
    count = day.year * 12 + day.month - 1 + ahead
    return date(count // 12, count % 12 + 1, 1)


def partition(table: str, first: date) -> str:
    """Return the name of a month's partition."""
    return f"{table}_{first:%Y%m}"


def create_month(table: str, first: date) -> str:
    """Return the statement that makes a month's partition."""
    return f"create table {partition(table, first)} partition of {table} {_values(first)}"


async def roll(tx: Tx, table: str, today: date, keep: int) -> None:
    """Make this month and the next ones, and drop those that ended more than `keep` months ago."""
    await tx.execute(_LOCK, table=table)
    existing = {row["relname"] for row in await tx.fetch(_PARTITIONS, table=table)}
    for ahead in range(AHEAD + 1):
        first = month(today, ahead)
        if partition(table, first) not in existing:
            await _add_month(tx, table, first)
    oldest = partition(table, month(today, -keep))
    for name in sorted(existing - {f"{table}_default"}):
        if name < oldest:
            await tx.execute(text(f"drop table {name}"))


async def forget(transaction: Transaction, table: str, today: date, keep: int) -> None:
    """Delete what lies outside every month and is older than those that `roll` keeps."""
    before = datetime.combine(month(today, -keep), time(), UTC)
    await retention.forget(transaction, slice_of(f"{table}_default", "created < :before"), before=before)


def _values(first: date) -> str:
    return f"for values from ('{first} 00:00Z') to ('{month(first, 1)} 00:00Z')"


async def _add_month(tx: Tx, table: str, first: date) -> None:
    """Make a month's partition; rows that came before it lie in the default one and move over."""
    name = partition(table, first)
    await tx.execute(text(f"create table {name} (like {table} including all)"))
    within = f"created >= timestamptz '{first} 00:00Z' and created < timestamptz '{month(first, 1)} 00:00Z'"
    moved = f"with moved as (delete from {table}_default where {within} returning *)"  # noqa: S608 - our names
    await tx.execute(text(f"{moved} insert into {name} select * from moved"))  # noqa: S608 - our names
    await tx.execute(text(f"alter table {table} attach partition {name} {_values(first)}"))

"""Tables in partitions of a month each, in UTC, by a column of dates or times.

Rows outside every month (a replay of long ago) lie in the table's default partition, `<table>_default`.
"""

from datetime import date
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


async def roll(tx: Tx, table: str, column: str, today: date, keep: int) -> None:
    """Make this month and the next ones, and drop those that ended more than `keep` months ago."""
    await tx.execute(_LOCK, table=table)
    existing = {row["relname"] for row in await tx.fetch(_PARTITIONS, table=table)}
    for ahead in range(AHEAD + 1):
        first = month(today, ahead)
        if partition(table, first) not in existing:
            await _add_month(tx, table, column, first)
    oldest = partition(table, month(today, -keep))
    for name in sorted(existing - {f"{table}_default"}):
        if name < oldest:
            await tx.execute(text(f"drop table {name}"))


async def forget(transaction: Transaction, table: str, column: str, today: date, keep: int) -> None:
    """Delete what lies outside every month and is older than those that `roll` keeps."""
    old = slice_of(f"{table}_default", f"{column} < {_start(month(today, -keep))}")
    await retention.forget(transaction, old)


async def _add_month(tx: Tx, table: str, column: str, first: date) -> None:
    """Make a month's partition; rows that came before it lie in the default one and move over."""
    name = partition(table, first)
    await tx.execute(text(f"create table {name} (like {table} including all)"))
    within = f"{column} >= {_start(first)} and {column} < {_start(month(first, 1))}"
    moved = f"with moved as (delete from {table}_default where {within} returning *)"  # noqa: S608 - our names
    await tx.execute(text(f"{moved} insert into {name} select * from moved"))  # noqa: S608 - our names
    await tx.execute(text(f"alter table {table} attach partition {name} {_values(first)}"))


def _values(first: date) -> str:
    return f"for values from ({_start(first)}) to ({_start(month(first, 1))})"


def _start(first: date) -> str:
    return rf"'{first} 00\:00Z'"  # a date or a time; SQLAlchemy would take :00 for a parameter

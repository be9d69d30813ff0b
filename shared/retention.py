"""Deleting what is past its time, slice by slice, each in a transaction of its own.

A statement is given up after `shared.db.ANSWER_S`. One that deletes a large backlog at once would be cut off every
night, take back all it did, and find a larger backlog the next night.
"""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

from sqlalchemy import TextClause, text

from shared.db import Tx

SLICE: Final = 10_000
"""Rows; a second or so of Postgres's time."""

Transaction = Callable[[], AbstractAsyncContextManager[Tx]]
"""`transaction` of a Door or a Database."""


def slice_of(table: str, condition: str) -> TextClause:
    """Return the statement that deletes up to SLICE rows of a table under an SQL condition.

    A row that somebody else is changing is left for another time. The condition stands in the inner part alone: in the
    outer one it would tempt the planner to search for ten thousand places row by row.
    """
    return text(
        f"delete from {table} where ctid = any(array("  # noqa: S608 - our own words
        f"select ctid from {table} where {condition} limit {SLICE} for update skip locked))"
    )


async def forget(transaction: Transaction, statement: TextClause, **params: Any) -> int:
    """Run a statement of `slice_of` until it finds nothing; return how many rows went."""
    deleted = 0
    while True:
        async with transaction() as tx:
            count = await tx.execute(statement, **params)
        if not count:
            return deleted
        deleted += count

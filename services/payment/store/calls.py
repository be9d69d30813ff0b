"""Writes at Stripe, as claimed rows (shared.work): each stands here before it is sent, under its idempotency key."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import text

from shared import retention
from shared.db import Row, Tx

KEEP: Final = timedelta(days=400)

_LOCK: Final = text("select pg_advisory_xact_lock(hashtextextended('payment/calls/' || cast(:lane as text), 0))")
_LAST: Final = text("select * from stripe_calls where lane = :lane order by ordinal desc limit 1")
_ADD: Final = text("""
    insert into stripe_calls (id, key, ordinal, user_id, kind, method, path, params, meaning, lane, due_at, created_at)
    values (:id, :key, :ordinal, :user_id, :kind, :method, :path, cast(:params as jsonb), :meaning, :lane,
        cast(:at as timestamptz), :at) returning *""")
_GET: Final = text("select * from stripe_calls where id = :id")
_FOUND: Final = text("update stripe_calls set result = cast(:result as jsonb) where id = :id")
_REFUSED: Final = text("update stripe_calls set refusal = cast(:refusal as jsonb) where id = :id")
_TURN: Final = text("update stripe_calls set turn = turn + 1 where id = :id and turn = :turn")
_FORGET: Final = retention.slice_of(
    "stripe_calls",
    """settled_at < :before and exists (
        select from stripe_calls n where n.lane = stripe_calls.lane and n.ordinal > stripe_calls.ordinal)""",
)


class CallStore:
    """Reads and writes calls."""

    async def lock(self, tx: Tx, lane: str) -> None:
        """Take what serialises the orders of one lane, until the commit."""
        await tx.execute(_LOCK, lane=lane)

    async def last(self, tx: Tx, lane: str) -> Row | None:
        """Return the newest call of a lane."""
        return await tx.fetchrow(_LAST, lane=lane)

    async def add(self, tx: Tx, at: datetime, **fields: Any) -> Row:
        """Write a call to be made."""
        row = await tx.fetchrow(_ADD, at=at, **fields)
        if row is None:
            raise AssertionError("an insert returns its row")
        return row

    async def get(self, tx: Tx, call_id: UUID) -> Row | None:
        """Return a call."""
        return await tx.fetchrow(_GET, id=call_id)

    async def found(self, tx: Tx, call_id: UUID, result: Mapping[str, Any]) -> None:
        """Note what came of a call."""
        await tx.execute(_FOUND, id=call_id, result=dict(result))

    async def refused(self, tx: Tx, call_id: UUID, refusal: Mapping[str, Any]) -> None:
        """Note why a call will not work."""
        await tx.execute(_REFUSED, id=call_id, refusal=dict(refusal))

    async def turn(self, tx: Tx, call_id: UUID, turn: int) -> None:
        """Go on with another key: this one answers with an old failure."""
        await tx.execute(_TURN, id=call_id, turn=turn)

    async def forget(self, transaction: retention.Transaction, now: datetime) -> None:
        """Delete what is older than `KEEP`, but the newest of each lane: keys are counted on from it."""
        await retention.forget(transaction, _FORGET, before=now - KEEP)

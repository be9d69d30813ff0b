"""Silences, kept for 90 days after their end. What is running is read with the audience (store/deliveries.py)."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import text

from services.alerts.domain.routing import Silence
from shared.db import Row, Tx
from shared.retention import slice_of

KEEP: Final = timedelta(days=90)

RUNNING: Final = """
    (select jsonb_agg(to_jsonb(s)) from silences s
    where s.user_id = d.user_id and s.starts_at <= :now and s.ends_at > :now)"""
"""An expression: the silences of a delivery's user (`d`) that run at `:now`; null when there is none."""

_LOCK: Final = text("select pg_advisory_xact_lock(hashtextextended('alerts/silences/' || :user_id, 0))")
_COUNT: Final = text("select count(*) from silences where user_id = :user_id and ends_at > :now")
_FORGET: Final = slice_of("silences", "user_id = :user_id and ends_at < :before")
_ADD: Final = text("""
    insert into silences (silence_id, user_id, kind, symbol, rule_id, critical, starts_at, ends_at, author, comment,
        created_at)
    values (:silence_id, :user_id, :kind, :symbol, :rule_id, :critical, :starts_at, :ends_at, :author, :comment,
        cast(:now as timestamptz))
    returning *""")
_LIST: Final = text("""
    select * from silences where user_id = :user_id order by ends_at desc, silence_id limit :limit""")
_END: Final = text("""
    update silences set ends_at = :now where silence_id = :silence_id and user_id = :user_id and ends_at > :now""")


def silences_of(found: Sequence[dict[str, Any]] | None) -> tuple[Silence, ...]:
    """Return what rows that were read as JSON say."""
    return tuple(
        Silence(
            one["kind"],
            one["symbol"],
            UUID(one["rule_id"]) if one["rule_id"] else None,
            one["critical"],
            datetime.fromisoformat(one["ends_at"]),
        )
        for one in found or ()
    )


class SilenceStore:
    """Reads and writes silences, always inside the caller's transaction."""

    async def running(self, tx: Tx, user_id: UUID, now: datetime) -> int:
        """Return how many of a user's silences have not ended; others wait with theirs until we end."""
        await tx.execute(_LOCK, user_id=str(user_id))
        count: int = await tx.fetchval(_COUNT, user_id=user_id, now=now)
        return count

    async def add(self, tx: Tx, fields: Mapping[str, Any], now: datetime) -> Row:
        """Add a silence, and forget the user's old ones."""
        await tx.execute(_FORGET, user_id=fields["user_id"], before=now - KEEP)
        row = await tx.fetchrow(_ADD, now=now, **fields)
        assert row is not None  # noqa: S101 - an insert that did not raise returns its row
        return row

    async def of_user(self, tx: Tx, user_id: UUID, limit: int) -> list[Row]:
        """Return a user's silences, those that end last first."""
        return await tx.fetch(_LIST, user_id=user_id, limit=limit)

    async def end(self, tx: Tx, user_id: UUID, silence_id: UUID, now: datetime) -> bool:
        """End a silence, or call off one that is to come; False when there is none that has not ended."""
        return bool(await tx.execute(_END, user_id=user_id, silence_id=silence_id, now=now))

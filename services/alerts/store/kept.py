"""Events of the last thirty days, as far as rules can name their fields: what a new rule is tried on.

Of activity the lines are kept that were new or better than before, a row for each batch of a (symbol, session).
"""

from collections.abc import Sequence
from datetime import date, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import text

from shared import months
from shared.db import Row, Tx
from shared.retention import Transaction

KEPT: Final = timedelta(days=30)
PAGE: Final = 500

_KEEP: Final = text("""
    insert into kept_events (id, kind, user_id, symbol, session, at, fields)
    select r.id, r.kind, r.user_id, r.symbol, r.session, r.at, r.fields from jsonb_to_recordset(cast(:rows as jsonb))
        as r (id uuid, kind text, user_id uuid, symbol text, session date, at timestamptz, fields jsonb)
    on conflict (id, at) do nothing""")
_NEWEST: Final = """
    select id, symbol, session, at, fields from kept_events
    where kind = :kind and {whose} and at >= :since
      and (at, id) < (cast(:before_at as timestamptz), cast(:before_id as uuid))
    order by {by}, at desc, id desc limit :limit"""
_OF_USER: Final = text(_NEWEST.format(whose="user_id = :user_id", by="user_id desc"))
_OF_NOBODY: Final = text(_NEWEST.format(whose="user_id is null", by="user_id desc"))
_OF_SYMBOL: Final = text(_NEWEST.format(whose="user_id is null and symbol = :symbol", by="symbol desc"))


class KeptEvents:
    """Reads and writes kept events, always inside the caller's transaction."""

    async def keep(self, tx: Tx, rows: Sequence[dict[str, Any]]) -> None:
        """Keep events; one that is there stays as it is."""
        if rows:
            await tx.execute(_KEEP, rows=rows)

    async def newest(
        self,
        tx: Tx,
        kind: str,
        user_id: UUID | None,
        symbol: str | None,
        *,
        since: datetime,
        before: tuple[datetime, UUID],
    ) -> list[Row]:
        """Return up to PAGE events before a place, newest first: of a user, of a symbol, or those of nobody."""
        place: dict[str, Any] = {"kind": kind, "since": since, "before_at": before[0], "before_id": before[1]}
        place["limit"] = PAGE
        if user_id is not None:
            return await tx.fetch(_OF_USER, **place, user_id=user_id)
        if symbol is not None:
            return await tx.fetch(_OF_SYMBOL, **place, symbol=symbol)
        return await tx.fetch(_OF_NOBODY, **place)

    async def forget(self, transaction: Transaction, today: date) -> None:
        """Make the months to come and drop those of which nothing is thirty days old or younger."""
        oldest = today - KEPT
        keep = (today.year - oldest.year) * 12 + today.month - oldest.month
        async with transaction() as tx:
            await months.roll(tx, "kept_events", "at", today, keep)
        await months.forget(transaction, "kept_events", "at", today, keep)

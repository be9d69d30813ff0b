"""Quotes for charts: the last one of each minute, of symbols that somebody watches or that had unusual activity."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from sqlalchemy import text

from shared import retention
from shared.db import Row, Tx

_KEEP: Final = text("""
    insert into quotes as q (symbol, minute, as_of, price, simulated)
    select r.symbol, r.minute, r.as_of, r.price, r.simulated
    from jsonb_to_recordset(cast(:rows as jsonb))
        as r (symbol text, minute timestamptz, as_of timestamptz, price float8, simulated boolean)
    where exists (select from watched w where w.symbol = r.symbol)
        or exists (select from contracts c where c.symbol = r.symbol)
    on conflict (symbol, minute) do update
        set as_of = excluded.as_of, price = excluded.price, simulated = excluded.simulated
        where q.as_of < excluded.as_of""")
_BETWEEN: Final = text("""
    select as_of, price, simulated from quotes
    where symbol = :symbol and minute >= :since and minute < :until order by minute""")
_FORGET: Final = retention.slice_of("quotes", "minute < :before")


class QuoteStore:
    """Reads and writes quotes, always inside the caller's transaction."""

    async def keep(self, tx: Tx, rows: Sequence[dict[str, Any]]) -> None:
        """Keep quotes, at most one of each (symbol, minute) in a call; the newest of a minute stays."""
        if rows:
            await tx.execute(_KEEP, rows=list(rows))

    async def between(self, tx: Tx, symbol: str, since: datetime, until: datetime) -> list[Row]:
        """Return a symbol's quotes, oldest first."""
        return await tx.fetch(_BETWEEN, symbol=symbol, since=since, until=until)

    async def forget(self, transaction: retention.Transaction, before: datetime) -> None:
        """Delete older ones."""
        await retention.forget(transaction, _FORGET, before=before)

"""What is kept of other services' events for digests: the leaderboard of each session, trading by quarters of an hour.

A quarter of an hour fits every time zone there is, so that a period's trading is exact. It is the quarter in which we
heard of a fill: what comes late is told late, and not left out.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from sqlalchemy import text

from shared import retention
from shared.db import Row, Tx

_LEADERS: Final = text("""
    insert into leaders as l (session, as_of, entries) values (:session, :as_of, cast(:entries as jsonb))
    on conflict (session) do update set as_of = excluded.as_of, entries = excluded.entries
    where l.as_of < excluded.as_of""")
_TRADING: Final = text("""
    insert into trading as t (user_id, quarter, account_id, symbol, mode, fills, bought, sold, bought_for, sold_for,
        fees, realised)
    select r.user_id, cast(:quarter as timestamptz), r.account_id, r.symbol, r.mode, r.fills, r.bought, r.sold,
        r.bought_for, r.sold_for, r.fees, r.realised
    from jsonb_to_recordset(cast(:rows as jsonb)) as r (user_id uuid, account_id uuid, symbol text, mode text,
        fills int, bought numeric, sold numeric, bought_for numeric, sold_for numeric, fees numeric, realised numeric)
    on conflict (user_id, quarter, account_id, symbol) do update set mode = coalesce(excluded.mode, t.mode),
        fills = t.fills + excluded.fills, bought = t.bought + excluded.bought, sold = t.sold + excluded.sold,
        bought_for = t.bought_for + excluded.bought_for, sold_for = t.sold_for + excluded.sold_for,
        fees = t.fees + excluded.fees, realised = t.realised + excluded.realised""")
_HOLDINGS: Final = text("""
    select h.* from holdings h
    join jsonb_to_recordset(cast(:rows as jsonb)) as r (account_id uuid, symbol text) using (account_id, symbol)""")
_HOLD: Final = text("""
    insert into holdings (account_id, symbol, version, realised)
    select * from jsonb_to_recordset(cast(:rows as jsonb))
        as r (account_id uuid, symbol text, version int, realised numeric)
    on conflict (account_id, symbol) do update set version = excluded.version, realised = excluded.realised""")
_FORGET_LEADERS: Final = retention.slice_of("leaders", "as_of < :before")
_FORGET_TRADING: Final = retention.slice_of("trading", "quarter < :before")


class GatheredStore:
    """Reads and writes what digests are made of, always inside the caller's transaction."""

    async def leaders(self, tx: Tx, **board: Any) -> None:
        """Keep a session's leaderboard, unless a newer one is kept."""
        await tx.execute(_LEADERS, **board)

    async def trade(self, tx: Tx, quarter: datetime, rows: Sequence[dict[str, Any]]) -> None:
        """Add to what was traded in a quarter of an hour; at most one row of each (user, account, symbol) in a call."""
        if rows:
            await tx.execute(_TRADING, quarter=quarter, rows=list(rows))

    async def holdings(self, tx: Tx, keys: Sequence[dict[str, Any]]) -> list[Row]:
        """Return what is known of some positions."""
        return await tx.fetch(_HOLDINGS, rows=list(keys))

    async def hold(self, tx: Tx, rows: Sequence[dict[str, Any]]) -> None:
        """Keep what is known of positions."""
        if rows:
            await tx.execute(_HOLD, rows=list(rows))

    async def forget(self, transaction: retention.Transaction, before: datetime) -> None:
        """Delete what is older."""
        await retention.forget(transaction, _FORGET_LEADERS, before=before)
        await retention.forget(transaction, _FORGET_TRADING, before=before)

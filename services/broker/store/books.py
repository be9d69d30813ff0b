"""What moved positions, and positions as they follow from it."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Final
from uuid import UUID

from sqlalchemy import text

from services.broker.domain import shapes
from services.broker.domain.positions import Position, PositionFact
from shared.db import Row, Tx

_ADD: Final = text("""
    insert into facts (account_id, id, symbol, kind, at, body)
    select cast(:account_id as uuid), r.* from jsonb_to_recordset(cast(:rows as jsonb))
        as r (id text, symbol text, kind text, at timestamptz, body jsonb)
    on conflict do nothing returning id""")
_WITHDRAW: Final = text("delete from facts where account_id = :account_id and id = any(:ids)")
_FACTS: Final = text("select kind, body from facts where account_id = :account_id and symbol = :symbol")
_BEGIN: Final = text("""
    insert into positions (account_id, symbol, quantity, body)
    select cast(:account_id as uuid), r.symbol, 0, r.body
    from jsonb_to_recordset(cast(:rows as jsonb)) as r (symbol text, body jsonb) order by r.symbol
    on conflict do nothing""")
_GET: Final = text("""
    select * from positions where account_id = :account_id and symbol = any(:symbols) order by symbol
    for no key update""")
_HELD: Final = text("select body from positions where account_id = :account_id and symbol = :symbol")
_SAVE: Final = text("""
    update positions p set quantity = r.quantity, body = r.body, last_at = r.last_at, last_id = r.last_id,
        version = p.version + 1
    from jsonb_to_recordset(cast(:rows as jsonb))
        as r (symbol text, quantity numeric, body jsonb, last_at timestamptz, last_id text)
    where p.account_id = :account_id and p.symbol = r.symbol returning p.symbol, p.version""")
_ALL: Final = text("select * from positions where account_id = :account_id order by symbol")
_QUOTE: Final = text("""
    insert into quotes as known (symbol, bid, ask, at, simulated, underlying, close)
    values (:symbol, :bid, :ask, :at, :simulated, cast(:underlying as text), cast(:close as numeric))
    on conflict (symbol) do update set bid = excluded.bid, ask = excluded.ask, at = excluded.at,
        simulated = excluded.simulated, close = excluded.close
    where known.at < excluded.at""")
_QUOTES: Final = text("select * from quotes where symbol = any(:symbols)")

_CLOSING: Final = text("""
    select symbol, coalesce(close, (bid + ask) / 2) as price from quotes
    where at >= :since and (close is not null or bid > 0)""")


Followed = tuple[Position, tuple[datetime, str] | None]
"""A position, and (when, id) of the last fact that it follows from."""


class BookStore:
    """Reads and writes positions, and the quotes that they are valued by."""

    async def add(self, tx: Tx, account_id: UUID, facts: Collection[PositionFact]) -> list[str]:
        """Keep facts; return the ids of those that were not known."""
        if not facts:
            return []
        rows = [
            {
                "id": fact.id,
                "symbol": fact.instrument.key,
                "kind": shapes.KINDS[type(fact)],
                "at": fact.at,
                "body": shapes.dump_fact(fact),
            }
            for fact in facts
        ]
        return [row["id"] for row in await tx.fetch(_ADD, account_id=account_id, rows=rows)]

    async def withdraw(self, tx: Tx, account_id: UUID, fact_ids: Collection[str]) -> None:
        """Take facts back."""
        if fact_ids:
            await tx.execute(_WITHDRAW, account_id=account_id, ids=list(fact_ids))

    async def facts(self, tx: Tx, account_id: UUID, symbol: str) -> list[PositionFact]:
        """Return all that moved a position."""
        rows = await tx.fetch(_FACTS, account_id=account_id, symbol=symbol)
        return [shapes.load_fact(row["kind"], row["body"]) for row in rows]

    async def begin(self, tx: Tx, account_id: UUID, positions: Collection[Position]) -> None:
        """Keep a position of nothing where there is none: what does not exist cannot be locked."""
        rows = [{"symbol": one.instrument.key, "body": shapes.dump_position(one)} for one in positions]
        if rows:
            await tx.execute(_BEGIN, account_id=account_id, rows=rows)

    async def held(self, tx: Tx, account_id: UUID, symbol: str) -> Position | None:
        """Return a position as it is just now: whoever changes orders as well locks these first."""
        row = await tx.fetchrow(_HELD, account_id=account_id, symbol=symbol)
        return None if row is None else shapes.load_position(row["body"])

    async def position(self, tx: Tx, account_id: UUID, symbol: str) -> tuple[Position, Row] | None:
        """Return a position that nobody else changes until the commit."""
        return (await self.positions(tx, account_id, [symbol])).get(symbol)

    async def positions(self, tx: Tx, account_id: UUID, symbols: Collection[str]) -> Mapping[str, tuple[Position, Row]]:
        """Return positions that nobody else changes until the commit."""
        rows = await tx.fetch(_GET, account_id=account_id, symbols=list(symbols))
        return {row["symbol"]: (shapes.load_position(row["body"]), row) for row in rows}

    async def save(self, tx: Tx, account_id: UUID, followed: Collection[Followed]) -> Mapping[str, int]:
        """Write positions that were begun; return their versions."""
        if not followed:
            return {}
        rows = [
            {
                "symbol": position.instrument.key,
                "quantity": position.quantity,
                "body": shapes.dump_position(position),
                "last_at": last and last[0],
                "last_id": last and last[1],
            }
            for position, last in followed
        ]
        found = await tx.fetch(_SAVE, account_id=account_id, rows=rows)
        return {row["symbol"]: row["version"] for row in found}

    async def all(self, tx: Tx, account_id: UUID) -> Sequence[Row]:
        """Return all positions of an account, those at zero too."""
        return await tx.fetch(_ALL, account_id=account_id)

    async def quote(  # noqa: PLR0917 - a row
        self,
        tx: Tx,
        symbol: str,
        bid: object,
        ask: object,
        at: datetime,
        simulated: object,
        underlying: str | None = None,
        close: object = None,
    ) -> bool:
        """Keep a quote that is newer than the one before; an option's follows the chains of `underlying`.

        `close` is the regular session's price, in which nothing moves any more after hours.
        """
        given = {"symbol": symbol, "bid": bid, "ask": ask, "at": at, "simulated": simulated, "underlying": underlying}
        return bool(await tx.execute(_QUOTE, **given, close=close))

    async def quotes(self, tx: Tx, symbols: Collection[str]) -> Mapping[str, Row]:
        """Return the last quotes."""
        return {row["symbol"]: row for row in await tx.fetch(_QUOTES, symbols=list(symbols))}

    async def closing(self, tx: Tx, since: datetime) -> Mapping[str, Decimal]:
        """Return the session's price of each last quote that is not older; where it has none, the middle."""
        return {row["symbol"]: row["price"] for row in await tx.fetch(_CLOSING, since=since)}

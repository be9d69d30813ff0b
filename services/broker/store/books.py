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
    values (:account_id, :id, :symbol, :kind, :at, cast(:body as jsonb)) on conflict do nothing""")
_WITHDRAW: Final = text("delete from facts where account_id = :account_id and id = :id")
_FACTS: Final = text("select kind, body from facts where account_id = :account_id and symbol = :symbol")
_BEGIN: Final = text("""
    insert into positions (account_id, symbol, quantity, body) values (:account_id, :symbol, 0, cast(:body as jsonb))
    on conflict do nothing""")
_GET: Final = text("select * from positions where account_id = :account_id and symbol = :symbol for no key update")
_SAVE: Final = text("""
    insert into positions as known (account_id, symbol, quantity, body, last_at, last_id, version)
    values (:account_id, :symbol, :quantity, cast(:body as jsonb), :last_at, :last_id, 1)
    on conflict (account_id, symbol) do update set quantity = excluded.quantity, body = excluded.body,
        last_at = excluded.last_at, last_id = excluded.last_id, version = known.version + 1
    returning version""")
_HELD: Final = text("""
    select symbol, quantity from positions where account_id = :account_id and symbol = any(:symbols)""")
_ALL: Final = text("select * from positions where account_id = :account_id order by symbol")
_QUOTE: Final = text("""
    insert into quotes as known (symbol, bid, ask, at, simulated) values (:symbol, :bid, :ask, :at, :simulated)
    on conflict (symbol) do update set bid = excluded.bid, ask = excluded.ask, at = excluded.at,
        simulated = excluded.simulated
    where known.at < excluded.at""")
_QUOTES: Final = text("select * from quotes where symbol = any(:symbols)")

_CLOSING: Final = text("select symbol, (bid + ask) / 2 as price from quotes where at >= :since and bid > 0")


class BookStore:
    """Reads and writes positions, and the quotes that they are valued by."""

    async def add(self, tx: Tx, account_id: UUID, fact: PositionFact) -> bool:
        """Keep a fact; False when it is known."""
        return bool(
            await tx.execute(
                _ADD,
                account_id=account_id,
                id=fact.id,
                symbol=fact.instrument.key,
                kind=shapes.KINDS[type(fact)],
                at=fact.at,
                body=shapes.dump_fact(fact),
            )
        )

    async def withdraw(self, tx: Tx, account_id: UUID, fact_id: str) -> None:
        """Take a fact back."""
        await tx.execute(_WITHDRAW, account_id=account_id, id=fact_id)

    async def facts(self, tx: Tx, account_id: UUID, symbol: str) -> list[PositionFact]:
        """Return all that moved a position."""
        rows = await tx.fetch(_FACTS, account_id=account_id, symbol=symbol)
        return [shapes.load_fact(row["kind"], row["body"]) for row in rows]

    async def begin(self, tx: Tx, account_id: UUID, position: Position) -> None:
        """Keep a position of nothing where there is none: what does not exist cannot be locked."""
        body = shapes.dump_position(position)
        await tx.execute(_BEGIN, account_id=account_id, symbol=position.instrument.key, body=body)

    async def position(self, tx: Tx, account_id: UUID, symbol: str) -> tuple[Position, Row] | None:
        """Return a position that nobody else changes until the commit."""
        row = await tx.fetchrow(_GET, account_id=account_id, symbol=symbol)
        return None if row is None else (shapes.load_position(row["body"]), row)

    async def save(self, tx: Tx, account_id: UUID, position: Position, last: tuple[datetime, str] | None) -> int:
        """Write a position and the last fact that it follows from; return its version."""
        last_at, last_id = last or (None, None)
        version: int = await tx.fetchval(
            _SAVE,
            account_id=account_id,
            symbol=position.instrument.key,
            quantity=position.quantity,
            body=shapes.dump_position(position),
            last_at=last_at,
            last_id=last_id,
        )
        return version

    async def held(self, tx: Tx, account_id: UUID, symbols: Collection[str]) -> Mapping[str, Row]:
        """Return what is held of some symbols."""
        rows = await tx.fetch(_HELD, account_id=account_id, symbols=list(symbols))
        return {row["symbol"]: row for row in rows}

    async def all(self, tx: Tx, account_id: UUID) -> Sequence[Row]:
        """Return all positions of an account, those at zero too."""
        return await tx.fetch(_ALL, account_id=account_id)

    async def quote(  # noqa: PLR0917 - a row
        self, tx: Tx, symbol: str, bid: object, ask: object, at: datetime, simulated: object
    ) -> bool:
        """Keep a quote that is newer than the one before."""
        return bool(await tx.execute(_QUOTE, symbol=symbol, bid=bid, ask=ask, at=at, simulated=simulated))

    async def quotes(self, tx: Tx, symbols: Collection[str]) -> Mapping[str, Row]:
        """Return the last quotes."""
        return {row["symbol"]: row for row in await tx.fetch(_QUOTES, symbols=list(symbols))}

    async def closing(self, tx: Tx, since: datetime) -> Mapping[str, Decimal]:
        """Return the middle of each last quote that is not older."""
        return {row["symbol"]: row["price"] for row in await tx.fetch(_CLOSING, since=since)}

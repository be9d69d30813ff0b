"""Exits of brackets and OCOs: which there are, and which are to be looked at."""

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Final
from uuid import UUID

from sqlalchemy import text

from services.broker.store.orders import Stored, stored
from shared.db import Row, Tx

_BEGIN: Final = text("""
    insert into exits (order_id, account_id, symbol, sells, take_profit)
    values (:order_id, :account_id, :symbol, :sells, :take_profit) on conflict do nothing""")
_DUE: Final = text("""
    select e.order_id from exits e
        left join quotes q on q.symbol = e.symbol and q.at >= :since and q.at <= :latest
        cross join lateral (
            select sum(version) as versions from orders o where o.id = e.order_id or o.parent = e.order_id) v
    where not e.over and (v.versions <> e.seen or e.due_at <= :now or (e.aim = 'take_profit') <> coalesce(
        case when e.sells then q.bid >= e.take_profit else q.ask > 0 and q.ask <= e.take_profit end, false))
    order by e.order_id limit :most""")
_FAMILY: Final = text("""
    select o.*, a.mode, a.reference from orders o join accounts a on a.id = o.account_id
    where o.id = :order_id or o.parent = :order_id order by o.id for no key update of o""")
_LOCK: Final = text("select * from exits where order_id = :order_id for update")
_LOOKED: Final = text("""
    update exits set aim = :aim, due_at = cast(:due_at as timestamptz), over = :over,
        seen = (select sum(version) from orders o where o.id = :order_id or o.parent = :order_id)
    where order_id = :order_id""")
_END: Final = text("""
    update exits set ended = true, seen = -1
    where not over and not ended and account_id = :account_id
      and (cast(:order_id as uuid) is null or order_id = :order_id)
      and (cast(:symbol as text) is null or symbol = :symbol)""")


class ExitStore:
    """Reads and writes exits."""

    async def begin(  # noqa: PLR0917 - a row
        self, tx: Tx, order_id: UUID, account_id: UUID, symbol: str, sells: object, take_profit: Decimal
    ) -> None:
        """Keep the exits of an order that goes out."""
        given = {"order_id": order_id, "account_id": account_id, "symbol": symbol}
        await tx.execute(_BEGIN, **given, sells=sells, take_profit=take_profit)

    async def due(self, tx: Tx, now: datetime, since: datetime, latest: datetime, most: int) -> list[UUID]:
        """Return those whose orders have changed, whose time has come, or whose market is on another side by now."""
        rows = await tx.fetch(_DUE, now=now, since=since, latest=latest, most=most)
        return [row["order_id"] for row in rows]

    async def lock(self, tx: Tx, order_id: UUID) -> tuple[Row, Stored, Sequence[Stored]] | None:
        """Return exits, their order and what was sent for them, oldest first; nobody else changes them meanwhile."""
        family = [stored(row) for row in await tx.fetch(_FAMILY, order_id=order_id)]
        row = await tx.fetchrow(_LOCK, order_id=order_id)
        if row is None:
            return None
        parent = next(one for one in family if one.order.id == order_id)
        children = [one for one in family if one.order.id != order_id]
        return row, parent, sorted(children, key=lambda one: (one.row["created_at"], one.order.id))

    async def looked(self, tx: Tx, order_id: UUID, aim: str, due_at: datetime | None, *, over: object) -> None:
        """Keep what came of looking."""
        await tx.execute(_LOOKED, order_id=order_id, aim=aim, due_at=due_at, over=over)

    async def end(self, tx: Tx, account_id: UUID, *, order_id: UUID | None = None, symbol: str | None = None) -> bool:
        """Want no exits any more: of an order, an instrument, or none of the account; tell whether there were any."""
        return bool(await tx.execute(_END, account_id=account_id, order_id=order_id, symbol=symbol))

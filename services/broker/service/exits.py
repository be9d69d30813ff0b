"""Carries out what `domain/exits.py` says of brackets and OCOs: each look at one is a transaction of its own.

What is looked at follows from what is stored (versions of orders, the last quotes, the clock), so that a process that
died is taken up by the next. Orders are locked before their exits, by everybody.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Final
from uuid import UUID

from services.broker.domain import shapes
from services.broker.domain.checks import asset_class
from services.broker.domain.exits import Plan, Watched, exit_terms, plan
from services.broker.domain.lifecycle import filled
from services.broker.domain.orders import OVER, ZERO, Order, Report
from services.broker.domain.risk import Quote
from services.broker.service.orders import Orders
from services.broker.service.quotes import AHEAD
from services.broker.service.venues import Venues
from services.broker.store.books import BookStore
from services.broker.store.exits import ExitStore
from services.broker.store.orders import Stored
from shared.clock import Clock
from shared.contracts.base import Event, derived_id
from shared.db import Row, Tx
from shared.messaging.door import Door

MOST: Final = 200


def exit_id(order_id: UUID, number: int) -> UUID:
    """Return the id of an order's exit."""
    return derived_id(order_id, f"exit/{number}")


class Exits:
    """Protects positions."""

    def __init__(
        self,
        store: ExitStore,
        orders: Orders,
        books: BookStore,
        venues: Venues,
        *,
        door: Door,
        clock: Clock,
        quote_age: timedelta,
    ) -> None:
        self._store = store
        self._orders = orders
        self._books = books
        self._venues = venues
        self._door = door
        self._clock = clock
        self._quote_age = quote_age

    async def begin(self, tx: Tx, order: Order) -> None:
        """Watch an order that goes out, if it has exits."""
        leg, exits = order.terms.legs[0], order.terms.exits
        if exits is not None:
            sells = (leg.side == "buy") == (order.terms.order_class == "bracket")
            await self._store.begin(tx, order.id, order.account_id, leg.instrument.key, sells, exits.take_profit)

    async def turn(self) -> int:
        """Look at what is to be looked at; return how many there were."""
        now = self._clock()
        async with self._door.read() as tx:
            due = await self._store.due(tx, now, now - self._quote_age, now + AHEAD, MOST)
        for order_id in due:
            await self._door.publish(lambda tx, order_id=order_id: self._look(tx, order_id))
        return len(due)

    async def _look(self, tx: Tx, order_id: UUID) -> Sequence[Event]:
        found = await self._store.lock(tx, order_id)
        if found is None or found[0]["over"]:
            return ()
        row, parent, children = found
        made = plan(await self._watched(tx, row, parent, children), self._clock())
        events: list[Event] = []
        by_id = {one.order.id: one for one in children}
        for order in made.cancel:
            _, told = await self._orders.report(tx, parent.account, by_id[order.id], Report("cancel_asked"))
            events += told
        if made.place:
            await self._place(tx, parent, made, len(children))
        await self._store.looked(tx, order_id, made.aim, made.again_at, over=made.over)
        return events

    async def _watched(self, tx: Tx, row: Row, parent: Stored, children: Sequence[Stored]) -> Watched:
        order, now = parent.order, self._clock()
        exits = order.terms.exits
        if exits is None:
            raise AssertionError("only orders with exits are watched")
        symbol: str = row["symbol"]
        known = await self._books.position(tx, order.account_id, symbol)
        held = ZERO if known is None else known[0].quantity
        quote = (await self._books.quotes(tx, [symbol])).get(symbol)
        fresh = quote is not None and now - self._quote_age <= quote["at"] <= now + AHEAD
        bracket = order.terms.order_class == "bracket"
        return Watched(
            exits=exits,
            sells=row["sells"],
            protected=filled(order) if bracket else order.terms.quantity or ZERO,
            settled=order.state in OVER,
            held=held if row["sells"] else -held,
            children=[(one.order, one.row["updated_at"]) for one in children],
            quote=Quote(quote["bid"], quote["ask"], quote["at"]) if quote is not None and fresh else None,
            ended=row["ended"],
        )

    async def _place(self, tx: Tx, parent: Stored, made: Plan, number: int) -> None:
        """Send an exit. Its id follows from its number, so that the same one is never made twice."""
        account, now = parent.account, self._clock()
        times = self._venues.capabilities(account.venue).times
        of = parent.order.terms.legs[0].instrument
        terms = exit_terms(parent.order.terms, made.aim, made.place, times.get(asset_class(of), frozenset()))
        order_id = exit_id(parent.order.id, number)
        wanted = shapes.to_contract(terms)
        await self._orders.store.add(tx, order_id, account, wanted, now, parent=parent.order.id)
        await self._orders.store.send(tx, derived_id(order_id, "submit"), order_id, "submit", now)
        tx.after_commit(self._orders.wake)

"""Brings what we believe of an account in line with what its venue says.

First what happened since the last time, order by order; then what is held. A difference that stays is the venue's to
decide: it is mended by a fact of its own, told, and flagged.
"""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Final
from uuid import UUID

from services.broker.domain.instruments import Instrument
from services.broker.domain.orders import OVER, ZERO, Fill
from services.broker.ports import Account, Changes, Held, Update, Venue
from services.broker.service.books import Books
from services.broker.service.orders import Orders
from services.broker.store.accounts import AccountStore
from services.broker.store.books import BookStore
from services.broker.store.orders import Flag, Stored
from shared.clock import Clock, NewId
from shared.contracts.base import Event
from shared.contracts.broker import Drift, PositionsDrifted
from shared.db import Tx
from shared.messaging.door import Done, Door

OVERLAP: Final = timedelta(minutes=10)
"""So far back before the last time it looks again: clocks differ, and venues tell late."""
YOUNG: Final = timedelta(seconds=10)
PAGE: Final = 500
LOOKS: Final = 3
"""A difference is looked at so often before it is believed: what fills meanwhile makes one too."""
PAUSE_S: Final = 0.3
LAG: Final = timedelta(seconds=30)
"""So long a venue's positions may lag its executions, or the reverse."""


class Reconcile:
    """Reconciles accounts."""

    def __init__(
        self,
        orders: Orders,
        books: Books,
        accounts: AccountStore,
        store: BookStore,
        *,
        door: Door,
        clock: Clock,
        new_id: NewId,
    ) -> None:
        self._orders = orders
        self._books = books
        self._accounts = accounts
        self._store = store
        self._door = door
        self._clock = clock
        self._new_id = new_id
        self._doubted: dict[UUID, dict[Drift, datetime]] = {}

    async def run(self, account: Account, venue: Venue) -> bool:
        """Reconcile an account now; return whether its positions were the venue's, else it is to be looked at soon."""
        began = self._clock()
        async with self._door.read() as tx:
            row = await self._accounts.get(tx, account.id)
        if row is None:
            raise AssertionError("accounts are not deleted")
        first = row["checked_at"] is None
        since = (row["created_at"] if first else row["checked_at"]) - OVERLAP
        await self.take(account, changes := await venue.changes(since))
        await self._ask_for_the_rest(account, changes)
        asked, balance = self._clock(), await venue.balance()
        agreed = await self._hold(account, venue, since, told=not first)
        async with self._door.transaction() as tx:
            await self._accounts.balance(tx, account.id, balance, asked)
            await self._accounts.checked(tx, account.id, began)
        return agreed

    async def _hold(self, account: Account, venue: Venue, since: datetime, *, told: bool) -> bool:
        """Compare what is held with the venue, and mend what stays different; return whether nothing did."""
        stays: list[Drift] = []
        for look in range(1, LOOKS + 1):
            held = {one.instrument.key: one for one in await venue.positions()}
            async with self._door.read() as tx:
                drifts = await self._drifts(tx, account, held)
            stays = [one for one in drifts if look == 1 or one in stays]
            if not stays:
                break
            if look == LOOKS:
                sure = await self._sure(account, stays)

                async def mend(tx: Tx, held: Mapping[str, Held] = held, sure: list[Drift] = sure) -> Sequence[Event]:
                    return await self._mend(tx, account, held, sure, told=told)

                await self._door.publish(mend)
                return False
            await asyncio.sleep(PAUSE_S)
            await self.take(account, await venue.changes(since))
        self._doubted.pop(account.id, None)
        return True

    async def _sure(self, account: Account, stays: Sequence[Drift]) -> list[Drift]:
        """Return the differences that no fill explains which only one half of the venue tells of yet.

        One of a symbol that is traded, or was lately, is believed when it is still the same a while later.
        """
        now = self._clock()
        before = self._doubted.pop(account.id, {})
        async with self._door.read() as tx:
            busy = await self._orders.store.busy(tx, account.id, [one.symbol for one in stays], now - LAG)
        doubted = {one: before.get(one, now) for one in stays if one.symbol in busy}
        if standing := {one: since for one, since in doubted.items() if now - since < LAG}:
            self._doubted[account.id] = standing
        return [one for one in stays if one not in standing]

    async def take(self, account: Account, changes: Changes) -> None:
        """Take in what happened at the venue."""
        for first in range(0, len(changes.orders), PAGE):
            page = changes.orders[first : first + PAGE]

            async def reports(tx: Tx, page: Sequence[Update] = page) -> Sequence[Event]:
                return await self._reports(tx, account, page)

            await self._door.publish(reports)
        if changes.facts:
            await self._door.publish(lambda tx: self._books.book(tx, account, changes.facts))

    async def told(self, account: Account, update: Update) -> None:
        """Take in one order's report, as a stream tells it. What is not ours is left alone."""
        await self._door.publish(lambda tx: self._reports(tx, account, [update]))

    async def _reports(self, tx: Tx, account: Account, updates: Sequence[Update]) -> Sequence[Event]:
        ours = await self._orders.store.lock_all(tx, {one.order_id for one in updates})
        left = [one for one in updates if one.order_id in ours and ours[one.order_id].order.account_id == account.id]
        events: list[Event] = []
        while left:  # in one go what is told of different orders; what is told of one, in its order
            firsts = {update.order_id: update for update in reversed(left)}
            left = [update for update in left if firsts[update.order_id] is not update]
            told = [(ours[name], update.report) for name, update in firsts.items()]
            after, happened = await self._orders.reports(tx, account, told)
            ours = {name: Stored(after.get(name, one.order), one.row) for name, one in ours.items()}
            events += happened
        return events

    async def _ask_for_the_rest(self, account: Account, changes: Changes) -> None:
        """Look up what works by our books and was not told."""
        told = {one.order_id for one in changes.orders}
        now = self._clock()

        async def ask(tx: Tx) -> Done[None]:
            for stored in await self._orders.store.open(tx, account.id):
                old = now - stored.row["updated_at"] > YOUNG
                if stored.order.id not in told and stored.order.submits and stored.order.state not in OVER and old:
                    await self._orders.store.send(tx, self._new_id(), stored.order.id, "look_up", now)
            tx.after_commit(self._orders.wake)
            return Done(None)

        await self._door.run(ask)

    async def _drifts(self, tx: Tx, account: Account, held: Mapping[str, Held]) -> list[Drift]:
        rows = await self._store.all(tx, account.id)
        ours: dict[str, Decimal] = {row["symbol"]: row["quantity"] for row in rows}
        return [
            Drift(symbol=symbol, ours=mine, venue=theirs)
            for symbol in sorted({*ours, *held})
            if (mine := ours.get(symbol, ZERO)) != (theirs := held[symbol].quantity if symbol in held else ZERO)
        ]

    async def _mend(
        self, tx: Tx, account: Account, held: Mapping[str, Held], stays: Sequence[Drift], *, told: bool
    ) -> Sequence[Event]:
        """Believe the venue in what stayed different. What an account held when it was opened is no drift."""
        await self._accounts.lock(tx, account.id)
        drifts = [one for one in await self._drifts(tx, account, held) if one in stays]
        quotes = await self._store.quotes(tx, [one.symbol for one in drifts])
        facts: list[Fill] = []
        now, name = self._clock(), self._new_id()
        for drift in drifts:
            known = await self._store.position(tx, account.id, drift.symbol)
            of: Instrument = held[drift.symbol].instrument if known is None else known[0].instrument
            quote = quotes.get(drift.symbol)
            price: Decimal | None = None if quote is None else (quote["bid"] + quote["ask"]) / 2
            price = price or (None if known is None else known[0].entry_price("average")) or ZERO
            missing = drift.venue - drift.ours
            fill_id = f"drift/{name}/{drift.symbol}"
            side = "buy" if missing > 0 else "sell"
            facts.append(Fill(fill_id, name, of, side, abs(missing), price, now, provisional=True))
            if told:
                message = f"{drift.symbol}: {drift.ours} by our books, {drift.venue} at the venue; booked at {price}"
                flag = Flag(self._new_id(), account.id, None, "POSITION_DRIFT", message, now)
                await self._orders.store.flag(tx, flag)
        events = await self._books.book(tx, account, facts)
        if not told or not drifts:
            return events
        return [
            *events,
            PositionsDrifted(
                id=self._new_id(),
                time=now,
                account_id=account.id,
                user_id=account.user_id,
                venue=account.venue,
                drifts=tuple(drifts),
            ),
        ]

    async def sweep(self, quiet_for: timedelta, most: int = 1000) -> int:
        """Look up orders of which nothing was heard for so long; return how many."""
        now = self._clock()

        async def ask(tx: Tx) -> Done[list[UUID]]:
            stuck = [one.order for one in await self._orders.store.stuck(tx, now - quiet_for, most)]
            for order in stuck:
                await self._orders.store.send(tx, self._new_id(), order.id, "look_up", now)
                if order.state == "pending_cancel":  # the wish may have been lost with our credentials
                    await self._orders.store.send(tx, self._new_id(), order.id, "cancel", now)
            tx.after_commit(self._orders.wake)
            return Done([order.id for order in stuck])

        return len(await self._door.run(ask))

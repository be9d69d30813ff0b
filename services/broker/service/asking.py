"""What judging an order needs of its venue, asked within one time: steps, quotes, money, what is held.

What would surprise you: an account whose venue took too long is asked by one order at a time until it answers; the
others wait without taking anybody's turn.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from datetime import timedelta
from decimal import Decimal
from typing import Final
from uuid import UUID
from weakref import WeakValueDictionary

from services.broker.domain.checks import asset_class
from services.broker.domain.instruments import Instrument
from services.broker.domain.orders import ZERO, Terms
from services.broker.domain.risk import Quote
from services.broker.ports import Account, Quoting, Venue
from services.broker.service.checking import Rulebook, Told
from services.broker.service.venues import Venues
from services.broker.store.accounts import AccountStore
from services.broker.store.orders import OrderStore, Stored
from shared.clock import Clock
from shared.db import Tx
from shared.errors import Transient
from shared.messaging.door import Door
from shared.work import Busy

BALANCE_AGE: Final = timedelta(seconds=10)
ASKING_S: Final = 5.0
"""So long a venue may take to tell all of it."""
PAUSE_S: Final = 1.0
"""So long an account is left alone then."""


Follow = Callable[[Collection[Instrument]], Awaitable[None]]
"""Sees to it that instruments have quotes, where there are any."""


class Asking:
    """Asks venues what judging an order needs."""

    def __init__(
        self,
        orders: OrderStore,
        accounts: AccountStore,
        venues: Venues,
        *,
        door: Door,
        clock: Clock,
        follow: Follow,
        within_s: float = ASKING_S,
    ) -> None:
        self._orders = orders
        self._accounts = accounts
        self._venues = venues
        self._rulebook = Rulebook()
        self._door = door
        self._clock = clock
        self._follow = follow
        self._within_s = within_s
        self._balances: WeakValueDictionary[UUID, asyncio.Lock] = WeakValueDictionary()
        self._slow: set[UUID] = set()  # accounts whose venue took too long the last time
        self._finding_out: set[UUID] = set()  # of those, the ones that an order asks just now

    async def of(self, account: Account, stored: Stored) -> Told:
        """Ask. Raises VenueRefused, NoSuchVenue, Transient; Busy for an account whose venue takes too long."""
        slow = account.id in self._slow
        if slow and account.id in self._finding_out:
            raise Busy(f"{account.venue} takes too long", retry_after_s=PAUSE_S)
        if slow:
            self._finding_out.add(account.id)
        try:
            async with asyncio.timeout(self._within_s):
                told = await self._ask(account, stored)
        except TimeoutError:
            self._slow.add(account.id)
            raise Busy(f"{account.venue} takes too long", retry_after_s=PAUSE_S) from None
        finally:
            if slow:
                self._finding_out.discard(account.id)
        self._slow.discard(account.id)
        return told

    async def alone(self, tx: Tx, stored: Stored) -> None:
        """Raise Transient while another order of the same instrument works."""
        order = stored.order
        others = await self._orders.open(tx, order.account_id, [order.terms.legs[0].instrument.key])
        if any(one.order.id != order.id for one in others):
            raise Transient("it waits for the end of other orders", retry_after_s=0.2)

    async def _ask(self, account: Account, stored: Stored) -> Told:
        venue = await self._venues.of(account)
        instruments = [leg.instrument for leg in stored.order.terms.legs]
        await self._follow(instruments)
        rules = await self._rulebook.of((account.venue, account.mode), venue, instruments)
        await self._balance(account, stored, venue)
        return Told(venue, rules, await _quotes(stored.order.terms, venue), await self._held(stored, venue))

    async def _held(self, stored: Stored, venue: Venue) -> Decimal | None:
        """Return what the venue holds of what an order closes, once no other order of it works; else None.

        The venue is asked, for our books may lack a fill of an order that was canceled. Raises Transient.
        """
        if not stored.row["closes"]:
            return None
        async with self._door.read() as tx:
            await self.alone(tx, stored)
        key = stored.order.terms.legs[0].instrument.key
        return next((one.quantity for one in await venue.positions() if one.instrument.key == key), ZERO)

    async def _balance(self, account: Account, stored: Stored, venue: Venue) -> None:
        """Ask for the money where what is known of it is old; one of an account's orders asks, for all of them."""
        told_at = stored.row["balance_at"]
        if told_at is not None and self._clock() - told_at < BALANCE_AGE:
            return
        async with self._balances.setdefault(account.id, asyncio.Lock()):
            async with self._door.read() as tx:
                row = await self._accounts.get(tx, account.id)
            now = self._clock()
            if row is not None and row["balance_at"] is not None and now - row["balance_at"] < BALANCE_AGE:
                return
            balance = await venue.balance()
            async with self._door.transaction() as tx:
                await self._accounts.balance(tx, account.id, balance, now)


async def _quotes(terms: Terms, venue: Venue) -> Mapping[str, Quote]:
    """Return the venue's own quotes. An order with exits has none of them: its exits follow `data.quotes` alone."""
    told = venue.capabilities.quotes if terms.order_class == "simple" else frozenset[str]()
    wanted = [leg.instrument for leg in terms.legs if asset_class(leg.instrument) in told]
    return await venue.quotes(wanted) if wanted and isinstance(venue, Quoting) else {}

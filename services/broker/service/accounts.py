"""Accounts at venues, and the switch that stops everything."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from services.broker.domain.checks import Refusal
from services.broker.domain.risk import Mode, mode
from services.broker.ports import Account
from services.broker.service.orders import Orders
from services.broker.service.venues import Venues
from services.broker.store.accounts import ALL, AccountStore
from shared.clock import Clock, NewId
from shared.contracts.api import UserSignedUp
from shared.contracts.base import Event, derived_id
from shared.contracts.payment import SubscriptionChanged
from shared.db import Row, Tx
from shared.errors import Conflict, Invalid, NotFound
from shared.messaging.door import Done, Door

MOST: Final = 20
QUIET_S: Final = 5.0
POLL_S: Final = 0.02


class NotAllowed(Invalid):
    """Such an account cannot be opened here."""

    code = "ACCOUNT_NOT_ALLOWED"


@dataclass(frozen=True, slots=True)
class NewAccount:
    """An account that somebody wants to trade on."""

    user_id: UUID
    venue: str
    mode: Mode
    name: str
    reference: str
    limits: Mapping[str, Any]


class Accounts:
    """Opens and closes accounts; halts and resumes trading."""

    def __init__(
        self, store: AccountStore, orders: Orders, venues: Venues, *, trading: str, clock: Clock, new_id: NewId
    ) -> None:
        self._store = store
        self._orders = orders
        self._venues = venues
        self._trading = trading
        self._clock = clock
        self._new_id = new_id

    async def ready(self, venue: str) -> None:
        """Load what a kind of venue needs, outside any transaction. Raises NoSuchVenue, VenueRefused."""
        await self._venues.ready(venue)

    async def open(self, new: NewAccount, tx: Tx) -> Done[Row]:
        """Open an account. Raises NoSuchVenue, NotAllowed, Conflict when the user has too many."""
        self._venues.adapter(new.venue)
        allowed = mode(new.mode, self._trading)
        if isinstance(allowed, Refusal):
            raise NotAllowed(allowed.message, reason=allowed.code)
        if len(await self._store.of_user(tx, new.user_id)) >= MOST:
            raise Conflict(f"you have {MOST} accounts: close one first")
        account = Account(self._new_id(), new.user_id, new.venue, new.mode, new.reference)
        await self._store.add(tx, account, new.name, new.limits, self._clock())
        opened = self._orders.audited(new.user_id, "open.account", account.id, venue=new.venue, mode=new.mode)
        return Done(await self._row(tx, account.id), [opened])

    async def first(self, event: UserSignedUp, tx: Tx) -> Sequence[Event]:
        """Give a new user a paper account, where paper is traded."""
        if "paper" not in self._venues.names:
            return ()
        account = Account(derived_id(event.user_id, "paper account"), event.user_id, "paper", "paper")
        if await self._store.get(tx, account.id) is None:
            await self._store.add(tx, account, "Paper", {}, self._clock())
        return ()

    async def own(self, tx: Tx, user_id: UUID, account_id: UUID) -> Row:
        """Return a user's account. Raises NotFound for anybody else's."""
        row = await self._store.get(tx, account_id)
        if row is None or row["user_id"] != user_id or row["closed_at"] is not None:
            raise NotFound("you have no such account")
        return row

    async def close(self, user_id: UUID, account_id: UUID, tx: Tx) -> Done[None]:
        """Close an account. Raises Conflict while orders of it work."""
        await self.own(tx, user_id, account_id)
        await self._store.lock(tx, account_id)
        if await self._orders.store.open(tx, account_id):
            raise Conflict("orders of the account work: cancel them first")
        await self._store.close(tx, account_id, self._clock())
        return Done(None, [self._orders.audited(user_id, "close.account", account_id)])

    async def forget(self, account_id: UUID) -> None:
        """Give up the connections of an account that was closed."""
        await self._venues.forget(account_id)

    async def halt(self, user_id: UUID, reason: str, tx: Tx, *, everyone: bool) -> Done[None]:
        """Send no order of a user any more, or of anybody."""
        who = ALL if everyone else str(user_id)
        await self._store.halt(tx, who, user_id, reason, self._clock())
        return Done(None, [self._orders.audited(user_id, "halt", who, reason=reason)])

    async def quiet(self, user_id: UUID, door: Door, *, everyone: bool) -> None:
        """Wait, QUIET_S at most, until what was judged before a halt is at its venue: from then on nothing goes out."""
        who, clock = ALL if everyone else str(user_id), asyncio.get_running_loop().time
        until = clock() + QUIET_S
        while clock() < until:
            async with door.read() as tx:
                if not await self._store.on_their_way(tx, who):
                    return
            await asyncio.sleep(POLL_S)

    async def resume(self, user_id: UUID, tx: Tx, *, everyone: bool) -> Done[None]:
        """Trade again. Raises NotFound when nothing is halted."""
        who = ALL if everyone else str(user_id)
        if not await self._store.resume(tx, who):
            raise NotFound("nothing is halted")
        return Done(None, [self._orders.audited(user_id, "resume", who)])

    async def entitle(self, event: SubscriptionChanged, tx: Tx) -> Sequence[Event]:
        """Keep what a user's plan gives."""
        await self._store.entitle(tx, event)
        return ()

    async def _row(self, tx: Tx, account_id: UUID) -> Row:
        row = await self._store.get(tx, account_id)
        if row is None:
            raise AssertionError("it was just written")
        return row

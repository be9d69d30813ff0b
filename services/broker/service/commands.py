"""What somebody wants done: place, replace, cancel, cancel all, close. Each is checked again before it is sent.

A command changes rows and writes what is to be said to the venue; it asks nobody. So a command that comes twice is one.
"""

from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Final
from uuid import UUID

from services.broker.domain import shapes
from services.broker.domain.checks import Capabilities, Refusal, asset_class
from services.broker.domain.instruments import BadInstrument, Instrument, instrument
from services.broker.domain.orders import OVER, Leg, Report, Terms, TimeInForce
from services.broker.ports import Account
from services.broker.service.checking import Checking
from services.broker.service.orders import Orders
from services.broker.service.venues import Venues
from services.broker.store.accounts import AccountStore, account_of
from services.broker.store.books import BookStore
from services.broker.store.exits import ExitStore
from services.broker.store.orders import Stored
from shared.clock import Clock
from shared.contracts.base import Event, derived_id
from shared.contracts.broker import CancelRequested, CloseRequested, OrderRequested, OrderTerms, ReplaceRequested
from shared.db import Tx
from shared.errors import NotFound

NOBODYS: Final = Refusal("NO_SUCH_ACCOUNT", "you have no such account: choose one of yours")
AN_EXIT: Final = Refusal("EXIT_NOT_REPLACED", "it is an exit: cancel it, which ends the others, and place an oco")
NO_ORDER: Final = Refusal("NO_SUCH_ORDER", "the account has no such order")

_Asked = OrderRequested | ReplaceRequested | CancelRequested | CloseRequested


class NoSuchAccount(NotFound):
    """You have no such account."""

    code = "NO_SUCH_ACCOUNT"


class Commands:
    """Carries commands out as far as they need no venue."""

    def __init__(
        self,
        orders: Orders,
        accounts: AccountStore,
        books: BookStore,
        venues: Venues,
        checking: Checking,
        *,
        clock: Clock,
    ) -> None:
        self._orders = orders
        self._store = orders.store
        self._accounts = accounts
        self._books = books
        self._exits = ExitStore()
        self._venues = venues
        self._checking = checking
        self._clock = clock

    async def place(self, event: OrderRequested, tx: Tx) -> Sequence[Event]:
        """Take a new order."""
        account = await self._account(tx, event)
        if account is None:
            return self._nobodys(event, event.order_id)
        try:
            terms = shapes.to_contract(shapes.to_domain(event.terms))  # each instrument has one name from here on
        except BadInstrument as error:
            return self._orders.refusal(account, event.order_id, [Refusal(error.code, error.message)])
        return await self._new(tx, account, event, event.order_id, terms)

    async def replace(self, event: ReplaceRequested, tx: Tx) -> Sequence[Event]:
        """Take an order that is to replace a working one."""
        account = await self._account(tx, event)
        if account is None:
            return self._nobodys(event, event.by_order_id)
        await self._store.lock_all(tx, [event.order_id, event.by_order_id])
        old = await self._own(tx, account, event.order_id)
        if old is None:
            return self._orders.refusal(account, event.by_order_id, [NO_ORDER])
        if old.row["parent"] is not None:
            return self._orders.refusal(account, event.by_order_id, [AN_EXIT])
        if old.order.state in OVER:
            over = Refusal("ORDER_OVER", f"the order is {old.order.state}: place a new one")
            return self._orders.refusal(account, event.by_order_id, [over])
        given = event.model_dump(include={"quantity", "limit", "stop", "trail_amount", "trail_percent"})
        terms = replace(old.order.terms, **{name: value for name, value in given.items() if value is not None})
        wanted = shapes.to_contract(terms)
        return await self._new(tx, account, event, event.by_order_id, wanted, replaces=event.order_id)

    async def cancel(self, event: CancelRequested, tx: Tx) -> Sequence[Event]:
        """Cancel an order, or all that are not over."""
        account = await self._account(tx, event)
        if account is None:
            return self._nobodys(event, event.order_id or event.id)
        if event.order_id is None:
            events = await self._cancel_open(tx, account, None)
            await self._exits.end(tx, account.id)
            return events
        stored = await self._own(tx, account, event.order_id)
        if stored is None:
            return self._orders.refusal(account, event.order_id, [NO_ORDER])
        return await self._cancel_one(tx, account, stored)

    async def close(self, event: CloseRequested, tx: Tx) -> Sequence[Event]:
        """Close what is held of an instrument: cancel its orders, then trade the other way.

        They are canceled only when nothing is known that would refuse the close: they may be what protects it.
        """
        account = await self._account(tx, event)
        if account is None:
            return self._nobodys(event, event.order_id)
        position = await self._books.held(tx, account.id, event.symbol)
        if position is None or not position.quantity:
            nothing = Refusal("NOTHING_HELD", f"nothing is held of {event.symbol[:32]}")
            return self._orders.refusal(account, event.order_id, [nothing])
        able = self._venues.capabilities(account.venue)
        terms = closing(position.instrument, position.quantity, able)
        wanted = shapes.to_contract(terms)
        if await self._store.get(tx, event.order_id) is not None:  # it comes twice
            return await self._new(tx, account, event, event.order_id, wanted, closes=True)
        events = await self._new(tx, account, event, event.order_id, wanted, closes=True)
        row, stored = await self._accounts.get(tx, account.id), await self._own(tx, account, event.order_id)
        if row is None or stored is None:
            raise AssertionError("it was just written")
        if refusals := await self._checking.foresee(tx, row, stored, able):
            await self._store.unsend(tx, event.order_id)
            return [*events, *await self._orders.refuse(tx, account, stored, refusals)]
        events = [*events, *await self._cancel_open(tx, account, event.symbol, but=event.order_id)]
        await self._exits.end(tx, account.id, symbol=event.symbol)
        return events

    # --- parts ----------------------------------------------------------------------------------

    async def _account(self, tx: Tx, event: _Asked) -> Account | None:
        row = await self._accounts.get(tx, event.account_id)
        if row is None or row["user_id"] != event.user_id or row["closed_at"] is not None:
            return None
        return account_of(row)

    def _nobodys(self, event: _Asked, order_id: UUID) -> Sequence[Event]:
        """Refuse what somebody wants of an account that is not theirs."""
        asker = Account(derived_id(event.user_id, "no account"), event.user_id, "", "paper")  # its owner hears nothing
        return self._orders.refusal(asker, order_id, [NOBODYS], event.account_id)

    async def _own(self, tx: Tx, account: Account, order_id: UUID) -> Stored | None:
        stored = await self._store.lock(tx, order_id)
        return stored if stored is not None and stored.order.account_id == account.id else None

    async def _new(
        self,
        tx: Tx,
        account: Account,
        event: _Asked,
        order_id: UUID,
        terms: OrderTerms,
        *,
        replaces: UUID | None = None,
        closes: bool = False,
    ) -> Sequence[Event]:
        now = self._clock()
        asked_at = min(event.time, now)  # one that lay about for long is too late
        added = await self._store.add(tx, order_id, account, terms, asked_at, replaces=replaces, closes=closes)
        if not added and not await self._same(tx, account, order_id, terms, replaces=replaces, closes=closes):
            taken = Refusal("ORDER_ID_TAKEN", "that id is another order's: choose a fresh one")
            return self._orders.refusal(account, order_id, [taken])
        kind = "submit" if replaces is None else "replace"
        await self._store.send(tx, derived_id(order_id, kind), order_id, kind, now)
        tx.after_commit(self._orders.wake)
        return ()

    async def _same(
        self, tx: Tx, account: Account, order_id: UUID, terms: OrderTerms, *, replaces: UUID | None, closes: bool
    ) -> bool:
        """Whether the order of that id is this one, which was asked for before."""
        known = await self._own(tx, account, order_id)
        if known is None or known.order.replaces != replaces or known.row["closes"] != closes:
            return False
        return closes or replaces is not None or known.order.terms == shapes.to_domain(terms)

    async def _cancel_open(self, tx: Tx, account: Account, symbol: str | None, but: UUID | None = None) -> list[Event]:
        events: list[Event] = []
        working = await self._store.open(tx, account.id, None if symbol is None else [symbol])
        found = [one for one in working if one.order.id != but]
        locked = await self._store.lock_all(tx, [one.order.id for one in found])
        for stored in (locked[one.order.id] for one in found):
            if stored.order.state not in OVER:  # else it has ended while we waited for it
                events += await self._cancel(tx, account, stored)
        return events

    async def _cancel_one(self, tx: Tx, account: Account, stored: Stored) -> Sequence[Event]:
        """Cancel an order; with an exit the others go, and with a bracket or an OCO that is over its exits."""
        order, parent = stored.order, stored.row["parent"]
        if parent is None and order.terms.exits is not None and order.state in OVER:
            return (
                ()
                if await self._exits.end(tx, account.id, order_id=order.id)
                else await self._cancel(tx, account, stored)
            )
        events = await self._cancel(tx, account, stored)
        if parent is not None:
            await self._exits.end(tx, account.id, order_id=parent)
        return events

    async def _cancel(self, tx: Tx, account: Account, stored: Stored) -> Sequence[Event]:
        _, events = await self._orders.report(tx, account, stored, Report("cancel_asked"))
        return events


def closing(of: Instrument, held: Decimal, capabilities: Capabilities) -> Terms:
    """Return the terms that close so much of an instrument at the market."""
    times = capabilities.times.get(asset_class(of), frozenset())
    tif: TimeInForce = "gtc" if "day" not in times else "day"
    return Terms((Leg(of, "sell" if held > 0 else "buy", opens=False),), "market", tif, quantity=abs(held))


def symbol_of(text: str) -> str:
    """Return an instrument's key. Raises BadInstrument."""
    return instrument(text).key

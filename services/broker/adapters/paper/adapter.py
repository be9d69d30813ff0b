"""The paper venue as any other venue, kept in Postgres: what it did outlives a restart, and all replicas see the same.

Submits, cancels and replacements that come at the same time share a transaction, which makes thousands a second of
them; an answer is given only after its commit. Two doors no other venue has: `quoted` lets the market in, inside the
transaction of whoever read the quotes, and `tick` and `expire` are called by the clock.

What would surprise you: nothing happens by time alone. Latencies, the end of day orders and the expiry of options take
effect when `tick`, `expire` or a quote comes by.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Final
from uuid import UUID

from services.broker.adapters.paper.feed import Feed
from services.broker.adapters.paper.tables import PaperTables
from services.broker.domain.checks import TradeRules
from services.broker.domain.desk import Desk
from services.broker.domain.instruments import Crypto, Equity, Instrument, Option
from services.broker.domain.lifecycle import filled
from services.broker.domain.matching import Book
from services.broker.domain.orders import Execution, Kind, Order, Report
from services.broker.domain.positions import PositionFact
from services.broker.domain.settlement import settle
from services.broker.domain.tickets import CAPABILITIES, Rules, venue_id
from services.broker.ports import Account, Balance, Changes, Held, Update, VenueRefused
from shared.clock import Clock
from shared.db import Database, Row, Tx, is_rerun
from shared.errors import Transient
from shared.work import OutcomeUnknown

STARTING_CASH: Final = Decimal(100_000)
_BATCH: Final = 200  # orders that share a transaction at most
_DUE: Final = 500
_TRIES: Final = 3
_KEPT: Final = timedelta(days=1)  # frames; whoever was away for longer asks for changes anyway
_CENT, _FINE = Decimal("0.01"), Decimal("1e-9")
_SHARES: Final = TradeRules(((Decimal(0), Decimal("0.0001")), (Decimal(1), _CENT)), _FINE, _FINE)
_CONTRACTS: Final = TradeRules(((Decimal(0), _CENT),), Decimal(1), Decimal(1))
_COINS: Final = TradeRules(((Decimal(0), Decimal("1e-8")),), _FINE, _FINE)

Answer = Report | None
Deed = Callable[[Desk, datetime], Answer | OutcomeUnknown]


@dataclass(slots=True, eq=False)
class _Wish:
    """What somebody wants done with an order, and who waits for its answer."""

    orders: tuple[Order, ...]
    deed: Deed
    answer: "asyncio.Future[Answer]"


class PaperAdapter:
    """The venue, for all accounts."""

    name = "paper"
    capabilities = CAPABILITIES
    secrets: frozenset[str] = frozenset()

    def __init__(
        self,
        database: Database,
        clock: Clock,
        rules: Rules,
        *,
        starting_cash: Decimal = STARTING_CASH,
        poll_s: float = 0.2,
    ) -> None:
        self.database = database
        self.tables = PaperTables()
        self.feed = Feed(database, self.tables, poll_s)
        self.clock = clock
        self.rules = rules
        self.starting_cash = starting_cash
        self._wishes: list[_Wish] = []
        self._working: asyncio.Task[None] | None = None

    def open(self, account: Account, secrets: Mapping[str, str]) -> "PaperVenue":
        """Return an account's venue. Raises VenueRefused for a live account: nothing here is real."""
        if secrets:
            raise VenueRefused("the paper venue needs no credentials")
        if account.mode != "paper":
            raise VenueRefused("this venue is paper: open a paper account")
        return PaperVenue(self, account)

    async def open_account(self, tx: Tx, account_id: UUID, cash: Decimal) -> None:
        """Open an account with so much cash; without it, it begins with the usual sum at its first order."""
        await self.tables.open(tx, account_id, cash)

    async def close(self) -> None:
        """Finish what is in flight and end the streams."""
        if self._working is not None:
            await asyncio.gather(self._working, return_exceptions=True)
        await self.feed.close()

    # The market and the clock

    async def quoted(self, quotes: Sequence[tuple[Instrument, Book]], tx: Tx) -> None:
        """Let working orders meet new quotes, in order, inside the caller's transaction; call it once in each.

        A quote that is not newer than the last one of its instrument is ignored. The transaction holds locks on the
        instruments and on accounts that are concerned until it ends.
        """
        if not quotes:
            return
        now, desk = self.clock(), Desk(self.rules)
        underlyings = {of.underlying for of, _ in quotes}
        await self.tables.lock(tx, underlyings)
        await self.tables.load_books(tx, desk, {of.key for of, _ in quotes})
        offers = [{"symbol": of.key, "bid": book.bid, "ask": book.ask} for of, book in quotes]
        await self.tables.load_quoted(tx, desk, underlyings, offers)
        await self.load(tx, desk)
        for of, book in quotes:
            known = desk.books.get(of.key)
            if known is None or book.at > known.at:
                desk.books[of.key] = book
                desk.taken.add(of.key)
                desk.quoted((of.key,), now)
        await self.save(tx, desk, now)

    async def tick(self) -> int:
        """Do with orders what their time has come for, and forget old frames; returns how many orders there were."""
        done = 0
        while True:
            async with self.database.transaction() as tx:
                now, desk = self.clock(), Desk(self.rules)
                due = await self.tables.due(tx, now, _DUE)
                await self.tables.lock(tx, set(due.values()))
                await self.tables.load_tickets(tx, desk, due.keys())
                await self.load(tx, desk)
                for order_id in due:
                    desk.tick(desk.tickets[order_id], now)
                await self.save(tx, desk, now)
                await self.tables.forget(tx, now - _KEPT)
            done += len(due)
            if len(due) < _DUE:
                return done

    async def expire(self, day: date, closes: Mapping[str, Decimal]) -> list[tuple[UUID, PositionFact]]:
        """Settle the options that expire by this day, by their underlyings' closes; returns whose what became of.

        Call it after the close, as often as you like: what is settled is gone. The facts are among `changes`, too.
        """
        async with self.database.transaction() as tx:
            now, desk = self.clock(), Desk(self.rules)
            await self.tables.lock(tx, closes.keys())
            expiring = await self.tables.expiring(tx, day, closes.keys())
            await self.tables.load_naming(tx, desk, [of for _, of in expiring])
            await self.load(tx, desk, {(account_id, of.underlying) for account_id, of in expiring})
            facts = [
                (account_id, fact)
                for account_id, of in expiring
                for fact in settle(desk, account_id, of, closes[of.underlying], now)
            ]
            await self.save(tx, desk, now)
            await self.tables.save_facts(tx, facts)
        return facts

    async def load(self, tx: Tx, desk: Desk, more: Collection[tuple[UUID, str]] = ()) -> None:
        """Load what the desk's orders need, and `more` accounts and underlyings."""
        terms = [(one.account_id, one.working.terms) for one in desk.tickets.values()]
        legs = [(account_id, leg.instrument) for account_id, asked in terms for leg in asked.legs]
        await self.tables.load_books(tx, desk, {of.key for _, of in legs})
        await self.tables.load_accounts(
            tx, desk, {*((who, of.underlying) for who, of in legs), *more}, self.starting_cash
        )

    async def save(self, tx: Tx, desk: Desk, now: datetime) -> None:
        """Write back what the desk changed, and wake who listens once it is committed."""
        await self.tables.save(tx, desk, now)
        if desk.frames:
            accounts = {frame.account_id for frame in desk.frames}
            tx.after_commit(lambda: self.feed.wake(accounts))

    # Orders

    async def wish(self, orders: tuple[Order, ...], deed: Deed) -> Answer:
        """Do something with orders in the next transaction, and return its answer.

        Raises Transient when it was certainly not done, OutcomeUnknown when nobody knows.
        """
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._wishes.append(_Wish(orders, deed, answer))
        if self._working is None or self._working.done():
            self._working = asyncio.create_task(self._work(), name="paper-orders")
        return await answer

    async def _work(self) -> None:
        while self._wishes:
            batch, self._wishes = self._wishes[:_BATCH], self._wishes[_BATCH:]
            try:
                await self._answer(batch)
            except Exception:  # noqa: BLE001 - one of them spoils it for all: each by itself, and told to its own
                for wish in batch:
                    await self._answer_alone(wish)

    async def _answer_alone(self, wish: _Wish) -> None:
        if wish.answer.done():
            return
        try:
            await self._answer([wish])
        except Exception as error:  # noqa: BLE001 - whoever waits is told
            if not wish.answer.done():
                wish.answer.set_exception(error)

    async def _answer(self, batch: list[_Wish]) -> None:
        """Carry out a batch. Raises what is wrong before the commit and is no matter of luck."""
        batch = [wish for wish in batch if not wish.answer.done()]
        for left in reversed(range(_TRIES)):
            committing = False
            try:
                async with self.database.transaction() as tx:
                    answers = await self._carry_out(tx, batch)
                    committing = True
            except Exception as error:
                if committing:
                    return _tell(batch, [OutcomeUnknown("the commit was not answered")] * len(batch))
                if not is_rerun(error):
                    raise
                if not left:
                    return _tell(batch, [Transient("the paper venue's database did not take it")] * len(batch))
            else:
                return _tell(batch, answers)
        return None

    async def _carry_out(self, tx: Tx, batch: list[_Wish]) -> list[Answer | OutcomeUnknown]:
        desk, orders = Desk(self.rules), [order for wish in batch for order in wish.orders]
        legs = [(order.account_id, leg.instrument) for order in orders for leg in order.terms.legs]
        await self.tables.lock(tx, {of.underlying for _, of in legs})
        await self.tables.load_books(tx, desk, {of.key for _, of in legs})
        await self.tables.load_tickets(tx, desk, {order.id for order in orders})
        await self.load(tx, desk, {(who, of.underlying) for who, of in legs})
        now = self.clock()
        answers = [wish.deed(desk, now) for wish in batch]
        await self.save(tx, desk, now)
        return answers


def _tell(batch: list[_Wish], answers: Sequence[Answer | Exception]) -> None:
    for wish, answer in zip(batch, answers, strict=True):
        if wish.answer.done():  # nobody waits any more
            continue
        if isinstance(answer, Exception):
            wish.answer.set_exception(answer)
        else:
            wish.answer.set_result(answer)


class PaperVenue:
    """One paper account."""

    capabilities = CAPABILITIES
    knows_ids = True

    def __init__(self, adapter: PaperAdapter, account: Account) -> None:
        self._adapter = adapter
        self._account = account

    async def rules(self, instruments: Collection[Instrument]) -> Mapping[str, TradeRules]:
        """Return the steps of the instruments that were ever quoted."""
        async with self._adapter.database.read() as tx:
            known = await self._adapter.tables.known(tx, [of.key for of in instruments])
        halted = self._adapter.rules.halted
        return {of.key: replace(_rules(of), tradable=of.key not in halted) for of in instruments if of.key in known}

    async def submit(self, order: Order) -> Report:
        """Place an order. Raises OutcomeUnknown for an id that the venue has seen."""

        def deed(desk: Desk, now: datetime) -> Answer | OutcomeUnknown:
            return desk.submit(order, now) or OutcomeUnknown("the venue has seen this id")

        report = await self._adapter.wish((order,), deed)
        if report is None:
            raise TypeError("a submit is always answered")
        return report

    async def cancel(self, order: Order) -> Report | None:
        """Cancel a working order."""

        def deed(desk: Desk, now: datetime) -> Answer:
            ticket = desk.tickets.get(order.id)
            if ticket is None or ticket.state in {"pending", "void"}:
                return Report("cancel_rejected", reason="NOT_FOUND: there is no such order")
            return desk.cancel(order.id, now) if ticket.state == "accepted" else _OVER

        answer = await self._adapter.wish((order,), deed)
        return replace(await self.look_up(order), looked_up=False) if answer is _OVER else answer

    async def replace(self, order: Order, by: Order) -> Report | None:
        """Put another order in the place of a working one. `by` fills its own quantity, whatever the old one has.

        Refused while the old one has fills that `order` lacks: `by` was sized without them, and would fill too much.
        """

        def deed(desk: Desk, now: datetime) -> Answer | OutcomeUnknown:
            ticket = desk.tickets.get(order.id)
            if by.id in desk.tickets:
                return OutcomeUnknown("the venue has seen the id of the order that replaces")
            if ticket is None or ticket.state != "accepted":
                reason = "NOT_FOUND: there is no such order" if ticket is None else f"ORDER_OVER: it is {ticket.state}"
                return Report("replace_rejected", reason=reason)
            if ticket.working.filled > filled(order):
                return Report("replace_rejected", reason="FILLED_MEANWHILE: more of it is filled: ask again")
            return desk.replace(order.id, by, now)

        return await self._adapter.wish((order, by), deed)

    async def look_up(self, order: Order) -> Report:
        """Return how the order stands."""
        async with self._adapter.database.read() as tx:
            row = await self._adapter.tables.order(tx, self._account.id, order.id)
            if row is None:
                return Report("not_found", looked_up=True)
            done = await self._adapter.tables.executions(tx, [order.id])
        return _told(row, done.get(order.id, []))

    async def changes(self, since: datetime) -> Changes:
        """Return what happened since then."""
        async with self._adapter.database.read() as tx:
            rows = await self._adapter.tables.changed(tx, self._account.id, since)
            done = await self._adapter.tables.executions(tx, [row["id"] for row in rows])
            facts = await self._adapter.tables.facts(tx, self._account.id, since)
        return Changes([Update(row["id"], _told(row, done.get(row["id"], []))) for row in rows], facts)

    async def positions(self) -> Sequence[Held]:
        """Return all that is held."""
        async with self._adapter.database.read() as tx:
            return [Held(of, quantity) for of, quantity in await self._adapter.tables.held(tx, self._account.id)]

    async def balance(self) -> Balance:
        """Return the money."""
        async with self._adapter.database.transaction() as tx:
            await self._adapter.open_account(tx, self._account.id, self._adapter.starting_cash)
            purse = await self._adapter.tables.purse(tx, self._account.id)
        if purse is None:
            raise LookupError("an account that was opened is there")
        return Balance(purse.cash, purse.buying_power)

    def stream(self) -> AbstractAsyncContextManager[AsyncIterator[Update]]:
        """Listen."""
        return self._adapter.feed.listen(self._account.id)

    async def close(self) -> None:
        """Nothing: the connections are all accounts'."""


_OVER: Final = Report("accepted")
"""Stands for: the order is over, look it up."""


def _told(row: Row, executions: list[Execution]) -> Report:
    """Return what a look-up tells of an order."""
    kind: Kind = row["state"]
    return Report(
        kind,
        tuple(executions),
        looked_up=True,
        venue_order_id=venue_id(row["id"]),
        replaced_by=row["replaced_by"],
        reason=row["reason"],
    )


def _rules(of: Instrument) -> TradeRules:
    match of:
        case Equity():
            return _SHARES
        case Option():
            return _CONTRACTS
        case Crypto():
            return _COINS

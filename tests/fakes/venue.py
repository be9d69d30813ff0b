"""A venue in memory: orders, executions, positions and money as an exchange keeps them, without any HTTP.

A `Desk` is the venue's side of one account and the hand on it (`Rig` of tests/broker/rig.py). It outlives the venue
objects that are opened over it: `MemoryAdapter.open` for the same account finds the same desk. Times are the clock's.

What would surprise you: nothing is matched. An order is filled by `fill` and by nothing else.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Literal, TypeVar
from uuid import UUID

from services.broker.domain.checks import TradeRules
from services.broker.domain.instruments import Equity, Instrument
from services.broker.domain.orders import ZERO, Execution, Fill, Order, Report
from services.broker.domain.positions import Charge, Expiry, PositionFact, Split
from services.broker.domain.risk import Quote
from services.broker.ports import Account, Adapter, Balance, Changes, Held, Update, Venue, VenueRefused
from shared.errors import Transient
from shared.work import Busy, OutcomeUnknown
from tests.fakes.venue_books import PLAIN, Books, Clock, Manner, wall_clock

T = TypeVar("T")


class Desk(Books):
    """What is behind a venue, and the hand on it. `venue` is the one that was opened last by the desk itself."""

    def __init__(self, manner: Manner = PLAIN, clock: Clock = wall_clock) -> None:
        super().__init__(manner, clock)
        self.down = False  # nothing reaches the venue
        self.revoked = False  # it does not take our credentials
        self.before_submits: list[Callable[[], Awaitable[None]]] = []  # what each of the next ones waits for
        self.before_balance: list[Callable[[], Awaitable[None]]] = []
        self.odd: Exception | None = None  # what asking for the money ends with
        self._last_fill: Update | None = None
        self._lost: Literal["request", "answer"] | None = None
        self._limited = 0
        self._executions = 0
        self.venue: Venue = MemoryVenue(self)

    async def reopen(self) -> None:
        """Throw the product's side away, and open it again over the same books."""
        await self.venue.close()
        self.venue = MemoryVenue(self)

    # The hand: what happens at the venue

    def quote(self, symbol: str, bid: Decimal, ask: Decimal) -> None:
        self.quotes[symbol] = (bid, ask)

    async def fill(self, order_id: UUID, quantity: Decimal, price: Decimal) -> str:
        """Fill so many units; of several legs all but the first go at 1.00, and `price` is the net. Late is allowed."""
        one = self.find(order_id)
        self._executions += 1
        name, at, legs = f"x{self._executions}", self.now(), one.order.terms.legs
        rest = sum((Decimal(leg.ratio if leg.side == legs[0].side else -leg.ratio) for leg in legs[1:]), ZERO)
        for index, leg in enumerate(legs):
            each = Decimal(1) if index else (price - rest) / leg.ratio
            size = quantity * leg.ratio
            fee = size * each * leg.instrument.multiplier * self.manner.fee_rate
            one.executions.append(Execution(name, size, each, at, index, fee))
            self.move(leg.instrument, size if leg.side == "buy" else -size, each, fee)
        one.changed_at = at
        wish = one.wish
        if one.works and one.is_whole():
            one.status, one.wish = "filled", None
        new = tuple(one.executions[-len(legs) :])
        self._last_fill = self.tell(one, "filled" if one.status == "filled" else "fill", new)
        if wish is not None and one.wish is None:
            self.tell(one, "cancel_rejected" if wish == "cancel" else "replace_rejected")
        return name

    async def bust(self, order_id: UUID, execution_id: str) -> None:
        """Take an execution back, on all legs."""
        one = self.find(order_id)
        for at, execution in enumerate(one.executions):
            if execution.id == execution_id and not execution.busted:
                one.executions[at] = replace(execution, busted=True)
                leg = one.order.terms.legs[execution.leg]
                signed = execution.quantity if leg.side == "buy" else -execution.quantity
                self.move(leg.instrument, -signed, execution.price, -execution.fee)
        one.changed_at = self.now()
        gone = tuple(execution for execution in one.executions if execution.id == execution_id)
        self.send(Update(order_id, Report(one.status, gone, venue_order_id=one.venue_order_id)))

    async def end(self, order_id: UUID, kind: Literal["canceled", "expired", "rejected"]) -> None:
        one = self.find(order_id)
        assert one.works, f"it is {one.status} already"
        self.finish(one, kind)

    async def carry_out(self, order_id: UUID) -> None:
        """Do what a cancel or a replacement wished that was held."""
        one = self.find(order_id)
        if isinstance(one.wish, Order):
            self.put_in_place(one, one.wish)
        else:
            assert one.wish == "cancel", "nothing was wished"
            self.finish(one, "canceled")

    def happen(self, fact: PositionFact) -> None:
        """Let something move a position without an order of ours; `changes` tells it."""
        self.facts.append(fact)
        of, held = fact.instrument, self.quantity(fact.instrument)
        match fact:
            case Fill():
                self.move(of, fact.quantity if fact.side == "buy" else -fact.quantity, fact.price, fact.fee)
            case Split():
                self.cash += fact.cash
                self.drift(of, held * fact.new / fact.old if fact.quantity_after is None else fact.quantity_after)
            case Expiry():
                self.move(of, -fact.quantity.copy_sign(held), fact.price)
            case Charge():
                self.cash -= fact.fee

    def drift(self, of: Instrument, quantity: Decimal) -> None:
        """Let so much be held, without a word of why."""
        self.held[of.key] = Held(of, quantity)

    # The hand: faults

    def refuse_next(self, reason: str) -> None:
        self.refusal = reason

    def lose_next(self, what: Literal["request", "answer"]) -> None:
        self._lost = what

    def limit_next(self, times: int = 1) -> None:
        self._limited = times

    def hold_cancels(self) -> None:
        self.hold = True

    def drop_stream(self) -> None:
        for queue in self.listeners:
            queue.put_nowait(None)
        self.listeners.clear()

    def lose_frames(self, count: int) -> None:
        self.frames_to_lose = count

    async def repeat_fill(self) -> None:
        assert self._last_fill is not None, "nothing was filled"
        self.send(self._last_fill)

    def skew(self, seconds: float) -> None:
        self.ahead = timedelta(seconds=seconds)

    # What the venue's side of a request does

    def ask(self) -> None:
        """Let a request come in."""
        if self.down:
            raise Transient("the venue cannot be reached")
        if self._limited:
            self._limited -= 1
            raise Busy("too many requests", retry_after_s=1)
        if self.revoked:
            raise VenueRefused

    def write(self, effect: Callable[[], T]) -> T:
        """Let a request that changes something come in, unless it or its answer is lost."""
        self.ask()
        lost, self._lost = self._lost, None
        if lost == "request":
            raise OutcomeUnknown("the venue did not answer")
        done = effect()
        if lost == "answer":
            raise OutcomeUnknown("the venue did not answer")
        return done


class MemoryVenue:
    """The product's side: an open venue, over a desk that stays when it is closed."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._closed = False
        self.capabilities = desk.manner.capabilities
        self.knows_ids = desk.manner.knows_ids

    async def rules(self, instruments: Collection[Instrument]) -> Mapping[str, TradeRules]:
        self._open().ask()
        known = [one for one in instruments if one.underlying in self._desk.quotes]
        return {one.key: _rules(one) for one in known}

    async def quotes(self, instruments: Collection[Instrument]) -> Mapping[str, Quote]:
        self._open().ask()
        known, now = self._desk.quotes, self._desk.now()
        return {one.key: Quote(*known[one.key], now) for one in instruments if one.key in known}

    async def submit(self, order: Order) -> Report:
        if self._desk.before_submits:
            await self._desk.before_submits.pop(0)()
        return self._open().write(partial(self._desk.place, order))

    async def cancel(self, order: Order) -> Report | None:
        return self._open().write(partial(self._desk.cancel, order))

    async def replace(self, order: Order, by: Order) -> Report | None:
        return self._open().write(partial(self._desk.replace, order, by))

    async def look_up(self, order: Order) -> Report:
        self._open().ask()
        return self._desk.look_up(order.id)

    async def changes(self, since: datetime) -> Changes:
        self._open().ask()
        return self._desk.changes(since)

    async def positions(self) -> list[Held]:
        self._open().ask()
        return [one for one in self._desk.held.values() if one.quantity]

    async def balance(self) -> Balance:
        self._open().ask()
        if self._desk.before_balance:
            await self._desk.before_balance.pop(0)()
        if self._desk.odd is not None:
            raise self._desk.odd
        return Balance(self._desk.cash, self._desk.cash)

    @asynccontextmanager
    async def stream(self) -> AsyncGenerator[AsyncIterator[Update]]:
        self._open().ask()
        async with self._desk.listen() as frames:
            yield frames

    async def close(self) -> None:
        self._closed = True

    def _open(self) -> Desk:
        assert not self._closed, "the venue was closed"
        return self._desk


def _rules(of: Instrument) -> TradeRules:
    if isinstance(of, Equity):
        return TradeRules(((ZERO, Decimal("0.0001")), (Decimal(1), Decimal("0.01"))), Decimal("1e-9"), Decimal("1e-9"))
    step = Decimal(1) if of.multiplier > 1 else Decimal("1e-9")
    return TradeRules(((ZERO, Decimal("0.01")),), step, step)


class MemoryAdapter:
    """The kind of venue. `desk(account.id)` is the venue's side of an account, there before it is first opened."""

    secrets = frozenset({"key"})

    def __init__(self, manner: Manner = PLAIN, clock: Clock = wall_clock) -> None:
        self.name = manner.name
        self.capabilities = manner.capabilities
        self._manner, self._clock = manner, clock
        self._desks: dict[UUID, Desk] = {}

    def desk(self, account_id: UUID) -> Desk:
        """Return the venue's side of an account."""
        if account_id not in self._desks:
            self._desks[account_id] = Desk(self._manner, self._clock)
        return self._desks[account_id]

    def open(self, account: Account, secrets: Mapping[str, str]) -> MemoryVenue:
        """Return the account's venue. Raises VenueRefused for credentials of the wrong shape."""
        if secrets.keys() != self.secrets:
            raise VenueRefused(missing=sorted(self.secrets - secrets.keys()))
        return MemoryVenue(self.desk(account.id))


class MemoryRigs:
    """A row of the conformance table."""

    def __init__(self, manner: Manner = PLAIN, clock: Clock = wall_clock) -> None:
        self.name = manner.name
        self.adapter: Adapter = MemoryAdapter(manner, clock)
        self.lacks = frozenset[str]() if manner.knows_ids else frozenset({"same-id-twice"})
        self._manner, self._clock = manner, clock

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[Desk]:
        """Start with empty books."""
        desk = Desk(self._manner, self._clock)
        yield desk
        await desk.venue.close()

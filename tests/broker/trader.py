"""Who trades in the conformance cases: sends orders as the service does, and keeps them by what the venue tells.

At the end of each case nothing illegal was told, no order was filled beyond what it asked for, and the venue's
positions and cash are what its executions say.
"""

import asyncio
import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, Final
from uuid import UUID, uuid4

import pytest

from services.broker.domain.checks import AssetClass, Capabilities, check
from services.broker.domain.instruments import Crypto, Equity, Instrument, option
from services.broker.domain.lifecycle import apply, filled, fills
from services.broker.domain.orders import ZERO, Anomaly, Fact, Fill, IllegalTransition, Leg, Order, Report, Terms
from services.broker.domain.positions import PositionFact, rebuild
from services.broker.ports import Update
from shared.errors import Transient
from shared.work import OutcomeUnknown
from tests.broker.cases import CASES, reason_to_skip
from tests.broker.rig import Rig, Rigs
from tests.broker.venues import VENUES
from tests.conftest import eventually

OVERLAP: Final = timedelta(minutes=5)
"""How much further back than the moment that is meant `changes` is asked for, since clocks differ."""
NEVER: Final = frozenset({"OVERFILL", "BAD_FILL", "EXECUTION_DISAGREES", "UNSENT", "VANISHED"})
BID, ASK = Decimal("100.00"), Decimal("100.02")


def next_friday(after: date) -> date:
    """Return a Friday a month ahead, when options expire."""
    later = after + timedelta(days=30)
    return later + timedelta(days=(4 - later.weekday()) % 7)


EXPIRES_ON: Final = next_friday(datetime.now(UTC).date())
SAMPLES: Final[dict[AssetClass, Instrument]] = {
    "equity": Equity("AAPL"),
    "option": option("AAPL", EXPIRES_ON, "C", Decimal(100)),
    "crypto": Crypto("BTC", "USD"),
}
HIGHER: Final = option("AAPL", EXPIRES_ON, "C", Decimal(110))


def first(of: Iterable[AssetClass]) -> AssetClass:
    """Return the plainest of several kinds."""
    order: tuple[AssetClass, ...] = ("equity", "crypto", "option")
    return min(of, key=order.index)


class Trader:
    """One account at one venue, over its stand-in."""

    def __init__(self, rig: Rig, cash: Decimal) -> None:
        self.rig = rig
        self.start = cash
        self.orders: dict[UUID, Order] = {}
        self.facts: list[Fact] = []
        self.strangers: list[Update] = []
        self.cuts = 0
        self.since = datetime.now(UTC) - OVERLAP

    @property
    def capabilities(self) -> Capabilities:
        return self.rig.venue.capabilities

    # What is sent

    def terms(self, quantity: Any = 10, **changes: Any) -> Terms:
        """Return terms that the venue takes, of a limit order that rests: below the market."""
        kind = first(self.capabilities.times)
        times = self.capabilities.times[kind]
        given: dict[str, Any] = {
            "legs": (Leg(SAMPLES[kind], "buy"),),
            "type": "limit",
            "time_in_force": "day" if "day" in times else "gtc",
            "quantity": None if quantity is None else Decimal(quantity),
            "limit": Decimal(99),
        }
        return Terms(**{**given, **changes})

    def new(self, terms: Terms, **changes: Any) -> Order:
        order = Order(uuid4(), UUID(int=7), self.capabilities.venue, terms, **changes)
        self.orders[order.id] = order
        return order

    async def submit(self, order: Order | None = None) -> UUID:
        """Send an order, or once more the same, and return its id."""
        order = order or self.new(self.terms())
        self.told(order.id, Report("submit_sent"))
        await self._answered(order.id, lambda: self.rig.venue.submit(self.orders[order.id]))
        return order.id

    async def cancel(self, order_id: UUID) -> None:
        self.told(order_id, Report("cancel_asked"))
        await self._answered(order_id, lambda: self.rig.venue.cancel(self.orders[order_id]))

    async def replace(self, order_id: UUID, terms: Terms) -> UUID:
        """Ask for other terms, and return the new order's id."""
        by = self.new(terms, replaces=order_id)
        self.told(by.id, Report("submit_sent"))
        self.told(order_id, Report("replace_asked", replaced_by=by.id))
        await self._answered(order_id, lambda: self.rig.venue.replace(self.orders[order_id], by))
        self.told(by.id, Report("outcome_unknown"))  # the answer is about the old one: this one is looked up
        return by.id

    async def _answered(self, order_id: UUID, call: Callable[[], Awaitable[Report | None]]) -> None:
        try:
            answer = await call()
        except OutcomeUnknown:
            self.told(order_id, Report("outcome_unknown"))
        except Transient:
            if self.orders[order_id].state == "pending_submit":
                self.told(order_id, Report("not_sent"))
            raise
        else:
            if answer is not None:
                self.told(order_id, answer)

    # What is told

    def told(self, order_id: UUID, report: Report) -> None:
        if order_id not in self.orders:
            self.strangers.append(Update(order_id, report))
            return
        step = apply(self.orders[order_id], report)
        self.orders[order_id] = step.order
        self.facts += step.facts

    async def look_up(self, order_id: UUID) -> str:
        """Ask how an order stands, and return its state."""
        report = await self.rig.venue.look_up(self.orders[order_id])
        assert report.looked_up
        self.told(order_id, report)
        return self.state(order_id)

    async def catch_up(self, since: datetime | None = None) -> set[UUID]:
        """Ask what has happened, and return which orders were told."""
        changes = await self.rig.venue.changes(since or self.since)
        for one in changes.orders:
            assert one.report.looked_up
            self.told(one.order_id, one.report)
        return {one.order_id for one in changes.orders}

    @asynccontextmanager
    async def listening(self) -> AsyncGenerator[None]:
        """Take in what the stream tells."""
        async with self.rig.venue.stream() as frames:
            hearing = asyncio.create_task(self._hear(frames))
            try:
                yield
            finally:
                hearing.cancel()
                await asyncio.wait([hearing])
            if not hearing.cancelled():
                hearing.result()

    async def _hear(self, frames: AsyncIterator[Update]) -> None:
        try:
            async for one in frames:
                self.told(one.order_id, one.report)
        except Transient:
            self.cuts += 1

    # What came of it

    def state(self, order_id: UUID) -> str:
        return self.orders[order_id].state

    def filled(self, order_id: UUID) -> Decimal:
        return filled(self.orders[order_id])

    async def hears(self, order_id: UUID, state: str, quantity: Any = None) -> None:
        """Wait until the stream has told so much."""
        wanted = (state, None if quantity is None else Decimal(quantity))

        def told() -> bool:
            return (self.state(order_id), None if quantity is None else self.filled(order_id)) == wanted

        await eventually(told)

    async def settles(self, order_id: UUID, state: str) -> None:
        """Wait until look-ups tell so much."""

        async def told() -> bool:
            return await self.look_up(order_id) == state

        await eventually(told)

    def fills(self) -> list[Fill]:
        return list(itertools.chain.from_iterable(fills(order) for order in self.orders.values()))

    def anomalies(self) -> set[str]:
        return {fact.code for fact in self.facts if isinstance(fact, Anomaly)}

    def illegal(self) -> list[IllegalTransition]:
        return [fact for fact in self.facts if isinstance(fact, IllegalTransition)]

    async def agrees(self) -> None:
        """Hold the venue's positions and cash against its executions."""
        await self.catch_up()
        changes = await self.rig.venue.changes(self.since)
        assert not any(fill.provisional for fill in self.fills())
        facts: list[PositionFact] = [*self.fills(), *changes.facts]
        book = rebuild(facts)
        held = {one.instrument.key: one.quantity for one in await self.rig.venue.positions()}
        assert held == {key: position.quantity for key, position in book.items() if position.quantity}
        balance = await self.rig.venue.balance()
        assert balance.cash == self.start + sum((position.cash for position in book.values()), ZERO)

    async def passes_checks(self, terms: Terms) -> None:
        """Hold the terms of a case against the rules that every order has to pass before it goes out."""
        rules = await self.rig.venue.rules([leg.instrument for leg in terms.legs])
        assert check(terms, self.capabilities, rules, datetime.now(UTC).date()) == ()


@asynccontextmanager
async def trading(rigs: Rigs) -> AsyncGenerator[Trader]:
    """Open a venue, and hold it at the end to what has to be true of every case."""
    async with rigs.open() as rig:
        for kind in rig.venue.capabilities.times.keys() - {"option"}:
            rig.quote(SAMPLES[kind].key, BID, ASK)
        trader = Trader(rig, (await rig.venue.balance()).cash)
        yield trader
        assert not trader.illegal()
        assert not trader.anomalies() & NEVER
        assert not trader.strangers
        await trader.agrees()


def case(number: str) -> Callable[[Callable[[Trader], Awaitable[None]]], Callable[[Rigs], Awaitable[None]]]:
    """Let a test show a case at each venue that can do it."""
    found = CASES[number]

    def mark(test: Callable[[Trader], Awaitable[None]]) -> Callable[[Rigs], Awaitable[None]]:
        @pytest.mark.parametrize("rigs", [_row(one) for one in VENUES])
        async def shown(rigs: Rigs) -> None:
            async with trading(rigs) as trader:
                await test(trader)

        shown.__name__ = shown.__qualname__ = test.__name__
        return shown

    def _row(rigs: Rigs) -> Any:
        why = reason_to_skip(found, rigs.adapter.capabilities, rigs.lacks)
        return pytest.param(rigs, id=f"{number}-{rigs.name}", marks=[pytest.mark.skip(reason=why)] if why else [])

    return mark

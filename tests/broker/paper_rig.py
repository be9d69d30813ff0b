"""The paper venue for the conformance cases: the product itself over Postgres, and a hand on its market.

The faults of a line, which the paper venue does not have, are put around it. Quotes of the rig show no size, so that
nothing is filled by them; `fill` shows one order as much as it is to get.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Final, Literal, TypeVar
from uuid import UUID

import asyncpg

from services.broker.adapters.paper.adapter import PaperAdapter, PaperVenue
from services.broker.domain.checks import TradeRules
from services.broker.domain.desk import Desk
from services.broker.domain.instruments import Instrument, instrument, option
from services.broker.domain.matching import Book, Model
from services.broker.domain.orders import ZERO, Leg, Order, Report
from services.broker.domain.tickets import CAPABILITIES, Rules
from services.broker.ports import Account, Adapter, Balance, Changes, Held, Update, Venue
from shared.db import Database
from shared.errors import Transient
from shared.settings import SharedSettings
from shared.work import Busy, OutcomeUnknown
from tests.conftest import eventually

T = TypeVar("T")
ACCOUNT: Final = Account(UUID(int=7), UUID(int=1), "paper", "paper")
_PLAIN: Final = Model()
_SLOW: Final = Model(latency=timedelta(hours=1))
_NOTHING: Final = Decimal(0)


def _always_open(now: datetime) -> tuple[datetime, datetime]:
    return now - timedelta(hours=1), now + timedelta(hours=6)


def _options(today: datetime) -> list[Instrument]:
    """Return calls of the Friday a month ahead, for cases that trade options."""
    later = today.date() + timedelta(days=30)
    friday = later + timedelta(days=(4 - later.weekday()) % 7)
    return [option("AAPL", friday, "C", Decimal(strike)) for strike in (100, 110)]


class PaperRig:
    """One account at the paper venue."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.ahead = timedelta()
        self.adapter = self._adapter(_PLAIN)
        self.line = Line(self, self.adapter.open(ACCOUNT, {}))
        self.venue: Venue = self.line
        self.prices: dict[str, tuple[Decimal, Decimal]] = {}
        self.pending: list[tuple[Instrument, Book]] = []
        self.lost: Literal["request", "answer"] | None = None
        self.limited = 0
        self.held = False
        self.refusal: str | None = None
        self._submits: list[UUID] = []
        self._told_at = datetime.min.replace(tzinfo=UTC)

    def now(self) -> datetime:
        """Return the venue's time, which never stands still."""
        self._told_at = max(datetime.now(UTC) + self.ahead, self._told_at + timedelta(microseconds=1))
        return self._told_at

    def _adapter(self, model: Model) -> PaperAdapter:
        return PaperAdapter(self.database, self.now, Rules(_always_open, model), poll_s=0.05)

    async def start(self) -> None:
        """Open the market."""
        self.quote("AAPL", Decimal("100.00"), Decimal("100.02"))
        for of in _options(datetime.now(UTC)):
            self.quote(of.key, Decimal("4.90"), Decimal("5.00"))
        await self.settle()

    async def reopen(self) -> None:
        """Start again, as a process does."""
        await self.close()
        self.adapter = self._adapter(_PLAIN)
        self.venue = self.line = Line(self, self.adapter.open(ACCOUNT, {}))

    async def close(self) -> None:
        """End it."""
        await self.venue.close()
        await self.adapter.close()

    # The market

    def quote(self, symbol: str, bid: Decimal, ask: Decimal) -> None:
        self.prices[symbol] = (bid, ask)
        self.pending.append((instrument(symbol), Book(bid, ask, self.now(), _NOTHING, _NOTHING)))

    async def settle(self) -> None:
        """Let the venue hear the quotes."""
        quotes, self.pending = self.pending, []
        async with self.database.transaction() as tx:
            await self.adapter.quoted(quotes, tx)

    async def fill(self, order_id: UUID, quantity: Decimal, price: Decimal) -> str:
        def show(desk: Desk, now: datetime) -> None:
            legs = desk.tickets[order_id].working.terms.legs
            for leg, each in zip(legs, _prices(legs, price), strict=True):
                sizes = (_NOTHING, quantity * leg.ratio)[:: 1 if leg.side == "buy" else -1]
                desk.books[leg.instrument.key] = Book(each, each, now, *sizes)
                desk.taken.add(leg.instrument.key)
            desk.quoted([legs[0].instrument.key], now)

        desk = await self._at_the_desk(order_id, show)
        done = [one for _, one in desk.executions]
        wanted = [quantity * leg.ratio for leg in desk.tickets[order_id].working.terms.legs]
        assert [one.quantity for one in done] == wanted, "the order does not allow that fill"
        return done[0].id

    async def bust(self, order_id: UUID, execution_id: str) -> None:
        """It takes nothing back: see `lacks`."""

    async def end(self, order_id: UUID, kind: Literal["canceled", "expired", "rejected"]) -> None:
        await self._at_the_desk(order_id, lambda desk, now: desk.end(desk.tickets[order_id], kind, now, "by the rig"))

    async def _at_the_desk(self, order_id: UUID, deed: Callable[[Desk, datetime], object]) -> Desk:
        """Do something with one order as the venue does it; no other order sees it."""
        await self.settle()
        async with self.database.transaction() as tx:
            now, desk = self.now(), Desk(self.adapter.rules)
            await self.adapter.tables.lock(tx, ["AAPL", "BTC/USD"])
            await self.adapter.tables.load_tickets(tx, desk, [order_id])
            await self.adapter.load(tx, desk)
            assert desk.tickets[order_id].state == "accepted", "it is over already"
            deed(desk, now)
            await self.adapter.save(tx, desk, now)
        return desk

    # Faults

    def refuse_next(self, reason: str) -> None:
        self.refusal = reason

    def lose_next(self, what: Literal["request", "answer"]) -> None:
        self.lost = what

    def limit_next(self, times: int = 1) -> None:
        self.limited = times

    def hold_cancels(self) -> None:
        self.held = True

    def drop_stream(self) -> None:
        self.line.drop()

    def lose_frames(self, count: int) -> None:
        self.line.to_lose = count

    async def repeat_fill(self) -> None:
        await eventually(lambda: self.line.last_fill is not None)
        self.line.repeat()

    def skew(self, seconds: float) -> None:
        self.ahead = timedelta(seconds=seconds)
        self._told_at = datetime.now(UTC) + self.ahead

    def submits(self) -> list[UUID]:
        return list(self._submits)

    # What a request does

    async def ask(self, call: Callable[[], Awaitable[T]]) -> T:
        """Let a request come in."""
        await self.settle()
        if self.limited:
            self.limited -= 1
            raise Busy("too many requests", retry_after_s=1)
        return await call()

    async def write(self, call: Callable[[], Awaitable[T]]) -> T:
        """Let a request that changes something come in, unless it or its answer is lost."""
        lost, self.lost = self.lost, None
        if lost == "request":
            raise OutcomeUnknown("the venue did not answer")
        try:
            done = await self.ask(call)
        finally:
            await self._count()
        if lost == "answer":
            raise OutcomeUnknown("the venue did not answer")
        return done

    async def _count(self) -> None:
        connection = await asyncpg.connect(self.database.url, server_settings={"search_path": "broker"})
        try:
            rows = await connection.fetch(
                "select id from paper_orders where replaces is null and reason is distinct from 'by the rig' "
                "and state <> 'rejected' or reason = 'by the rig' order by came_at"
            )
        finally:
            await connection.close()
        self._submits = [row["id"] for row in rows]

    async def submit(self, order: Order) -> Report:
        reason, self.refusal = self.refusal, None
        if reason is None and order.terms.time_in_force in {"ioc", "fok"}:
            return await self._submit_to_a_deep_market(order)
        if reason is None:
            return await self.adapter.open(ACCOUNT, {}).submit(order)
        halted = {leg.instrument.key: reason for leg in order.terms.legs}
        other = PaperAdapter(self.database, self.now, replace(self.adapter.rules, halted=halted))
        return await other.open(ACCOUNT, {}).submit(order)

    async def _submit_to_a_deep_market(self, order: Order) -> Report:
        """Let an order that does not wait meet all that it asks for, since nobody can fill it afterwards."""
        symbols = [leg.instrument.key for leg in order.terms.legs]
        self.pending += [(instrument(one), Book(*self.prices[one], self.now())) for one in symbols]
        await self.settle()
        try:
            return await self.adapter.open(ACCOUNT, {}).submit(order)
        finally:
            for one in symbols:
                self.quote(one, *self.prices[one])

    def patient(self) -> PaperVenue:
        """Return the venue, once as one that takes its time when cancels are held."""
        held, self.held = self.held, False
        return (self._adapter(_SLOW) if held else self.adapter).open(ACCOUNT, {})


class Line:
    """The venue at the end of a line that has faults."""

    capabilities = CAPABILITIES
    knows_ids = True

    def __init__(self, rig: PaperRig, venue: PaperVenue) -> None:
        self._rig = rig
        self._venue = venue
        self._out: list[asyncio.Queue[Update | Transient]] = []
        self.to_lose = 0
        self.last_fill: Update | None = None

    async def rules(self, instruments: Collection[Instrument]) -> Mapping[str, TradeRules]:
        return await self._rig.ask(lambda: self._venue.rules(instruments))

    async def submit(self, order: Order) -> Report:
        return await self._rig.write(lambda: self._rig.submit(order))

    async def cancel(self, order: Order) -> Report | None:
        return await self._rig.write(lambda: self._rig.patient().cancel(order))

    async def replace(self, order: Order, by: Order) -> Report | None:
        return await self._rig.write(lambda: self._rig.patient().replace(order, by))

    async def look_up(self, order: Order) -> Report:
        return await self._rig.ask(lambda: self._venue.look_up(order))

    async def changes(self, since: datetime) -> Changes:
        return await self._rig.ask(lambda: self._venue.changes(since))

    async def positions(self) -> Sequence[Held]:
        return await self._rig.ask(self._venue.positions)

    async def balance(self) -> Balance:
        return await self._rig.ask(self._venue.balance)

    @asynccontextmanager
    async def stream(self) -> AsyncGenerator[AsyncIterator[Update]]:
        await self._rig.settle()
        out: asyncio.Queue[Update | Transient] = asyncio.Queue()
        async with self._venue.stream() as frames:
            self._out.append(out)
            passing = asyncio.create_task(self._pass_on(frames, out))
            try:
                yield _told(out)
            finally:
                passing.cancel()
                await asyncio.gather(passing, return_exceptions=True)
                if out in self._out:
                    self._out.remove(out)

    async def _pass_on(self, frames: AsyncIterator[Update], out: asyncio.Queue[Update | Transient]) -> None:
        async for one in frames:
            if one.report.executions:
                self.last_fill = one
            if self.to_lose and one.report.executions:  # what was told before may still be on its way
                self.to_lose -= 1
            elif out in self._out:
                out.put_nowait(one)

    def drop(self) -> None:
        for out in self._out:
            out.put_nowait(Transient("the stream was cut"))
        self._out.clear()

    def repeat(self) -> None:
        for out in self._out:
            assert self.last_fill is not None
            out.put_nowait(self.last_fill)

    async def close(self) -> None:
        await self._venue.close()


async def _told(out: asyncio.Queue[Update | Transient]) -> AsyncIterator[Update]:
    while True:
        one = await out.get()
        if isinstance(one, Transient):
            raise one
        yield one


def _prices(legs: Sequence[Leg], price: Decimal) -> list[Decimal]:
    """All legs but the first go at 1.00."""
    rest = sum((Decimal(leg.ratio if leg.side == legs[0].side else -leg.ratio) for leg in legs[1:]), ZERO)
    return [(price - rest) / legs[0].ratio, *(Decimal(1) for _ in legs[1:])]


class PaperRigs:
    """Opens the paper venue over the database of `url`, which tests/broker/conftest.py gives for each case."""

    name = "paper"
    lacks = frozenset({"late-fill", "busted"})  # what is over is over

    def __init__(self) -> None:
        self.url = ""
        self.adapter: Adapter = PaperAdapter(
            Database("postgresql://", schema="broker"), datetime.now, Rules(_always_open)
        )

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[PaperRig]:
        url = SharedSettings(database_url=self.url).service_database_url("broker")
        database = Database(url, schema="broker", size=8)
        rig = PaperRig(database)
        await rig.start()
        try:
            yield rig
        finally:
            await rig.close()
            await database.close()

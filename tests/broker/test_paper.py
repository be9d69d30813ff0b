"""The paper venue over Postgres: submits, quotes, the stream, restarts, two replicas, ids that come twice."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest

from services.broker.adapters.paper.adapter import PaperAdapter, PaperVenue
from services.broker.domain.instruments import Instrument, instrument
from services.broker.domain.lifecycle import apply
from services.broker.domain.matching import Book, Model
from services.broker.domain.orders import Leg, Order, Report, Side, Terms
from services.broker.domain.positions import Expiry, Fill
from services.broker.domain.tickets import Rules
from services.broker.ports import Account, Update, VenueRefused
from shared.db import Database
from shared.errors import Transient
from shared.work import OutcomeUnknown
from tests.conftest import ManualClock, eventually

T0 = datetime(2026, 11, 20, 15, 0, tzinfo=UTC)
AAPL = instrument("AAPL")
CALL, HIGHER = instrument("AAPL261120C00090000"), instrument("AAPL261120C00110000")
FREE = Model(fee_a_contract=Decimal(0))
OpenDatabase = Callable[[str], Database]


def hours(now: datetime) -> tuple[datetime, datetime]:
    day = now.replace(hour=14, minute=30, second=0, microsecond=0)
    if now >= day.replace(hour=21, minute=0):
        day += timedelta(days=1)
    return day, day.replace(hour=21, minute=0)


class Desk:
    """A replica of the venue, and a hand on the market."""

    def __init__(self, database: Database, clock: ManualClock | None = None, model: Model = FREE) -> None:
        self.clock = clock or ManualClock(T0)
        self.database = database
        self.adapter = PaperAdapter(database, self.clock, Rules(hours, model), poll_s=0.05)

    def venue(self, account: int = 7) -> PaperVenue:
        return self.adapter.open(Account(UUID(int=account), UUID(int=1), "paper", "paper"), {})

    async def quote(self, of: Instrument, bid: Any, ask: Any, size: Any = None, at: datetime | None = None) -> None:
        self.clock.advance(0.001)
        size = None if size is None else Decimal(size)
        async with self.database.transaction() as tx:
            book = Book(Decimal(bid), Decimal(ask), at or self.clock(), size, size)
            await self.adapter.quoted([(of, book)], tx)


@pytest.fixture
async def desk(open_database: OpenDatabase) -> Any:
    made = Desk(open_database("broker"))
    await made.quote(AAPL, 100, 100)
    yield made
    await made.adapter.close()


def order(quantity: Any = 10, side: Side = "buy", of: Instrument = AAPL, account: int = 7, **changes: Any) -> Order:
    given: dict[str, Any] = {"legs": (Leg(of, side),), "type": "market", "time_in_force": "day", **changes}
    return Order(uuid4(), UUID(int=account), "paper", Terms(quantity=Decimal(quantity), **given))


def limit(price: Any, quantity: Any = 10, side: Side = "buy", **changes: Any) -> Order:
    return order(quantity, side, type="limit", limit=Decimal(price), **changes)


async def held(venue: PaperVenue) -> dict[str, Decimal]:
    return {one.instrument.key: one.quantity for one in await venue.positions()}


async def test_a_submit_is_filled_at_once_and_everything_knows_it(desk: Desk):
    venue, one = desk.venue(), order()
    report = await venue.submit(one)
    assert (report.kind, [done.price for done in report.executions]) == ("filled", [100])
    found = await venue.look_up(one)
    assert (found.kind, found.looked_up, found.executions) == ("filled", True, report.executions)
    changes = await venue.changes(T0)
    assert [(told.order_id, told.report) for told in changes.orders] == [(one.id, found)]
    assert await held(venue) == {"AAPL": 10}
    balance = await venue.balance()
    assert (balance.cash, balance.buying_power) == (99_000, 99_000)


async def test_an_account_begins_with_the_usual_sum_unless_said_otherwise(desk: Desk):
    async with desk.database.transaction() as tx:
        await desk.adapter.open_account(tx, UUID(int=8), Decimal(500))
    assert (await desk.venue(7).balance()).cash == 100_000
    assert (await desk.venue(8).balance()).cash == 500
    assert (await desk.venue(8).submit(order(account=8))).kind == "rejected"


async def test_credentials_and_live_accounts_are_refused(desk: Desk):
    with pytest.raises(VenueRefused):
        desk.adapter.open(Account(UUID(int=1), UUID(int=1), "paper", "live"), {})
    with pytest.raises(VenueRefused):
        desk.adapter.open(Account(UUID(int=1), UUID(int=1), "paper", "paper"), {"key": "x"})


async def test_rules_are_known_of_what_was_quoted(desk: Desk):
    rules = await desk.venue().rules([AAPL, instrument("MSFT")])
    assert rules.keys() == {"AAPL"}
    assert rules["AAPL"].tradable


async def test_an_id_that_comes_twice_has_one_effect_also_when_both_come_at_once(desk: Desk):
    venue, one = desk.venue(), order()
    answers = await asyncio.gather(*(venue.submit(one) for _ in range(5)), return_exceptions=True)
    assert sum(isinstance(answer, OutcomeUnknown) for answer in answers) == 4
    with pytest.raises(OutcomeUnknown):
        await venue.submit(one)
    assert await held(venue) == {"AAPL": 10}


async def test_two_replicas_race_and_no_share_and_no_dollar_is_lost(open_database: OpenDatabase):
    one, other = Desk(open_database("broker")), Desk(open_database("broker"))
    await one.quote(AAPL, 100, 100)
    orders = [order(1, account=7 + number % 3) for number in range(120)]
    venues = {(at, account): at.venue(account) for at in (one, other) for account in (7, 8, 9)}

    async def send(at: Desk, queue: list[Order]) -> None:
        while queue:
            one = queue.pop()
            with suppress(OutcomeUnknown):
                await venues[at, one.account_id.int].submit(one)

    async def move(at: Desk) -> None:
        for price in range(90, 110):
            await at.quote(AAPL, price, price)

    lists = ((one, list(orders)), (other, orders[::-1]))  # they meet in the middle, where both send the same
    await asyncio.gather(*(send(at, queue) for at, queue in lists for _ in range(4)), move(one), move(other))
    for account in (7, 8, 9):
        venue = one.venue(account)
        done = [fill for told in (await venue.changes(T0)).orders for fill in told.report.executions]
        assert await held(venue) == {"AAPL": 40}
        assert len(done) == 40
        assert (await venue.balance()).cash == 100_000 - sum(fill.quantity * fill.price for fill in done)
    for at in (one, other):
        await at.adapter.close()


async def test_a_quote_fills_what_waits_for_it_and_a_late_one_is_ignored(desk: Desk):
    venue, one, high = desk.venue(), limit(95), limit(120, side="sell")
    await venue.submit(one)
    await venue.submit(high)
    assert (await venue.balance()).buying_power == 100_000 - 950 - 1200
    await desk.quote(AAPL, 90, 90, at=T0 - timedelta(seconds=1))
    assert (await venue.look_up(one)).kind == "accepted"
    await desk.quote(AAPL, 94, 95, size=4)
    part = await venue.look_up(one)
    assert (part.kind, [done.quantity for done in part.executions]) == ("accepted", [4])
    await desk.quote(AAPL, 94, 95)
    assert (await venue.look_up(one)).kind == "filled"
    assert (await venue.look_up(high)).kind == "accepted"


async def test_what_one_order_took_of_a_quote_is_gone_for_the_next(desk: Desk):
    await desk.quote(AAPL, 100, 100, size=15)
    reports = [await desk.venue().submit(order()) for _ in range(3)]
    assert [sum(done.quantity for done in report.executions) for report in reports] == [10, 5, 0]


async def test_a_quote_that_the_caller_takes_back_never_was(desk: Desk):
    venue, one = desk.venue(), limit(95)
    await venue.submit(one)
    with suppress(ZeroDivisionError):
        async with desk.database.transaction() as tx:
            await desk.adapter.quoted([(AAPL, Book(Decimal(90), Decimal(90), T0 + timedelta(seconds=1)))], tx)
            raise ZeroDivisionError
    assert (await venue.look_up(one)).kind == "accepted"
    assert (await venue.balance()).cash == 100_000


async def test_everything_survives_a_restart_in_the_middle(open_database: OpenDatabase):
    before = Desk(open_database("broker"))
    await before.quote(AAPL, 100, 100)
    working, trailing = limit(95), order(side="sell", type="trailing_stop", trail_amount=Decimal(5))
    await before.venue().submit(order())
    for one in (working, trailing):
        await before.venue().submit(one)
    await before.quote(AAPL, 110, 110)
    await before.quote(AAPL, 94, 120, size=0)
    await before.adapter.close()
    await before.database.close()

    after = Desk(open_database("broker"), before.clock)
    venue = after.venue()
    with pytest.raises(OutcomeUnknown):
        await venue.submit(working)
    await after.quote(AAPL, 95, 95)
    kinds = [(await venue.look_up(one)).kind for one in (working, trailing)]
    assert kinds == ["filled", "filled"]
    assert await held(venue) == {"AAPL": 10}
    assert (await venue.balance()).cash == 100_000 - 1000
    assert (await venue.balance()).buying_power == 100_000 - 1000
    await after.adapter.close()


async def test_the_stream_tells_in_order_what_happens_from_now_on_also_at_another_replica(open_database: OpenDatabase):
    one, other = Desk(open_database("broker")), Desk(open_database("broker"))
    await one.quote(AAPL, 100, 100)
    await one.venue().submit(order())
    heard: list[Update] = []
    first, second = limit(95), order()
    async with other.venue().stream() as frames:

        async def listen() -> None:
            async for frame in frames:
                heard.append(frame)  # noqa: PERF401 - what was heard before the end counts too

        task = asyncio.create_task(listen())
        answer = await one.venue().submit(first)
        await other.venue().submit(second)
        await other.venue(8).submit(order(account=8))
        await one.quote(AAPL, 95, 95)
        await eventually(lambda: len(heard) == 4)
        await other.adapter.close()
        with pytest.raises(Transient):
            await task
    told = [(frame.order_id, frame.report.kind) for frame in heard]
    assert told == [(first.id, "accepted"), (second.id, "accepted"), (second.id, "filled"), (first.id, "filled")]
    assert heard[0].report == answer, "an order that was taken is told once, whichever comes first"
    assert heard[3].report.executions == (await one.venue().look_up(first)).executions
    await one.adapter.close()


async def test_cancels_and_replacements(desk: Desk):
    venue, one, by = desk.venue(), limit(95), limit(96)
    await venue.submit(one)
    swapped = await venue.replace(one, by)
    assert swapped is not None
    assert (swapped.kind, swapped.replaced_by) == ("replaced", by.id)
    with pytest.raises(OutcomeUnknown):
        await venue.replace(one, by)
    assert (await venue.look_up(one)).replaced_by == by.id
    canceled = await venue.cancel(by)
    assert canceled is not None
    assert canceled.kind == "canceled"
    again = await venue.cancel(by)
    assert again is not None
    assert (again.kind, again.looked_up) == ("canceled", False)
    late = await venue.replace(by, limit(97))
    assert late is not None
    assert late.kind == "replace_rejected"
    never = await venue.cancel(limit(1))
    assert never is not None
    assert never.kind == "cancel_rejected"
    assert (await venue.balance()).buying_power == 100_000
    assert (await venue.look_up(limit(1))).kind == "not_found"


async def test_an_order_that_filled_more_than_was_known_is_not_replaced(desk: Desk):
    venue, one = desk.venue(), limit(95)
    await venue.submit(one)
    await desk.quote(AAPL, 95, 95, size=4)
    early = await venue.replace(one, limit(96, 10))
    assert early is not None
    assert early.kind == "replace_rejected"
    assert await held(venue) == {"AAPL": 4}
    known = apply(apply(one, Report("submit_sent")).order, await venue.look_up(one)).order
    swapped = await venue.replace(known, limit(94, 6))
    assert swapped is not None
    assert swapped.kind == "replaced"


async def test_the_clock_ends_latencies_and_day_orders(open_database: OpenDatabase):
    slow = Desk(open_database("broker"), model=Model(latency=timedelta(seconds=2)))
    await slow.quote(AAPL, 100, 100)
    venue, one, day, gone, by = slow.venue(), order(), limit(50), limit(50), limit(60)
    for each in (one, day, gone):
        assert (await venue.submit(each)).kind == "accepted"
    assert await venue.cancel(gone) is None
    assert await venue.replace(day, by) is None
    assert (await venue.look_up(by)).kind == "not_found"
    assert await slow.adapter.tick() == 0
    slow.clock.advance(2)
    assert await slow.adapter.tick() == 4
    assert [(await venue.look_up(each)).kind for each in (one, day, gone, by)] == [
        "filled",
        "replaced",
        "canceled",
        "accepted",
    ]
    slow.clock.advance(6 * 3600)
    assert await slow.adapter.tick() == 1
    assert (await venue.look_up(by)).kind == "expired"
    assert await slow.adapter.tick() == 0
    await slow.adapter.close()


async def test_options_expire_once_by_the_close_and_are_told_as_facts(desk: Desk):
    venue = desk.venue()
    for of in (CALL, HIGHER):
        await desk.quote(of, 3, 3)
        await venue.submit(order(1, of=of))
    resting = limit(1, 1, of=HIGHER)
    await venue.submit(resting)
    desk.clock.advance(6 * 3600)
    facts = await desk.adapter.expire(T0.date(), {"AAPL": Decimal(100)})
    assert await desk.adapter.expire(T0.date(), {"AAPL": Decimal(100)}) == []
    assert sorted(type(fact).__name__ for _, fact in facts) == ["Expiry", "Expiry", "Fill"]
    told = (await venue.changes(T0)).facts
    assert {fact.id: fact for fact in told} == {fact.id: fact for _, fact in facts}
    assert all(isinstance(fact, Expiry | Fill) for fact in told)
    assert await held(venue) == {"AAPL": 100}
    assert (await venue.balance()).cash == 100_000 - 600 - 9000
    assert (await venue.look_up(resting)).kind == "expired"

"""Reconciliation: what is believed of a venue, when, and that it goes on whatever a venue answers."""

import asyncio
from datetime import timedelta
from decimal import Decimal
from uuid import UUID

import pytest

from services.broker.domain.instruments import instrument
from services.broker.domain.orders import Report
from services.broker.ports import Balance, Held
from services.broker.store.accounts import AccountStore
from services.broker.store.orders import OrderStore
from tests.broker.brokerage import NOW, Brokerage, opened
from tests.conftest import eventually
from tests.fakes.venue import MemoryVenue
from tests.fakes.venue_books import Manner

D = Decimal


class SlowVenue(MemoryVenue):
    """Takes five seconds to tell its positions."""

    def __init__(self, brokerage: Brokerage, account_id: UUID) -> None:
        super().__init__(brokerage.desk(account_id))
        self._brokerage = brokerage

    async def positions(self) -> list[Held]:
        self._brokerage.clock.advance(5)
        return await super().positions()


async def test_the_money_is_as_old_as_the_question_and_an_older_answer_changes_nothing(brokerage: Brokerage) -> None:
    account = await brokerage.account()
    venue = SlowVenue(brokerage, account)
    await brokerage.monitors._reconcile.run(await brokerage.account_of(account), venue)
    asked = "select balance_at, cash from accounts where id = :id"
    (before,) = await brokerage.rows(asked, id=account)
    assert before["balance_at"] == NOW
    async with brokerage.service.db.transaction() as tx:
        await AccountStore().balance(tx, account, Balance(D(1), D(1)), NOW - timedelta(seconds=1))
    assert await brokerage.rows(asked, id=account) == [before]


async def test_a_difference_beside_a_working_order_is_believed_only_when_it_stays(brokerage: Brokerage) -> None:
    account = await brokerage.account()
    desk = brokerage.desk(account)
    await brokerage.place(account, quantity=10)
    await brokerage.reconcile(account)
    brokerage.clock.advance(60)
    desk.drift(instrument("AAPL"), D(4))  # its positions tell of a fill before its executions do
    desk.drift(instrument("MSFT"), D(2))
    await brokerage.reconcile(account)
    assert await brokerage.held(account) == {"MSFT": D(2)}
    brokerage.clock.advance(31)
    await brokerage.reconcile(account)
    assert await brokerage.held(account) == {"AAPL": D(4), "MSFT": D(2)}


async def test_a_fill_that_is_told_after_the_position_is_booked_once(brokerage: Brokerage) -> None:
    account = await brokerage.account()
    desk = brokerage.desk(account)
    order = await brokerage.place(account, quantity=10)
    await brokerage.reconcile(account)
    desk.drift(instrument("AAPL"), D(4))
    assert not await _reconciled(brokerage, account)
    desk.drift(instrument("AAPL"), D(0))
    await desk.fill(order, D(4), D(100))
    assert await _reconciled(brokerage, account)
    assert await brokerage.held(account) == {"AAPL": D(4)}
    assert await brokerage.rows("select 1 from flags") == []


async def _reconciled(brokerage: Brokerage, account_id: UUID) -> bool:
    account = await brokerage.account_of(account_id)
    return await brokerage.monitors._reconcile.run(account, await brokerage.monitors._venues.of(account))


async def test_what_a_venue_tells_again_and_again_is_flagged_and_told_once(brokerage: Brokerage) -> None:
    account = await brokerage.account()
    order = await brokerage.place(account, quantity=10)
    version = (await brokerage.order(order))["version"]
    for _ in range(3):
        async with brokerage.service.db.transaction() as tx:
            found = await OrderStore().get(tx, order)
            assert found is not None
            orders, owner = brokerage.monitors._reconcile._orders, await brokerage.account_of(account)
            _, told = await orders.report(tx, owner, found, Report("submit_sent"))
            brokerage.told += [(event.type, {}) for event in told]
    assert len(brokerage.events("broker.order.flagged.v1")) == 1
    assert len(await brokerage.rows("select 1 from flags")) == 1
    assert (await brokerage.order(order))["version"] == version


@pytest.mark.parametrize("answer_is_lost", [False, True])
async def test_an_order_that_arrives_after_it_was_given_up_is_canceled_and_flagged(
    database_url: str, *, answer_is_lost: bool
) -> None:
    async with opened(database_url, Manner(knows_ids=False)) as brokerage:
        account = await brokerage.account()
        desk = brokerage.desk(account)
        desk.lose_next("request")
        order = await brokerage.place(account, quantity=10)
        await brokerage.settle(wholly=True)
        assert await brokerage.codes(order) == ["NOT_SENT"]
        async with brokerage.service.db.read() as tx:
            found = await OrderStore().get(tx, order)
        assert found is not None
        desk.place(found.order)
        if answer_is_lost:
            desk.lose_next("request")
        await brokerage.reconcile(account)
        await brokerage.settle(wholly=True)
        assert not desk.find(order).works
        assert [one["code"] for one in await brokerage.rows("select code from flags")] == ["STILL_WORKS"]


class Odd(RuntimeError):
    """Nobody foresaw it."""


async def test_a_venue_whose_answers_nobody_foresaw_is_asked_again_and_its_trouble_is_shown(
    brokerage: Brokerage,
) -> None:
    account = await brokerage.account()
    desk, monitors = brokerage.desk(account), brokerage.monitors
    desk.odd = Odd("an odd answer")
    running = asyncio.create_task(monitors.run())

    async def trouble() -> str | None:
        (row,) = await brokerage.rows("select trouble from accounts where id = :id", id=account)
        return row["trouble"]

    async def shown() -> bool:
        return await trouble() == "Odd"

    async def reconciled() -> bool:
        (row,) = await brokerage.rows("select checked_at from accounts where id = :id", id=account)
        return row["checked_at"] is not None and await trouble() is None

    try:
        await eventually(shown)
        desk.odd = None
        await eventually(reconciled)
        assert len(desk.listeners) == 1  # the stream went on
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


class Turnstile(asyncio.Semaphore):
    """Counts who has come to it."""

    came = 0

    async def acquire(self) -> bool:  # type: ignore[override]
        self.came += 1
        return await super().acquire()


async def test_accounts_are_reconciled_a_few_at_a_time(brokerage: Brokerage) -> None:
    monitors = brokerage.monitors
    accounts = [await brokerage.account() for _ in range(3)]
    monitors._reconciling = turnstile = Turnstile(0)
    running = asyncio.create_task(monitors.run())
    try:
        await eventually(lambda: turnstile.came == len(accounts))
        assert await brokerage.rows("select 1 from accounts where checked_at is not null") == []
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

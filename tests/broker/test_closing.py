"""Closing a position: what protects it is given up only for a close that goes out, as far as that can be known."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from decimal import Decimal
from uuid import UUID, uuid4

import pytest

from services.broker.store.books import BookStore
from services.broker.store.orders import OrderStore
from shared.contracts.broker import CloseRequested
from tests.broker.brokerage import USER, Brokerage
from tests.conftest import eventually

D = Decimal


async def held(brokerage: Brokerage) -> tuple[UUID, UUID]:
    """Hold ten shares with an order that protects them; return the account and that order."""
    account = await brokerage.account()
    bought = await brokerage.place(account, quantity=10)
    await brokerage.desk(account).fill(bought, D(10), D(100))
    await brokerage.reconcile(account)
    return account, await brokerage.place(account, quantity=10, side="sell", limit=D(101))


async def halt(brokerage: Brokerage) -> None:
    assert (await brokerage.ask("POST", "/broker/halt", {}))[0] == 204


async def grow_old(brokerage: Brokerage) -> None:
    brokerage.clock.advance(61)


@pytest.mark.parametrize(("before", "code"), [(halt, "USER_HALTED"), (grow_old, "NO_QUOTE")])
async def test_a_close_that_is_refused_anyway_cancels_nothing(
    brokerage: Brokerage, before: Callable[[Brokerage], Awaitable[None]], code: str
) -> None:
    account, protecting = await held(brokerage)
    await before(brokerage)
    closing = await brokerage.close_position(account)
    await brokerage.settle(wholly=True)
    assert (await brokerage.state(closing), await brokerage.codes(closing)) == ("rejected", [code])
    assert await brokerage.state(protecting) == "accepted"
    assert brokerage.events("broker.order.flagged.v1") == []


async def test_a_close_that_was_asked_for_long_ago_cancels_nothing(brokerage: Brokerage) -> None:
    account, protecting = await held(brokerage)
    await ask(brokerage, account, uuid4(), ago_s=61)
    await brokerage.settle()
    assert await brokerage.state(protecting) == "accepted"


async def test_a_close_that_is_refused_after_all_says_that_the_position_is_bare(brokerage: Brokerage) -> None:
    account, protecting = await held(brokerage)
    closing = uuid4()
    await ask(brokerage, account, closing)
    await halt(brokerage)
    await brokerage.settle(wholly=True)
    assert await brokerage.codes(closing) == ["USER_HALTED"]
    assert await brokerage.state(protecting) == "canceled"
    (told,) = brokerage.events("broker.order.flagged.v1")
    assert (told["order_id"], told["code"]) == (str(closing), "CLOSE_REFUSED")


async def test_a_close_that_the_venue_refuses_says_that_the_position_is_bare(brokerage: Brokerage) -> None:
    account, _ = await held(brokerage)
    brokerage.desk(account).refuse_next("not today")
    closing = await brokerage.close_position(account)
    await brokerage.settle(wholly=True)
    assert await brokerage.codes(closing) == ["VENUE_REJECTED"]
    assert [one["code"] for one in brokerage.events("broker.order.flagged.v1")] == ["CLOSE_REFUSED"]


async def test_a_close_that_comes_twice_is_one(brokerage: Brokerage) -> None:
    account, protecting = await held(brokerage)
    closing = uuid4()
    for _ in range(2):
        await ask(brokerage, account, closing)
        await brokerage.settle(wholly=True)
    assert await brokerage.state(protecting) == "canceled"
    assert brokerage.desk(account).submits().count(closing) == 1
    assert brokerage.events("broker.order.rejected.v1") == []


async def ask(brokerage: Brokerage, account: UUID, order: UUID, ago_s: float = 0) -> None:
    """Ask for a close that nobody sends yet."""
    at = brokerage.clock() - timedelta(seconds=ago_s)
    about = {"id": uuid4(), "time": at, "account_id": account, "user_id": USER}
    await brokerage.hear(CloseRequested(**about, order_id=order, symbol="AAPL"))  # type: ignore[arg-type]


async def test_a_close_waits_for_a_fill_without_keeping_the_position_from_it(brokerage: Brokerage) -> None:
    account, protecting = await held(brokerage)
    async with brokerage.service.db.transaction() as tx:
        await OrderStore().lock_all(tx, [protecting])  # as a fill of it does, which then books
        closing = asyncio.create_task(ask(brokerage, account, uuid4()))
        await eventually(lambda: _waits(brokerage))
        await BookStore().position(tx, account, "AAPL")
        assert not closing.done()
    await closing
    await brokerage.settle(wholly=True)
    assert await brokerage.state(protecting) == "canceled"


async def _waits(brokerage: Brokerage) -> bool:
    return bool(await brokerage.rows("select 1 from pg_locks where not granted"))
